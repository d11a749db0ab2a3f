from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_here.launch.flags import NEWEST, installed, parse_help

HERE = Path(__file__).parent
OLD, NEW = (HERE / "help_old.txt").read_text(), (HERE / "help_new.txt").read_text()


def test_an_old_build():
    flags = parse_help(OLD, "b4500")
    assert not flags.flash_takes_value
    assert not flags.layers_take_all, "the 'all' of another flag's text is not this one's"
    assert {"-m", "--no-mmap", "--mlock", "-ot", "-hf", "-hff", "--n-gpu-layers"} <= flags.names
    assert not {"-lm", "--load-mode", "-ncmoe", "-fit", "-kvu", "-cram"} & flags.names
    assert flags.version == "b4500"


def test_a_new_build():
    flags = parse_help(NEW)
    assert flags.flash_takes_value
    assert flags.layers_take_all
    assert {"-lm", "--load-mode", "-ncmoe", "--n-cpu-moe", "-fit", "-kvu", "-cram", "-lv"} <= flags.names
    assert not {"--no-mmap", "--mlock"} & flags.names
    assert "-fa" in flags
    assert "--unheard-of" not in flags


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("--jinja    use jinja template for chat (default: disabled)", False),
        ("--jinja, --no-jinja    whether to use the jinja template engine (default:\n     enabled)", True),
    ],
)
def test_builds_that_want_the_chat_template_switched_on(text, expected):
    assert parse_help(text).jinja_by_default is expected


@given(st.text(max_size=300))
def test_any_text_is_read(text):
    assert not any(" " in name for name in parse_help(text).names)


def program(folder: Path, text: str) -> Path:
    path = folder / "llama-server"
    path.write_text("#!/bin/sh\necho asked >> '" + str(folder / "asked") + f"'\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_build_is_asked_once_until_it_changes(tmp_path):
    (tmp_path / "help").write_text(OLD)
    path, cache = program(tmp_path, f"cat '{tmp_path}/help'"), tmp_path / "cache"
    assert installed(str(path), cache) == parse_help(OLD)
    assert installed(str(path), cache) == parse_help(OLD)
    assert (tmp_path / "asked").read_text() == "asked\n"
    (tmp_path / "help").write_text(NEW)
    os.utime(path, ns=(1, 1))
    assert installed(str(path), cache) == parse_help(NEW)


def test_a_damaged_cache_is_asked_again(tmp_path):
    (tmp_path / "help").write_text(OLD)
    path, cache = program(tmp_path, f"cat '{tmp_path}/help'"), tmp_path / "cache"
    installed(str(path), cache)
    (kept,) = (cache / "flags").iterdir()
    kept.write_bytes(b"{")
    assert installed(str(path), cache) == parse_help(OLD)


def test_an_unwritable_cache_is_no_failure(tmp_path):
    (tmp_path / "help").write_text(OLD)
    (tmp_path / "cache").write_text("a file, not a folder")
    assert installed(str(program(tmp_path, f"cat '{tmp_path}/help'")), tmp_path / "cache") == parse_help(OLD)


@pytest.mark.parametrize("text", ["exit 127", "echo nothing of use", "echo '-h  help'"])
def test_programs_that_cannot_say_get_the_newest_names(tmp_path, text):
    assert installed(str(program(tmp_path, text)), tmp_path / "cache") == NEWEST


def test_no_program_gets_the_newest_names(tmp_path):
    assert installed(str(tmp_path / "none"), tmp_path) is NEWEST
    (tmp_path / "plain").write_text("not executable")
    assert installed(str(tmp_path / "plain"), tmp_path) is NEWEST
    assert NEWEST.assumed


@pytest.mark.engine
def test_a_real_build_understands_what_is_assumed_of_the_newest():
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "willitrun-here" / "engines"
    found = sorted(cache.glob("llama.cpp-*/llama-server"))
    if not found:
        pytest.skip("no llama-server was built; run: python scripts/build_engine.py")
    shown = subprocess.run([found[-1], "--help"], capture_output=True, text=True, check=True, timeout=20)
    flags = parse_help(shown.stdout)
    assert flags.flash_takes_value
    assert flags.layers_take_all
    assert flags.jinja_by_default
    assert NEWEST.names <= flags.names
