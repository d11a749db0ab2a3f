from __future__ import annotations

import re

import pytest

from willitrun_estimator.request import Request
from willitrun_here.ask import ask, ollama_commands, open_model, prepared_of, target_of
from willitrun_here.machines import open_machine

PLAN = frozenset({"plan"})


def answered(words, name, **request):
    machine, spec, asked = open_machine(words), open_model(name), Request(**request)
    return ask(machine, spec, asked, sections=PLAN), machine, spec, asked


def test_ollama_gets_a_plan_of_its_own_where_experts_stay_in_ram():
    result, *_ = answered("RTX 4060 8GB, 32 GiB RAM", "gpt-oss-20b")
    assert result.plan.cpu_moe_layers > 0
    assert result.plan.gpu_layers == result.plan.layers + 1 == 25
    layers = int(re.search(r"num_gpu (\d+)", result.commands["ollama"].files["Modelfile"])[1])
    assert 0 < layers < 25


@pytest.mark.parametrize("fixed", [{"cpu_moe_layers": 12}, {"engine": "ollama"}])
def test_no_second_ollama_command_where_it_could_not_follow_or_is_the_plan(fixed):
    result, machine, spec, asked = answered("RTX 4060 8GB, 32 GiB RAM", "gpt-oss-20b", **fixed)
    assert ollama_commands(target_of(result, spec, machine), asked, prepared_of(spec)) == {}
    assert ("ollama" in result.commands) == ("engine" in fixed)


def test_a_file_that_may_not_exist_is_said_so():
    result, *_ = answered("4x H100, 1 TiB RAM", "llama-3.3-70b", quant="F16")
    assert any("known to hold F16" in note for note in result.commands["llama.cpp"].notes)
    dynamic, *_ = answered("RTX 4090, 64 GiB RAM", "deepseek-v3.2", quant="IQ2_M")
    assert "unsloth/DeepSeek-V3.2-GGUF:UD-IQ2_M" in dynamic.commands["llama.cpp"].shell
    assert any("own mix" in note for note in dynamic.commands["llama.cpp"].notes)
