from __future__ import annotations

import os
import shutil
import sys

import platformdirs
import pytest

from willitrun_here import places


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere platformdirs is asked itself")
@pytest.mark.parametrize("variable", ["/x", "", None])
def test_folders_are_where_platformdirs_puts_them(monkeypatch, variable):
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False) if variable is None else monkeypatch.setenv(name, variable)
    assert places.cache_folder() == platformdirs.user_cache_path("willitrun-here", appauthor=False)
    assert places.state_folder() == platformdirs.user_state_path("willitrun-here", appauthor=False)


def test_elsewhere_platformdirs_is_asked(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert places.cache_folder().name == places.state_folder().name == "willitrun-here"


def test_a_user_without_a_home_keeps_nothing_in_the_working_folder(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert places.cache_folder({}).is_absolute()
    assert places.state_folder({"XDG_STATE_HOME": "relative", "HOME": "/home/a"}).parts[:3] == ("/", "home", "a")


def test_programs_are_found_as_the_shell_finds_them(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tool").mkdir()  # a folder of that name is none
    (tmp_path / "b").mkdir()
    tool = tmp_path / "b" / "tool"
    tool.write_text("#!/bin/sh\n")
    path = f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}"
    assert places.program("tool", {"PATH": path}) is shutil.which("tool", path=path) is None
    tool.chmod(0o755)
    assert places.program("tool", {"PATH": path}) == shutil.which("tool", path=path) == str(tool)
    assert places.program(str(tool), {}) == str(tool)
    assert places.program(str(tmp_path / "c"), {}) is None
