"""`launch --node`: vLLM over several machines."""

from __future__ import annotations

import json
import shlex

import pytest
from click.testing import CliRunner

from willitrun_here.__main__ import main
from willitrun_here.cli.launch import launch

GROUP = ("--machine", "8x NVIDIA H100 SXM5 80 GB, 1 TiB RAM", "--node", "10.0.0.1", "--node", "10.0.0.2")


def words(argument, *more):
    return ["launch", "deepseek-v3.1", *GROUP, *argument, *more]


def test_every_node_gets_its_own_command_and_the_engine_what_follows_the_dashes(capsys):
    assert main(words((), "--", "--seed", "1")) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[::2] == ["# on 10.0.0.1", "# on 10.0.0.2"]
    for rank, line in enumerate(lines[1::2]):
        argv = shlex.split(line)
        assert argv[0] == f"VLLM_HOST_IP=10.0.0.{rank + 1}"
        assert argv[argv.index("--node-rank") + 1] == str(rank)
        assert ("--headless" in argv) == bool(rank)
        assert argv[-2:] == ["--seed", "1"]
    assert "ports" in shown.err


def test_a_ray_cluster_is_started_before_the_server(capsys):
    assert main(words(("--as", "ray", "--json"))) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["nodes"] == ["10.0.0.1", "10.0.0.2"]
    assert [command["argv"][:2] for command in told["commands"]] == [["ray", "start"]] * 2 + [["vllm", "serve"]]
    assert told["plan"]["tensor_parallel"] * told["plan"]["pipeline_parallel"] == 16


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["llama-3.1-8b", "--node", "a"], 2, "there is one"),
        (["llama-3.1-8b", "--node", "a", "--node", "a", "--node", "b"], 2, "twice"),
        (["llama-3.1-8b", "--as", "ray"], 2, "--as ray"),
        (["llama-3.1-8b", "--node", "a", "--node", "b", "--engine", "ollama"], 2, "--engine is ollama"),
        (["llama-3.1-8b", "--node", "a", "--node", "b", "--as", "compose"], 2, "--as compose"),
        (["llama-3.1-8b", "--node", "a", "--node", "b", "--exec"], 2, "--exec"),
        (["llama-3.1-8b", "--machine", "64 GiB RAM", "--node", "a", "--node", "b"], 1, "no back end"),
        (["deepseek-v3.1", "--machine", "RTX 3090, 64 GiB RAM", "--node", "a", "--node", "b"], 1, "on 2 machines"),
    ],
)
def test_what_does_not_go_together_is_said(arguments, code, said, capsys):
    assert main(["launch", *arguments]) == code
    assert said in capsys.readouterr().err


def test_without_nodes_nothing_changes():
    shown = CliRunner().invoke(launch, ["llama-3.1-8b", "--machine", "RTX 3090, 64 GiB RAM"], standalone_mode=False)
    assert shown.output.startswith("llama-server ")
