"""The fake vendor libraries, compiled once per session."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

_spec = importlib.util.spec_from_file_location("build_fakes", Path(__file__).parents[1] / "fakes" / "build.py")
assert _spec is not None
assert _spec.loader is not None
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)


@pytest.fixture(scope="session")
def fake_nvml(tmp_path_factory) -> Path:
    """The fake NVML as a shared library."""
    if build.compiler() is None:
        pytest.skip("no C compiler: apt-get install gcc")
    return build.build_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def fake_amdsmi(tmp_path_factory) -> Path:
    """The fake AMD SMI as a shared library, for the installed bindings."""
    if build.compiler() is None:
        pytest.skip("no C compiler: apt-get install gcc")
    try:
        return build.build_amdsmi(tmp_path_factory.mktemp("amdsmi"))
    except LookupError:
        pytest.skip('the AMD SMI bindings are not installed: pip install "willitrun-here[amd]"')


@pytest.fixture
def no_children_left() -> Iterator[None]:
    """Fail when a test leaves a child process behind, running or not reaped."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    after = {child.pid for child in psutil.Process().children(recursive=True)}
    assert after <= before
