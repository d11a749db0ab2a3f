"""Builds the graph of a model the way llama.cpp builds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from willitrun_catalog.model import Attention, Dense, Layer, Mixer, Mla, ModelSpec, Moe, NoMixer, Recurrent
from willitrun_estimator import cache
from willitrun_estimator.compute import (
    altup,
    attention,
    block_sparse,
    compressed,
    feed_forward,
    hyper,
    per_layer,
    pooled,
    recurrent,
    residual_mix,
)
from willitrun_estimator.compute.build import CURRENT, Build
from willitrun_estimator.compute.form import CELLS, ROWS, WINDOW, Dim, Form, U
from willitrun_estimator.compute.graph import Graph, Node
from willitrun_estimator.compute.style import FOUR_POSITIONS, SCALED_EMBEDDINGS, style_of
from willitrun_estimator.placement import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

INDEXER = "indexer"
"""The mask of a sparse indexer, f16 whatever attention reads."""
FETCHED_AHEAD = frozenset({"lightning", "mamba1", "mamba2", "shortconv"})
"""Mixers whose state is the first thing of their block that llama.cpp asks for."""
RESIDUAL_SCORE = "output_res_score.weight"
"""What scores the residual streams that an architecture banks."""
HEAD = "output"
"""The key of the head's bytes."""


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


