from __future__ import annotations

import re
import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tests.willitrun_here.launch.targets import from_source, on_recorded, on_words
from willitrun_estimator.plan import ExpertsApart
from willitrun_here.launch import llama_cpp, numa
from willitrun_here.launch.flags import Flags
from willitrun_here.launch.target import Target, artifact, command, prompt_cache_mib

OLD = Flags(
    names=frozenset({"-m", "-hf", "-hff", "-ngl", "-c", "-fa", "-ctk", "-ot", "-ub", "-b", "-t", "-np", "--no-mmap"}),
    flash_takes_value=False,
    layers_take_all=False,
)

RECORDED = (
    ("rtx3090-shared", "llama-3.1-8b", {}),
    ("rtx3090-shared", "qwen3-30b-a3b", {"quant": "Q8_0"}),
    ("a100-mig", "llama-3.1-8b", {"context": 4096}),
    ("h100x8-nvlink", "llama-3.3-70b", {"quant": "F16", "context": 32768}),
    ("epyc-two-nodes", "gpt-oss-20b", {"quant": "MXFP4"}),
    ("apple-m4-max", "qwen3-30b-a3b", {}),
    ("mi100", "llama-3.1-8b", {}),
    ("mixed-visible-uuid", "llama-3.1-8b", {}),
    ("desktop-cpu-only", "llama-3.2-3b", {}),
    ("arc-a770", "llama-3.1-8b", {"kv_type": "q8_0"}),
    ("laptop-hybrid", "llama-3.2-3b", {"backend": "vulkan"}),
    ("mi250x-two-dies", "llama-3.1-8b", {}),
    ("mi300x-cpx", "llama-3.3-70b", {}),
    ("jetson-orin", "llama-3.2-3b", {}),
    ("strix-halo", "gpt-oss-120b", {"quant": "MXFP4"}),
    ("one-of-four-in-container", "qwen3-30b-a3b", {"parallel": 4, "context": 32768}),
    ("container-limits", "llama-3.2-3b", {}),
    ("wsl2-rtx4080", "gpt-oss-20b", {"quant": "MXFP4"}),
    ("amd-vulkan-only", "llama-3.1-8b", {}),
)


@pytest.mark.parametrize(
    ("machine", "model", "asked"), RECORDED, ids=lambda value: value if value and isinstance(value, str) else ""
)
def test_commands_of_recorded_machines(machine, model, asked, golden):
    target = on_recorded(machine, model, **{"quant": "Q4_K_M", "context": 8192, **asked})
    built = llama_cpp.render(target)
    plan = target.plan
    golden(f"launch/{machine}-{model}.txt", built.shell.replace(" -", " \\\n  -") + "\n")
    argv = list(built.argv)
    assert argv[argv.index("-c") + 1] == str(plan.context_tokens)
    assert argv[argv.index("-t") + 1] == str(plan.threads)
    uuids = [uuid for uuid in plan.gpu_uuids if uuid]
    assert built.env.get("CUDA_VISIBLE_DEVICES", ",".join(uuids)) == ",".join(uuids)


def argument(target: Target, name: str) -> str | None:
    argv = list(llama_cpp.render(target).argv)
    return argv[argv.index(name) + 1] if name in argv else None


def with_plan(target: Target, **fields) -> Target:
    return structs.replace(target, plan=structs.replace(target.plan, **fields))


def test_all_layers_are_named_in_the_build_s_own_way():
    target = on_words()
    assert argument(target, "-ngl") == "all"
    assert argument(structs.replace(target, flags=OLD), "-ngl") == "999"
    assert argument(with_plan(target, gpu_layers=20), "-ngl") == "20"
    assert argument(with_plan(target, gpu_layers=target.plan.layers), "-ngl") == str(target.plan.layers)


def test_flash_attention_is_a_bare_flag_for_old_builds():
    target = on_words()
    assert llama_cpp.flash_attention(target) == ["-fa", "on"]
    old = structs.replace(target, flags=OLD)
    assert llama_cpp.flash_attention(old) == ["-fa"]
    assert llama_cpp.flash_attention(with_plan(old, flash_attention=False)) == []
    assert llama_cpp.flash_attention(with_plan(target, flash_attention=False)) == ["-fa", "off"]


