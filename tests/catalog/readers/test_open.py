"""What a user may type as MODEL, and what is no model: exit code 4 with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.catalog.readers import gguf_writer as w
from willitrun_catalog.errors import CatalogError, FileAccessError, FileFormatError, UnknownModel
from willitrun_catalog.model import ModelSpec
from willitrun_catalog.readers import Places, open_model
from willitrun_catalog.readers.keep import add_source, stale_note
from willitrun_catalog.readers.source import open_file
from willitrun_catalog.readers.user import Entry, decode_entry, entries, entry_name, read_entry, readable, write_entry
from willitrun_catalog.shipped import model as shipped_model

HEAD = {
    "general.architecture": "llama", "llama.block_count": 1, "llama.context_length": 4096,
    "llama.embedding_length": 256, "llama.attention.head_count": 4,
}  # fmt: skip
TENSORS = [("token_embd.weight", (256, 32), "F32"), ("blk.0.attn_q.weight", (256, 256), "F32")]


@pytest.fixture
def places(tmp_path) -> Places:
    return Places(user_catalog=tmp_path / "mine")


def gguf(path: Path) -> Path:
    return w.write(path, HEAD, TENSORS)


def test_names_paths_and_folders(tmp_path, places, monkeypatch):
    assert open_model("llama-3.1-8b", places=places).name == "llama-3.1-8b-instruct"
    path = gguf(tmp_path / "m.gguf")
    assert open_model(str(path), places=places).source == str(path)
    assert open_model(str(tmp_path), places=places).source == str(path)
    monkeypatch.chdir(tmp_path)
    assert open_model("m.gguf", places=places).block_count == 1
    assert open_model("./m.gguf", places=places).block_count == 1
    (tmp_path / "llama-3.1-8b").mkdir()
    assert open_model("llama-3.1-8b", places=places).name == "llama-3.1-8b-instruct"
    with pytest.raises(UnknownModel):
        open_model("no-such-model-anywhere-zzz", places=places)


def test_what_is_no_file_is_refused_with_its_reason(tmp_path, places):
    def reason(text) -> str:
        with pytest.raises(CatalogError) as caught:
            open_model(str(text), places=places)
        assert caught.value.exit_code == 4
        return str(caught.value)

    (tmp_path / "folder.gguf").mkdir()
    assert "is a folder" in reason(tmp_path / "folder.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    assert "is a pipe" in reason(tmp_path / "pipe.gguf")
    (tmp_path / "away.gguf").symlink_to(tmp_path / "gone")
    assert "leads nowhere" in reason(tmp_path / "away.gguf")
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    assert "loop.gguf" in reason(tmp_path / "loop.gguf")
    assert "device" in reason("/dev/./null") or "device" in reason("/dev/null.gguf/../null")
    assert "No such file" in reason(tmp_path / "missing.gguf")
    assert "not a path" in reason("a\0b.gguf")
    (tmp_path / "empty.gguf").touch()
    assert "magic" in reason(tmp_path / "empty.gguf")
    (tmp_path / "empty").mkdir()
    assert "holds no model" in reason(f"{tmp_path}/empty")
    gguf(tmp_path / "empty" / "a.gguf")
    gguf(tmp_path / "empty" / "b.gguf")
    assert "holds 2 models" in reason(f"{tmp_path}/empty")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything: run the tests as another user")
def test_permission_denied_is_said(tmp_path, places):
    path = gguf(tmp_path / "m.gguf")
    path.chmod(0)
    with pytest.raises(FileAccessError, match="Permission denied"):
        open_model(str(path), places=places)


def test_permission_denied_is_said_to_another_user(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    path = gguf(tmp_path / "m.gguf")
    path.chmod(0)
    code = (
        "import os, sys; sys.path[:0] = sys.argv[2:]\n"
        "from willitrun_catalog.readers.source import open_file\n"
        "from willitrun_catalog.errors import CatalogError\n"
        "from pathlib import Path\n"
        "descriptor = os.open(os.path.dirname(sys.argv[1]), os.O_RDONLY)\n"
        "os.fchdir(descriptor); os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        "    with open_file(Path('m.gguf')): print('opened')\n"
        "except CatalogError as error: print(error.exit_code, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), *sys.path], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "4 m.gguf: cannot be opened: Permission denied", done.stderr


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = gguf(tmp_path / "m.gguf")

    def touched():
        with open_file(path) as source:
            source.read_at(0, 100)
            os.utime(path, ns=(1, 1))

    def cut():
        with open_file(path) as source:
            path.write_bytes(b"x")
            source.read_at(0, 100)

    with pytest.raises(FileAccessError, match="changed"):
        touched()
    with pytest.raises(FileAccessError, match="became shorter"):
        cut()


def test_a_pipe_does_not_make_anyone_wait(tmp_path):
    os.mkfifo(tmp_path / "p.gguf")
    done = threading.Event()

    def read():
        with pytest.raises(FileAccessError):
            open_model(str(tmp_path / "p.gguf"))
        done.set()

    threading.Thread(target=read, daemon=True).start()
    assert done.wait(5)


def test_a_model_that_was_added_comes_first_under_its_name(tmp_path, places):
    path = gguf(tmp_path / "m.gguf")
    kept = add_source(str(path), places.user_catalog, name="llama-3.1-8b", now=datetime(2026, 1, 2, tzinfo=UTC))
    assert kept.name == "llama-3.1-8b"
    spec = open_model("llama-3.1-8b", places=places)
    assert spec.block_count == 1
    assert spec.tensors == open_model(str(path)).tensors
    entry = read_entry(Path(kept.path))
    assert (entry.added_from, entry.added_at) == (str(path), "2026-01-02T00:00:00Z")
    text = Path(kept.path).read_text()
    assert max(map(len, text.splitlines())) < 300
    assert '      {"name":"blk.0.attn_q.weight","shape":[256,256]' in text
    assert sorted(p.name for p in places.user_catalog.iterdir()) == ["llama-3.1-8b.json"]


def test_entries_are_checked_and_a_broken_one_hides_no_other(places):
    folder = places.user_catalog
    spec = shipped_model("llama-3.2-1b-instruct")
    good = Entry(added_from="catalog", added_at="2026-01-01T00:00:00Z", model=spec)
    write_entry(folder, good)
    assert decode_entry(readable(good), "x").model == spec
    for name, text in {
        "a": "{}", "b": "not json", "c": readable(good).decode().replace("willitrun.model/1", "other/9"),
        "d": readable(good).decode().replace('"hidden_size": 2048', '"hidden_size": 0'),
        "e": readable(good).decode().replace('"hidden_size": 2048', '"hidden_size": "wide"'),
        "f": '{"schema":' * 3000,
    }.items():  # fmt: skip
        (folder / f"{name}.json").write_text(text)
    found = list(entries(folder))
    assert [type(item).__name__ for item in found] == ["FileFormatError"] * 6 + ["Entry"]
    assert open_model("llama-3.2-1b-instruct", places=places) == spec
    with pytest.raises(FileFormatError, match="hidden_size"):
        decode_entry((folder / "e.json").read_bytes(), "e")
    with pytest.raises(FileFormatError):
        open_model("b", places=places)


def test_names_of_entries_are_names_of_files(places):
    assert entry_name("hf:Org/My Model:Q4_K_M") == "org-my-model-q4_k_m"
    assert entry_name("../../etc/passwd") == "etc-passwd"
    for text in ("", "..", "///"):
        with pytest.raises(CatalogError):
            entry_name(text)
    entry = Entry(added_from="x", added_at="x", model=shipped_model("llama-3.2-1b-instruct"))
    bad = Entry(added_from="x", added_at="x", model=ModelSpec(**{**_fields(entry.model), "name": "../escape"}))
    with pytest.raises(CatalogError):
        write_entry(places.user_catalog, bad)


def _fields(spec):
    return {name: getattr(spec, name) for name in spec.__struct_fields__}


def test_a_stale_catalog_says_so_once(tmp_path):
    marker = tmp_path / "told" / "marker"
    today = datetime(2026, 11, 22, tzinfo=UTC)
    assert stale_note("2026-11-01", today, marker) is None
    assert "days old" in stale_note("2026-01-01", today, marker)
    assert stale_note("2026-01-01", today, marker) is None
    assert stale_note("2026-02-01", today, marker) is not None
    assert stale_note("someday", today, marker) is None
