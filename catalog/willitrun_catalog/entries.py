"""Reading the catalog's own files: short TOML entries for models and accelerators, in the notation of its README."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from willitrun_catalog.datasheet import Datasheet
from willitrun_catalog.errors import FileFormatError
from willitrun_catalog.model import (
    Attention,
    Dense,
    Ffn,
    Layer,
    Mixer,
    Mla,
    ModelSpec,
    Moe,
    NoFfn,
    NoMixer,
    Recurrent,
    Tensor,
)
from willitrun_catalog.roles import role_of

GIB = 1 << 30
DATA = Path(__file__).parent / "data"


def read_models(folder: Path = DATA / "models") -> list[ModelSpec]:
    """Read every model entry, in file and entry order; raises `FileFormatError`."""
    return [_model(path, entry) for path, entry in _entries(folder, "model")]


def read_datasheets(folder: Path = DATA / "gpus") -> list[Datasheet]:
    """Read every accelerator entry; raises `FileFormatError`."""
    return [_datasheet(path, entry) for path, entry in _entries(folder, "gpu")]


def _entries(folder: Path, kind: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    import tomllib  # noqa: PLC0415

    for path in sorted(folder.glob("*.toml")):
        try:
            listed = tomllib.loads(path.read_text(encoding="utf-8")).get(kind, [])
        except tomllib.TOMLDecodeError as error:
            raise FileFormatError(str(path), str(error)) from error
        yield from ((path, entry) for entry in listed)


def expand_layers(text: str) -> list[str]:
    """Expand the run-length notation of layers: `2(5 local/dense, global/dense), 4 local/dense`.

    A term is a layer (`MIXER/FFN`, mixers joined by `+`), optionally with a count before it, or a count and terms in
    parentheses. Raises ValueError.
    """
    tokens = re.findall(r"\d+(?=\s|\()|[(),]|[^\s(),]+", text)
    found, rest = _terms(tokens, 0)
    if rest != len(tokens):
        msg = f"unexpected {tokens[rest]!r}"
        raise ValueError(msg)
    return found


def _terms(tokens: list[str], at: int) -> tuple[list[str], int]:
    found: list[str] = []
    while at < len(tokens) and tokens[at] != ")":
        count = 1
        if tokens[at].isdigit():
            count, at = int(tokens[at]), at + 1
        if at == len(tokens):
            msg = "a count with nothing after it"
            raise ValueError(msg)
        if tokens[at] == "(":
            inner, at = _terms(tokens, at + 1)
            if at == len(tokens):
                msg = "a parenthesis is not closed"
                raise ValueError(msg)
            found += inner * count
        else:
            found += [tokens[at]] * count
        at += 1
        if at < len(tokens) and tokens[at] == ",":
            at += 1
    return found, at


def _model(path: Path, entry: dict[str, Any]) -> ModelSpec:
    name = entry.get("name", "?")
    try:
        hidden = entry["hidden"]
        mixers = {key: mixer(value, hidden) for key, value in entry.get("mixer", {}).items()}
        ffns = {key: feed_forward(value) for key, value in entry.get("ffn", {}).items()}
        keys = expand_layers(entry["layers"])
        made: dict[str, Layer] = {}
        for key in keys:
            if key not in made:
                left, _, right = key.partition("/")
                made[key] = Layer(
                    mixers=(NoMixer(),) if left == "none" else tuple(mixers[part] for part in left.split("+")),
                    ffn=NoFfn() if right == "none" else ffns[right],
                )
        return ModelSpec(
            name=name,
            title=entry["title"],
            architecture=entry["architecture"],
            source="catalog",
            hidden_size=hidden,
            vocab_size=entry["vocab"],
            tied_embeddings=entry.get("tied", False),
            max_context_tokens=entry["context"],
            layers=tuple(made[key] for key in keys),
            mtp_layers=entry.get("next_token_layers", 0),
            checkpoint_mtp_layers=entry.get("checkpoint_next_token_layers", 0),
            traits=tuple(entry.get("traits", ())),
            sizes=tuple(entry.get("sizes", {}).items()),
            tensors=_tensors(entry["tensors"], keys) if "tensors" in entry else None,
            hf_id=entry["hf"],
            hf_architecture=entry.get("hf_architecture"),
            native_type=entry.get("native_type", "bf16"),
            params=entry.get("params"),
            non_text_params=entry.get("non_text_params", 0),
            aliases=tuple(entry.get("same_shape", ())),
            capabilities=tuple(entry.get("capabilities", ())),
            license=entry.get("license"),
            release_date=entry.get("released"),
            gguf_repos=tuple(entry.get("gguf", ())),
            canonical=entry.get("canonical", False),
            sources=tuple(entry["sources"]),
            findings=tuple(entry.get("findings", ())),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise FileFormatError(str(path), f"model {name!r}: {error!r}") from error


def mixer(given: dict[str, Any], hidden: int) -> Mixer:
    """Build a mixer from its entry; `kind` is `attention` unless said otherwise. Raises KeyError and TypeError."""
    given = dict(given)
    kind = given.pop("kind", "attention")
    if kind == "attention":
        dim = given.pop("dim")
        return Attention(key_dim=dim, value_dim=given.pop("value_dim", dim), **given)
    if kind == "mla":
        return Mla(**given)
    return recurrent(kind, given, hidden)


def recurrent(kind: str, given: dict[str, Any], hidden: int) -> Recurrent:
    """Build a recurrent mixer with the sizes of its states (`n_embd_r` and `n_embd_s` in `src/llama-hparams.cpp`)."""
    conv = given.get("conv", 1)
    if kind == "mamba1":
        inner, state = given["inner"], given["state"]
        return Recurrent(
            kind="mamba1",
            conv_elements=(conv - 1) * inner,
            state_elements=inner * state,
            inner_dim=inner,
            heads=given["time_rank"],
            state_dim=state,
            conv_kernel=conv,
        )
    if kind == "mamba2":
        inner, state, groups = given["inner"], given["state"], given["groups"]
        return Recurrent(
            kind="mamba2",
            conv_elements=(conv - 1) * (inner + 2 * groups * state),
            state_elements=inner * state,
            inner_dim=inner,
            heads=given["heads"],
            head_dim=inner // given["heads"],
            state_dim=state,
            groups=groups,
            conv_kernel=conv,
        )
    if kind == "gated-delta-net":
        keys, values = given["key_heads"] * given["key_dim"], given["value_heads"] * given["value_dim"]
        return Recurrent(
            kind="gated-delta-net",
            conv_elements=(conv - 1) * (values + 2 * keys),
            state_elements=values * given["key_dim"],
            inner_dim=values,
            heads=given["value_heads"],
            head_dim=given["value_dim"],
            state_dim=given["key_dim"],
            groups=given["key_heads"],
            conv_kernel=conv,
        )
    if kind == "kda":
        heads, dim = given["heads"], given["dim"]
        return Recurrent(
            kind="kda",
            conv_elements=3 * (conv - 1) * heads * dim,
            state_elements=heads * dim * dim,
            inner_dim=heads * dim,
            heads=heads,
            head_dim=dim,
            state_dim=dim,
            conv_kernel=conv,
        )
    if kind == "shortconv":
        return Recurrent(kind="shortconv", conv_elements=(conv - 1) * hidden, state_elements=0, conv_kernel=conv)
    if kind == "lightning":
        heads, dim = given["heads"], given["dim"]
        return Recurrent(
            kind="lightning",
            conv_elements=0,
            state_elements=heads * dim * dim,
            inner_dim=heads * dim,
            heads=heads,
            head_dim=dim,
            state_dim=dim,
        )
    msg = f"unknown kind of mixer: {kind}"
    raise ValueError(msg)


def feed_forward(given: dict[str, Any]) -> Ffn:
    """Build a feed-forward part: routed where it names experts."""
    if "experts" not in given:
        return Dense(**given)
    return Moe(
        experts=given["experts"],
        experts_used=given["used"],
        width=given["width"],
        shared_width=given.get("shared", 0),
        gated=given.get("gated", True),
    )


def _tensors(given: dict[str, list[str]], keys: list[str]) -> tuple[Tensor, ...]:
    def read(line: str, layer: int | None) -> Tensor:
        name, size = line.split()
        shape = tuple(int(part) for part in size.split("x"))
        full = name if layer is None else f"blk.{layer}.{name}"
        return Tensor(full, shape, layer, role_of(full, len(shape)))

    listed = [read(line, None) for line in given["outside"]]
    for number, key in enumerate(keys):
        listed += [read(line, number) for line in given[key]]
    return tuple(listed)


def _datasheet(path: Path, entry: dict[str, Any]) -> Datasheet:
    try:
        vendor = path.stem.partition("-")[0]
        memory = entry.get("memory_gib")
        options = (
            ()
            if memory is None
            else tuple(round(one * GIB) for one in (memory if isinstance(memory, list) else [memory]))
        )
        rates = {key: value * 1e12 for key, value in entry.get("teraflops", {}).items()}
        usable = entry.get("usable_gib")
        link = entry.get("link", {})
        return Datasheet(
            name=entry["name"],
            vendor=vendor,
            family=entry["family"],
            chip=entry.get("chip"),
            memory_bytes=options[-1] if options else None,
            memory_options_bytes=options if len(options) > 1 else (),
            memory_usable_bytes=None if usable is None else round(usable * GIB),
            memory_type=entry.get("memory_type"),
            memory_bus_bits=entry.get("bus_bits"),
            bandwidth_bytes_per_s=entry["bandwidth_gb_s"] * 1e9 if "bandwidth_gb_s" in entry else None,
            fp32_flops_per_s=rates.get("fp32"),
            fp16_flops_per_s=rates.get("fp16", rates.get("fp16_vector")),
            fp16_fast_flops_per_s=rates.get("fp16_fast"),
            bf16_flops_per_s=rates.get("bf16"),
            int8_ops_per_s=rates.get("int8"),
            fp8_flops_per_s=rates.get("fp8"),
            fp4_flops_per_s=rates.get("fp4"),
            rate_basis=entry.get("rate_basis"),
            compute_capability=entry.get("compute_capability"),
            gfx_target=entry.get("gfx_target"),
            multiprocessors=entry.get("multiprocessors"),
            dies=entry.get("dies", 1),
            pcie_generation=entry.get("pcie", {}).get("generation"),
            pcie_lanes=entry.get("pcie", {}).get("lanes"),
            link=link.get("name"),
            link_bytes_per_s=link["gb_s"] * 1e9 if "gb_s" in link else None,
            power_watts=entry.get("watts"),
            released=entry.get("released"),
            also_known_as=tuple(entry.get("also_known_as", ())),
            pci_ids=tuple(entry.get("pci_ids", ())),
            unified=entry.get("unified", False),
            sources=tuple(entry["sources"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise FileFormatError(str(path), f"accelerator {entry.get('name', '?')!r}: {error!r}") from error
