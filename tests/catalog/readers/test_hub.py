"""Models on a hub, against a local server with the same routes: ranges, redirects, refusals, slow and broken bodies."""

from __future__ import annotations

import json

import msgspec
import pytest

from tests.catalog.readers import checkpoint_writer as c
from tests.catalog.readers import gguf_writer as w
from tests.catalog.readers.hub_server import Hub, serve
from willitrun_catalog.errors import CatalogError, HubError
from willitrun_catalog.readers import open_model
from willitrun_catalog.readers.hub import Address, list_repository, open_hub, parse_address, quant_of, read_gguf
from willitrun_catalog.readers.hub_cache import open_cached
from willitrun_catalog.readers.hub_http import Connection, connect, fetch
from willitrun_catalog.readers.keep import Kept, published, update

pytest.importorskip("huggingface_hub", reason="pip install 'willitrun-here[hub]'")

BLOCK = {
    "attn_q.weight": (256, 256), "attn_k.weight": (256, 64), "attn_v.weight": (256, 64),
    "attn_output.weight": (256, 256), "ffn_up.weight": (256, 512), "ffn_down.weight": (512, 256),
}  # fmt: skip


def gguf(kind: str = "Q8_0", vocabulary: int = 200, file_type: int = 7, blocks=range(2), **extra) -> tuple[bytes, int]:
    metadata = {
        "general.architecture": "llama", "general.name": "Tiny", "llama.block_count": 2, "llama.context_length": 4096,
        "llama.embedding_length": 256, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 1,
        "general.file_type": file_type, **extra, **w.tokens(vocabulary),
    }  # fmt: skip
    listed = [("token_embd.weight", (256, 32), kind)] if 0 in blocks else []
    listed += [(f"blk.{n}.{name}", shape, kind) for n in blocks for name, shape in BLOCK.items()]
    head, size = w.header(metadata, listed)
    return head, len(head) + size


@pytest.fixture
def hub():
    found = Hub(
        repositories={
            "org/tiny-GGUF": {
                "README.md": b"# tiny",
                "tiny-Q4_0.gguf": gguf("Q4_0", file_type=2),
                "tiny-Q4_K_M.gguf": gguf("Q4_K", file_type=15),
                "tiny-Q8_0.gguf": gguf(),
                "mmproj-F16.gguf": (b"GGUF", 4096),
            },
        }
    )
    server = serve(found)
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def to(hub, monkeypatch):
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    found = connect({"HF_ENDPOINT": hub.url})
    return msgspec.structs.replace(found, sleep=lambda _seconds: None)


def test_a_quantization_is_judged_without_downloading_a_weight(hub, to):
    spec = open_hub("org/tiny-GGUF:Q8_0", to)
    assert (spec.quant, spec.source, spec.hf_id) == ("Q8_0", "hf:org/tiny-GGUF:tiny-Q8_0.gguf", "org/tiny-GGUF")
    assert spec.file_bytes == hub.repositories["org/tiny-GGUF"]["tiny-Q8_0.gguf"][1]
    assert spec.block_count == 2
    assert (spec.projector, spec.projector_bytes) == ("hf:org/tiny-GGUF:mmproj-F16.gguf", 4096)
    assert spec.license == "apache-2.0"
    assert {path for path, _, _ in hub.requests if path.endswith(".gguf")} == {
        "/org/tiny-GGUF/resolve/abc123/tiny-Q8_0.gguf"
    }


def test_only_the_header_of_a_large_file_travels(hub, to):
    head, _ = gguf(vocabulary=100_000, file_type=15)
    hub.repositories["org/big"] = {"big-Q4_K_M.gguf": (head, 40 << 30)}
    assert open_hub("org/big", to).file_bytes == 40 << 30
    assert hub.sent < len(head) + (9 << 20)
    assert sum(path.endswith(".gguf") for path, _, _ in hub.requests) <= 4
    assert all(asked for path, asked, _ in hub.requests if path.endswith(".gguf"))


def test_the_usual_quantization_is_taken_and_others_are_offered(to):
    assert open_hub("org/tiny-GGUF", to).quant == "Q4_K_M"
    assert open_hub("org/tiny-GGUF:tiny-Q4_0.gguf", to).quant == "Q4_0"
    assert open_hub("org/tiny-GGUF:q4_k_m", to).quant == "Q4_K_M"
    with pytest.raises(HubError) as caught:
        open_hub("org/tiny-GGUF:Q5_K_M", to)
    assert "Q4_0" in caught.value.advice
    assert "Q8_0" in caught.value.advice
    offered = list_repository(to, "org/tiny-GGUF").models
    assert [model.quant for model in offered] == ["Q4_0", "Q4_K_M", "Q8_0"]


