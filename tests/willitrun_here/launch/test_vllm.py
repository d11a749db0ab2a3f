from __future__ import annotations

import json
import shlex
import sys

import msgspec
import pytest
from msgspec import structs

from willitrun_catalog.find import find_datasheet, find_model
from willitrun_estimator.device import Device, Devices, Host
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.families import family
from willitrun_estimator.request import Request
from willitrun_estimator.vllm.flags import unknown_flags
from willitrun_estimator.vllm.plan import vllm_plan
from willitrun_here.launch import sglang, vllm, vllm_documents, vllm_installed, vllm_nodes
from willitrun_here.launch.flags import NEWEST
from willitrun_here.launch.target import Target
from willitrun_here.launch.vllm_installed import Installed
from willitrun_probe.machine import Cpu, Engine, Gpu, Machine, Memory
from willitrun_probe.units import GIB

pyyaml = pytest.importorskip("yaml", reason="install PyYAML to read the files back: pip install pyyaml")

H100, T4, MI300X = "NVIDIA H100 SXM5 80 GB", "NVIDIA Tesla T4", "AMD Instinct MI300X"


def target(name="llama-3.1-8b", card=H100, count=1, *, spare=0, version="0.33", uuid="GPU-{}", source=None, **asked):
    sheet = find_datasheet(card)
    total = sheet.memory_usable_bytes or sheet.memory_bytes
    amd = sheet.vendor == "amd"
    gpus = tuple(
        Device(
            name=sheet.name, backend="rocm" if amd else "cuda",
            family=family(vendor=sheet.vendor, compute_capability=sheet.compute_capability,
                          gfx_target=sheet.gfx_target, name=sheet.name),
            memory_total_bytes=total, memory_free_bytes=total - GIB, bandwidth_bytes_per_s=sheet.bandwidth_bytes_per_s,
            flops_per_s=sheet.fp16_flops_per_s, compute_capability=sheet.compute_capability,
            gfx_target=sheet.gfx_target, uuid=uuid.format(i) if uuid else None, index=i,
        )
        for i in range(count)
    )  # fmt: skip
    host = Host(ram_total_bytes=GIB, ram_available_bytes=GIB, bandwidth_bytes_per_s=None, threads=8)
    spec = find_model(name).spec
    if source is not None:
        spec = structs.replace(spec, source=source)
    found = vllm_plan(spec, Devices(name="m", gpus=gpus, host=host), Request(**asked), version=version)
    machine = Machine(
        name="m",
        observed_at="2026-01-01T00:00:00Z",
        shape_hash="",
        gpus=tuple(
            Gpu(vendor=sheet.vendor, name=sheet.name, uuid=uuid.format(i) if uuid else None, index=i,
                compute_capability=sheet.compute_capability)
            for i in range(count + spare)
        ),
        cpu=Cpu(),
        memory=Memory(total_bytes=GIB, available_bytes=GIB),
    )  # fmt: skip
    assert found.plan is not None, found.fit.message
    return Target(plan=found.plan, spec=spec, machine=machine, flags=NEWEST, port=8000)


def option(argv, name):
    return argv[argv.index(name) + 1]


@pytest.mark.parametrize(
    ("name", "card", "count", "asked"),
    [
        ("llama-3.1-8b", H100, 1, {"quant": "bf16"}),
        ("llama-3.3-70b", H100, 4, {"tensor_parallel": 4}),
        ("llama-3.3-70b", "NVIDIA GeForce RTX 3090", 4, {"quant": "awq", "pipeline_parallel": 2, "tensor_parallel": 2}),
        ("qwen3-30b-a3b", H100, 4, {"quant": "fp8", "tensor_parallel": 4}),
        ("llama-3.1-8b", MI300X, 1, {"kv_type": "q8_0", "enforce_eager": True}),
        ("qwen3.5-9b", H100, 2, {"mode": "scale-out"}),
    ],
)
@pytest.mark.parametrize("version", [(0, 10), (0, 19), (0, 33)])
def test_every_flag_exists_in_the_version_it_is_written_for(name, card, count, asked, version):
    built = target(name, card, count, version=f"{version[0]}.{version[1]}", **asked)
    installed = Installed(program="vllm", version=version, release="x")
    for made in dict(vllm.commands(built, installed=installed)).values():
        assert shlex.split(made.shell)[-len(made.argv) :] == list(made.argv)
    without_docker = structs.replace(built, plan=structs.replace(built.plan, backend="xpu"))
    assert "docker" not in dict(vllm.commands(without_docker, installed=installed))
    assert unknown_flags(list(vllm.render(built, installed=installed).argv), version) == []