def test_experts_in_ram_and_how_they_are_loaded():
    target = on_words("RTX 3090, 128 GiB RAM", "qwen3-30b-a3b", cpu_moe_layers=3)
    assert argument(target, "--n-cpu-moe") == "3"
    assert argument(target, "--load-mode") == "none"
    old = structs.replace(target, flags=OLD)
    assert argument(old, "-ot") == r"blk\.(0|1|2)\.ffn_(up|down|gate)_exps=CPU"
    assert "--no-mmap" in llama_cpp.render(old).argv
    bare = structs.replace(target, flags=Flags(names=frozenset({"-m"})))
    assert llama_cpp.load_mode(bare) == []


def with_apart(target: Target, *apart: ExpertsApart, whole: int = 0) -> Target:
    return with_plan(target, experts_apart=apart, cpu_moe_layers=whole)


def test_experts_of_single_layers_are_named_by_patterns():
    target = on_words("RTX 3090, RTX 3060, 128 GiB RAM", "qwen3-30b-a3b", quant="Q8_0")
    down, both = ("ffn_down_exps",), ("ffn_down_exps", "ffn_gate_exps")
    every = (*both, "ffn_up_exps")
    cut = with_apart(
        target,
        ExpertsApart(block=5, tensors=every, device=None, whole=True),
        ExpertsApart(block=8, tensors=every, device=None, whole=True),
        ExpertsApart(block=9, tensors=down, device=None),
        ExpertsApart(block=30, tensors=both, device=1),
        whole=5,
    )
    assert argument(cut, "--n-cpu-moe") == "3", "two of the five are named"
    names = "ffn_down_exps|ffn_gate_exps"
    pattern = f"blk[.](5|8)[.]({names}|ffn_up_exps)=CPU,blk[.](9)[.](ffn_down_exps)=CPU,blk[.](30)[.]({names})=CUDA1"
    assert argument(cut, "-ot") == pattern
    old = structs.replace(cut, flags=OLD)
    assert argument(old, "-ot") == rf"blk\.(0|1|2)\.ffn_(up|down|gate)_exps=CPU,{pattern}"
    assert llama_cpp.render(old).argv.count("-ot") == 1
    lone = with_apart(target, ExpertsApart(block=30, tensors=down, device=1))
    assert argument(lone, "--n-cpu-moe") is None
    assert llama_cpp.load_mode(lone) == [], "nothing is on the host"
    assert llama_cpp.load_mode(with_apart(target, ExpertsApart(block=3, tensors=down, device=None))) != []


def test_patterns_for_remote_devices_come_after_what_makes_them_known():
    target = on_words("RTX 3090, RTX 3060, 128 GiB RAM", "qwen3-30b-a3b", quant="Q8_0")
    cut = with_apart(target, ExpertsApart(block=30, tensors=("ffn_down_exps",), device=1))
    words = llama_cpp.render(structs.replace(cut, extra=("--rpc", "a:1,b:2"))).argv
    assert words[-4:] == ("--rpc", "a:1,b:2", "-ot", "blk[.](30)[.](ffn_down_exps)=RPC0[b:2]")
    assert words.count("-ot") == 1


def test_every_pattern_means_the_planned_tensors_and_no_others():
    target = on_words("RTX 4090, RTX 3060, 128 GiB RAM", "gpt-oss-120b", quant="MXFP4")
    plan = target.plan
    assert any(one.device == 1 for one in plan.experts_apart)
    meant = {(one.block, name) for one in plan.experts_apart for name in one.tensors}
    patterns = [pattern.rpartition("=")[0] for pattern in (argument(target, "-ot") or "").split(",")]
    tensors = [
        (block, name)
        for block in range(plan.layers)
        for name in ("ffn_down_exps", "ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps", "ffn_gate_inp", "attn_q")
    ]
    hit = {
        (block, name)
        for block, name in tensors
        if any(re.search(pattern, f"blk.{block}.{name}.weight") for pattern in patterns)
    }
    assert hit == meant


def test_mapped_memory_stays_where_ram_is_short():
    target = on_words("RTX 3090, 128 GiB RAM", "qwen3-30b-a3b", cpu_moe_layers=3)
    *gpus, host = target.plan.devices
    short = with_plan(target, devices=(*gpus, structs.replace(host, free_bytes=host.total_bytes - 1)))
    assert llama_cpp.load_mode(short) == []
    assert prompt_cache_mib(short) == 0


