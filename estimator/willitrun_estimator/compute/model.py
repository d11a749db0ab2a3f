"""Compute buffers of a model for any placement and context, from a few planned graphs."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from msgspec import structs

from willitrun_catalog.model import Attention, Layer
from willitrun_estimator import cache
from willitrun_estimator.compute import block_sparse, indexer
from willitrun_estimator.compute.build import CURRENT, Build
from willitrun_estimator.compute.builder import RESIDUAL_SCORE, Builder, Homes
from willitrun_estimator.compute.copies import copy_bytes
from willitrun_estimator.compute.extent import sizes_of
from willitrun_estimator.compute.form import GROUPS, HEAVY_GROUPS, ROWS, Dim, U
from willitrun_estimator.compute.periods import shortened
from willitrun_estimator.compute.schedule import OFFLOAD_ROWS, Program, Schedule
from willitrun_estimator.compute.style import style_of
from willitrun_estimator.tensors import blueprint
from willitrun_estimator.weight_groups import grouped

if TYPE_CHECKING:
    from willitrun_catalog.model import ModelSpec
    from willitrun_estimator.device import Devices
    from willitrun_estimator.placement import Placement, Settings
    from willitrun_estimator.weights import WeightProfile

GPU_ALIGNMENT = 128
"""`ggml_backend_cuda_buffer_type_get_alignment`."""
HOST_ALIGNMENT = 32
"""`TENSOR_ALIGNMENT` of the CPU's buffers (ggml-impl.h)."""

_PLANNED: OrderedDict[tuple[object, ...], tuple[ModelSpec, tuple[Program, ...]]] = OrderedDict()
_PLANNED_LIMIT = 512
"""Layouts whose programs are kept, some 35 KB each, those used last."""
RESERVED_FOR_ONE_SLOT = frozenset({"minimax-01"})
"""Architectures whose buffers are reserved once more for a batch of one slot (`llama_context::sched_reserve`).

While llama.cpp plans without allocating it does not count that. Kimi Linear is treated so too, to no effect.
"""
MOST_PROGRAMS = 32
"""Layouts of which one model keeps the programs itself."""
MOST_KNOWN = 4096
"""Answers kept by one model, so that many questions take no more memory than some."""


