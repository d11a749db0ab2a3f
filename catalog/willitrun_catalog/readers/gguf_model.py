"""A model from its GGUF file or files: exact tensors, and the layers the engine will make of them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from willitrun_catalog.errors import FileAccessError, FileFormatError
from willitrun_catalog.model import ModelSpec, Role, Tensor
from willitrun_catalog.readers import patterns
from willitrun_catalog.readers.architectures import ARCHITECTURES
from willitrun_catalog.readers.gguf import GgufHeader, read_header
from willitrun_catalog.readers.gguf_layers import Shapes, layers
from willitrun_catalog.readers.hyper import MAX_BLOCKS, Hyper
from willitrun_catalog.readers.names import PART, quant_of
from willitrun_catalog.readers.source import open_file
from willitrun_catalog.roles import role_of

FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
    40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
"""`enum llama_ftype` of include/llama.h in https://github.com/ggml-org/llama.cpp."""

MAX_PARTS = 1024
_TOWERS = ("v.", "mm.", "a.", "mmproj.", "resampler.")
"""Vision and audio towers that ollama keeps in the model's own file (names of tools/mtmd/clip-impl.h in llama.cpp)."""
_BLOCK = re.compile(r"^(?:(?:enc|dec)\.)?blk\.(\d{1,5})\.(.+)$")
_INDEXER = {"indexer_top_k": "attention.indexer.top_k"}
_SIZES = {
    "deepseek32": _INDEXER,
    "deepseek4": _INDEXER
    | {
        "q_rank": "attention.q_lora_rank",
        "o_rank": "attention.output_lora_rank",
        "o_groups": "attention.output_group_count",
        "streams": "hyper_connection.count",
        "window": "attention.sliding_window",
        "indexer_heads": "attention.indexer.head_count",
        "indexer_dim": "attention.indexer.key_length",
        "hash_layers": "hash_layer_count",
    },
    "glm-dsa": _INDEXER,
    "glm5-next": _INDEXER | {"streams": "hyper_connection.count", "indexer_pool": "attention.indexer.kpool"},
}
"""Sizes that an architecture's graph and caches need (src/models of llama.cpp), and the keys they are under."""
_NOT_MODELS = {
    "adapter": "a LoRA adapter, which changes another model",
    "mmproj": "a vision or audio projector",
    "imatrix": "an importance matrix for quantizing",
    "vocab": "a vocabulary without weights",
}


def part_paths(path: Path) -> tuple[Path, ...]:
    """List all files of a split model, the first one first, from any of them; raises `FileAccessError`."""
    match = PART.match(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count <= MAX_PARTS:
        raise FileAccessError(str(path), f"is numbered part {match['number']} of {match['count']}")
    paths = tuple(path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1))
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""  # noqa: PLR2004
        raise FileAccessError(
            str(path),
            f"part {', '.join(missing[:3])}{more} of {count} is missing",
            "download all parts into one folder",
        )
    return paths


def model_from_file(path: Path) -> ModelSpec:
    """Read a model from a `.gguf` file, or from any file of a split one; raises `CatalogError`."""
    paths = part_paths(path)
    headers = []
    for part in paths:
        with open_file(part) as source:
            headers.append(read_header(source))
    spec = model_from_headers(headers, source=str(path), file_name=paths[0].name)
    projector = projector_beside(paths[0])
    if projector is None:
        return spec
    return msgspec.structs.replace(spec, projector=str(projector), projector_bytes=projector.stat().st_size)


def projector_beside(path: Path) -> Path | None:
    """Find the projector (`mmproj`) in a model's folder, the smallest of several.

    A projector that names a model belongs to that one: its words must all be in the model's name.
    """
    own = _words(path.name)
    try:
        found = [
            (entry.stat().st_size, entry)
            for entry in path.parent.iterdir()
            if entry.suffix.lower() == ".gguf" and _is_projector_of(entry.name, own) and entry.is_file()
        ]
    except OSError:
        return None
    return min(found)[1] if found and "mmproj" not in own else None


def _is_projector_of(name: str, model_words: frozenset[str]) -> bool:
    words = _words(name)
    return "mmproj" in words and words - {"mmproj", "model", "vision"} <= model_words


def _words(name: str) -> frozenset[str]:
    """Split a file name into words, without its ending and its quantization."""
    stem = re.sub(r"\.gguf$", "", name.lower())
    quant = (quant_of(stem) or "").lower()
    return frozenset(re.split(r"[-_. ]+", stem.replace(quant, "") if quant else stem)) - {""}


