"""One question made ready for the search: the space of values, and the setups its points need."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from itertools import takewhile

from msgspec import structs

from willitrun_catalog.model import ModelSpec
from willitrun_catalog.quality import UNKNOWN_DIVERGENCE, QuantQuality
from willitrun_estimator.cache import is_quantized
from willitrun_estimator.calibration import Corrections
from willitrun_estimator.compute.kernels import chooses_flash
from willitrun_estimator.device import Device, Devices
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.found import Bar, Found
from willitrun_estimator.ollama import KV_TYPES as OLLAMA_KV_TYPES
from willitrun_estimator.placement import Settings
from willitrun_estimator.points import Combination, Space, bounded
from willitrun_estimator.prepared import Prepared
from willitrun_estimator.request import Request
from willitrun_estimator.score import LENSES, PURPOSES, Objective, Purpose
from willitrun_estimator.search import NO_BAR, search_paging, search_quant
from willitrun_estimator.setup import LlamaSetup, logical_batch, speed_facts
from willitrun_estimator.weights import WeightProfile

MOST_REPEATS = 6
"""Searches after which the best plan is taken as it is: each one corrects at least one setup."""
CONTEXTS = (4096, 8192, 16384, 32768, 65536, 131072)
KV_TYPES = ("f16", "q8_0")
"""Tried unless one is asked for: the types whose cost in quality was measured."""
DEFAULT_CONTEXT = 4096
CELLS = 256
"""llama.cpp pads a context to this many tokens."""
UBATCHES = (512, 1024, 2048)
OLLAMA_UBATCHES = (512,)
"""`num_batch` of ollama's `DefaultOptions` (api/types.go)."""
MOST_SUBSETS = 4
"""Up to this many unlike GPUs every subset is tried; beyond, the GPUs with most free memory first."""


