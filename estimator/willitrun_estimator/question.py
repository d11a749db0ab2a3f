"""One question made ready for the search: the space of values, the budgets of the devices, and the cost of a setup."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from msgspec import structs

from willitrun_catalog.model import ModelSpec
from willitrun_catalog.quality import UNKNOWN_DIVERGENCE, QuantQuality, quality
from willitrun_estimator import throughput
from willitrun_estimator.calibration import Corrections
from willitrun_estimator.compute.build import build_of
from willitrun_estimator.device import Device, Devices
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.footprint import MemoryModel
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.quick import QuickMemory
from willitrun_estimator.request import Request
from willitrun_estimator.score import LENSES, PURPOSES, Lens, Purpose, quality_factor
from willitrun_estimator.search import BOUND_SLACK, Extremes, Found, Objective, Space, search_paging, search_quant
from willitrun_estimator.weights import WeightProfile, weight_profile

MIB = 1024**2
GROWTH_BYTES = 150 * MIB
"""What a GPU process takes at its first prompts beyond its context and buffers (llama.cpp issues: 40-150 MiB)."""
DISPLAY_BYTES = 512 * MIB
"""Left to a compositor on a card that drives a screen: Linux desktops were seen at 550-810 MiB, most of it already
counted as used when the plan is made."""
HOST_RESERVE_BYTES = 512 * MIB
"""Left to the engine's own process (vocabulary, HTTP server) and everything else on the host."""

MOST_REPEATS = 6
"""Searches after which the best plan is taken as it is: each one corrects at least one setup."""
ROOM_BYTES = 4 * MIB
"""How much the quick look may ask for in vain before a partial layout is searched again."""
EXACT_STEPS = 3
"""Corrections after which a safe context is taken as it is: buffers are linear in the context, so one is enough but for
the kink where another phase becomes the largest."""
CONTEXTS = (4096, 8192, 16384, 32768, 65536, 131072)
KV_TYPES = ("f16", "q8_0")
"""Tried unless one is asked for: the types whose cost in quality was measured."""
CELLS = 256
"""llama.cpp pads a context to this many tokens."""
UBATCHES = (512, 1024, 2048)
OLLAMA_UBATCHES = (512,)
"""`num_batch` of ollama's `DefaultOptions` (api/types.go)."""
MOST_SUBSETS = 4
"""Up to this many unlike GPUs every subset is tried; beyond, the GPUs with most free memory first."""


