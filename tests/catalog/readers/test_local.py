"""Scanning the stores: what is listed, remembered, left out with a reason, and there twice."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.catalog.readers import checkpoint_writer as c
from tests.catalog.readers import gguf_writer as w
from willitrun_catalog.errors import CatalogError, FileAccessError, FileFormatError, UnknownModel
from willitrun_catalog.readers import local as local_module
from willitrun_catalog.readers import open_model
from willitrun_catalog.readers.duplicates import duplicates
from willitrun_catalog.readers.local import local_models, scan
from willitrun_catalog.readers.ollama import manifest_path, short_name
from willitrun_catalog.readers.places import Places, find_places

BLOCK = {"attn_q.weight": (256, 256), "attn_k.weight": (256, 64), "ffn_down.weight": (512, 256)}
HEADS = {"attention.head_count": 4, "attention.head_count_kv": 1}


def model(path: Path, *, name: str = "Tiny", early: bool = True, **extra) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {"block_count": 1, "context_length": 4096, "embedding_length": 256, **HEADS}
    head = {"general.architecture": "llama", "general.name": name}
    head |= {f"llama.{key}": value for key, value in values.items()}
    kind = {"general.file_type": 7}
    head = {**head, **kind, **w.tokens(100), **extra} if early else {**head, **w.tokens(100), **extra, **kind}
    listed = [("token_embd.weight", (256, 32), "Q8_0"), ("blk.0.attn_q.weight", (256, 256), "Q8_0")]
    return w.write(path, head, listed)


def pull(store: Path, name: str, source: Path, tag: str = "latest", *, projector: Path | None = None) -> Path:
    """Put a file into an ollama store, as a pull does."""
    layers = []
    for media, file in (("model", source), ("projector", projector)):
        if file is None:
            continue
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        blob = store / "blobs" / f"sha256-{digest}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(file.read_bytes())
        layers.append({
            "mediaType": f"application/vnd.ollama.image.{media}", "digest": f"sha256:{digest}",
            "size": blob.stat().st_size,
        })  # fmt: skip
    manifest = manifest_path(store, f"{name}:{tag}")
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return manifest


@pytest.fixture
def places(tmp_path) -> Places:
    """Every store with something in it."""
    found = Places(
        ollama=(tmp_path / "ollama",),
        lm_studio=(tmp_path / "lmstudio",),
        huggingface=(tmp_path / "hub",),
        llama_cpp=(tmp_path / "llama.cpp",),
        gpt4all=(tmp_path / "gpt4all",),
        jan=(tmp_path / "jan",),
        user_catalog=tmp_path / "mine",
        scan_cache=tmp_path / "cache" / "scan.json",
    )
    model(tmp_path / "lmstudio" / "org" / "repo" / "studio-Q8_0.gguf", name="Studio")
    model(tmp_path / "lmstudio" / "org" / "repo" / "mmproj-f16.gguf", **{"general.type": "mmproj"})
    model(tmp_path / "llama.cpp" / "org_repo_cached-Q4_0.gguf", name="Cached")
    model(tmp_path / "gpt4all" / "gpt4all-thing.gguf", name="Four", early=False)
    model(tmp_path / "jan" / "models" / "m" / "model.gguf", name="Jan")
    blob = model(tmp_path / "hub" / "models--org--r" / "blobs" / ("a" * 64), name="Hub")
    snapshot = tmp_path / "hub" / "models--org--r" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "hub-Q8_0.gguf").symlink_to(os.path.relpath(blob, snapshot))
    c.folder(tmp_path / "hub" / "models--org--st" / "snapshots" / "abc", c.LLAMA, [c.llama()])
    pull(tmp_path / "ollama", "pulled", model(tmp_path / "tmp.gguf", name="Pulled"), "1b")
    return found


def test_every_store_is_listed_with_size_and_quantization(places):
    found = scan(places)
    rows = {row.title: row for row in found.models}
    assert set(rows) == {"Studio", "Cached", "Four", "Jan", "Hub", "Pulled", "org/st"}
    assert {row.title: row.store for row in found.models} == {
        "Studio": "lm-studio", "Cached": "llama.cpp", "Four": "gpt4all", "Jan": "jan", "Hub": "huggingface",
        "Pulled": "ollama", "org/st": "huggingface",
    }  # fmt: skip
    assert rows["Pulled"].model == "ollama:pulled:1b"
    assert rows["Four"].quant == rows["Studio"].quant == rows["Pulled"].quant == "Q8_0"
    assert rows["Studio"].size_bytes == Path(rows["Studio"].path).stat().st_size
    assert (rows["org/st"].format, rows["org/st"].files, rows["org/st"].architecture) == ("safetensors", 1, "llama")
    assert found.problems == ()
    assert [row.size_bytes for row in found.models] == sorted((r.size_bytes for r in found.models), reverse=True)


def test_what_is_listed_can_be_opened_by_its_name(places):
    for row in scan(places).models:
        spec = open_model(row.model, places=places)
        assert spec.file_bytes == row.size_bytes
    assert len(list(local_models(places))) == 7


def test_a_second_scan_reads_no_file_that_did_not_change(places, monkeypatch):
    first = scan(places)
    monkeypatch.setattr(local_module, "read_summary", lambda _source: pytest.fail("a file was read again"))
    assert scan(places) == first
    monkeypatch.undo()
    changed = model(places.llama_cpp[0] / "org_repo_cached-Q4_0.gguf", name="Changed and longer")
    os.utime(changed, ns=(1, 1))
    assert "Changed and longer" in {row.title for row in scan(places).models}
    places.scan_cache.write_bytes(b"not a cache")
    assert len(scan(places).models) == 7


def test_a_cache_that_cannot_be_written_does_not_matter(places, tmp_path):
    (tmp_path / "file").write_text("")
    unwritable = Places(lm_studio=places.lm_studio, scan_cache=tmp_path / "file" / "scan.json")
    assert len(scan(unwritable).models) == 1


def test_problems_are_listed_and_hide_nothing(places):
    top = places.lm_studio[0]
    (top / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 40)
    (top / "folder.gguf").mkdir()
    os.mkfifo(top / "pipe.gguf")
    (top / "nowhere.gguf").symlink_to("/does/not/exist")
    model(top / "half-00001-of-00002.gguf")
    found = scan(places)
    reasons = {Path(problem.path).name: problem.reason for problem in found.problems}
    assert "folder" in reasons["folder.gguf"]
    assert "pipe" in reasons["pipe.gguf"]
    assert "leads nowhere" in reasons["nowhere.gguf"]
    assert "is missing" in reasons["half-00001-of-00002.gguf"]
    assert "broken.gguf" in reasons
    assert len(found.models) == 7


def test_split_models_are_one_row(places):
    for number in (1, 2, 3):
        model(places.jan[0] / f"big-{number:05d}-of-00003.gguf", name="Big", **{"split.count": 3})
    rows = [row for row in scan(places).models if row.title == "Big"]
    assert [(row.files, row.model.endswith("00001-of-00003.gguf")) for row in rows] == [(3, True)]


def test_the_same_bytes_in_two_stores_can_be_reclaimed(places, tmp_path):
    source = tmp_path / "tmp.gguf"
    target = places.lm_studio[0] / "org" / "copy.gguf"
    target.write_bytes(source.read_bytes())
    found = duplicates(scan(places).models)
    assert [(set(d.models), d.reclaim_bytes) for d in found] == [
        ({"ollama:pulled:1b", str(target)}, source.stat().st_size)
    ]
    assert found[0].basis == "same size and samples"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    hub_blob = places.huggingface[0] / "models--a--b" / "snapshots" / "x" / "m.gguf"
    hub_blob.parent.mkdir(parents=True)
    (places.huggingface[0] / "models--a--b" / "blobs").mkdir()
    blob = places.huggingface[0] / "models--a--b" / "blobs" / digest
    blob.write_bytes(source.read_bytes())
    hub_blob.symlink_to(blob)
    target.unlink()
    assert [d.basis for d in duplicates(scan(places).models)] == ["same digest"]
    linked = places.ollama[0] / "blobs" / f"sha256-{digest}"
    blob.unlink()
    blob.hardlink_to(linked)
    assert duplicates(scan(places).models) == ()


def test_files_of_one_size_and_other_content_are_no_duplicates(places):
    one = model(places.jan[0] / "a" / "one.gguf", name="AAAA")
    two = model(places.jan[0] / "a" / "two.gguf", name="BBBB")
    assert one.stat().st_size == two.stat().st_size
    assert duplicates(scan(places).models) == ()


def test_ollama_names_with_and_without_their_defaults(places, tmp_path):
    store = places.ollama[0]
    assert open_model("ollama:pulled:1b", places=places).name == "ollama:pulled:1b"
    pull(store, "me/other", tmp_path / "tmp.gguf")
    assert open_model("ollama:me/other", places=places).source == "ollama:me/other"
    pull(store, "hf.co/org/repo", tmp_path / "tmp.gguf", "Q8_0", projector=tmp_path / "tmp.gguf")
    spec = open_model("ollama:hf.co/org/repo:Q8_0", places=places)
    assert spec.projector_bytes == (tmp_path / "tmp.gguf").stat().st_size
    assert short_name(("registry.ollama.ai", "library", "a", "latest")) == "a:latest"
    with pytest.raises(UnknownModel) as caught:
        open_model("ollama:pulld", places=places)
    assert "ollama:pulled:1b" in caught.value.nearest
    with pytest.raises(UnknownModel) as caught:
        open_model("ollama:any", places=Places(ollama=(tmp_path / "nothing",)))
    assert "nothing is pulled" in caught.value.advice
    for name in ("../../etc/passwd", "a/b/c/d/e", "", "a:b/../c"):
        with pytest.raises(CatalogError):
            open_model(f"ollama:{name}", places=places)


@pytest.mark.parametrize(
    "manifest",
    [b"", b"{}", b"[]", b'{"layers": [{"mediaType": "x"}]}', b'{"layers": []}', b"\xff\xfe",
     b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../x"}]}'],
)  # fmt: skip
def test_broken_manifests_are_refused(places, manifest):
    path = manifest_path(places.ollama[0], "broken")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(manifest)
    with pytest.raises(FileFormatError):
        open_model("ollama:broken", places=places)
    assert any("broken" in problem.path for problem in scan(places).problems)


def test_a_blob_that_was_removed_is_named(places):
    for blob in (places.ollama[0] / "blobs").iterdir():
        blob.unlink()
    with pytest.raises(FileAccessError, match="is not there"):
        open_model("ollama:pulled:1b", places=places)


def test_places_follow_the_environment(tmp_path):
    env = {
        "OLLAMA_MODELS": "/data/ollama",
        "HF_HOME": "/data/hf",
        "LLAMA_CACHE": "/data/llama",
        "WILLITRUN_MODELS": "/own",
    }
    found = find_places(env, tmp_path)
    assert found.ollama == (Path("/data/ollama"),)
    assert found.huggingface == (Path("/data/hf/hub"),)
    assert found.llama_cpp == (Path("/data/llama"),)
    assert found.user_catalog == Path("/own")
    assert find_places({"HF_HUB_CACHE": "/x"}, tmp_path).huggingface == (Path("/x"),)
    assert find_places({}, tmp_path).llama_cpp == (tmp_path / ".cache" / "llama.cpp",)
