from __future__ import annotations

import hashlib
import importlib

from hypothesis import given
from hypothesis import strategies as st

from willitrun_probe.identity import sha256_hex


@given(st.binary())
def test_the_hash_is_sha_256_whoever_computes_it(data):
    assert sha256_hex(data) == hashlib.sha256(data).hexdigest()


def test_an_interpreter_without_modules_of_its_own_asks_hashlib(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert sha256_hex(b"abc").startswith("ba7816bf")