def test_the_command_says_everything_the_plan_says():
    built = target("llama-3.3-70b", count=4, quant="fp8", tensor_parallel=4, kv_type="fp8")
    made = vllm.render(built)
    plan = built.plan
    assert made.argv[:3] == ("vllm", "serve", "meta-llama/Llama-3.3-70B-Instruct")
    assert option(made.argv, "--tensor-parallel-size") == "4"
    assert option(made.argv, "--max-model-len") == str(plan.context_tokens)
    assert option(made.argv, "--gpu-memory-utilization") == f"{plan.gpu_memory_utilization:g}"
    assert int(option(made.argv, "--max-num-seqs")) % 8 == 0
    assert option(made.argv, "--kv-cache-dtype") == "fp8"
    assert option(made.argv, "--quantization") == "fp8"
    assert "--pipeline-parallel-size" not in made.argv
    assert made.env == {}
    assert "0.33" in made.notes[0]


def test_formats_of_their_own_are_named_and_native_ones_are_not_quantized_again():
    awq = vllm.render(target(quant="awq"))
    assert any("AWQ" in note for note in awq.notes)
    assert "--quantization" not in awq.argv
    for name in ("gpt-oss-20b", "deepseek-v2-lite"):
        native = vllm.render(target(name, quant=None))
        assert not any("of its own" in note for note in native.notes)
    ready = vllm.render(target("deepseek-v3", "NVIDIA H200 SXM 141 GB", 8))
    assert "--quantization" not in ready.argv


def test_models_come_from_a_repository_a_folder_or_the_catalog():
    assert vllm.render(target(source="hf:Qwen/Qwen3-8B", quant="bf16")).argv[2] == "Qwen/Qwen3-8B"
    folder = target(source="/models/llama")
    assert vllm.render(folder).argv[2] == "/models/llama"
    inside = vllm.docker(folder).argv
    assert "/models/llama:/model:ro" in inside
    assert option(inside, "--model") == "/model"
    nameless = target()
    nameless = structs.replace(nameless, spec=structs.replace(nameless.spec, hf_id=None))
    assert vllm.model(nameless) == nameless.spec.name


def test_cards_without_bfloat16_run_in_half_precision():
    assert option(vllm.render(target("qwen2.5-7b", T4, quant="awq")).argv, "--dtype") == "half"
    assert "--dtype" not in vllm.render(target()).argv


def test_only_the_planned_gpus_are_visible():
    spared = target(spare=1)
    assert vllm.render(spared).env == {"CUDA_VISIBLE_DEVICES": "GPU-0"}
    old = Installed(program="vllm", version=(0, 19), release="0.19.0")
    assert vllm.render(spared, installed=old).env == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0"}
    slice_of = target(spare=1, uuid="MIG-{}")
    assert vllm.render(slice_of, installed=old).env == {"CUDA_VISIBLE_DEVICES": "MIG-0"}
    assert vllm.render(target(spare=1, uuid=None)).env["CUDA_VISIBLE_DEVICES"] == "0"
    assert vllm.render(target(card=MI300X, spare=1)).env == {"HIP_VISIBLE_DEVICES": "0"}


