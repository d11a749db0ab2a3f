"""Compute buffers of a model for any placement and context, from a few planned graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import structs

from willitrun_estimator import cache
from willitrun_estimator.compute.build import CURRENT, Build
from willitrun_estimator.compute.builder import Builder
from willitrun_estimator.compute.copies import copy_bytes
from willitrun_estimator.compute.extent import sizes_of
from willitrun_estimator.compute.form import GROUPS, HEAVY_GROUPS, ROWS, Dim, U
from willitrun_estimator.compute.kinds import Kind
from willitrun_estimator.compute.operations import Homes
from willitrun_estimator.compute.programs import Programs
from willitrun_estimator.compute.replay import Move
from willitrun_estimator.compute.schedule import OFFLOAD_ROWS
from willitrun_estimator.compute.shape import shape_of
from willitrun_estimator.compute.steps import Known, Steps

if TYPE_CHECKING:
    from willitrun_estimator.compute.graph import Graph
    from willitrun_estimator.device import Devices
    from willitrun_estimator.placement import Placement, Settings
    from willitrun_estimator.weights import WeightProfile

GPU_ALIGNMENT = 128
"""`ggml_backend_cuda_buffer_type_get_alignment`."""
HOST_ALIGNMENT = 32
"""`TENSOR_ALIGNMENT` of the CPU's buffers (ggml-impl.h)."""

_SHAPES: OrderedDict[tuple[object, ...], Programs] = OrderedDict()
_SHAPES_LIMIT = 1024
"""Shapes, with settings, of which programs are kept: eight of each of 128 models. `MOST_KEPT` bounds what they hold."""
MOST_KEPT = 300_000
"""Parts of programs that are kept of all shapes together, of some 100 bytes each."""
RESERVED_FOR_ONE_SLOT = frozenset({"minimax-01"})
"""Architectures whose buffers are reserved once more for a batch of one slot (`llama_context::sched_reserve`).

While llama.cpp plans without allocating it does not count that. Kimi Linear is treated so too, to no effect.
"""
MOST_LINES = 32
"""Layouts of which one model keeps the moves themselves."""
MOST_KNOWN = 4096
"""Answers kept by one model, so that many questions take no more memory than some."""


