from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tests.willitrun_here.launch.targets import from_source, on_recorded, on_words
from willitrun_here.launch import llama_cpp, numa, systemd

TEXT = st.text(st.characters(min_codepoint=1, blacklist_categories=("Cs",)), max_size=20)


def read_back(line: str) -> list[str]:
    """Read words as systemd.syntax and systemd.service say: quotes, C escapes, %% and $$."""
    words, i, word, inside = [], 0, None, False
    while i < len(line):
        c = line[i]
        if c == "\\":
            i += 1
            word = (word or "") + {"n": "\n", "r": "\r"}.get(line[i], line[i])
        elif c == '"':
            inside, word = not inside, word or ""
        elif c == " " and not inside:
            words, word = [*words, word], None
        else:
            word = (word or "") + c
            i += c in "%$"
        i += 1
    return [*words, word]


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_any_words_come_back(words):
    line = " ".join(map(systemd.quoted, words))
    assert "\n" not in line
    assert "\r" not in line
    assert read_back(line) == words


def test_the_unit_starts_the_planned_command():
    target = structs.replace(on_recorded("mi100", "llama-3.1-8b", quant="Q4_K_M"), extra=("--api-key", "a b%$"))
    built, unit = llama_cpp.render(target), systemd.unit(target)
    (start,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert read_back(start.removeprefix("ExecStart=")) == list(built.argv)
    for name, value in built.env.items():
        assert f'Environment="{name}={value}"' in unit
    assert "SupplementaryGroups=video render\n" in unit
    assert "SupplementaryGroups" not in systemd.unit(on_words("no GPU, 64 GiB RAM"))
    assert "SupplementaryGroups" not in systemd.unit(on_words()), "NVIDIA's device files are open"


def directives(target) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in systemd.unit(target).splitlines():
        name, equals, value = line.partition("=")
        if equals:
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_s_user_reaches_a_model_in_a_home():
    """Homes are closed to other users, and a unit with DynamicUser= is one."""
    plain = directives(from_source(on_words(), "/srv/models/x.gguf"))
    assert plain["ProtectHome"] == ["yes"]
    assert "BindReadOnlyPaths" not in plain
    home = directives(
        structs.replace(from_source(on_words(), "/home/a b/m:1/x.gguf"), program="/root/bin/llama-server")
    )
    assert home["ProtectHome"] == ["tmpfs"]
    assert home["BindReadOnlyPaths"] == ['"/home/a b/m:1"', '"/root/bin"']


def test_the_unit_names_files_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (start,) = directives(from_source(on_words(), "models/x.gguf"))["ExecStart"]
    words = read_back(start)
    assert words[words.index("-m") + 1] == str(tmp_path / "models/x.gguf")


def test_systemd_binds_to_the_memory_node_by_itself():
    target = on_recorded("h100x8-nvlink", "llama-3.1-8b", quant="Q4_K_M")
    assert numa.bound_node(target) == 0
    found = directives(target)
    assert (found["NUMAPolicy"], found["NUMAMask"], found["CPUAffinity"]) == (["preferred"], ["0"], ["numa"])
    assert not found["ExecStart"][0].startswith("numactl")
    assert "NUMAPolicy" not in directives(on_words())
    spread = directives(on_recorded("h100x8-nvlink", "deepseek-v3", quant="Q8_0", context=4096))
    assert (spread["NUMAPolicy"], spread["NUMAMask"]) == (["interleave"], ["0,1"])
    assert "CPUAffinity" not in spread


def test_a_model_s_title_cannot_add_lines():
    target = on_words()
    odd = structs.replace(target, spec=structs.replace(target.spec, title="x\nExecStartPre=/bin/evil\n%h \\"))
    lines = systemd.unit(odd).splitlines()
    assert not any(line.startswith("ExecStartPre") for line in lines)
    assert lines[1] == "Description=llama-server with x ExecStartPre=/bin/evil %%h Q4_K_M"


@pytest.mark.parametrize("source", ["", "/home/a b/m:1/x y.gguf"])
@pytest.mark.parametrize("extra", [(), ("--api-key", "a b;c'\"%h $HOME\\")])
def test_systemd_accepts_the_unit(tmp_path, extra, source):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze; install systemd")
    target = structs.replace(
        on_recorded("h100x8-nvlink", "llama-3.1-8b", quant="Q4_K_M"), program=sys.executable, extra=extra
    )
    if source:
        target = from_source(target, source)
    path = tmp_path / "llama.service"
    path.write_text(systemd.unit(target))
    done = subprocess.run([program, "verify", "--man=no", str(path)], capture_output=True, text=True, check=False)
    if "Failed to" in done.stderr and "llama.service" not in done.stderr:
        pytest.skip(f"systemd-analyze cannot run here: {done.stderr.strip()}; install systemd")
    assert not [line for line in done.stderr.splitlines() if "llama.service" in line]
    assert done.returncode == 0, done.stderr