class ComputeModel:
    """Compute buffer of every device as a function of placement and context."""

    def __init__(self, weights: WeightProfile, devices: Devices, settings: Settings, build: Build = CURRENT) -> None:
        spec = weights.spec
        plan = blueprint(spec)
        self.spec = spec
        self.weights = weights
        self.settings = settings
        self.host = len(devices.gpus)
        self.blocks = len(spec.layers)
        self._parts = tuple(frozenset(part.name for part in kind) for kind in plan.kinds)
        heads = max((m.key_dim for layer in spec.layers for m in layer.mixers if isinstance(m, Attention)), default=0)
        self._whole_qk_norm = any(
            part.name == "attn_q_norm.weight" and len(part.shape) == 1 and part.shape[0] > heads
            for kind in plan.kinds
            for part in kind
        )
        """Queries and keys are normalised as a whole, before they are split into heads."""
        self._donors = self._find_donors()
        self._style = style_of(spec.architecture)
        self._outside = frozenset(part.name for part in plan.outside)
        sizes = dict(spec.sizes)
        told_apart = {"per_layer_dim", "altup_inputs"} & {*sizes} or RESIDUAL_SCORE in self._outside
        held = any({block_sparse.QUERY, indexer.WEIGHT} & parts for parts in self._parts)
        self._fills = settings.flash_attention and any(block_sparse.QUERY in parts for parts in self._parts)
        self._may_shorten = not told_apart and not held
        """Graphs whose blocks are told apart by their number, or have inputs of their own, are always planned whole."""
        shapes: dict[int, int] = {}
        distinct: dict[Layer, int] = {}
        for layer in spec.layers:
            if id(layer) not in shapes:
                shapes[id(layer)] = distinct.setdefault(layer, len(distinct))
        self._shapes = tuple(shapes[id(layer)] for layer in spec.layers)
        self._kinds = plan.order[: self.blocks]
        self._groups = grouped(plan).order[: self.blocks]
        self._window = cache.model_window(spec)
        self.build = build
        self.backend = devices.gpus[0].backend if devices.gpus else "cpu"
        rows = max(1, settings.parallel) if build.capped_rows else settings.ubatch
        self._rows = rows if settings.logit_rows is None else settings.logit_rows
        alone = settings.parallel > 1 and spec.architecture in RESERVED_FOR_ONE_SLOT
        single = structs.replace(settings, parallel=1, kv_unified=False, logit_rows=self._rows)
        self._alone = ComputeModel(weights, devices, single, build) if alone else None
        self._copies: dict[str, int] | None = None
        self._programs: dict[Placement, tuple[tuple[Program, tuple[int, ...]], ...]] = {}
        self._values: dict[int, tuple[int, ...]] = {}
        self._known: dict[tuple[Placement, int], tuple[int, ...]] = {}

    def bytes(self, placement: Placement, context_tokens: int) -> tuple[int, ...]:
        """Bytes of the compute buffer on each GPU and on the host."""
        key = (placement, context_tokens)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
                self._programs.clear()
                self._values.clear()
            values = self._numbers(context_tokens)
            programs = self._programs.get(placement)
            if programs is None:
                if len(self._programs) >= MOST_PROGRAMS:
                    self._programs.clear()
                programs = self._programs[placement] = self._plan(placement)
            peaks = tuple(program.peak(values, copies) for program, copies in programs)
            if None in peaks:
                whole = self._plan(placement, whole=True)
                peaks = tuple(program.peak(values, copies) for program, copies in whole)
            known = self._known[key] = tuple(peak or 0 for peak in peaks)
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
        planned = self.bytes(placement, context_tokens)
        peaks = planned
        if self._fills:
            filled = sizes_of(self.spec, self.settings, context_tokens, self._rows, filled=True).values()
            peaks = tuple(program.peak(filled, copies) or 0 for program, copies in self._programs[placement])
        elif self._alone is not None:
            peaks = self._alone.bytes(placement, cache.stream_cells(self.settings, context_tokens)[0])
        return tuple(max(0, peak - now) for peak, now in zip(peaks, planned, strict=True))

    def _numbers(self, context_tokens: int) -> tuple[int, ...]:
        known = self._values.get(context_tokens)
        if known is None:
            known = sizes_of(self.spec, self.settings, context_tokens, self._rows).values()
            self._values[context_tokens] = known
        return known

    def _plan(self, placement: Placement, *, whole: bool = False) -> tuple[tuple[Program, tuple[int, ...]], ...]:
        homes = self._homes(placement)
        described = list(zip(homes, self._shapes, strict=True))
        chosen, runs = shortened(described) if self._may_shorten and not whole else (range(self.blocks), ())
        kept = tuple(described[index] for index in chosen)
        head = self._head(placement)
        settings = self.settings
        used = {home.block for home in homes} | {head}
        overridden = bool(placement.cpu_moe_layers or placement.overrides)
        pipeline = self.host not in used and len(used) > 1 and not overridden and not placement.kv_on_host
        extent = sizes_of(self.spec, settings, max(settings.context_tokens, settings.ubatch), self._rows)
        large: dict[Dim, bool] = {
            U: settings.ubatch >= OFFLOAD_ROWS,
            ROWS: extent.rows >= OFFLOAD_ROWS,
            GROUPS: extent.groups >= OFFLOAD_ROWS,
            HEAVY_GROUPS: extent.heavy_groups >= OFFLOAD_ROWS,
        }
        key = (
            id(self.spec),
            kept,
            head,
            self.host,
            pipeline,
            settings.kv_type_k,
            settings.kv_type_v,
            settings.flash_attention,
            settings.parallel,
            settings.kv_unified,
            settings.op_offload,
            self.build,
            self.backend,
            *large.values(),
            runs,
        )
        held = _PLANNED.get(key)
        if held is None or held[0] is not self.spec:
            builder = Builder(
                self.spec,
                settings,
                host=self.host,
                outside=self._outside,
                build=self.build,
                backend=self.backend,
                whole_qk_norm=self._whole_qk_norm,
            )
            graph = builder.build(
                tuple((self.spec.layers[index], homes[index]) for index in chosen),
                head,
            )
            schedule = Schedule(
                graph,
                self.host + 1,
                offload=settings.op_offload,
                large=large,
                pipeline=pipeline,
                alignments=(*([GPU_ALIGNMENT] * self.host), HOST_ALIGNMENT),
                runs=runs,
            )
            if not schedule.repeats:
                return self._plan(placement, whole=True)
            held = _PLANNED[key] = (self.spec, schedule.programs)
            while len(_PLANNED) > _PLANNED_LIMIT:
                _PLANNED.popitem(last=False)
        else:
            _PLANNED.move_to_end(key)
        return tuple((program, self._copied(program)) for program in held[1])

    def _copied(self, program: Program) -> tuple[int, ...]:
        """Bytes of the weights that a program copies, in the order of its sizes."""
        if not program.copied:
            return ()
        if self._copies is None:
            self._copies = copy_bytes(self.weights)
        return tuple(self._copies.get(name, 0) for name in program.copied)

    def _homes(self, placement: Placement) -> list[Homes]:
        """Where each block lives: the first ones on the host, then GPU by GPU."""
        homes = []
        units = [self.host] * (self.blocks + 1 - placement.gpu_layers)
        for gpu, count in enumerate(placement.split or (placement.gpu_layers,)):
            units.extend([gpu] * count)
        apart = {one.block: one for one in placement.overrides}
        for index in range(self.blocks):
            device = units[index]
            experts = self.host if index < placement.cpu_moe_layers else device
            override = apart.get(index)
            elsewhere = (
                ((), device)
                if override is None
                else (override.tensors, self.host if override.device is None else override.device)
            )
            homes.append(
                Homes(
                    device,
                    experts,
                    self.host if placement.kv_on_host else units[self._donors[index]],
                    self._groups[index] if self.host in {device, experts, elsewhere[1]} else -1,
                    self._rotary(index),
                    self._parts[self._kinds[index]],
                    *elsewhere,
                )
            )
        return homes

    def _find_donors(self) -> tuple[int, ...]:
        """Find the block whose cache each block reads: its own, or the last of its kind that has one (Gemma 3n)."""
        latest: dict[bool, int] = {}
        donors = []
        for index, layer in enumerate(self.spec.layers):
            windowed = cache.layer_window(self.spec, layer) is not None
            if not any(isinstance(m, Attention) and m.shares_kv for m in layer.mixers):
                latest[windowed] = index
            donors.append(latest.get(windowed, index))
        return tuple(donors)

    def _rotary(self, index: int) -> bool:
        """Whether a block's attention rotates by position."""
        rule = self._style.rope
        if rule == "three-of-four":
            return (index + 1) % 4 != 0
        if rule == "windowed" and self._window is not None:
            return cache.layer_window(self.spec, self.spec.layers[index]) is not None
        return rule != "none"

    def _head(self, placement: Placement) -> int:
        """Find the device of the output head: the last GPU with a unit."""
        if not placement.gpu_layers:
            return self.host
        return max((gpu for gpu, count in enumerate(placement.split) if count), default=0)