def model_from_headers(headers: list[GgufHeader], *, source: str, file_name: str) -> ModelSpec:
    """Build the model from the headers of its file or files, the first one first; raises `FileFormatError`."""
    first = headers[0]
    _check_kind(first)
    _check_parts(headers)
    hyper = Hyper(first)
    mtp_layers = _mtp_layers(hyper, headers)
    trunk = hyper.blocks - mtp_layers
    tensors = tuple(_tensors(headers, trunk))
    towers = [info for header in headers for info in header.tensors if info.name.startswith(_TOWERS)]
    blocks = _blocks(hyper, tensors, trunk)
    by_name = {tensor.name: tensor for tensor in tensors}
    table = by_name.get("token_embd.weight")
    if table is None or len(table.shape) < 2:  # noqa: PLR2004
        raise FileFormatError(first.path, "has no token table", field="token_embd.weight")
    part = PART.match(file_name)
    stem = part["stem"] if part else re.sub(r"\.gguf$", "", file_name, flags=re.IGNORECASE)
    tied = "output.weight" not in by_name
    context = hyper.number("context_length")
    layer_list = layers(hyper, blocks)
    return ModelSpec(
        name=stem.lower(),
        title=_text(first, "general.name") or stem,
        architecture=hyper.architecture,
        source=source,
        hidden_size=hyper.size("embedding_length"),
        vocab_size=table.shape[1],
        tied_embeddings=tied,
        max_context_tokens=context or hyper.size("context_length"),
        layers=layer_list,
        mtp_layers=mtp_layers,
        traits=_traits(by_name),
        sizes=_sizes(hyper),
        tensors=tensors,
        file_bytes=sum(header.file_bytes for header in headers),
        files=tuple(header.path for header in headers),
        quant=_quant(first, tensors),
        hf_id=_hub_id(first),
        params=sum(tensor.elements for tensor in tensors if tensor.layer is None or tensor.layer < trunk),
        projector_bytes=sum(info.bytes for info in towers),
        non_text_params=sum(math.prod(info.shape) for info in towers),
        capabilities=_capabilities(first, towers=bool(towers)),
        license=_text(first, "general.license"),
        sources=(source,),
        findings=tuple(_findings(hyper)),
    )


def _check_kind(header: GgufHeader) -> None:
    kind = _text(header, "general.type")
    architecture = _text(header, "general.architecture")
    if architecture == "clip":
        kind = "mmproj"
    if kind in _NOT_MODELS:
        raise FileFormatError(
            header.path,
            f"is {_NOT_MODELS[kind]}, not a model",
            field="general.type",
            advice="name the model file itself; a projector beside it is found",
        )


def _check_parts(headers: list[GgufHeader]) -> None:
    expected = headers[0].metadata.get("split.count", 1)
    if len(headers) != expected and isinstance(expected, int) and expected > 1:
        raise FileFormatError(
            headers[0].path,
            f"is one of {expected} parts, and {len(headers)} were given",
            field="split.count",
            advice="keep the names NAME-00001-of-0000N.gguf and put all parts in one folder",
        )
    total = headers[0].metadata.get("split.tensors.count")
    found = sum(len(header.tensors) for header in headers)
    if isinstance(total, int) and len(headers) > 1 and total != found:
        raise FileFormatError(
            headers[0].path, f"promises {total} tensors, its parts hold {found}", field="split.tensors.count"
        )
    if found == 0:
        raise FileFormatError(headers[0].path, "holds no tensors", field="tensor count")


def _mtp_layers(hyper: Hyper, headers: list[GgufHeader]) -> int:
    """Count the next-token blocks at the end; DeepSeek V4 only counts them where they are in the file."""
    count = hyper.number("nextn_predict_layers")
    if count > hyper.blocks:
        raise hyper.error("nextn_predict_layers", f"is {count} of {hyper.blocks} blocks")
    if count == hyper.blocks:
        raise hyper.error("nextn_predict_layers", "leaves no other block: this is a draft model's file")
    if count and hyper.architecture == "deepseek4":
        probe = f"blk.{hyper.blocks - count}.nextn.eh_proj.weight"
        if not any(tensor.name == probe for header in headers for tensor in header.tensors):
            return 0
    return count


