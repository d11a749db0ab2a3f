"""A model from a folder with config.json and safetensors: exact bytes, and the layers an engine makes of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from willitrun_catalog.errors import FileAccessError, FileFormatError
from willitrun_catalog.model import ModelSpec, Role, Tensor
from willitrun_catalog.readers.checkpoint_names import PACKED, CheckpointName, is_beside, parse
from willitrun_catalog.readers.config import class_name, gguf_architecture, hyper_of, number, text_fields
from willitrun_catalog.readers.gguf_layers import Shapes, layers
from willitrun_catalog.readers.quantization import quantization
from willitrun_catalog.readers.safetensors import StoredTensor, read_tensors
from willitrun_catalog.readers.source import open_file, read_small
from willitrun_catalog.roles import role_of

MAX_CONFIG_BYTES = 4 << 20
MAX_INDEX_BYTES = 64 << 20
MAX_SHARDS = 4096
_SHARD_NAME = re.compile(rb'"([^"\n]{1,255})"\s*[,}]')
_FLOATS = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F64"}
_NATIVE = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_ALREADY_STACKED = 3


class Checkpoint(Struct, frozen=True, kw_only=True):
    """What a checkpoint holds, wherever it lies."""

    config: dict[str, Any]
    quant_config: dict[str, Any] | None
    """Content of `hf_quant_config.json`, None without one."""
    tensors: list[StoredTensor]
    file_bytes: int
    files: tuple[str, ...]


def model_from_folder(folder: Path) -> ModelSpec:
    """Read a model from a folder; raises `CatalogError`."""
    shards = shard_paths(folder)
    config = read_json(_inside(folder, folder / "config.json"))
    extra = folder / "hf_quant_config.json"
    tensors: list[StoredTensor] = []
    file_bytes = 0
    for shard in shards:
        with open_file(_inside(folder, shard)) as source:
            tensors += read_tensors(source)
            file_bytes += source.size
    checkpoint = Checkpoint(
        config=config,
        quant_config=read_json(_inside(folder, extra)) if extra.exists() else None,
        tensors=tensors,
        file_bytes=file_bytes,
        files=tuple(str(shard) for shard in shards),
    )
    return model_from_checkpoint(checkpoint, name=folder.resolve().name, path=str(folder), source=str(folder))


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration file; raises `FileFormatError`."""
    return decode_json(read_small(path, MAX_CONFIG_BYTES), str(path))