class ComputeModel:
    """Compute buffer of every device as a function of placement and context."""

    def __init__(self, weights: WeightProfile, devices: Devices, settings: Settings, build: Build = CURRENT) -> None:
        self.spec = weights.spec
        self.weights = weights
        self.settings = settings
        self.host = len(devices.gpus)
        self.blocks = weights.spec.block_count
        self.shape = shape_of(weights.spec)
        self._fills = self.shape.grows and settings.flash_attention
        self.build = build
        self.backend = devices.gpus[0].backend if devices.gpus else "cpu"
        rows = max(1, settings.parallel) if build.capped_rows else settings.ubatch
        self._rows = rows if settings.logit_rows is None else settings.logit_rows
        alone = settings.parallel > 1 and self.spec.architecture in RESERVED_FOR_ONE_SLOT
        single = structs.replace(settings, parallel=1, kv_unified=False, logit_rows=self._rows)
        self._alone = ComputeModel(weights, devices, single, build) if alone else None
        self._copies: dict[str, int] | None = None
        self._moves: dict[tuple[Steps, int], Move] = {}
        self._lines: dict[Placement, tuple[Programs, tuple[tuple[Move, ...], ...]]] = {}
        self._values: dict[int, tuple[int, ...]] = {}
        self._known: dict[tuple[Placement, int], tuple[int, ...]] = {}
        self._grown: dict[tuple[Placement, int], tuple[int, ...]] = {}

    def bytes(self, placement: Placement, context_tokens: int) -> tuple[int, ...]:
        """Bytes of the compute buffer on each GPU and on the host."""
        key = (placement, context_tokens)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
                self._grown.clear()
                self._values.clear()
            known = self._known[key] = self._peaks(placement, self._numbers(context_tokens))
        return known

    @property
    def grows(self) -> bool:
        """Whether a buffer can become larger than planned."""
        return self._fills or self._alone is not None

    def growth(self, placement: Placement, context_tokens: int) -> tuple[int, ...]:
        """Bytes by which each buffer becomes larger than planned.

        Blocks that are chosen are planned with an empty cache and allocated anew when a batch needs more (MiniMax-M3);
        a buffer whose inputs grow with the square of a slot's tokens is allocated for one slot too (MiniMax-Text-01).
        """
        known = self._grown.get((placement, context_tokens))
        if known is None:
            known = self._grown[placement, context_tokens] = self._growth(placement, context_tokens)
        return known

    def _growth(self, placement: Placement, context_tokens: int) -> tuple[int, ...]:
        peaks = planned = self.bytes(placement, context_tokens)
        if self._fills:
            filled = sizes_of(self.spec, self.settings, context_tokens, self._rows, filled=True).values()
            peaks = self._peaks(placement, filled)
        elif self._alone is not None:
            peaks = self._alone.bytes(placement, cache.stream_cells(self.settings, context_tokens)[0])
        return tuple(max(0, peak - now) for peak, now in zip(peaks, planned, strict=True))

    def _peaks(self, placement: Placement, values: tuple[int, ...]) -> tuple[int, ...]:
        programs, lines = self._planned(placement)
        gpu, host = programs.replay(values, GPU_ALIGNMENT), programs.replay(values, HOST_ALIGNMENT)
        *gpus, last = lines
        return (*(gpu.peak(line) for line in gpus), host.peak(last))

    def _numbers(self, context_tokens: int) -> tuple[int, ...]:
        known = self._values.get(context_tokens)
        if known is None:
            known = sizes_of(self.spec, self.settings, context_tokens, self._rows).values()
            self._values[context_tokens] = known
        return known

    def _planned(self, placement: Placement) -> tuple[Programs, tuple[tuple[Move, ...], ...]]:
        """Return the moves of every device."""
        known = self._lines.get(placement)
        if known is None:
            programs = self._programs(placement)
            kinds = self._kinds(placement)
            head = self._head(placement)

            def build(blocks: Sequence[int]) -> Graph:
                return self._graph([(block, kinds[block]) for block in blocks], placement, programs.known)

            program = programs.program(kinds, head, self.host, build)
            while len(_SHAPES) > 1 and sum([kept.size for kept in _SHAPES.values()]) > MOST_KEPT:
                _SHAPES.popitem(last=False)
            if len(self._lines) >= MOST_LINES:
                self._lines.clear()
                self._moves.clear()
            lines = tuple(tuple([self._move(steps, block) for steps, block in line]) for line in program)
            known = self._lines[placement] = programs, lines
        return known

    def _programs(self, placement: Placement) -> Programs:
        """Return what is shared by the layouts of one shape."""
        settings = self.settings
        backend = self.backend if self.backend in {"metal", "vulkan"} else "cuda"
        key = (
            self.shape.key,
            self._pipelined(placement),
            settings.kv_type_k,
            settings.kv_type_v,
            settings.flash_attention,
            settings.parallel,
            settings.kv_unified,
            settings.op_offload,
            self.build,
            backend,
            settings.ubatch if backend == "metal" else None,
            *self._large().values(),
        )
        held = _SHAPES.get(key)
        if held is None:
            held = _SHAPES[key] = Programs(
                alike=self.shape.alike,
                local=self.shape.local,
                offload=settings.op_offload,
                large=self._large(),
                pipeline=self._pipelined(placement),
            )
            while len(_SHAPES) > _SHAPES_LIMIT:
                _SHAPES.popitem(last=False)
        else:
            _SHAPES.move_to_end(key)
        return held

    def _several(self, placement: Placement) -> bool:
        """Tell whether more than one device has blocks or the head."""
        counts = *(placement.split or (placement.gpu_layers,)), self.blocks + 1 - placement.gpu_layers
        return sum(count > 0 for count in counts) > 1

    def _pipelined(self, placement: Placement) -> bool:
        """Tell whether several GPUs, and they alone, have the blocks."""
        overridden = bool(placement.cpu_moe_layers or placement.overrides)
        whole = placement.gpu_layers > self.blocks and not overridden and not placement.kv_on_host
        return whole and self._several(placement)

    def _large(self) -> dict[Dim, bool]:
        """Tell which numbers of rows are worth taking host weights to a GPU."""
        settings = self.settings
        extent = sizes_of(self.spec, settings, max(settings.context_tokens, settings.ubatch), self._rows)
        return {
            U: settings.ubatch >= OFFLOAD_ROWS,
            ROWS: extent.rows >= OFFLOAD_ROWS,
            GROUPS: extent.groups >= OFFLOAD_ROWS,
            HEAVY_GROUPS: extent.heavy_groups >= OFFLOAD_ROWS,
        }

    def _graph(self, blocks: Sequence[tuple[int, Kind]], placement: Placement, known: Known) -> Graph:
        """Build the graph of some of the blocks."""
        shape = self.shape
        builder = Builder(
            self.spec,
            self.settings,
            host=self.host,
            outside=shape.outside,
            build=self.build,
            backend=self.backend,
            whole_qk_norm=shape.whole_qk_norm,
            known=known,
        )
        layers = []
        for number, (block, kind) in enumerate(blocks):
            homes = Homes(
                kind.block,
                kind.experts,
                kind.cache,
                number,
                shape.rotary[block],
                shape.parts[block],
                kind.tensors,
                kind.apart,
                kind.structure,
            )
            layers.append((self.spec.layers[block], homes))
        return builder.build(tuple(layers), self._head(placement))

    def _move(self, steps: Steps, block: int) -> Move:
        """Return steps with the bytes of the weights they copy, which are named from a block on."""
        key = steps, block if steps.weights else 0
        known = self._moves.get(key)
        if known is None:
            known = self._moves[key] = (
                steps,
                tuple(
                    self._copied(name if ahead is None else f"{self.shape.groups[block + ahead]}/{name}")
                    for ahead, name in steps.weights
                ),
            )
        return known

    def _copied(self, name: str) -> int:
        """Return the bytes of a weight's copy."""
        if self._copies is None:
            self._copies = copy_bytes(self.weights)
        return self._copies.get(name, 0)

    def _kinds(self, placement: Placement) -> tuple[Kind, ...]:
        """Tell where the parts of each block live: the first blocks on the host, then GPU by GPU."""
        host, shape = self.host, self.shape
        units = [host] * (self.blocks + 1 - placement.gpu_layers)
        for gpu, count in enumerate(placement.split or (placement.gpu_layers,)):
            units += [gpu] * count
        del units[self.blocks :]
        moved = min(placement.cpu_moe_layers, self.blocks)
        experts = [host if routed else device for routed, device in zip(shape.routed[:moved], units, strict=False)]
        experts += units[moved:]
        caches = [host] * self.blocks if placement.kv_on_host else [units[donor] for donor in shape.donors]
        tensors: list[tuple[str, ...]] = [()] * self.blocks
        apart = [*units]
        for one in placement.overrides:
            block, device = one.block, host if one.device is None else one.device
            if {*one.tensors} >= shape.experts[block]:
                experts[block] = device
            elif device != experts[block]:
                apart[block] = device
                tensors[block] = tuple(sorted(one.tensors))
        return tuple(map(Kind, shape.kinds, units, caches, experts, apart, tensors))

    def _head(self, placement: Placement) -> int:
        """Find the device of the output head: the last GPU with a unit."""
        if not placement.gpu_layers:
            return self.host
        return max((gpu for gpu, count in enumerate(placement.split) if count), default=0)
