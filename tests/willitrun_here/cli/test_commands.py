from __future__ import annotations

import json

import msgspec
import pytest

from tests.willitrun_here.cli.command import typed
from willitrun_estimator.plan import Answer, Command
from willitrun_here.cli import COMMANDS

HERE = "--machine 'RTX 3090, 64 GiB RAM'"


@pytest.fixture
def run(capfdbinary):
    return lambda line: typed(capfdbinary, line)


@pytest.mark.parametrize("name", ["", *COMMANDS, "gpus list", "gpus show", "models list", "fleet serve"])
def test_every_command_explains_itself(run, name):
    done = run(f"{name} --help")
    assert done.code == 0
    assert "Usage" in done.out
    assert not done.err


def test_the_short_help_names_every_command(run):
    shown = run("-h").out
    assert all(name in shown for name in COMMANDS)
    assert run("--version").out.startswith("willitrun-here ")
    assert run("gpus -h").code == 0
    long = run("--help check")
    assert long.code == 0
    assert all(name in long.out for name in COMMANDS), "click's own list is the same"


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("check llama-3.1-88b-instrukt-xyz " + HERE, 4, "nearest"),
        ("check llama-3.1-8b --machine 'RTX 30990 Turbo'", 4, "nearest"),
        ("check llama-3.1-8b --machine /no/such.json", 4, "probe --save"),
        ("check llama-3.1-8b --machine ''", 2, "empty"),
        ("check llama-3.1-8b --machine ','", 2, "names no GPU"),
        ("gpus show 'Voodoo 2'", 4, "nearest"),
        ("check", 2, "MODEL"),
        ("checkk", 2, "No such command"),
        ("check llama-3.1-8b --kv-type q8_0 --flash-attention off", 2, "flash attention"),
        ("check llama-3.1-8b --context 4k --min-context 8k", 2, "--min-context"),
        ("check llama-3.1-8b --context 4k --depth-tokens 4096", 2, "--depth-tokens"),
        ("check llama-3.1-8b --context 4k --prompt-tokens 8k", 2, "--prompt-tokens"),
        ("check llama-3.1-8b --backend cpu --gpu-layers all", 2, "--backend cpu"),
        ("check llama-3.1-8b --engine ollama --tensor-parallel 2", 2, "vLLM"),
        ("check llama-3.1-8b --engine vllm --ubatch 64", 2, "llama.cpp"),
        ("check llama-3.1-8b --min-decode nan", 2, "--min-decode"),
        ("check llama-3.1-8b --max-ttft inf", 2, "--max-ttft"),
        ("check llama-3.1-8b --gpu-memory-utilization 1.5", 2, "share"),
        ("check llama-3.1-8b --gpu-layers -1", 2, "neither a count"),
        ("check llama-3.1-8b --ubatch 99999999999999999999", 2, "ubatch"),
        ("check llama-3.1-8b --margin 99999TiB0", 2, "not a size"),
        ("check llama-3.1-8b --context ²", 2, "not a number of tokens"),
        ("launch llama-3.1-8b --check-only " + HERE, 2, "--exec"),
        ("launch llama-3.1-8b --exec " + HERE, 2, "--machine"),
        ("launch llama-3.1-8b --exec --as compose", 2, "--as compose"),
        ("launch llama-3.1-8b --as modelfile --engine vllm --machine 'H100 80GB'", 2, "Modelfile"),
        ("launch llama-3.1-8b --as compose --machine 'Apple M4 Max'", 2, "Metal"),
        ("launch llama-3.1-405b --machine 'RTX 3090, 1 GiB RAM' --gpu-layers all", 1, "RTX 3090"),
        ("compare llama-3.1-8b --machine 'RTX 3090'", 2, "two machines"),
        ("check llama-3.1-8b --backend rocm " + HERE, 2, "rocm"),
        ("check llama-3.1-8b --output /no/such/folder/x.html --format html " + HERE, 4, "/no/such/folder"),
        ("batch /no/such/file", 2, "No such file"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(run, line, code, words):
    done = run(line)
    assert done.code == code, done.err
    assert words in done.err
    assert "Traceback" not in done.err
    assert not done.out


def test_what_does_not_fit_is_exit_code_one(run):
    done = run("check llama-3.1-405b --machine 'RTX 3090, 1 GiB RAM' --gpu-layers all --json")
    assert done.code == 1
    assert json.loads(done.out)["fit"]["status"] == "too-large"
    none = run("recommend --machine 'no GPU, 1 MiB RAM' --json")
    assert none.code == 1
    assert json.loads(none.out)["recommendations"] == []
    assert "No model" in none.err
    both = "--machine 'RTX 3090, 1 GiB RAM' --machine 'RTX 3080, 1 GiB RAM'"
    assert run(f"compare llama-3.1-405b --gpu-layers all {both} --json").code == 1


def test_check_prints_every_format(run, tmp_path):
    question = f"check llama-3.1-8b --quant Q4_K_M {HERE}"
    answer = msgspec.json.decode(run(f"{question} --json").out, type=Answer, strict=False)
    assert answer.plan is not None
    assert json.loads(run(f"{question} --format json").out)["plan"]["quant"] == "Q4_K_M"
    assert "Llama 3.1 8B Instruct" in run(question).out
    assert "<html" in run(f"{question} --format html").out
    assert run(f"{question} --format markdown").out.startswith("#")
    assert "<svg" in run(f"{question} --format card-svg").out
    assert len(run(f"{question} --explain").out) > len(run(question).out)
    for shape in ("text", "json", "markdown", "html", "card"):
        path = tmp_path / f"x.{shape}"
        done = run(f"{question} --format {shape} --output {path}")
        assert (done.code, done.out) == (0, "")
        assert "8B" in path.read_text()
    assert "\x1b" not in (tmp_path / "x.text").read_text()
    run(f"{question} --json --output {tmp_path}/y")
    assert json.loads((tmp_path / "y").read_text())["schema"] == "willitrun.check/1"


def test_colour_only_where_it_is_wanted(run, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[3" not in run(f"check llama-3.1-8b --quant Q4_K_M {HERE}").out


@pytest.mark.parametrize("shape", ["compose", "systemd", "kubernetes", "modelfile"])
def test_launch_prints_files_alone(run, shape):
    line = f"launch llama-3.1-8b --quant Q4_K_M --as {shape} {HERE}"
    done = run(line)
    assert done.code == 0
    assert not done.out.startswith("#")
    document = json.loads(run(f"{line} --json").out)
    assert document == {"as": shape, "text": done.out}


@pytest.mark.parametrize("engine", ["llama.cpp", "ollama", "vllm"])
@pytest.mark.parametrize("shape", ["shell", "docker"])
def test_launch_prints_commands(run, engine, shape):
    line = f"launch llama-3.1-8b --machine 'H100 80GB, 256 GiB RAM' --engine {engine} --as {shape}"
    done = run(line)
    assert done.code == 0, done.err
    built = msgspec.json.decode(run(f"{line} --json").out, type=Command)
    assert built.shell + "\n" == done.out
    assert all(f"# {note}" in done.err for note in built.notes)


def test_vllm_s_files(run):
    done = run("launch llama-3.1-8b --machine 'H100 80GB, 256 GiB RAM' --engine vllm --as compose")
    assert done.code == 0
    assert "vllm" in done.out


def test_launch_gives_the_engine_what_follows_the_dashes(run):
    done = run(f"launch llama-3.1-8b --quant Q4_K_M {HERE} --host 0.0.0.0 --port 9000 -- --jinja --alias 'a b'")
    assert done.out.rstrip().endswith("--host 0.0.0.0 --port 9000 --jinja --alias 'a b'")


def test_compare_prints_every_format(run):
    question = "compare llama-3.1-8b --quant Q4_K_M --machine 'RTX 3090' --machine 'RTX 4060'"
    document = json.loads(run(f"{question} --json").out)
    assert len(document["answers"]) == 2
    assert "4060" in run(question).out
    assert "4060" in run(f"{question} --format markdown").out
    assert "<html" in run(f"{question} --format html").out


def test_recommend_prints_every_format(run):
    question = "recommend --machine 'RTX 3060 12GB, 32 GiB RAM' --limit 2"
    document = json.loads(run(f"{question} --json").out)
    scores = [row["rank_score"] for row in document["recommendations"]]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    assert run(question).code == 0
    assert "<html" in run(f"{question} --format html").out


def test_gpus(run):
    sheets = json.loads(run("gpus list --json --vendor amd").out)
    assert sheets
    assert {sheet["vendor"] for sheet in sheets} == {"amd"}
    assert len(run("gpus list").out.splitlines()) > len(sheets)
    assert json.loads(run("gpus show rtx3090 --json").out)["name"].endswith("3090")
    shown = run("gpus show rtx3090").out
    assert "bandwidth" in shown
    assert "24" in shown


def test_the_bare_command_shows_the_machine_and_models(run, monkeypatch):
    from willitrun_here import machines  # noqa: PLC0415

    described = machines.open_machine("RTX 3060 12GB, 32 GiB RAM")
    monkeypatch.setattr(machines, "here", lambda: described)
    done = run("")
    assert done.code == 0, done.err
    assert "3060" in done.out
    assert "--help" in done.err


def test_batch_reads_a_file(run, tmp_path):
    path = tmp_path / "questions"
    path.write_text('{"id":7,"model":"llama-3.1-8b","machine":"RTX 3090","sections":["plan"]}\n\nnonsense\n')
    done = run(f"batch {path} --jobs 1")
    first, second = map(json.loads, done.out.splitlines())
    assert first["id"] == 7
    assert second["error"]["code"] == 2
    assert done.code == 0