def decode_json(data: bytes, path: str) -> dict[str, Any]:
    """Decode a configuration; raises `FileFormatError` when it is not a JSON object."""
    try:
        found = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FileFormatError(path, f"is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise FileFormatError(path, "is not a JSON object")
    return found


def shard_paths(folder: Path) -> list[Path]:
    """List the weight files of a folder, as its index names them; raises `FileAccessError` for a missing one."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = index_names(read_small(_inside(folder, index), MAX_INDEX_BYTES), str(index))
    elif (folder / "model.safetensors").exists():
        names = ["model.safetensors"]
    else:
        try:
            names = sorted(entry.name for entry in folder.iterdir() if entry.suffix == ".safetensors")
        except OSError as error:
            raise FileAccessError(str(folder), f"cannot be listed: {error.strerror}") from error
    if not names or len(names) > MAX_SHARDS:
        raise FileAccessError(
            str(folder), f"holds {len(names)} safetensors files", "name a folder with config.json and its weights"
        )
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise FileAccessError(
            str(folder), f"{missing[0]} of {len(names)} weight files is missing", "finish the download"
        )
    return [folder / name for name in names]


def index_names(data: bytes, path: str) -> list[str]:
    """List the weight files an index names, without decoding its tens of thousands of tensor names."""
    names = {match.decode("utf-8", "replace") for match in _SHARD_NAME.findall(data) if match.endswith(b".safetensors")}
    outside = next((name for name in names if "/" in name or "\\" in name or name.startswith(".")), None)
    if outside is not None:
        raise FileAccessError(path, f"names {outside!r}, which is not a file of its own folder")
    return sorted(names)


def _inside(folder: Path, path: Path) -> Path:
    """Follow a link that stays in the folder or in the hub cache it belongs to; raises `FileAccessError`."""
    try:
        real, home = path.resolve(strict=True), folder.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise FileAccessError(str(path), f"cannot be read: {error}") from error
    if home in real.parents:
        return real
    cached = home.parent.name == "snapshots" and home.parent.parent / "blobs" in real.parents
    if not cached:
        raise FileAccessError(str(path), f"links out of its folder, to {real}", "copy the file into the folder")
    return real


def model_from_checkpoint(checkpoint: Checkpoint, *, name: str, path: str, source: str) -> ModelSpec:
    """Build the model; raises `FileFormatError`."""
    config = checkpoint.config
    architecture, known = gguf_architecture(config)
    hyper = hyper_of(config, path)
    fields = text_fields(config)
    quant, bits = quantization(config, checkpoint.quant_config)
    grouped = _group(checkpoint.tensors, bits or 8, packed_outputs=quant == "AWQ")
    trunk = hyper.blocks
    blocks: list[dict[str, tuple[int, ...]]] = [{} for _ in range(trunk)]
    for group in grouped.values():
        # Scales without their matrix, or a matrix of nothing, say nothing about the block.
        if group.layer is not None and group.layer < trunk and group.elements:
            blocks[group.layer][group.file_part] = group.shape
    built = layers(hyper, _complete(blocks, fields, path))
    listed = tuple(_tensors(grouped.values(), trunk, fixed=quant is not None))
    kinds = {group.dtype for group in grouped.values()}
    table = grouped.get((None, "token_embd"))
    highest = max((group.layer for group in grouped.values() if group.layer is not None), default=-1)
    return ModelSpec(
        name=name.lower(),
        title=name,
        architecture=architecture,
        source=source,
        hidden_size=hyper.size("embedding_length"),
        vocab_size=table.shape[1] if table and len(table.shape) > 1 else number(fields, ("vocab_size",), path),
        tied_embeddings=(None, "output") not in grouped,
        max_context_tokens=hyper.number("context_length") or 4096,
        layers=built,
        mtp_layers=max(0, min(highest + 1 - trunk, hyper.number("nextn_predict_layers", 8))),
        traits=_traits(grouped),
        tensors=listed,
        file_bytes=checkpoint.file_bytes,
        files=checkpoint.files,
        quant=quant,
        hf_architecture=class_name(config),
        native_type=next((_NATIVE[kind] for kind in ("BF16", "F16", "F32") if kind in kinds), "bf16"),
        params=sum(group.elements for group in grouped.values() if group.layer is None or group.layer < trunk),
        non_text_params=sum(math.prod(tensor.shape) for tensor in checkpoint.tensors if parse(tensor.name).tower),
        capabilities=("vision",) if any(parse(tensor.name).tower for tensor in checkpoint.tensors) else (),
        sources=(source,),
        findings=tuple(_findings(architecture, hyper.number("context_length"), known=known)),
    )


class Group:
    """All stored tensors that make one matrix: its experts, packed values, scales and zero points."""

    def __init__(self, name: CheckpointName) -> None:
        self.layer = name.layer
        self.part = name.part
        self.shape: tuple[int, ...] = ()
        """Logical shape, row length first; experts are the last dimension."""
        self.dtype = ""
        self.bias = False
        self.experts: set[int] = set()
        self.stored: list[tuple[str, StoredTensor]] = []

    @property
    def file_part(self) -> str:
        """GGUF name within the block."""
        if self.bias:
            return f"{self.part}.bias"
        return self.part if self.part in {"ssm_a", "ssm_d"} else f"{self.part}.weight"

    @property
    def quantized(self) -> bool:
        """Whether it is stored in the checkpoint's format, not as plain floats."""
        return self.dtype not in _FLOATS or any(suffix in PACKED or is_beside(suffix) for suffix, _ in self.stored)

    @property
    def elements(self) -> int:
        """Logical weights, whatever they are packed in."""
        return math.prod(self.shape) if self.shape else 0


def _group(tensors: Iterable[StoredTensor], bits: int, *, packed_outputs: bool) -> dict[tuple[int | None, str], Group]:
    groups: dict[tuple[int | None, str], Group] = {}
    packed: dict[tuple[int | None, str], tuple[int, ...]] = {}
    for tensor in tensors:
        name = parse(tensor.name)
        if name.tower:
            continue
        bias = name.suffix == "bias" and name.part not in {"exp_probs_b", "ssm_dt"}
        key = (name.layer, f"{name.part}.bias" if bias else name.part)
        group = groups.get(key)
        if group is None:
            group = groups[key] = Group(name)
            group.bias = bias
        if name.expert is not None:
            group.experts.add(name.expert)
        group.stored.append((name.suffix, tensor))
        if not is_beside(name.suffix) and key not in packed:
            packed[key] = _logical_shape(tensor, name.suffix, bits, packed_outputs=packed_outputs)
            group.dtype = tensor.dtype
    for key, group in groups.items():
        shape = packed.get(key, ())
        group.shape = (*shape, len(group.experts)) if group.experts else shape
    return groups


def _logical_shape(tensor: StoredTensor, suffix: str, bits: int, *, packed_outputs: bool) -> tuple[int, ...]:
    """Undo the packing: shape with the row length first, in weights."""
    shape = tensor.shape
    if suffix not in PACKED and tensor.dtype not in {"U8", "I8", "F4"}:
        return tuple(reversed(shape))
    if suffix == "qweight" and len(shape) == 2:  # noqa: PLR2004
        rows, columns = shape
        # 32-bit words hold consecutive outputs in AWQ, consecutive inputs in GPTQ.
        return (rows, columns * 32 // bits) if packed_outputs else (rows * 32 // bits, columns)
    if suffix == "blocks":
        return tuple(reversed((*shape[:-2], shape[-2] * shape[-1] * 2))) if len(shape) > 1 else shape
    per_item = {"I32": 32, "U8": 8, "I8": 8, "F4": 4}.get(tensor.dtype, bits) // bits
    return tuple(reversed((*shape[:-1], shape[-1] * max(1, per_item)))) if shape else ()


def _complete(blocks: list[dict[str, tuple[int, ...]]], fields: Mapping[str, Any], path: str) -> list[Shapes]:
    if not any(blocks):
        raise FileFormatError(path, "no tensor of any layer is there", field="num_hidden_layers")
    missing = next((index for index, block in enumerate(blocks) if not block), None)
    if missing is not None:
        raise FileFormatError(path, f"layer {missing} has no tensors", field="num_hidden_layers")
    for block in blocks:
        # Joined experts are stored [experts, in, out] or [experts, out, in]; the configuration tells which is which.
        down, width = block.get("ffn_down_exps.weight"), fields.get("moe_intermediate_size")
        if down is not None and len(down) == _ALREADY_STACKED and width == down[1] != down[0]:
            block["ffn_down_exps.weight"] = (down[1], down[0], down[2])
    return [*blocks]


def _tensors(groups: Iterable[Group], trunk: int, *, fixed: bool) -> Iterable[Tensor]:
    """List the weights themselves, whatever they are packed in; a format's own scales come with its bits per weight.

    The type is left open where it can be chosen (a checkpoint of plain floats) or is the checkpoint's format.
    """
    for group in groups:
        if not group.elements:
            continue
        prefix = "" if group.layer is None else f"blk.{group.layer}."
        role: Role = role_of(f"blk.0.{group.file_part}" if prefix else group.file_part, len(group.shape))
        if group.layer is not None and group.layer >= trunk:
            role = "extra"
        vector = len(group.shape) < 2 or role == "norm"  # noqa: PLR2004
        kept = vector or (fixed and not group.quantized)
        kind = _FLOATS.get(group.dtype, "F32") if kept else None
        yield Tensor(prefix + group.file_part, group.shape, group.layer, role, kind)


def _traits(groups: Mapping[tuple[int | None, str], Group]) -> tuple[str, ...]:
    parts = {part for layer, part in groups if layer is not None}
    marks = (("qk-norm", "attn_q_norm"), ("qkv-bias", "attn_q.bias"), ("attention-sinks", "attn_sinks"))
    return tuple(trait for trait, part in marks if part in parts)


def _findings(architecture: str, context: int, *, known: bool) -> Iterable[str]:
    if not known:
        yield (
            f"architecture {architecture!r} is not known to this version: weights are exact, the cache is planned "
            "from the tensors as if every attention layer saw the whole context"
        )
    if not context:
        yield "config.json names no context length: 4096 tokens are assumed"