def test_all_parts_of_a_split_model_are_read(hub, to):
    first = gguf(blocks=[0], **{"split.count": 2, "split.no": 0})
    second = gguf(blocks=[1], **{"split.count": 2, "split.no": 1})
    files = {"q/big-00001-of-00002.gguf": first, "q/big-00002-of-00002.gguf": second}
    hub.repositories["org/split"] = files
    spec = open_hub("org/split", to)
    assert spec.file_bytes == first[1] + second[1]
    assert spec.block_count == 2
    hub.repositories["org/half"] = {"big-00001-of-00002.gguf": first}
    with pytest.raises(HubError, match="1 of 2 parts"):
        open_hub("org/half", to)


def test_a_safetensors_repository_is_read_from_its_headers(hub, to):
    tensors = c.llama()
    names = list(tensors)
    shards = [{n: tensors[n] for n in names[:10]}, {n: tensors[n] for n in names[10:]}]
    files = {"config.json": json.dumps(c.LLAMA).encode(), "model.safetensors.index.json": b"{}"}
    for number, shard in enumerate(shards, 1):
        table = c.table(shard)
        files[f"model-{number:05d}-of-00002.safetensors"] = (table, len(table) + c.size_of(shard))
    hub.repositories["org/Tiny-Llama"] = files
    spec = open_hub("org/Tiny-Llama", to)
    assert (spec.hf_architecture, spec.hf_id, spec.quant) == ("LlamaForCausalLM", "org/Tiny-Llama", None)
    assert spec.params == c.size_of(tensors) // 2
    assert spec.file_bytes == sum(body[1] for name, body in files.items() if name.endswith(".safetensors"))


def test_the_token_is_sent_to_the_hub_and_not_to_where_it_redirects(hub, to):
    hub.token, hub.redirect = "secret", True
    with pytest.raises(HubError) as caught:
        open_hub("org/tiny-GGUF", to)
    assert caught.value.status == 401
    assert "HF_TOKEN" in caught.value.advice
    allowed = connect({"HF_ENDPOINT": hub.url, "HF_TOKEN": "secret"})
    assert open_hub("org/tiny-GGUF", allowed).quant == "Q4_K_M"
    sent = {path.split("/")[1]: token for path, _, token in hub.requests[1:]}
    assert sent == {"api": "Bearer secret", "org": "Bearer secret", "cdn": None}