class Question:
    """A model, devices and a request, with everything that is computed once and used by many searches."""

    def __init__(
        self,
        spec: ModelSpec,
        devices: Devices,
        request: Request,
        corrections: Corrections | None = None,
        prepared: Prepared | None = None,
    ) -> None:
        self.spec, self.devices, self.request = spec, devices, request
        self.corrections = corrections
        """What runs of this very machine taught, None for any other."""
        self.prepared = Prepared(spec) if prepared is None else prepared
        """Sums of the model, which other questions about it may share."""
        self.purpose = purpose_of(request)
        self.lens = LENSES[request.mode]
        self.tried: dict[str, WeightProfile] = {}
        """The quantizations this question has looked at, in order."""
        self.lenient = False
        """Whether the quick look passes over nothing that may fit."""
        self._setups: dict[tuple[str, str, int, tuple[int, ...]], LlamaSetup] = {}
        self._points: dict[tuple[str, Space], list[Combination]] = {}
        self._settings: dict[tuple[str, int], Settings] = {}
        self._subsets: dict[tuple[int, ...], Devices] = {}
        self.objective = Objective(
            purpose=self.purpose, lens=self.lens, min_rate=request.min_decode, max_ttft_s=request.max_ttft
        )

    def weights(self, quant: str) -> WeightProfile:
        """Return the weights in a quantization, summed once."""
        known = self.tried.get(quant)
        if known is None:
            known = self.tried[quant] = self.prepared.weights(quant)
        return known

    def quality(self, quant: str) -> QuantQuality:
        """Return what a quantization of this model costs, looked up once."""
        return self.prepared.quality(quant)

    def kl_divergence(self, quant: str, kv_type: str) -> float:
        """Return the quality lost by weights and cache together."""
        lost = self.quality(quant).kl_divergence
        return (UNKNOWN_DIVERGENCE if lost is None else lost) + KV_KL_DIVERGENCE[kv_type]

    def settings(self, kv_type: str, ubatch: int) -> Settings:
        """Return the engine settings of a setup; the context is the search's to vary."""
        key = kv_type, ubatch
        known = self._settings.get(key)
        if known is None:
            request = self.request
            parallel = request.parallel or max(1, request.concurrency, self.lens.concurrency)
            known = self._settings[key] = Settings(
                context_tokens=DEFAULT_CONTEXT,
                kv_type_k=kv_type,
                kv_type_v=kv_type,
                flash_attention=self._flash_attention(kv_type),
                ubatch=ubatch,
                batch=logical_batch(ubatch),
                parallel=parallel,
                kv_unified=parallel > 1 and request.engine != "ollama",
            )
        return known

    def subset(self, gpus: tuple[int, ...]) -> Devices:
        """Return the devices with only some of the GPUs."""
        known = self._subsets.get(gpus)
        if known is None:
            chosen = tuple([self.devices.gpus[i] for i in gpus])
            known = self._subsets[gpus] = (
                self.devices if chosen == self.devices.gpus else structs.replace(self.devices, gpus=chosen)
            )
        return known

    def setup(self, quant: str, kv_type: str, ubatch: int, gpus: tuple[int, ...]) -> LlamaSetup:
        """Return the setup of one point of the space, built once."""
        key = (quant, kv_type, ubatch, gpus)
        known = self._setups.get(key)
        if known is None:
            self.weights(quant)
            known = self._setups[key] = LlamaSetup(
                self.prepared,
                quant,
                self.subset(gpus),
                self.settings(kv_type, ubatch),
                request=self.request,
                lens=self.lens,
                purpose=self.purpose,
            )
        if known.lenient is not self.lenient:
            known.look(lenient=self.lenient)
        return known

    @cached_property
    def _has_flash_kernels(self) -> bool:
        return chooses_flash(self.spec, [gpu.backend for gpu in self.devices.gpus])

    def _flash_attention(self, kv_type: str) -> bool:
        """Return whether flash attention is on: as asked, else as the engine itself would decide."""
        asked = self.request.flash_attention
        return self._has_flash_kernels or is_quantized(kv_type) if asked is None else asked

    def _kv_types(self) -> tuple[str, ...]:
        """Return the cache types to try: of those nobody asked for, the ones this model's rows can have.

        Quantized ones need flash attention, which without a kernel would be computed on the host.
        """
        asked = kv_types(self.request)
        if self.request.kv_type is not None:
            return asked
        if self.request.flash_attention is None and not self._has_flash_kernels:
            return ("f16",)
        return tuple(one for one in asked if one == "f16" or self.prepared.takes(one, self.settings(one, UBATCHES[0])))

    @cached_property
    def space(self) -> Space:
        """The values each dimension may take. Raises EstimatorError for a context the model does not have."""
        request, gpus = self.request, self.devices.gpus
        blocks, ollama = self.spec.block_count, request.engine == "ollama"
        ubatches = (request.ubatch,) if request.ubatch else OLLAMA_UBATCHES if ollama else UBATCHES
        return Space(
            kv_types=self._kv_types(),
            contexts=contexts(self.spec, request, self.purpose),
            ubatches=useful(ubatches, self.purpose.prompt_tokens),
            gpu_sets=gpu_sets(gpus),
            kinds=kinds(gpus),
            gpu_layers=fixed_units(request.gpu_layers, blocks, self.spec.mtp_layers),
            # ollama places whole layers and has no switch for experts.
            cpu_moe_layers=0 if ollama else fixed_moved(request.cpu_moe_layers, blocks),
        )

    def search(self, quant: str, *, bar: Bar = NO_BAR, narrow: bool = False) -> list[Found]:
        """Return the plans of one quantization, best first, by the quick look at memory.

        A `narrow` search leaves out what changes a ranking least: micro-batches.
        """
        space = self.space
        if narrow:
            space = structs.replace(space, ubatches=space.ubatches[:1])
        points = self.points(quant, space)
        return search_quant(quant, space, self.objective, self.kl_divergence, self.setup, bar=bar, combinations=points)

    def points(self, quant: str, space: Space) -> list[Combination]:
        """Return the points of a space with what each can reach at most, worked out once."""
        known = self._points.get((quant, space))
        if known is None:
            known = bounded(quant, space, self.objective, self.kl_divergence, self.setup)
            self._points[quant, space] = known
        return known

    def rivalled(self, quant: str, found: Iterable[Found], floor: float) -> bool:
        """Tell whether a quantization may have a plan above a score besides those found, as far as a search has told.

        Settings with a plan wholly on GPUs have no better one.
        """
        known = self._points.get((quant, self.space))
        if known is None:
            return True
        whole = [one for one in found if one.whole]
        return any(not any(map(one.settled_by, whole)) for one in takewhile(lambda one: one.bound > floor, known))

    def holds(self, one: Found) -> bool:
        """Tell whether a plan holds by the exact memory model; what is off is corrected in further looks."""
        return self.setup(one.quant, one.kv_type, one.ubatch, one.gpus).holds(one)

    def verified(self, found: list[Found]) -> list[Found]:
        """Return the plans with a best one that also holds by the exact memory model.

        Searched again with what was learned where it does not hold.
        """
        failed: list[Found] = []
        for _ in range(MOST_REPEATS):
            found = [one for one in found if one not in failed]
            if not found or self.holds(found[0]):
                return found
            failed.append(found[0])
            found = self.search(found[0].quant)
        return [one for one in found if one not in failed and self.holds(one)]

    def last_resorts(self, quants: Iterable[str]) -> list[Found]:
        """Return plans for when no layout starts in memory, best first, the best one by the exact memory model.

        Weights may be read from disk as the engine goes, and the GPUs may be left out: even without layers one of them
        holds the buffers of prompts, which can be too much for it.
        """
        space = self.space
        space = structs.replace(space, contexts=(min(space.contexts),), ubatches=(min(space.ubatches),))
        if not space.gpu_layers and space.gpu_sets != ((),):
            space = structs.replace(space, gpu_sets=(*space.gpu_sets, ()))
        common = self.objective, self.kl_divergence, self.setup
        found = [
            one
            for quant in quants
            for one in search_paging(quant, space, *common, combinations=self.points(quant, space))
        ]
        found.sort(key=lambda one: -one.score)
        for index, one in enumerate(found):
            if self.holds(one):
                return found[index:]
        return []


