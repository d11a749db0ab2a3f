from __future__ import annotations

import pytest
from msgspec import structs

from tests.willitrun_here.calibrate.known import KNOWN, MACHINE, RUN
from willitrun_here.calibrate import store


def test_the_store_gives_back_what_it_was_given(tmp_path):
    assert store.read(MACHINE.shape_hash, tmp_path) is None
    path = store.write(KNOWN, tmp_path / "deep")
    assert store.read(MACHINE.shape_hash, tmp_path / "deep") == KNOWN
    assert path.name == "calibration-0123456789abcdef.json"
    assert store.remove(MACHINE.shape_hash, tmp_path / "deep")
    assert not store.remove(MACHINE.shape_hash, tmp_path / "deep")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"schema": 3}', b"\xff\xfe", b'{"shape_hash": "other"}'])
def test_a_broken_or_foreign_store_is_no_store(tmp_path, text):
    store.path_of(MACHINE.shape_hash, tmp_path).write_bytes(text)
    assert store.read(MACHINE.shape_hash, tmp_path) is None


def test_the_state_folder_can_be_named(monkeypatch, tmp_path):
    monkeypatch.setenv("WILLITRUN_STATE", str(tmp_path))
    assert store.store_folder() == tmp_path
    monkeypatch.delenv("WILLITRUN_STATE")
    assert store.store_folder().name == "willitrun-here"


def test_measurements_join_the_machine_they_were_made_on():
    found = store.with_measurements(MACHINE, KNOWN)
    assert found.memory.bandwidth_bytes_per_s == 40e9
    assert found.memory.sources["bandwidth_bytes_per_s"] == "micro-benchmark"
    assert [disk.read_bytes_per_s for disk in found.disks] == [2e9, None]
    assert (found.cpu.product_rates, found.cpu.block_s, found.cpu.side_s) == (KNOWN.product_rates, 4e-5, 2e-9)
    assert store.with_measurements(MACHINE, None) is MACHINE
    other = structs.replace(MACHINE, shape_hash="changed")
    assert store.with_measurements(other, KNOWN) is other
    without = structs.replace(KNOWN, ram_bandwidth_bytes_per_s=None)
    assert store.with_measurements(MACHINE, without).memory == MACHINE.memory


def test_a_newer_run_of_the_same_plan_replaces_the_older(tmp_path):
    store.write(KNOWN, tmp_path)
    newer = structs.replace(RUN, measured_tokens_per_s=36.0)
    other = structs.replace(RUN, quant="Q8_0")
    store.keep_runs(MACHINE.shape_hash, (newer, other), tmp_path)
    found = store.read(MACHINE.shape_hash, tmp_path)
    assert found.runs == (newer, other)
    assert found.ram_bandwidth_bytes_per_s == 40e9
    for rate in range(100):
        store.keep_runs(MACHINE.shape_hash, (structs.replace(RUN, quant=f"Q{rate}"),), tmp_path)
    assert len(store.read(MACHINE.shape_hash, tmp_path).runs) == store.MOST_RUNS
