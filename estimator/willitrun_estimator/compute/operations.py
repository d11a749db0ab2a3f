"""The inputs and operations that the graphs of all architectures are made of."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

from willitrun_catalog.model import Mixer, Mla, ModelSpec
from willitrun_estimator import cache
from willitrun_estimator.compute.build import CURRENT, Build
from willitrun_estimator.compute.form import CELLS, ROWS, WINDOW, Dim, Form, U
from willitrun_estimator.compute.graph import Graph
from willitrun_estimator.compute.node import Node
from willitrun_estimator.compute.steps import Known
from willitrun_estimator.compute.style import FOUR_POSITIONS, style_of
from willitrun_estimator.placement import Settings

INDEXER = "indexer"
"""The mask of a sparse indexer, f16 whatever attention reads."""
FACTORS = "factors"
"""Name of the rope factors of the block's device among what blocks share."""


class Homes(NamedTuple):
    """Where one block's parts live, and what tensors it has."""

    block: int
    """Device of its weights."""
    experts: int
    """Device of its routed experts."""
    cache: int
    """Device of its cache and state."""
    number: int = 0
    """Its place in the graph, which names its weights."""
    rotary: bool = True
    """Whether its attention rotates by position."""
    parts: frozenset[str] = frozenset()
    """Names of its tensors, as `attn_q.weight`."""
    apart: tuple[str, ...] = ()
    """Names without suffix of routed experts that are apart from the others."""
    elsewhere: int = -1
    """Their device."""
    structure: Hashable = None
    """Equal for blocks of a shape that are built alike, but for where they live; None where that is not known."""