def test_prompt_cache_takes_a_quarter_of_what_is_left():
    target = on_words()
    *gpus, host = target.plan.devices
    four = structs.replace(host, free_bytes=host.total_bytes + 4 * 1024**3)
    assert argument(with_plan(target, devices=(*gpus, four)), "-cram") == "1024"
    assert argument(target, "-cram") is None, "the default needs no flag"


def test_cache_type_split_slots_and_fit():
    two = on_words("2x RTX 3090, 64 GiB RAM", "llama-3.3-70b", kv_type="q8_0", parallel=4)
    assert argument(two, "-ctk") == argument(two, "-ctv") == "q8_0"
    shares = argument(two, "-ts")
    assert shares is not None
    assert sum(map(float, shares.split(","))) == sum(two.plan.tensor_split)
    assert argument(two, "-np") == "4"
    assert argument(two, "-fit") == "off"
    assert argument(structs.replace(two, flags=OLD), "-fit") is None
    assert ("-kvu" in llama_cpp.render(with_plan(two, kv_unified=True)).argv) is True
    assert "-kvu" not in llama_cpp.render(with_plan(two, kv_unified=False)).argv
    one = with_plan(two, kv_type="f16", tensor_split=())
    assert argument(one, "-ctk") is None
    assert argument(one, "-ts") is None


def test_the_prompt_cache_shares_the_memory_of_an_integrated_gpu():
    target = on_recorded("strix-halo", "llama-3.1-8b", quant="Q4_K_M", context=8192)
    *gpus, host = target.plan.devices
    spare = 4 * 1024**3
    tight = structs.replace(host, free_bytes=host.total_bytes + gpus[0].total_bytes + spare)
    assert prompt_cache_mib(with_plan(target, devices=(*gpus, tight))) == 1024


def test_the_chat_template_is_switched_on_where_it_is_not():
    target = on_words()
    assert "--jinja" not in llama_cpp.render(target).argv
    old = structs.replace(target, flags=structs.replace(OLD, jinja_by_default=False))
    assert "--jinja" in llama_cpp.render(old).argv


def test_a_plan_for_the_host_is_spread_over_the_memory_nodes():
    target = on_recorded("epyc-two-nodes", "llama-3.1-8b", quant="Q4_K_M")
    assert argument(target, "--numa") == "distribute"
    assert argument(structs.replace(target, flags=OLD), "--numa") is None
    assert argument(on_recorded("desktop-cpu-only", "llama-3.2-3b"), "--numa") is None
    assert argument(on_recorded("h100x8-nvlink", "llama-3.1-8b"), "--numa") is None
    assert numa.prefix(target) == []


def test_experts_on_the_host_are_read_from_all_memory_nodes():
    target = on_recorded("h100x8-nvlink", "deepseek-v3", quant="Q8_0", context=4096)
    assert target.plan.offloaded_fraction > 0
    assert numa.prefix(target) == ["numactl", "--interleave=0,1"]
    assert argument(target, "--numa") == "distribute"
    assert argument(target, "-t") == str(target.plan.threads)


def test_a_bound_server_runs_on_the_cores_of_its_node():
    target = with_plan(on_recorded("h100x8-nvlink", "llama-3.1-8b", quant="Q4_K_M"), threads=112)
    assert argument(target, "-t") == "56", "112 logical CPUs in a node, two to a core"
    nodes = tuple(structs.replace(node, cpus=0) for node in target.machine.cpu.numa_nodes[:1])
    cpu = structs.replace(target.machine.cpu, numa_nodes=(*nodes, *target.machine.cpu.numa_nodes[1:]))
    lone = structs.replace(target, machine=structs.replace(target.machine, cpu=cpu))
    assert numa.prefix(lone) == []
    assert argument(lone, "-t") == "112"


def test_the_batch_is_never_below_the_micro_batch():
    target = with_plan(on_words(), ubatch=4096, batch=2048)
    assert argument(target, "-b") == "4096"