@pytest.mark.parametrize("status", [403, 404, 416, 410])
def test_refusals_are_not_tried_again(hub, to, status):
    hub.fail = {"/org/tiny-GGUF": [status] * 9}
    with pytest.raises(HubError) as caught:
        open_hub("org/tiny-GGUF", to)
    assert (caught.value.status, caught.value.exit_code) == (status, 4)
    assert len(hub.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_answers_are_tried_again_a_few_times(hub, to, status):
    hub.fail = {"tiny-Q4_K_M.gguf": [status, status]}
    assert open_hub("org/tiny-GGUF", to).quant == "Q4_K_M"
    hub.fail = {"tiny-Q4_K_M.gguf": [status] * 9}
    with pytest.raises(HubError) as caught:
        open_hub("org/tiny-GGUF", to)
    assert caught.value.status == status
    assert len(hub.fail["tiny-Q4_K_M.gguf"]) == 6


def test_unknown_repositories_and_addresses_are_named(to):
    with pytest.raises(HubError, match="does not exist"):
        open_hub("org/nothing", to)
    for text in ("", "org", "org/a/b", "../etc/passwd", "org/..", "a b/c"):
        with pytest.raises(CatalogError):
            open_hub(text, to)
    assert parse_address("hf:a/b:Q4_K_M") == Address("a/b", "Q4_K_M")


def test_a_body_that_ends_early_is_tried_again_and_then_named(hub, to):
    hub.cut_after = 0
    with pytest.raises(HubError):
        open_hub("org/tiny-GGUF", to)
    assert sum(path.endswith(".gguf") for path, _, _ in hub.requests) == 3


def test_a_trickling_body_ends_at_the_deadline(hub, to):
    head, _ = gguf(vocabulary=100_000)
    hub.repositories["org/slow"] = {"slow.gguf": (head, 1 << 30)}
    hub.trickle_s = 0.02
    slow = msgspec.structs.replace(to, deadline_s=0.05)
    with pytest.raises(HubError, match=r"bytes in"):
        open_hub("org/slow", slow)


def test_a_server_without_ranges_is_left_after_what_was_asked(hub, to):
    hub.ranges = False
    assert open_hub("org/tiny-GGUF", to).quant == "Q4_K_M"
    head, _ = gguf(vocabulary=300_000)
    hub.repositories["org/big"] = {"big.gguf": (head, 1 << 33)}
    hub.sent = 0
    open_hub("org/big", to)
    assert hub.sent < 1 << 27


def test_a_portal_in_the_way_is_not_a_list(hub, to):
    hub.garbage = True
    with pytest.raises(HubError, match="not one"):
        open_hub("org/tiny-GGUF", to)


def test_a_list_that_lies_about_a_size_is_found_out(hub, to):
    head, size = gguf()
    hub.repositories["org/tiny-GGUF"] = {"a-Q8_0.gguf": (head, size)}
    repository = list_repository(to, "org/tiny-GGUF")
    hub.repositories["org/tiny-GGUF"]["a-Q8_0.gguf"] = (head, size + 1)
    with pytest.raises(HubError, match="its listing says"):
        read_gguf(to, repository, repository.models[0])


def test_nobody_there_is_an_error_with_the_reason(to):
    nowhere = msgspec.structs.replace(to, endpoint="http://127.0.0.1:9")
    with pytest.raises(HubError, match="was not reached"):
        open_hub("org/tiny-GGUF", nowhere)


def test_offline_mode_asks_nobody_and_uses_what_is_cached(hub, tmp_path, monkeypatch):
    offline = connect({"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "1"})
    assert offline.offline
    with pytest.raises(HubError, match="offline"):
        fetch(offline, "/x", "x", length=1)
    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "hub" / "models--org--tiny" / "refs").mkdir()
    (tmp_path / "hub" / "models--org--tiny" / "refs" / "main").write_text("abc")
    head, size = gguf()
    path = snapshot / "tiny-Q8_0.gguf"
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    assert open_cached(Address("org/tiny", "Q8_0"), (tmp_path / "hub",)).quant == "Q8_0"
    with pytest.raises(HubError, match="not in the local cache"):
        open_cached(Address("org/other", None), (tmp_path / "hub",))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert open_model("hf:org/tiny").quant == "Q8_0"
    assert hub.requests == []


def test_an_organisation_is_listed_without_remixes_and_kept(hub, to, tmp_path):
    hub.repositories["org/tiny-abliterated"] = {}
    hub.repositories["org/broken"] = {"readme": b""}
    assert published(to, "org", 10) == ["org/tiny-GGUF", "org/broken"]
    done = list(update(tmp_path, ("org", "nobody"), connection=to))
    assert [kept.name for kept in done] == ["tiny-q4_k_m", None]
    assert [bool(kept.path) for kept in done] == [True, False]
    assert "neither GGUF" in done[1].reason
    hub.repositories["org/tiny-GGUF"]["tiny-Q4_K_M.gguf"] = gguf("Q4_K", vocabulary=5, file_type=15)
    again = list(update(tmp_path, connection=to))
    assert [(kept.name, bool(kept.path)) for kept in again] == [(done[0].name, True)]
    assert isinstance(again[0], Kept)


@pytest.mark.parametrize(
    ("stem", "quant"),
    [
        ("Llama-3.1-8B-Instruct-Q4_K_M", "Q4_K_M"), ("x.IQ3_XXS", "IQ3_XXS"), ("gpt-oss-20b-MXFP4", "MXFP4"),
        ("UD-Q2_K_XL/DeepSeek-V3-UD-Q2_K_XL", "UD-Q2_K_XL"), ("model-f16", "F16"), ("model-bf16", "BF16"),
        ("TQ1_0/m-TQ1_0", "TQ1_0"), ("qwen3-8b-q8_0", "Q8_0"), ("plain", None), ("Qwen2.5-7B", None),
        ("m-iq4_nl", "IQ4_NL"),
    ],
)  # fmt: skip
def test_quantizations_are_read_off_file_names(stem, quant):
    assert quant_of(stem) == quant


def test_a_connection_is_a_value():
    assert isinstance(connect({"HF_ENDPOINT": "http://localhost:1/"}), Connection)
    assert connect({"HF_ENDPOINT": "http://localhost:1/"}).endpoint == "http://localhost:1"