def _tensors(headers: list[GgufHeader], trunk: int) -> Iterable[Tensor]:
    seen: set[str] = set()
    for header in headers:
        for info in header.tensors:
            if info.name.startswith(_TOWERS):
                continue
            if info.name in seen:
                raise FileFormatError(header.path, f"repeats tensor {info.name} of an earlier part", field=info.name)
            seen.add(info.name)
            match = _BLOCK.match(info.name)
            layer = int(match[1]) if match else None
            name = f"blk.0.{match[2]}" if match else info.name
            role: Role = "norm" if len(info.shape) < 2 else role_of(name, len(info.shape))  # noqa: PLR2004
            if layer is not None and layer >= trunk:
                role = "extra"
            yield Tensor(info.name, info.shape, layer, role, info.type)


def _blocks(hyper: Hyper, tensors: tuple[Tensor, ...], trunk: int) -> Sequence[Shapes]:
    blocks: list[dict[str, tuple[int, ...]]] = [{} for _ in range(trunk)]
    for tensor in tensors:
        if tensor.layer is not None and tensor.layer < trunk:
            match = _BLOCK.match(tensor.name)
            if match is not None:
                blocks[tensor.layer].setdefault(match[2], tensor.shape)
    filled = [index for index, block in enumerate(blocks) if block]
    if not filled:
        raise hyper.error("block_count", f"is {hyper.blocks}, and no tensor of any block is there")
    if hyper.architecture in patterns.LOOPED:
        once = len(filled)
        if hyper.architecture == "nanbeige":
            slots = min(MAX_BLOCKS, once * max(1, hyper.number("num_loops", 1)))
            return [blocks[index % once] for index in range(slots)]
        return [blocks[index % once] for index in range(trunk)]
    if len(filled) < trunk:
        missing = next(index for index in range(trunk) if not blocks[index])
        raise hyper.error("block_count", f"is {hyper.blocks}, and block {missing} has no tensors")
    return blocks


def _quant(header: GgufHeader, tensors: tuple[Tensor, ...]) -> str:
    """Name the quantization: as the file says, else by the type that most weights have."""
    number = header.metadata.get("general.file_type")
    if isinstance(number, int) and number in FILE_TYPES:
        return FILE_TYPES[number]
    weights: Counter[str] = Counter()
    for tensor in tensors:
        weights[tensor.type or "F32"] += tensor.elements
    return weights.most_common(1)[0][0]


def _traits(tensors: dict[str, Tensor]) -> tuple[str, ...]:
    parts = {match[2] for name in tensors if (match := _BLOCK.match(name))}
    marks = (
        ("qk-norm", "attn_q_norm.weight"),
        ("qkv-bias", "attn_q.bias"),
        ("fused-qkv", "attn_qkv.weight"),
        ("post-norm", "post_attention_norm.weight"),
        ("attention-sinks", "attn_sinks.weight"),
    )
    return tuple(trait for trait, part in marks if part in parts)


def _sizes(hyper: Hyper) -> tuple[tuple[str, int], ...]:
    """Read the further sizes that a graph follows from and no tensor's shape says."""
    named = _SIZES.get(hyper.architecture, {})
    return tuple((name, size) for name, key in named.items() if (size := hyper.number(key)))


def _text(header: GgufHeader, key: str) -> str | None:
    value = header.metadata.get(key)
    return value if isinstance(value, str) and value else None


def _hub_id(header: GgufHeader) -> str | None:
    repository = _text(header, "general.source.huggingface.repository")
    if repository:
        return repository
    address = _text(header, "general.base_model.0.repo_url") or ""
    match = re.match(r"^https://huggingface\.co/([^/\s]+/[^/\s]+)$", address)
    return match[1] if match else None


def _capabilities(header: GgufHeader, *, towers: bool) -> tuple[str, ...]:
    tags = header.metadata.get("general.tags")
    found = {"vision"} if towers else set()
    if isinstance(tags, tuple) and not hasattr(tags, "_fields"):
        words = {str(tag).lower() for tag in tags}
        if words & {"image-text-to-text", "vision", "any-to-any"}:
            found.add("vision")
        if words & {"feature-extraction", "sentence-similarity"}:
            found.add("embedding")
        if "code" in words:
            found.add("code")
    return tuple(sorted(found))


def _findings(hyper: Hyper) -> Iterable[str]:
    if hyper.architecture not in ARCHITECTURES:
        yield (
            f"architecture {hyper.architecture!r} is not known to this version: weights are exact, the cache is "
            "planned from the tensors as if every attention layer saw the whole context"
        )
    if hyper.architecture in patterns.CACHELESS:
        yield "an encoder or diffusion model: it keeps no cache and does not generate token by token"