def test_gpus_of_rocm_are_counted_by_bus_among_those_the_kernel_has():
    built = target(card=MI300X, count=1, spare=1)
    first, second = built.machine.gpus
    lower = structs.replace(first, uuid="GPU-x", index=1, pci_address="0000:01:00.0", vendor="amd")
    planned = structs.replace(first, pci_address="0000:41:00.0")
    other = structs.replace(second, vendor="nvidia", pci_address="0000:00:01.0", uuid="GPU-y", index=2)
    moved = structs.replace(built, machine=structs.replace(built.machine, gpus=(planned, lower, other)))
    assert vllm.render(moved).env == {"HIP_VISIBLE_DEVICES": "1"}


def test_docker_hands_over_uuids_shared_memory_and_the_cache():
    made = vllm.docker(target("llama-3.3-70b", count=2, quant="fp8", tensor_parallel=2))
    assert option(made.argv, "--gpus") == '"device=GPU-0,GPU-1"'
    assert option(made.argv, "--shm-size") == "3g"
    assert "vllm/vllm-openai:v0.33.0" in made.argv
    assert option(made.argv, "-p") == "127.0.0.1:8000:8000"
    assert option(made.argv, "--host") == "0.0.0.0"  # noqa: S104
    amd = vllm.docker(target(card=MI300X, spare=1)).argv
    assert "/dev/kfd" in amd
    assert "HIP_VISIBLE_DEVICES=0" in amd
    assert any(word.startswith("vllm/vllm-openai-rocm:") for word in amd)


def test_documents_of_every_shape():
    built = target("llama-3.3-70b", count=2, quant="fp8", tensor_parallel=2)
    compose = vllm_documents.document(built, "compose")
    assert '"GPU-1"' in compose
    assert '"3gb"' in compose
    assert "huggingface" in compose
    assert "huggingface:" not in vllm_documents.document(target(source="/models/llama"), "compose")
    amd = vllm_documents.document(target(card=MI300X, spare=1), "compose")
    assert "/dev/kfd" in amd
    assert "HIP_VISIBLE_DEVICES" in amd
    unit = vllm_documents.document(
        structs.replace(built, plan=structs.replace(built.plan, gpu_uuids=("GPU-0",), gpu_indexes=(0,))), "systemd"
    )
    assert "ExecStart=vllm serve" in unit
    assert "Environment=" in unit
    manifest = vllm_documents.document(built, "kubernetes")
    assert "nvidia.com/gpu" in manifest
    assert '"3Gi"' in manifest
    with pytest.raises(ValueError, match="modelfile"):
        vllm_documents.document(built, "modelfile")