KV_KL_DIVERGENCE = {
    "f32": 0.0, "f16": 0.0, "bf16": 0.0, "q8_0": 0.0008,
    "fp8": 0.0023, "q5_1": 0.0023, "q5_0": 0.0023, "q4_1": 0.009, "q4_0": 0.009, "iq4_nl": 0.009,
}  # fmt: skip
"""KL divergence a KV cache type adds to f16, on Llama-3-8B (https://github.com/ggml-org/llama.cpp/pull/7412).

Measured for both caches: q8_0 alone, 0.00098 - 0.00019. Five bits are scaled by what V alone lost there (q5_1 0.00157,
q8_0 0.00055), four bits by the fourfold noise of one bit less; both are extrapolated, as is fp8, counted as five bits.
"""


def fixed_units(gpu_layers: int | str | None, blocks: int, mtp_layers: int) -> int | None:
    """Return the number of units a fixed `--gpu-layers` means: more than there are is all of them.

    llama.cpp counts the head first, then the layers from the last, next-token layers among them; those are not units.
    """
    if gpu_layers is None:
        return None
    if gpu_layers == "all":
        return blocks + 1
    count = int(gpu_layers)
    return count if count < 1 else min(max(1, count - mtp_layers), blocks + 1)


def fixed_moved(cpu_moe_layers: int | str | None, blocks: int) -> int | None:
    """Return the blocks a fixed `--cpu-moe-layers` means: more than there are is all of them."""
    if cpu_moe_layers is None:
        return None
    return blocks if cpu_moe_layers == "all" else min(int(cpu_moe_layers), blocks)


