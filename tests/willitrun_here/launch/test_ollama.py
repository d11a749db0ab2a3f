from __future__ import annotations

import subprocess

from msgspec import structs

from tests.willitrun_here.launch.targets import from_source, on_words
from willitrun_here.launch import ollama


def test_modelfile_has_the_plan():
    target = on_words(gpu_layers=20)
    lines = ollama.modelfile(target).splitlines()
    assert lines[0] == f"FROM hf.co/{target.spec.gguf_repos[0]}:Q4_K_M"
    assert "PARAMETER num_gpu 20" in lines
    assert "PARAMETER num_ctx 8192" in lines
    assert f"PARAMETER num_thread {target.plan.threads}" in lines


def test_the_context_is_per_request():
    target = on_words(engine="ollama", parallel=4, context=32768)
    assert target.plan.context_tokens == 32768
    assert "PARAMETER num_ctx 8192" in ollama.modelfile(target).splitlines()


def test_where_the_weights_come_from():
    target = on_words()
    assert ollama.origin(from_source(target, "ollama:llama3.1:8b")) == "llama3.1:8b"
    assert ollama.origin(from_source(target, "/m/x.gguf")) == "/m/x.gguf"


def test_the_environment_is_the_server_s():
    env = ollama.environment(on_words(kv_type="q8_0", parallel=2))
    assert env["OLLAMA_KV_CACHE_TYPE"] == "q8_0"
    assert env["OLLAMA_FLASH_ATTENTION"] == "1"
    assert env["OLLAMA_NUM_PARALLEL"] == "2"
    assert "OLLAMA_SCHED_SPREAD" not in env
    assert env["OLLAMA_CONTEXT_LENGTH"] == "4096", "ollama counts per request, the plan over all slots"
    two = ollama.environment(on_words("2x RTX 3090, 64 GiB RAM", "llama-3.3-70b"))
    assert two["OLLAMA_SCHED_SPREAD"] == "1"
    assert ollama.environment(on_words(flash_attention=False))["OLLAMA_FLASH_ATTENTION"] == "0"


def test_names_are_what_ollama_accepts():
    target = on_words()
    odd = structs.replace(target, spec=structs.replace(target.spec, name="My Model (v2)/x"))
    assert ollama.name(odd) == "my-model-v2-x-q4_k_m"


def test_the_command_writes_exactly_the_modelfile(tmp_path):
    target = from_source(on_words(), "/m/it's 100% $HOME.gguf")
    built = ollama.render(target)
    script = built.argv[2].split(" && ")[0]
    subprocess.run(["sh", "-c", script], cwd=tmp_path, check=True)
    assert (tmp_path / "Modelfile").read_text() == built.files["Modelfile"] == ollama.modelfile(target)