class LlamaSetup:
    """One model in one quantization on one GPU set with fixed settings, as the search sees it."""

    def __init__(
        self,
        weights: WeightProfile,
        devices: Devices,
        settings: Settings,
        request: Request,
        lens: Lens,
        purpose: Purpose,
    ) -> None:
        self.weights, self.devices, self.settings = weights, devices, settings
        self.build = build_of(build_number(request))
        self.request = request
        self.extremes: dict[bool, Extremes] = {}
        self.blocks = weights.spec.block_count
        self.experts_end = max((i + 1 for i, layer in enumerate(weights.layers) if layer.expert_bytes), default=0)
        self.host_budget = devices.host.ram_available_bytes - HOST_RESERVE_BYTES
        self.whole_split = (self.blocks + 1,) + (0,) * (len(devices.gpus) - 1)
        self.alike = len({(gpu.family, gpu.bandwidth_bytes_per_s, gpu.flops_per_s) for gpu in devices.gpus}) <= 1
        self.unified = any(gpu.unified for gpu in devices.gpus)
        self.speed = throughput.SpeedModel(weights, devices, settings, engine=request.engine or "llama.cpp")
        self.depth_tokens = request.depth_tokens or 0
        self.prompt_tokens = request.prompt_tokens or purpose.prompt_tokens
        self.concurrency = max(lens.concurrency, request.concurrency)

    @cached_property
    def memory(self) -> MemoryModel:
        """The exact memory model, built when bytes are first asked for."""
        return MemoryModel(self.weights, self.devices, self.settings, self.build)

    @cached_property
    def needs(self) -> QuickMemory:
        """The quick look at memory."""
        return QuickMemory(self.memory)

    @cached_property
    def budgets(self) -> tuple[int, ...]:
        """What each GPU may be given."""
        gpus, runtimes = self.devices.gpus, self.needs.runtime
        return tuple(gpu_budget(gpu, self.request, runtime) for gpu, runtime in zip(gpus, runtimes, strict=True))

    def forget(self) -> None:
        """Drop what exact answers taught, so that one question does not change another's answer."""
        if "needs" in self.__dict__:
            self.needs.forget()

    def overflow(self, context_tokens: int, ubatch: int) -> tuple[int, int, int]:
        """Return what the GPUs cannot hold with the smallest compute buffer on one of them, all experts, all blocks."""
        everything = Placement(gpu_layers=self.blocks + 1, split=self.whole_split)
        held = sum(self.memory.weights_bytes(everything)[:-1])
        held += sum(kv + state for kv, state in self.memory.cache_bytes(everything, context_tokens)[:-1])
        blocks = held - self.weights.output_bytes
        buffer, copies = self.needs.least_compute(context_tokens, ubatch)
        over = held + buffer + min(self.needs.runtime, default=0) - sum(self.budgets)
        return over + (copies if over > 0 else 0), self.weights.cumulative_expert_bytes[-1], blocks

    def host_short(self, used_bytes: Sequence[int]) -> int:
        """Return the bytes the host lacks, 0 or less when it has room; unified GPUs draw on the same memory."""
        needed = used_bytes[-1]
        if self.unified:
            needed += sum(use for use, gpu in zip(used_bytes, self.devices.gpus, strict=False) if gpu.unified)
        return needed - self.host_budget

    def verified(self, found: Found) -> tuple[bool, bool]:
        """Hold a found plan against the exact memory model; what is off is corrected in further looks.

        Return whether it holds, and whether the quick look asked for so much too much that more might fit.
        """
        quick = self.needs.per_device_bytes(found.placement, found.context_tokens)
        exact = self.needs.correct(found.placement, found.context_tokens)
        within = all(use <= budget for use, budget in zip(exact, self.budgets, strict=False))
        whole = found.placement.gpu_layers > self.blocks and not found.placement.cpu_moe_layers
        roomy = not whole and any(use < guess - ROOM_BYTES for use, guess in zip(exact[:-1], quick, strict=False))
        return within and (found.short_bytes > 0 or self.host_short(exact) <= 0), roomy

    def safe_tokens(self, found: Found, most_tokens: int) -> int:
        """Return the largest context the layout of a found plan holds, by the exact memory model."""
        limits = (*self.budgets, self.host_budget)
        safe = self.needs.safe_tokens(found.placement, limits, most_tokens)
        for _ in range(EXACT_STEPS):
            if not safe:
                break
            exact = self.needs.correct(found.placement, safe)
            solved = self.needs.safe_tokens(found.placement, limits, most_tokens)
            if solved >= safe and all(use <= limit for use, limit in zip(exact, limits, strict=True)):
                break
            safe = solved
        return safe

    def rate(self, placement: Placement) -> float | None:
        """Return the decode rate the lens looks at: of one stream, or of all together for serving modes."""
        if self.concurrency > 1:
            return self.speed.aggregate(placement, self.concurrency, depth_tokens=self.depth_tokens)
        return self.speed.decode_rate(placement, depth_tokens=self.depth_tokens)

    def ttft(self, placement: Placement) -> float | None:
        """Return the warm time to the first token of the workload's prompt."""
        return self.speed.ttft_s(placement, prompt_tokens=self.prompt_tokens, depth_tokens=self.depth_tokens)

    def paged_rate(self, placement: Placement, short_bytes: int) -> float | None:
        """Return the decode rate when `short_bytes` of the weights are read from disk again and again."""
        return self.speed.paged_decode_rate(placement, short_bytes=short_bytes, depth_tokens=self.depth_tokens)


def build_number(request: Request) -> int | None:
    """Return the llama.cpp build to plan for, None for a current one. Raises EstimatorError for another spelling."""
    version = request.engine_version
    if version is None or request.engine not in {None, "llama.cpp"}:
        return None
    digits = version.removeprefix("b")
    if not digits.isdigit():
        raise EstimatorError(f"--engine-version {version} is no llama.cpp build", "Write the build's number: b9849.")
    return int(digits)


def gpu_budget(gpu: Device, request: Request, runtime_bytes: int) -> int:
    """Return the bytes a plan may put on a GPU, `runtime_bytes` of its own context included.

    Free memory less a margin. By default the margin is what processes grow by after loading, and a little for the
    compositor of a card with a screen; `--margin` counts like llama.cpp's `--fit-target`, the context inside it.
    """
    if request.margin_bytes is not None:
        return gpu.memory_free_bytes - max(0, request.margin_bytes - runtime_bytes)
    return gpu.memory_free_bytes - GROWTH_BYTES - (DISPLAY_BYTES if gpu.display_active else 0)