def purpose_of(request: Request) -> Purpose:
    """Return the workload's needs with what the request fixes in their place."""
    purpose = PURPOSES[request.workload]
    slots = max(LENSES[request.mode].concurrency, request.concurrency)
    if slots > 1:
        # Slots share one cache: each needs room for its prompt and its answer, in whole cells.
        each = (request.prompt_tokens or purpose.prompt_tokens) + (request.output_tokens or purpose.output_tokens)
        purpose = structs.replace(purpose, context_tokens=slots * -(-each // CELLS) * CELLS)
    return structs.replace(
        purpose,
        prompt_tokens=request.prompt_tokens or purpose.prompt_tokens,
        output_tokens=request.output_tokens or purpose.output_tokens,
        context_tokens=max(request.context or request.min_context or purpose.context_tokens, 1),
    )


def contexts(spec: ModelSpec, request: Request, purpose: Purpose) -> tuple[int, ...]:
    """Return the context lengths to try: the fixed one, or powers of two up to what the workload wants.

    Never more than the model was trained for, and never its maximum just because there is room.
    """
    if request.context is not None:
        return (request.context,)
    slots = max(LENSES[request.mode].concurrency, request.concurrency)
    top = min(spec.max_context_tokens * slots, purpose.context_tokens)
    least = request.min_context or 0
    if least > spec.max_context_tokens:
        raise EstimatorError(
            f"--min-context {least} is more than {spec.title} has: {spec.max_context_tokens} tokens",
            "Lower it, or take a model with a longer context.",
        )
    top = max(top, least)
    tried = tuple(size for size in CONTEXTS if least <= size < top)
    return (*tried, top)


def useful(ubatches: tuple[int, ...], prompt_tokens: int) -> tuple[int, ...]:
    """Return the micro-batches worth trying: of those that take the prompt at once, the smallest is as fast as any."""
    enough = [size for size in ubatches if size >= prompt_tokens]
    return tuple(size for size in ubatches if size < prompt_tokens or size == min(enough))


def kinds(gpus: tuple[Device, ...]) -> tuple[int, ...]:
    """Return for each GPU the first one that is as fast."""
    facts = [speed_facts(gpu) for gpu in gpus]
    return tuple(map(facts.index, facts))


def kv_types(request: Request) -> tuple[str, ...]:
    """Return the cache types to try: the fixed one, or those worth it; quantized ones need flash attention.

    Raises EstimatorError for a type that the engine does not take.
    """
    fixed = request.kv_type
    if fixed == "fp8":
        raise EstimatorError("--kv-type fp8 is a type that only vLLM has", "Take q8_0, or --engine vllm.")
    if fixed is not None:
        if request.engine == "ollama" and fixed not in OLLAMA_KV_TYPES:
            raise EstimatorError(
                f"--kv-type {fixed}: ollama's OLLAMA_KV_CACHE_TYPE takes only {', '.join(OLLAMA_KV_TYPES)}",
                f"Take one of them, or --engine llama.cpp, which takes {fixed}.",
            )
        return (fixed,)
    return ("f16",) if request.flash_attention is False else KV_TYPES


def gpu_sets(gpus: tuple[Device, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the sets of GPUs worth trying, smaller ones first; the host alone where there is no GPU."""
    count = len(gpus)
    if count == 0:
        return ((),)
    by_room = sorted(range(count), key=lambda i: (-gpus[i].memory_free_bytes, i))
    alike = len({(gpu.name, gpu.family) for gpu in gpus}) == 1
    if alike or count > MOST_SUBSETS:
        return tuple(tuple(sorted(by_room[:size])) for size in range(1, count + 1))
    masks = sorted(range(1, 1 << count), key=lambda mask: (mask.bit_count(), mask))
    return tuple(tuple(i for i in range(count) if mask >> i & 1) for mask in masks)