@pytest.mark.parametrize("source", [None, "/models/llama"])
def test_a_manifest_claims_the_volume_that_it_mounts(source):
    built = target() if source is None else target(source=source)
    text = vllm_documents.document(structs.replace(built, extra=("--api-key", "$(HOME)")), "kubernetes")
    parts = {part["kind"]: part for part in pyyaml.safe_load_all(text)}
    pod = parts["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    claimed = pod["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert parts["PersistentVolumeClaim"]["metadata"]["name"] == claimed
    assert container["volumeMounts"][0]["mountPath"] == ("/model" if source else vllm.CACHE)
    assert ("# Copy /models/llama to" in text) == (source is not None)
    assert container["args"][-1] == "$$(HOME)"
    assert parts["Service"]["spec"]["ports"][0]["port"] == 8000
    validator = pytest.importorskip("kubernetes_validate", reason="run: pip install kubernetes-validate")
    for part in parts.values():
        validator.validate(part, "1.32", strict=True)


HOSTS = ("10.0.0.1", "10.0.0.2")


def spread(built, stages):
    """Stretch the plan of one node over as many stages, as a plan for several nodes has them."""
    ids = built.plan.gpu_uuids * (stages // built.plan.pipeline_parallel)
    indexes = built.plan.gpu_indexes * (stages // built.plan.pipeline_parallel)
    plan = structs.replace(built.plan, pipeline_parallel=stages, gpu_uuids=ids, gpu_indexes=indexes)
    return structs.replace(built, plan=plan)


def test_several_nodes_share_one_command_line():
    built = spread(target("llama-3.3-70b", count=2, quant="bf16", tensor_parallel=2), 2)
    head, worker = vllm_nodes.built_in(built, HOSTS)
    assert option(head.argv, "--pipeline-parallel-size") == "2"
    assert option(worker.argv, "--node-rank") == "1"
    assert option(worker.argv, "--distributed-executor-backend") == "mp"
    assert "--headless" in worker.argv
    assert "--headless" not in head.argv
    assert option(worker.argv, "--master-addr") == "10.0.0.1"
    assert head.env == {"VLLM_HOST_IP": "10.0.0.1"}
    assert unknown_flags(list(worker.argv), (0, 12)) == []
    assert any("NCCL_SOCKET_IFNAME" in note for note in head.notes)
    start, join, serve = vllm_nodes.ray(built, HOSTS)
    assert start.argv[:3] == ("ray", "start", "--head")
    assert "--address=10.0.0.1:6379" in join.argv
    assert "--num-gpus=2" in join.argv
    assert option(serve.argv, "--distributed-executor-backend") == "ray"
    assert unknown_flags(list(serve.argv), (0, 10)) == []


def test_nodes_that_cannot_share_a_plan_are_refused():
    built = target("llama-3.3-70b", count=2, quant="bf16", tensor_parallel=2)
    with pytest.raises(EstimatorError, match="1 stages of 2 ranks"):
        vllm_nodes.ray(built, HOSTS)
    old = structs.replace(built, plan=structs.replace(built.plan, engine_version="0.11"))
    with pytest.raises(EstimatorError, match=r"0\.11"):
        vllm_nodes.built_in(spread(old, 2), HOSTS)


@pytest.mark.parametrize(("card", "name"), [(H100, "CUDA_VISIBLE_DEVICES"), (MI300X, "HIP_VISIBLE_DEVICES")])
def test_nodes_with_more_gpus_than_planned_hide_the_rest_by_number(card, name):
    built = spread(target(card=card, count=1, spare=3, quant="bf16"), 2)
    for made in (*vllm_nodes.built_in(built, HOSTS), *vllm_nodes.ray(built, HOSTS)[:2]):
        assert made.env[name] == "0"


def test_the_readers_own_arguments_come_last_and_once():
    built = structs.replace(spread(target(quant="bf16"), 2), extra=("--seed", "7"))
    for made in (*vllm_nodes.built_in(built, HOSTS), vllm_nodes.ray(built, HOSTS)[-1]):
        assert made.argv[-2:] == ("--seed", "7")
        assert made.argv.count("--seed") == 1


def test_sglang_says_what_was_not_modelled():
    made = sglang.render(target("llama-3.3-70b", count=2, quant="fp8", tensor_parallel=2, kv_type="fp8"))
    assert option(made.argv, "--tp-size") == "2"
    assert option(made.argv, "--kv-cache-dtype") == "fp8_e4m3"
    assert option(made.argv, "--quantization") == "fp8"
    assert "not modelled" in made.notes[0]
    plain = sglang.render(target(quant="bf16"))
    assert "--quantization" not in plain.argv
    bare = target(quant="bf16")
    plan = structs.replace(bare.plan, max_num_seqs=None, max_num_batched_tokens=None, gpu_memory_utilization=None)
    bare = structs.replace(bare, plan=plan)
    assert "--max-running-requests" not in sglang.render(bare).argv
    assert "--max-num-seqs" not in vllm.render(bare).argv


def environment(tmp_path, release, *, script="#!{python}\n"):
    root = tmp_path / "env"
    (root / "bin").mkdir(parents=True)
    site = root / "lib" / "python3.12" / "site-packages"
    site.mkdir(parents=True)
    (site / "vllm-.dist-info").mkdir()
    if release:
        (site / f"vllm-{release}.dist-info").mkdir()
    program = root / "bin" / "vllm"
    program.write_text(script.format(python=root / "bin" / "python3"))
    return program


def test_the_installed_version_is_read_without_importing_it(tmp_path):
    found = vllm_installed.find(str(environment(tmp_path, "0.19.1")))
    assert (found.version, found.release) == ((0, 19), "0.19.1")
    assert found.unknown(["--max-model-len", "1", "--made-up"]) == ["--made-up"]


@pytest.mark.parametrize("release", [None, "0.8.5", "nonsense"])
def test_an_installation_that_cannot_be_told_counts_as_none(tmp_path, release):
    assert vllm_installed.find(str(environment(tmp_path, release))) is None
    assert vllm_installed.find(None) is None
    assert vllm_installed.find(str(tmp_path / "missing")) is None


def test_a_script_without_interpreter_line_is_looked_up_beside_itself(tmp_path):
    assert vllm_installed.find(str(environment(tmp_path, "0.26.0", script="binary"))).version == (0, 26)


PARSER = """#!/usr/bin/env python3
import sys
print("usage: vllm serve" if "--help=all" in sys.argv else "")
print("  --max-model-len N\\n  --port N\\n")
"""


def test_the_parser_of_the_installation_wins_over_the_list(tmp_path):
    program = tmp_path / "vllm"
    program.write_text(PARSER)
    program.chmod(0o755)
    asked = vllm_installed.ask_parser(Installed(program=str(program), version=(0, 33), release="0.33.0"))
    assert asked.flags == {"--max-model-len", "--port"}
    assert asked.unknown(["serve", "--port=1", "--max-num-seqs", "8"]) == ["--max-num-seqs"]
    made = vllm.render(target(), installed=asked)
    assert any("--max-num-seqs" in note for note in made.notes)


def test_a_parser_that_does_not_answer_changes_nothing(tmp_path):
    silent = tmp_path / "vllm"
    silent.write_text("#!/bin/sh\nexit 0\n")
    silent.chmod(0o755)
    known = Installed(program=str(silent), version=(0, 33), release="0.33.0")
    assert vllm_installed.ask_parser(known) == known
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nsleep 5\n")
    slow.chmod(0o755)
    waiting = structs.replace(known, program=str(slow))
    assert vllm_installed.ask_parser(waiting, timeout_s=0.05) == waiting
    gone = structs.replace(known, program=str(tmp_path / "none"))
    assert vllm_installed.ask_parser(gone) == gone


@pytest.mark.parametrize(("quant", "named"), [("awq", "Qwen/Qwen3-8B-AWQ"), ("fp8", "Qwen/Qwen3-8B-FP8")])
@pytest.mark.parametrize("source", [None, "hf:Qwen/Qwen3-8B"])
def test_the_makers_own_checkpoints_are_taken(quant, named, source):
    built = target("qwen3-8b", quant=quant, source=source)
    made = vllm.render(built)
    assert made.argv[2] == named
    assert "--quantization" not in made.argv
    assert f"{named} is the {built.plan.quant} checkpoint of the model's own maker." in made.notes
    assert "--quantization" not in sglang.render(built).argv


def test_a_repository_that_is_not_known_is_never_named():
    for source in ("/models/qwen3-8b", "hf:someone/qwen3-8b-tuned"):
        made = vllm.render(target("qwen3-8b", quant="awq", source=source))
        assert any("AWQ needs a checkpoint of its own" in note for note in made.notes)
        assert "Qwen/Qwen3-8B-AWQ" not in made.argv


STAND_IN = """#!{python}
import argparse, sys
parser = argparse.ArgumentParser(prog="vllm")
parser.add_argument("serve")
parser.add_argument("model")
for name in ("--served-model-name", "--host", "--port", "--quantization"):
    parser.add_argument(name)
for name in ("--max-model-len", "--max-num-batched-tokens"{known}):
    parser.add_argument(name, type=int)
parser.add_argument("--gpu-memory-utilization", type=float)
parser.add_argument("--kv-cache-dtype", choices=["auto", "fp8"])
if "--help=all" in sys.argv:
    parser.print_help()
    sys.exit(0)
parser.parse_args()
"""


def installed_here(tmp_path, built, *, known=', "--max-num-seqs"'):
    """Put a `vllm` with a parser of its own on a machine, as the probe reports it."""
    program = environment(tmp_path, "0.33.0")
    program.write_text(STAND_IN.format(python=sys.executable, known=known))
    program.chmod(0o755)
    (tmp_path / "env" / "lib" / "python3.12" / "site-packages" / "vllm-0.33.0.dist-info").mkdir(exist_ok=True)
    engine = Engine(name="vllm", version="0.33.0", path=str(program))
    return structs.replace(built, machine=structs.replace(built.machine, engines=(engine,)))


def test_a_launched_command_is_checked_by_the_parser_of_the_installed_vllm(tmp_path):
    built = installed_here(tmp_path, target(quant="fp8"))
    made = vllm.render(built, installed=vllm.checked(built))
    assert made.argv[0].endswith("/bin/vllm")
    assert made.notes == ("Checked by the parser of the installed vLLM 0.33.",)


def test_a_flag_that_the_installed_parser_lacks_is_named(tmp_path):
    built = installed_here(tmp_path, target(quant="fp8"), known="")
    made = vllm.render(built, installed=vllm.checked(built))
    assert made.notes == ("vLLM 0.33 does not know --max-num-seqs.",)


def test_a_value_that_the_installed_parser_refuses_is_named(tmp_path):
    built = installed_here(tmp_path, target(quant="fp8", kv_type="fp8_e5m2"))
    made = vllm.render(built, installed=vllm.checked(built))
    assert len(made.notes) == 1
    assert "refuses" in made.notes[0]
    assert "fp8_e5m2" in made.notes[0]


def test_a_parser_that_hangs_or_is_gone_objects_to_nothing(tmp_path):
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nsleep 5\n")
    slow.chmod(0o755)
    known = Installed(program=str(slow), version=(0, 33), release="0.33.0")
    assert vllm_installed.refusal(known, [str(slow), "serve"], timeout_s=0.05) is None
    gone = structs.replace(known, program=str(tmp_path / "none"))
    assert vllm_installed.refusal(gone, ["vllm", "serve"]) is None


def test_the_vllm_of_another_machine_is_known_by_its_version_only():
    built = target(quant="bf16", version="0.19")
    elsewhere = Engine(name="vllm", version="0.21.0", path="/nowhere/bin/vllm")
    built = structs.replace(built, machine=structs.replace(built.machine, engines=(elsewhere,)))
    made = dict(vllm.commands(built))
    assert made["vllm"].argv[0] == "vllm"
    assert any("made for vLLM 0.19 and 0.21 is installed" in note for note in made["vllm"].notes)
    assert "vllm/vllm-openai:v0.21.0" in made["docker"].argv
    for version in (None, "0.8.0"):
        engine = structs.replace(elsewhere, version=version)
        assert vllm_installed.on(structs.replace(built.machine, engines=(engine,))) is None
    assert vllm.checked(target(quant="bf16")) is None


def test_images_follow_the_planned_release():
    assert "vllm/vllm-openai:v0.19.0" in dict(vllm.commands(target(quant="bf16", version="0.19")))["docker"].argv
    early = target(card=MI300X, quant="bf16", version="0.12")
    assert "vllm/vllm-openai-rocm:v0.14.0" in dict(vllm.commands(early))["docker"].argv


def test_a_document_says_what_its_command_says():
    asked = target(quant="awq")
    assert any("checkpoint of its own" in note for note in vllm.remarks(asked))


def test_plans_survive_json():
    assert json.loads(msgspec.json.encode(target().plan))["engine"] == "vllm"