class Kit:
    """What questions about one model on one machine can share: sums of weights, qualities and setups.

    For many questions that differ only in what the search varies or the user fixes of it (`signature`).
    """

    def __init__(self) -> None:
        self.profiles: dict[str, WeightProfile] = {}
        self.qualities: dict[str, QuantQuality] = {}
        self.setups: dict[tuple[str, str, int, tuple[int, ...]], LlamaSetup] = {}


def signature(request: Request) -> Request:
    """Return what of a request a setup depends on; requests with the same signature may share a kit."""
    return structs.replace(
        request,
        quant=None,
        context=None,
        kv_type=None,
        ubatch=None,
        gpu_layers=None,
        cpu_moe_layers=None,
        min_context=None,
        min_decode=None,
        max_ttft=None,
    )


class Question:
    """A model, devices and a request, with everything that is computed once and used by many searches."""

    def __init__(
        self,
        spec: ModelSpec,
        devices: Devices,
        request: Request,
        profiles: dict[str, WeightProfile] | None = None,
        corrections: Corrections | None = None,
        kit: Kit | None = None,
    ) -> None:
        self.spec, self.devices, self.request = spec, devices, request
        self.corrections = corrections
        """What runs of this very machine taught, None for any other."""
        self.purpose = purpose_of(request)
        self.lens = LENSES[request.mode]
        self._kit = Kit() if kit is None else kit
        self.profiles = self._kit.profiles if profiles is None else profiles
        self._qualities = self._kit.qualities
        self._setups: dict[tuple[str, str, int, tuple[int, ...]], LlamaSetup] = {}
        self.objective = Objective(
            purpose=self.purpose, lens=self.lens, min_rate=request.min_decode, max_ttft_s=request.max_ttft
        )

    def weights(self, quant: str) -> WeightProfile:
        """Return the weights in a quantization, summed once."""
        known = self.profiles.get(quant)
        if known is None:
            known = self.profiles[quant] = weight_profile(self.spec, quant)
        return known

    def quality(self, quant: str) -> QuantQuality:
        """Return what a quantization of this model costs, looked up once."""
        known = self._qualities.get(quant)
        if known is None:
            known = quality(quant, self.weights(quant).params, native_type=self.spec.native_type)
            self._qualities[quant] = known
        return known

    def kl_divergence(self, quant: str, kv_type: str) -> float:
        """Return the quality lost by weights and cache together."""
        lost = self.quality(quant).kl_divergence
        return (UNKNOWN_DIVERGENCE if lost is None else lost) + KV_KL_DIVERGENCE[kv_type]

    def settings(self, kv_type: str, ubatch: int, context_tokens: int = 4096) -> Settings:
        """Return the engine settings of a setup; the context is the search's to vary."""
        request = self.request
        parallel = request.parallel or max(1, request.concurrency, self.lens.concurrency)
        flash = True if request.flash_attention is None else request.flash_attention
        return Settings(
            context_tokens=context_tokens,
            kv_type_k=kv_type,
            kv_type_v=kv_type,
            flash_attention=flash,
            ubatch=ubatch,
            batch=max(2048, ubatch),
            parallel=parallel,
            kv_unified=parallel > 1 and request.engine != "ollama",
        )

    def subset(self, gpus: tuple[int, ...]) -> Devices:
        """Return the devices with only some of the GPUs."""
        return structs.replace(self.devices, gpus=tuple(self.devices.gpus[i] for i in gpus))

    def setup(self, quant: str, kv_type: str, ubatch: int, gpus: tuple[int, ...]) -> LlamaSetup:
        """Return the setup of one point of the space, built once."""
        key = (quant, kv_type, ubatch, gpus)
        known = self._setups.get(key)
        if known is not None:
            return known
        known = self._kit.setups.get(key)
        if known is None:
            known = self._kit.setups[key] = LlamaSetup(
                self.weights(quant),
                self.subset(gpus),
                self.settings(kv_type, ubatch),
                request=self.request,
                lens=self.lens,
                purpose=self.purpose,
            )
        known.forget()
        self._setups[key] = known
        return known

    def space(self, quants: tuple[str, ...]) -> Space:
        """Return the values each dimension may take."""
        request = self.request
        blocks, ollama = self.spec.block_count, request.engine == "ollama"
        return Space(
            quants=quants,
            kv_types=(request.kv_type,) if request.kv_type else kv_types(request),
            contexts=contexts(self.spec, request, self.purpose),
            ubatches=(request.ubatch,) if request.ubatch else OLLAMA_UBATCHES if ollama else UBATCHES,
            gpu_sets=gpu_sets(self.devices.gpus),
            gpu_layers=blocks + 1 if request.gpu_layers == "all" else fixed_units(request.gpu_layers, blocks),
            # ollama places whole layers and has no switch for experts.
            cpu_moe_layers=0 if ollama else blocks if request.cpu_moe_layers == "all" else request.cpu_moe_layers,
        )

    def ceiling(self, quant: str) -> float:
        """Return a score no plan of a quantization can exceed, by weights alone; 0 where memory cannot hold them."""
        weights, gpus = self.weights(quant), self.devices.gpus
        room = self.devices.host.ram_available_bytes
        room += sum(gpu.memory_free_bytes for gpu in gpus if not gpu.unified)
        if weights.tensor_bytes - weights.unloaded_bytes > room:
            return 0.0
        space = self.space((quant,))
        one = self.setup(quant, space.kv_types[0], space.ubatches[0], tuple(range(len(gpus))))
        held = weights.cumulative_resident_bytes[-1] + weights.cumulative_expert_bytes[-1] + weights.output_bytes
        over = held - sum(gpu.memory_free_bytes for gpu in gpus) if gpus else 0
        bytes_ = over, weights.cumulative_expert_bytes[-1], held - weights.output_bytes
        step = Extremes.of(one, len(gpus), rates=True).least(*bytes_)
        return self.objective.judge(
            quality=quality_factor(self.kl_divergence(quant, space.kv_types[0])),
            rate=None if step is None else BOUND_SLACK / step,
            ttft_s=0.0,
            context_tokens=space.contexts[-1],
        )

    def search(self, quant: str, *, floor: float = 0.0, narrow: bool = False) -> list[Found]:
        """Return the plans of one quantization, best first, by the quick look at memory.

        A `narrow` search leaves out what changes a ranking least: micro-batches.
        """
        space = self.space((quant,))
        if narrow:
            space = structs.replace(space, ubatches=space.ubatches[:1])
        return search_quant(quant, space, self.objective, self.kl_divergence, self.setup, floor=floor)

    def verified(self, found: list[Found]) -> list[Found]:
        """Return the plans with a best one that also holds by the exact memory model.

        Searched again with what was learned where it does not hold, and where more might fit than the quick look
        allowed.
        """
        tried: set[tuple[str, int, int, tuple[int, ...], Placement]] = set()
        failed: list[Found] = []
        for _ in range(MOST_REPEATS):
            found = [one for one in found if one not in failed]
            if not found:
                return found
            best = found[0]
            key = best.kv_type, best.context_tokens, best.ubatch, best.gpus, best.placement
            holds, roomy = self.setup(best.quant, best.kv_type, best.ubatch, best.gpus).verified(best)
            if holds and (not roomy or key in tried):
                return found
            if not holds:
                failed.append(best)
            tried.add(key)
            found = self.search(best.quant)
        sound = (one for one in found if one not in failed)
        return [one for one in sound if self.setup(one.quant, one.kv_type, one.ubatch, one.gpus).verified(one)[0]]

    def search_paging(self, quant: str) -> list[Found]:
        """Return plans that read weights from disk as they go, best first."""
        return search_paging(quant, self.space((quant,)), self.objective, self.kl_divergence, self.setup)


KV_KL_DIVERGENCE = {
    "f32": 0.0, "f16": 0.0, "bf16": 0.0, "q8_0": 0.0008,
    "fp8": 0.0023, "q5_1": 0.0023, "q5_0": 0.0023, "q4_1": 0.009, "q4_0": 0.009, "iq4_nl": 0.009,
}  # fmt: skip
"""KL divergence a KV cache type adds to f16, on Llama-3-8B (https://github.com/ggml-org/llama.cpp/pull/7412).

Measured for both caches: q8_0 alone, 0.00098 - 0.00019. Five bits are scaled by what V alone lost there (q5_1 0.00157,
q8_0 0.00055), four bits by the fourfold noise of one bit less; both are extrapolated, as is fp8, counted as five bits.
"""


def fixed_units(gpu_layers: int | str | None, blocks: int) -> int | None:
    """Return the number of units a fixed `--gpu-layers` means: more than there are is all of them."""
    return None if gpu_layers is None else min(int(gpu_layers), blocks + 1)


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


def kv_types(request: Request) -> tuple[str, ...]:
    """Return the cache types to try; quantized ones need flash attention."""
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