def test_the_server_is_bound_to_the_gpu_s_memory_node():
    target = on_recorded("h100x8-nvlink", "llama-3.1-8b", quant="Q4_K_M")
    built = llama_cpp.render(target)
    assert built.argv[:3] == ("numactl", "--cpunodebind=0", "--preferred=0")
    assert any("numactl" in note for note in built.notes)
    gpus = target.machine.gpus
    both = with_plan(target, gpu_uuids=(gpus[0].uuid, gpus[4].uuid), gpu_indexes=(0, 4))
    both = with_plan(both, devices=(target.plan.devices[0], *target.plan.devices))
    assert numa.prefix(both) == [], "the GPUs are on two nodes"
    lost = tuple(structs.replace(gpu, numa_node=-1) for gpu in gpus)
    unknown = structs.replace(target, machine=structs.replace(target.machine, gpus=lost))
    assert numa.prefix(unknown) == []
    assert numa.prefix(on_words()) == []


def test_where_the_weights_come_from():
    target = on_words()
    assert artifact(target).repo == target.spec.gguf_repos[0]
    hub = artifact(from_source(target, "hf:org/some-GGUF:some-Q4_K_M.gguf"))
    assert (hub.repo, hub.file) == ("org/some-GGUF", "some-Q4_K_M.gguf")
    assert llama_cpp.model_arguments(from_source(target, "hf:org/repo-GGUF:a.gguf"))[2:] == ["-hff", "a.gguf"]
    assert artifact(from_source(target, "models/a b.gguf")).path == "models/a b.gguf"
    blob = from_source(target, "ollama:llama3", ("/root/.ollama/models/blobs/sha256-1",))
    assert artifact(blob).path == "/root/.ollama/models/blobs/sha256-1"
    nowhere = structs.replace(target, spec=structs.replace(target.spec, gguf_repos=()))
    assert "put a Q4_K_M file" in (artifact(nowhere).note or "")
    assert artifact(nowhere).path in llama_cpp.render(nowhere).argv


def test_no_projector_comes_with_a_download():
    """`-hf` fetches and loads one by itself, and it was not planned for."""
    target = on_words("RTX 3090, 64 GiB RAM", "gemma-3-12b")
    assert "--no-mmproj" in llama_cpp.render(target).argv
    assert any("--mmproj-auto" in note for note in llama_cpp.render(target).notes)
    assert "--no-mmproj" not in llama_cpp.render(structs.replace(target, flags=OLD)).argv
    assert "--no-mmproj" not in llama_cpp.render(from_source(target, "/m/gemma.gguf")).argv
    assert "--no-mmproj" not in llama_cpp.render(on_words()).argv


def test_a_checkpoint_is_converted_first():
    target = from_source(on_words(), "/m/My Model", ("/m/My Model/model.safetensors",), gguf_repos=())
    built = llama_cpp.render(target)
    assert "/m/My Model" not in built.argv, "llama-server cannot load a folder"
    assert built.argv[built.argv.index("-m") + 1] == f"/m/{target.spec.name}-Q4_K_M.gguf"
    (note,) = [note for note in built.notes if "safetensors" in note]
    convert, quantize = note.split("made by: ")[1].split(" && ")
    assert shlex.split(convert)[:2] == ["convert_hf_to_gguf.py", "/m/My Model"]
    assert shlex.split(quantize)[-1] == "Q4_K_M"
    whole = artifact(with_plan(target, quant="F16"))
    assert "llama-quantize" not in (whole.note or "")
    remote = artifact(from_source(target, "hf:org/model", gguf_repos=()))
    assert "--remote org/model" in (remote.note or "")


@given(
    st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=12), max_size=6),
    st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), st.text("ab ',\"$\\", max_size=8), max_size=3),
)
def test_the_shell_line_means_the_same_words(words, env):
    built = command(["program", *words], env)
    read = shlex.split(built.shell)
    assert read[len(env) :] == ["program", *words]
    assert read[: len(env)] == [f"{name}={value}" for name, value in env.items()]


def test_a_real_shell_reads_the_same_words():
    words = ["a b", "$HOME", "`id`", "it's", '"', "\\", "*", "", "a\nb", "-x;y|z&"]
    built = command(["printf", "%s\\0", *words], {"X": "a b"})
    done = subprocess.run(["sh", "-c", built.shell], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == words


def test_what_follows_the_dashes_comes_last():
    target = structs.replace(on_words(), extra=("--jinja", "--alias", "a b"))
    assert llama_cpp.render(target).argv[-3:] == ("--jinja", "--alias", "a b")


def test_assumed_flags_are_said():
    target = on_words()
    assert "No llama-server was found" in llama_cpp.render(target).notes[0]
    assert llama_cpp.render(structs.replace(target, flags=OLD)).notes == ()
