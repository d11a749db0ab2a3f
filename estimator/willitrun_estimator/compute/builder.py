"""Builds the graph of a model the way llama.cpp builds it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from willitrun_catalog.model import Attention, Dense, Layer, Mixer, Mla, Moe, NoMixer, Recurrent
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
    stamp,
)
from willitrun_estimator.compute.form import WINDOW, U
from willitrun_estimator.compute.fragment import ANYWHERE
from willitrun_estimator.compute.graph import Graph
from willitrun_estimator.compute.node import Node
from willitrun_estimator.compute.operations import Homes, Operations
from willitrun_estimator.compute.style import SCALED_EMBEDDINGS

if TYPE_CHECKING:
    from collections.abc import Callable

FETCHED_AHEAD = frozenset({"lightning", "mamba1", "mamba2", "shortconv"})
"""Mixers whose state is the first thing of their block that llama.cpp asks for."""
FETCHED = ("fetched_store", "fetched_rows")
"""Names of a state that was fetched ahead among what blocks share."""
RESIDUAL_SCORE = "output_res_score.weight"
"""What scores the residual streams that an architecture banks."""
HEAD = "output"
"""The key of the head's bytes."""


class Builder(Operations):
    """Adds the blocks of a model to its graph, and what stands before and after them."""

    def expect(self, mixer: Mixer | None, homes: Homes) -> None:
        """Note a mixer, or with None a sum of experts, that llama.cpp will add to the graph at once."""
        self.events.append((mixer, homes))

    def fetch_next(self) -> None:
        """Fetch the next block's convolution state where nothing else is asked for before it.

        llama.cpp adds a token mixer and a sum of experts to the graph at once, and everything after them only when it
        is read: the state's rows come before the tail of the block that precedes them.
        """
        self.events.pop(0)
        self._fetch()
        if self._waiting is not None:
            self._picked = self.out_rows(self._waiting)
            self._waiting = None

    def _fetch(self) -> None:
        following = self.events[0] if self.events else None
        if following is not None and isinstance(following[0], Recurrent) and self._fetches(following[0]):
            self.graph.ahead = max(self.graph.ahead, following[1].number + 1 - len(self.graph.sections))
            self._hold(recurrent.fetch_ahead(self, following[0], following[1]))

    def _fetches(self, mixer: Recurrent) -> bool:
        return mixer.kind in FETCHED_AHEAD or self.style.fetched_ahead

    def fetched(self) -> tuple[Node, Node] | None:
        """Hand over the state that was fetched ahead."""
        store, rows = (self.shared.pop(name, None) for name in FETCHED)
        return None if store is None or rows is None else (store, rows)

    def _hold(self, fetched: tuple[Node, Node]) -> None:
        self.shared |= zip(FETCHED, fetched, strict=True)

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
            self._hold(recurrent.load_state(self, "cache_r", mixers[1].conv_elements, homes))
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

    def build(  # noqa: C901, PLR0912
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
            inputs = per_layer.PerLayerInputs(self, width, streams, layers[0][1].block)
        if self.spec.architecture in SCALED_EMBEDDINGS:
            x = self.graph.add("scaled", x.dims, x, inplace=True)
        if inputs is not None:
            self.shared[per_layer.EMBEDDED] = x
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
        self.graph.end()
        for index, (layer, homes) in enumerate(layers):
            last = index == len(layers) - 1
            if bank is not None:
                stream = residual_mix.block(self, bank, layer, stream, homes, index)
                self.graph.end()
            else:
                x = self._placed(layer, x, homes, inputs, last=last)
        if streams:
            x = self.out_rows(altup.merged(self, x, streams, head))
        if self.style.hyper:
            x = hyper.picked(self, x)
            x = hyper.head(self, x, head) if "output_hc_fn.weight" in self.outside else hyper.mean(self, x)
        if bank is not None:
            x = self.out_rows(bank.mixed(stream, self.graph.weight(RESIDUAL_SCORE, head)))
        self._logits(x, head)
        self.graph.end()
        return self.graph

    def _placed(
        self, layer: Layer, x: Node, homes: Homes, inputs: per_layer.PerLayerInputs | None, *, last: bool
    ) -> Node:
        """Add a block, or put one like it there that was built before."""
        taken = bool(layer.mixers and not isinstance(layer.mixers[0], NoMixer)) + isinstance(layer.ffn, Moe)
        sparse = inputs is not None and inputs.streams > 0 and homes.number < altup.SPARSE_BLOCKS
        told = last, sparse, self.fused_streams
        following = self._following(homes, taken)
        self.enter(homes)
        add = partial(self._whole, layer, x, homes, inputs, last=last)
        x = stamp.placed(self, x, homes, taken, following, told, add)
        self.leave(homes)
        return x

    def _following(self, homes: Homes, taken: int) -> stamp.Following:
        """Return the block whose state is fetched in this one, behind so many events of its own."""
        if len(self.events) > taken:
            mixer, other = self.events[taken]
            if isinstance(mixer, Recurrent) and self._fetches(mixer):
                return stamp.Following(other.structure, other.cache, other.number - homes.number)
        return stamp.Following(None, ANYWHERE, 0)

    def _whole(
        self, layer: Layer, x: Node, homes: Homes, inputs: per_layer.PerLayerInputs | None, *, last: bool
    ) -> Node:
        """Add a block with what some architectures have behind it."""
        if inputs is not None and inputs.streams:
            return altup.block(self, layer, x, homes, inputs, homes.number)
        x = self.block(layer, x, homes, last=last)
        if inputs is not None:
            x = self.graph.add("block_out", x.dims, x, inputs.gated(x, homes), inplace=True)
        if "layer_output_scale.weight" in homes.parts:
            x = self.graph.add("block_out", x.dims, x, self.weight("layer_output_scale.weight", homes), inplace=True)
        return x

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
