"""The fit's parts that a wrong sign would not show in: what is left out, bounds, and which rows are set aside."""

from __future__ import annotations

import sys

import pytest

from benchmarks.speed_cases import ROOT, cases

np = pytest.importorskip("numpy")
sys.path.append(str(ROOT / "scripts"))

import import_speeds  # noqa: E402 scripts are not installed
import speed_features  # noqa: E402
import speed_fit  # noqa: E402
import speed_spread  # noqa: E402

from willitrun_catalog.find import find_model  # noqa: E402
from willitrun_estimator.families import FAMILIES  # noqa: E402

PUBLISHED = {
    "runtime": "llama.cpp", "backend": "CUDA", "gpu": "A100 SXM 80GB", "gpu_count": "1", "gpu_mem_gb": "80", "cpu": "",
    "ram_type": "", "model": "Llama-3-8B", "quant": "F16", "kv_type": "f16", "flash_attn": "0",
    "ngl_or_offload": "full (ngl 99)", "batch_concurrency": "1", "test": "pp", "n_tokens": "512", "depth": "0",
    "tok_s": "603.76", "source_url": "https://example.org", "source_date": "2024-05-12", "notes": "",
}  # fmt: skip


def rows_of(test, count=8, gpus=4):
    """Return made-up rows of one family whose times follow the model exactly."""
    fields = speed_features.DECODE_FIELDS if test == "tg" else speed_features.PREFILL_FIELDS
    rng = np.random.default_rng(7)
    features = rng.uniform(0.1, 1.0, (count * gpus, len(fields)))
    table = speed_fit.Table(features, np.zeros(count * gpus), families=["ada"] * (count * gpus), test=test)
    table.groups = np.repeat(np.arange(gpus), count)
    return table


@pytest.mark.parametrize("test", ["tg", "pp"])
def test_slopes_are_the_derivatives_of_the_times(test):
    table = rows_of(test)
    table.kinds = np.arange(len(table.kinds)) % len(speed_features.CLASSES)
    table.recurrent = np.arange(len(table.kinds)) % len(speed_features.RECURRENT_KINDS)
    for name in ("early", "vulkan", "ecc", "power", "overlap"):
        setattr(table, name, np.linspace(0, 0.6, len(table.kinds)))
    fit = speed_fit.Fit(speed_fit.Prior.of(test), table)
    x = fit.start + np.random.default_rng(3).normal(0, 0.05, len(fit.start))
    value, slopes = fit.model(fit.theta(x, table.kin, table.family), table)
    columns = fit.columns(slopes, table)
    for at in range(len(x)):
        moved = x.copy()
        moved[at] += 1e-6
        slope = (fit.predict(moved, table) - value) / 1e-6
        assert slope == pytest.approx(columns[:, at], abs=2e-4)


@pytest.mark.parametrize("test", ["tg", "pp"])
def test_what_is_left_out_is_predicted_by_the_others(test):
    table = rows_of(test)
    fit = speed_fit.Fit(speed_fit.Prior.of(test), table)
    table.log_time = fit.predict(fit.start, table) + np.where(table.groups == 2, 0.5, 0.0)
    found = fit.leave_out(fit.run(), rounds=8)
    kept = np.where(table.groups != 2)[0]
    out = np.where(table.groups == 2)[0]
    alone = fit.run(table.part(kept))
    assert found[out] == pytest.approx(fit.predict(alone, table.part(out)), abs=2e-3)
    assert np.median(table.log_time[out] - found[out]) == pytest.approx(0.5, abs=0.05)


def test_bounds_hold_the_share_they_say_and_little_rows_follow_their_parent():
    rng = np.random.default_rng(1)
    errors = np.concatenate([rng.normal(0, 0.1, 2000), rng.normal(0, 0.3, 2000), [2.0, 2.0]])
    groups = [("dense", "calm")] * 2000 + [("dense", "wild")] * 2000 + [("dense", "rare")] * 2
    found = speed_spread.bounds(errors, groups, ("dense",))
    for name, part in (("calm", errors[:2000]), ("wild", errors[2000:4000])):
        low, high = (found["dense"][at] + found[name][at] for at in (0, 1))
        assert np.mean((low <= part) & (part <= high)) == pytest.approx(0.82, abs=0.03)
    assert found["rare"][1] < 0.3
    assert speed_spread.plain(errors[:2000]).low == pytest.approx(0.88, abs=0.02)


def test_every_family_has_an_instruction_set_and_kin():
    assert set(speed_features.MATRIX_PER_FP32) == set(FAMILIES) == set(speed_fit.KIN) == set(speed_fit.PREFILL_KIN)


def test_prompts_slower_than_the_plain_pipes_are_set_aside():
    assert import_speeds.convert(PUBLISHED)["skip"] == "matrix units not used"
    for change in ({"tok_s": "7504.24"}, {"quant": "Q4_K_M"}, {"test": "tg"}, {"gpu": "P40", "gpu_mem_gb": "24"}):
        assert import_speeds.convert(PUBLISHED | change)["skip"] == ""


def test_delta_nets_count_from_when_they_have_a_kernel():
    row = PUBLISHED | {"model": "Qwen3.5-9B", "quant": "Q4_K_M", "tok_s": "3000"}
    assert import_speeds.convert(row | {"source_date": "2026-02-27"})["skip"] == "kernels before their merge"
    assert import_speeds.convert(row | {"source_date": "2026-03-01"})["skip"] == ""
    assert import_speeds.has_delta_net(find_model("kimi-linear").spec.name)
    assert not import_speeds.has_delta_net("llama-3-8b-instruct")
    assert not import_speeds.has_delta_net(None)


@pytest.mark.parametrize(("notes", "ubatch"), [("ubatch 2048", "2048"), ("n_batch 64", "64"), ("n_batch 1024", "")])
def test_a_batch_bounds_its_micro_batch(notes, ubatch):
    assert import_speeds.convert(PUBLISHED | {"notes": notes})["ubatch"] == ubatch


def test_rows_that_are_fitted_have_features():
    rows = [one for one in cases() if not one.skip and one.where == "gpu" and one.slots == 1][::97]
    families = speed_features.typical(rows)
    for one in rows:
        work = speed_features.Work(one.weights, one.settings)
        made = speed_features.decode_features if one.test == "tg" else speed_features.prefill_features
        assert min(made(one, families[one.family], work)) > -1e-12