class Builder:
    """Adds blocks to a graph; inputs are created where they are first used, as llama.cpp does."""

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
    ) -> None:
        self.spec = spec
        self.settings = settings
        self.graph = Graph()
        self.style = style_of(spec.architecture)
        self.flash = settings.flash_attention
        self.slots = max(1, settings.parallel)
        self.streams = cache.model_cells(spec, settings)[1]
        self.host = host
        self.rules = build
        self.backend = backend
        self.copies_cache = build.reserved_scratch and backend not in {"metal", "vulkan"}
        """Whether flash attention's buffer has room for f16 copies of a quantized cache (Vulkan reads it in place)."""
        self._states: dict[bool, Node] = {}
        self._masks: dict[str, Node] = {}
        self.window = cache.model_window(spec)
        self.fused_streams = True
        """Whether one operation writes a block's result to all residual streams."""
        self.sparse = any(isinstance(m, Mla) and m.indexer_dim for layer in spec.layers for m in layer.mixers)
        self.chosen: Node | None = None
        self.plain_mask: Node | None = None
        """The f32 copy of the mask that blocks' scores are added to."""
        self.outside = outside
        self.factors = next((name for name in outside if name.startswith("rope_")), None)
        self._factors: dict[int, Node] = {}
        self._weights: dict[tuple[int, str], Node] = {}
        self.whole_qk_norm = whole_qk_norm
        self._inputs: dict[str, Node] = {}
        self._events: list[tuple[Mixer | None, Homes]] = []
        self._fetched: tuple[Node, Node] | None = None
        self._waiting: Node | None = None
        """The residual whose rows are picked once nothing else is asked for before the sum that names it first."""
        self._picked: Node | None = None
        self._normed: Node | None = None
        """What the mixer of the block in hand reads."""

    def _input(self, name: str, dims: tuple[Dim, ...], element_bytes: int) -> Node:
        node = self._inputs.get(name)
        if node is None:
            node = self._inputs[name] = self.graph.input(name, dims, element_bytes)
        return node

    def mask(self, cells: str) -> Node:
        """Which cells a token may look at: f16 with flash attention, f32 without."""
        length = CELLS if cells not in {CELLS, WINDOW} else cells
        if self.rules.half_mask or not self.flash:
            return self._input("mask" + cells, (length, U), 2 if self.flash or cells == INDEXER else 4)
        known = self._masks.get(cells)
        if known is None:
            full = self._input("mask" + cells, (length, U), 4)
            known = self._masks[cells] = self.graph.add("half_mask", (length, U), full, element_bytes=2)
        return known

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
        known = self._states.get(others)
        if known is None:
            slots = self._input("s_copy", (self.slots,), 4)
            known = self._states[others] = self.graph.view(slots, (0 if others else self.slots,))
        return known

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
            known = self._factors.get(homes.block)
            if known is None:
                known = self._factors[homes.block] = self.graph.weight(self.factors, homes.block)
            factors.append(known)
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

    def expect(self, mixer: Mixer | None, homes: Homes) -> None:
        """Note a mixer, or with None a sum of experts, that llama.cpp will add to the graph at once."""
        self._events.append((mixer, homes))

    def fetch_next(self) -> None:
        """Fetch the next block's convolution state where nothing else is asked for before it.

        llama.cpp adds a token mixer and a sum of experts to the graph at once, and everything after them only when it
        is read: the state's rows come before the tail of the block that precedes them.
        """
        self._events.pop(0)
        self._fetch()
        if self._waiting is not None:
            self._picked = self.out_rows(self._waiting)
            self._waiting = None

    def _fetch(self) -> None:
        following = self._events[0] if self._events else None
        if following is not None and isinstance(following[0], Recurrent) and self._fetches(following[0]):
            self.graph.ahead = max(self.graph.ahead, following[1].number + 1 - len(self.graph.starts))
            self._fetched = recurrent.fetch_ahead(self, following[0], following[1])

    def _fetches(self, mixer: Recurrent) -> bool:
        return mixer.kind in FETCHED_AHEAD or self.style.fetched_ahead

    def fetched(self) -> tuple[Node, Node] | None:
        """Hand over the state that was fetched ahead."""
        held, self._fetched = self._fetched, None
        return held

    def mixer(self, layer: Layer, source: Node, homes: Homes) -> Node | None:
        """Mix tokens; None for a block that does not."""
        mixers = [m for m in layer.mixers if isinstance(m, Attention | Mla | Recurrent)]
        if not mixers:
            return None
        hidden = self.spec.hidden_size
        normed = self.norm(source, "attn_norm", homes) if self.has(homes, "attn_norm") else source
        self._normed = normed
        first = mixers[0]
        if isinstance(first, Recurrent):
            rest = recurrent.recurrent(self, first, normed, homes)
            if first.kind not in FETCHED_AHEAD:
                self.fetch_next()
            return rest()
        if self.spec.architecture in cache.COMPRESSED and isinstance(first, Attention):
            mixed = compressed.compressed_attention(self, first, normed, homes)
            self.fetch_next()
            return mixed
        if isinstance(first, Mla):
            pools = self.spec.architecture in cache.POOLED_INDEXERS
            latent = (pooled.pooled_attention if pools else attention.latent_attention)(self, first, normed, homes)
            self.fetch_next()
            return attention.latent_output(self, first, latent, normed, homes)
        attend = (
            block_sparse.block_sparse_attention if block_sparse.chooses_blocks(self, homes) else attention.attention
        )
        finish = attend(self, first, normed, homes)
        if len(mixers) == 1:
            self.fetch_next()
        if len(mixers) > 1 and isinstance(mixers[1], Recurrent):
            self._fetched = recurrent.load_state(self, "cache_r", mixers[1].conv_elements, homes)
            normed = self.norm(source, "attn_norm", homes)
            held: list[Node] = []
            state = recurrent.mamba2(
                self,
                mixers[1],
                normed,
                homes,
                between=lambda: held.append(self.matmul("attn_output", homes, hidden, finish())),
            )
            return self.graph.add("mixers", state.dims, held[0], state, inplace=True)
        return self.matmul("attn_output", homes, hidden, finish())

    def feed(self, ffn: Dense | Moe, normed: Node, homes: Homes) -> Node:
        """Add a feed-forward network of either kind."""
        if isinstance(ffn, Dense):
            return feed_forward.dense(self, ffn, normed, homes)
        return feed_forward.experts(self, ffn, normed, homes)

    def block(  # noqa: C901, PLR0912
        self, layer: Layer, source: Node, homes: Homes, *, last: bool
    ) -> Node:
        """Add one block; in the last one only the rows with logits go through the feed-forward network."""
        if self.style.parallel and not (self.style.parallel == "stablelm" and self.has(homes, "ffn_norm")):
            return self.parallel_block(layer, source, homes, last=last)
        if self.style.hyper:
            return self.hyper_block(layer, source, homes)
        picks = last and self.style.rows == "inside"
        if picks and self.style.mixer_residual_first:
            self._waiting = source
        mixed = self.mixer(layer, source, homes)
        if self.style.normed_residual and self._normed is not None:
            source = self._normed
        if picks:
            if mixed is not None:
                mixed = self.out_rows(mixed)
            source = self.out_rows(source) if self._picked is None else self._picked
        if self.style.normed_residual:
            source = self.graph.add("scaled", source.dims, source, inplace=True)
        if mixed is not None:
            if self.has_post_norm(homes):
                mixed = self.norm(mixed, "post_attention_norm", homes)
            terms = (source, mixed) if self.style.mixer_residual_first else (mixed, source)
            source = self.graph.add("residual", source.dims, *terms, inplace=True)
        if last and self.style.rows == "residual":
            source = self.out_rows(source)
        ffn = layer.ffn
        if isinstance(ffn, Dense | Moe):
            if isinstance(ffn, Moe) and self.has(homes, "pre_ffw_norm_2"):
                out = feed_forward.beside(self, ffn, source, homes)
            else:
                name = self.ffn_norm(homes)
                normed = source if name is None else self.norm(source, name, homes)
                out = self.feed(ffn, normed, homes)
                if self.style.normed_residual:
                    source = self.graph.add("scaled", normed.dims, normed, inplace=True)
            if self.has(homes, "post_ffw_norm"):
                out = self.norm(out, "post_ffw_norm", homes)
            parts = (source, out) if self.style.residual_first else (out, source)
            source = self.graph.add("block_out", source.dims, *parts, inplace=True)
        return source

    def hyper_block(self, layer: Layer, source: Node, homes: Homes) -> Node:
        """Add a block between residual streams."""

        def written(out: Node, mixed: Node, place: str, ways: tuple[Node, Node] | None = None) -> Node:
            if not self.fused_streams:
                return hyper.write_one_by_one(self, out, source, mixed, place, homes)
            return hyper.write(self, out, source, ways or hyper.ways(self, mixed, place, homes))

        mixed = hyper.mixtures(self, source, "attn", homes)
        out = self.mixer(layer, hyper.read(self, source, mixed, "attn", homes), homes)
        if out is not None:
            source = written(out, mixed, "attn")
        ffn = layer.ffn
        if isinstance(ffn, Dense | Moe):
            mixed = hyper.mixtures(self, source, "ffn", homes)
            early = hyper.ways(self, mixed, "ffn", homes) if self.style.hyper == "ways-first" else None
            read = hyper.read(self, source, mixed, "ffn", homes)
            out = self.feed(ffn, self.norm(read, "ffn_norm", homes), homes)
            source = written(out, mixed, "ffn", early)
        return source

    def parallel_block(self, layer: Layer, source: Node, homes: Homes, *, last: bool) -> Node:
        """Add a block whose feed-forward network reads what attention reads."""
        hidden = self.spec.hidden_size
        order = self.style.parallel
        second = self.has(homes, "attn_norm_2")
        normed = self.norm(source, "attn_norm_2" if second else "attn_norm", homes)
        first = next(mixer for mixer in layer.mixers if isinstance(mixer, Attention))
        finish = attention.attention(self, first, normed, homes)
        self.fetch_next()

        def rows(node: Node) -> Node:
            return self.out_rows(node) if last else node

        def projected() -> Node:
            return rows(self.matmul("attn_output", homes, hidden, finish()))

        attended = projected() if order == "phi" else None
        ffn = layer.ffn
        read = rows(self.norm(source, "attn_norm", homes) if second else normed)
        out = self.feed(ffn, read, homes) if isinstance(ffn, Dense | Moe) else read
        if order == "cohere":
            source = rows(source)
            partial = self.graph.add("sum", source.dims, out, source, inplace=True)
            return self.graph.add("sum", source.dims, partial, projected(), inplace=True)
        if order == "stablelm":
            attended = projected()
            partial = self.graph.add("sum", attended.dims, attended, rows(source), inplace=True)
            return self.graph.add("sum", out.dims, out, partial, inplace=True)
        terms = (out, projected()) if attended is None else (attended, out)
        partial = self.graph.add("sum", out.dims, *terms, inplace=True)
        return self.graph.add("sum", out.dims, partial, rows(source), inplace=True)

    def _gate_copies(self, layers: tuple[tuple[Layer, Homes], ...]) -> None:
        """Keep room for the query gate that Vulkan's reordering computes early and holds through the block."""
        gates = {m.heads * m.value_dim for layer, _ in layers for m in layer.mixers if isinstance(m, Attention)}
        for device in sorted({homes.block for _, homes in layers} - {self.host}):
            self.graph.leaf("gate", (max(gates, default=0), U), device, kept=True)

    def _parted(self, x: Node, layers: tuple[tuple[Layer, Homes], ...], head: int) -> Node:
        """Make residual streams of the embeddings, behind the inputs that llama.cpp asks for first."""
        if self.spec.architecture in cache.POOLED_INDEXERS:
            pooled.start(self)
        else:
            self.mask(WINDOW)
        # llama.cpp gives up the one operation where another device than the block's would compute it. DeepSeek V4
        # keeps a block's last operation on the block's device, GLM 5.3 hands it to the GPU that follows.
        given_up = self.style.hyper == "ways-last" and head != self.host
        self.fused_streams = not (given_up and any(homes.block == self.host for _, homes in layers))
        return hyper.stacked(self, x)

    def build(  # noqa: C901, PLR0912, PLR0915
        self,
        layers: tuple[tuple[Layer, Homes], ...],
        head: int,
    ) -> Graph:
        """Build the graph of these blocks between the embedding table and the head on device `head`."""
        hidden = self.spec.hidden_size
        tokens = self._input("tokens", (U,), 4)
        if self.rules.spare_embeddings:
            self._input("embeddings", (hidden, U), 4)
        if self.backend == "vulkan" and self.style.gated_query:
            self._gate_copies(layers)
        width = dict(self.spec.sizes).get("per_layer_dim", 0)
        streams = dict(self.spec.sizes).get("altup_inputs", 0)
        x = self.graph.add("embedded", (hidden, U), self.graph.weight("token_embd", self.host), tokens, rows=0)
        inputs = None
        if width and "per_layer_token_embd.weight" in self.outside and layers:
            inputs = per_layer.PerLayerInputs(self, width, layers[0][1].block)
        if self.spec.architecture in SCALED_EMBEDDINGS:
            x = self.graph.add("scaled", x.dims, x, inplace=True)
        if inputs is not None:
            inputs.hidden = x
        if streams:
            x = altup.stacked(self, x, streams, head)
        if self.style.hyper:
            x = self._parted(x, layers, head)
        for layer, homes in layers:
            if layer.mixers and not isinstance(layer.mixers[0], NoMixer):
                self.expect(layer.mixers[0], homes)
            if isinstance(layer.ffn, Moe):
                self.expect(None, homes)
        self._fetch()
        bank = residual_mix.Bank(self) if RESIDUAL_SCORE in self.outside else None
        first = x
        stream: Callable[[], Node] = lambda: first  # noqa: E731
        for index, (layer, homes) in enumerate(layers):
            self.graph.start()
            if bank is not None:
                stream = residual_mix.block(self, bank, layer, stream, homes, index)
                continue
            if streams and inputs is not None:
                x = altup.block(self, layer, x, homes, inputs, index)
                continue
            x = self.block(layer, x, homes, last=index == len(layers) - 1)
            if inputs is not None:
                x = self.graph.add("block_out", x.dims, x, inputs.gated(x, homes), inplace=True)
            if "layer_output_scale.weight" in homes.parts:
                x = self.graph.add(
                    "block_out", x.dims, x, self.weight("layer_output_scale.weight", homes), inplace=True
                )
        self.graph.start()
        if streams:
            x = self.out_rows(altup.merged(self, x, streams, head))
        if self.style.hyper:
            x = hyper.picked(self, x)
            x = hyper.head(self, x, head) if "output_hc_fn.weight" in self.outside else hyper.mean(self, x)
        if bank is not None:
            x = self.out_rows(bank.mixed(stream, self.graph.weight(RESIDUAL_SCORE, head)))
        self._logits(x, head)
        self.graph.number()
        return self.graph

    def _logits(self, x: Node, head: int) -> None:
        """Add the last norm and the head."""
        if self.style.rows == "block-end":
            x.is_output = True
            x = self.out_rows(x)
        centred = self.style.layer_norm or ("output_norm.bias" in self.outside and not self.style.plain_norm)
        norm = self.graph.add("final_norm", x.dims, x, inplace=not centred)
        norm = self.graph.add("result_norm", x.dims, norm, self.graph.weight("output_norm.weight", head), inplace=True)
        norm.is_output = True
        if self.style.rows == "norm-end":
            norm = self.out_rows(norm)
            norm.is_output = True
        weight = self.graph.weight(HEAD, head)
        logits = self.graph.add("logits", (self.spec.vocab_size, norm.dims[-1]), weight, norm)
        logits.is_output = True