class Operations:
    """The operations of one model's graph; inputs are created where they are first used, as llama.cpp does."""

    def __init__(
        self,
        spec: ModelSpec,
        settings: Settings,
        *,
        host: int,
        outside: frozenset[str] = frozenset(),
        build: Build = CURRENT,
        backend: str = "cuda",
        whole_qk_norm: bool = False,
        known: Known | None = None,
    ) -> None:
        self.spec = spec
        self.settings = settings
        self.graph = Graph(host, known)
        self.style = style_of(spec.architecture)
        self.flash = settings.flash_attention
        self.slots = max(1, settings.parallel)
        self.streams = cache.model_cells(spec, settings)[1]
        self.host = host
        self.rules = build
        self.backend = backend
        self.copies_cache = build.reserved_scratch and backend not in {"metal", "vulkan"}
        """Whether flash attention's buffer has room for f16 copies of a quantized cache (Vulkan reads it in place)."""
        self.shared: dict[Hashable, Node] = {}
        """Tensors that blocks have from each other: inputs and all that is made once and read again, by name."""
        self._factors: dict[int, Node] = {}
        self.window = cache.model_window(spec)
        self.fused_streams = True
        """Whether one operation writes a block's result to all residual streams."""
        self.sparse = any(isinstance(m, Mla) and m.indexer_dim for layer in spec.layers for m in layer.mixers)
        self.outside = outside
        self.factors = next((name for name in outside if name.startswith("rope_")), None)
        self._weights: dict[tuple[int, str], Node] = {}
        self.whole_qk_norm = whole_qk_norm
        self.events: list[tuple[Mixer | None, Homes]] = []
        self._waiting: Node | None = None
        """The residual whose rows are picked once nothing else is asked for before the sum that names it first."""
        self._picked: Node | None = None
        self._normed: Node | None = None
        """What the mixer of the block in hand reads."""

    def enter(self, homes: Homes) -> None:
        """Share the rope factors of a block's device, once they are there."""
        self.shared.pop(FACTORS, None)
        if homes.block in self._factors:
            self.shared[FACTORS] = self._factors[homes.block]

    def leave(self, homes: Homes) -> None:
        """Keep them."""
        if FACTORS in self.shared:
            self._factors[homes.block] = self.shared[FACTORS]

    def once(self, name: Hashable, add: Callable[[], Node]) -> Node:
        """Return what is shared under a name, and add it where it is asked for first."""
        node = self.shared.get(name)
        if node is None:
            node = self.shared[name] = add()
        return node

    def _input(self, name: str, dims: tuple[Dim, ...], element_bytes: int) -> Node:
        return self.once(("input", name), lambda: self.graph.input(name, dims, element_bytes))

    def mask(self, cells: str) -> Node:
        """Which cells a token may look at: f16 with flash attention, f32 without."""
        length = CELLS if cells not in {CELLS, WINDOW} else cells
        if self.rules.half_mask or not self.flash:
            return self._input("mask" + cells, (length, U), 2 if self.flash or cells == INDEXER else 4)
        full = self._input("mask" + cells, (length, U), 4)
        return self.once(("half_mask", cells), lambda: self.graph.add("half_mask", (length, U), full, element_bytes=2))

    def token_input(self, name: str) -> Node:
        """Add a further input of one number per token."""
        return self._input(name, (U,), 4)

    def further_input(
        self, name: str, dims: tuple[Dim, ...], size: Form | None = None, *, element_bytes: int = 4
    ) -> Node:
        """Add a further input; `size` where slots share it."""
        node = self._input(name, dims, element_bytes)
        node.size = node.size if size is None else size
        return node

    def rotation(self, which: str, size: int) -> Node:
        """Refer to a Hadamard matrix that the host fills."""
        return self._input("rotation_" + which, (size, size), 4)

    def key_index(self, cells: str) -> Node:
        """Where this batch's keys go."""
        return self._input("k_idxs" + cells, (U,), 8)

    def value_index(self, cells: str, width: int) -> Node:
        """Where this batch's values go: per element when V is stored transposed."""
        return self._input("v_idxs" + cells, (U,) if self.flash else (width, U), 8)

    def state_index(self, *, others: bool = False) -> Node:
        """Which slots' states the batch continues, or which others there are: none."""
        slots = self._input("s_copy", (self.slots,), 4)
        return self.once(("slots", others), lambda: self.graph.view(slots, (0 if others else self.slots,)))

    def out_rows(self, source: Node) -> Node:
        """Pick the rows that get logits."""
        ids = self._input("out_ids", (ROWS,), 4)
        return self.graph.add("get_rows", (self.spec.hidden_size, ROWS), source, ids)

    def weight(self, name: str, homes: Homes, *, routed: bool = False) -> Node:
        """Refer to one of a block's tensors by its full name."""
        known = self._weights.get((id(homes), name))
        if known is None:
            key = f"{homes.number}/{name}"
            device = homes.experts if routed else homes.block
            if routed and homes.apart and name.partition(".")[0] in homes.apart:
                device = homes.elsewhere
            known = self._weights[id(homes), name] = self.graph.weight(key, device)
        return known

    def matmul(self, name: str, homes: Homes, width: int, source: Node) -> Node:
        """Multiply by a block's weight, and add its bias where it has one."""
        tokens = source.dims[-1]
        out = self.graph.add(name, (width, tokens), self.weight(name + ".weight", homes), source, rows=tokens)
        if name + ".bias" in homes.parts:
            bias = self.weight(name + ".bias", homes)
            out = self.graph.add(name + "_bias", (width, tokens), out, bias, inplace=True, rows=tokens)
        return out

    def norm(self, source: Node, name: str, homes: Homes, dims: tuple[Dim, ...] | None = None) -> Node:
        """Normalise, and scale by a block's weight where the architecture has one."""
        shape = source.dims if dims is None else dims
        rows = shape[-1]
        centred = self.style.layer_norm or (name + ".bias" in homes.parts and not self.style.plain_norm)
        out = self.graph.add("norm", shape, source, inplace=not centred)
        for part in (name + ".weight", name, name + ".bias"):
            if part in homes.parts:
                weight = self.weight(part, homes)
                out = self.graph.add("normed", shape, out, weight, inplace=True, rows=rows)
        return out

    def rope(self, source: Node, homes: Homes, *, windowed: bool = False) -> Node:
        """Rotate by position, with the model's frequency factors where it has them."""
        if not homes.rotary:
            return source
        position = self._input("positions", (4, U) if self.spec.architecture in FOUR_POSITIONS else (U,), 4)
        factors: list[Node] = []
        if self.factors is not None and not (windowed and self.style.full_factors):
            name = self.factors
            factors.append(self.once(FACTORS, lambda: self.graph.weight(name, homes.block)))
        return self.graph.add("rope", source.dims, source, position, *factors, inplace=True, picks_device=False)

    def rotated(self, source: Node, dims: tuple[Dim, ...], which: str, size: int) -> Node:
        """Multiply by the Hadamard matrix that quantized caches get."""
        matrix = self.rotation(which, size)
        flat = self.graph.view(source, (".flat", *dims))
        turned = self.graph.add("rotate", (".flat", *dims), matrix, flat)
        return self.graph.view(turned, dims)

    @staticmethod
    def has(homes: Homes, name: str) -> bool:
        """Whether a block has a norm of that name."""
        return name + ".weight" in homes.parts or name in homes.parts

    def has_post_norm(self, homes: Homes) -> bool:
        """Whether attention's result is normalised: else `post_attention_norm` is the feed-forward network's own."""
        return self.has(homes, "post_attention_norm") and (
            self.has(homes, "ffn_norm") or self.has(homes, "post_ffw_norm")
        )

    def ffn_norm(self, homes: Homes) -> str | None:
        """Name the norm before the feed-forward network; None where there is none."""
        if self.has(homes, "ffn_norm"):
            return "ffn_norm"
        if self.has(homes, "post_attention_norm") and not self.has_post_norm(homes):
            return "post_attention_norm"
        return None if self.has(homes, "post_ffw_norm") else "attn_norm"
