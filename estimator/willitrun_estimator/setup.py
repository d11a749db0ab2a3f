"""One model in one quantization on one GPU set with fixed settings, as the search sees it: budgets, bytes, speed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property

from msgspec import structs

from willitrun_estimator import throughput
from willitrun_estimator.compute.build import Build, build_of
from willitrun_estimator.device import Device, Devices
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.footprint import MemoryModel
from willitrun_estimator.found import Found
from willitrun_estimator.latest import Latest
from willitrun_estimator.layout import Layouts
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.prepared import Prepared
from willitrun_estimator.quick import QuickMemory
from willitrun_estimator.request import Request
from willitrun_estimator.score import Lens, Purpose
from willitrun_estimator.throughput.constants import shipped

MIB = 1024**2
GROWTH_BYTES = 150 * MIB
"""What a GPU process takes at its first prompts beyond its context and buffers (llama.cpp issues: 40-150 MiB)."""
DISPLAY_BYTES = 512 * MIB
"""Left to a compositor on a card that drives a screen: Linux desktops were seen at 550-810 MiB, most of it already
counted as used when the plan is made."""
HOST_RESERVE_BYTES = 512 * MIB
"""Left to the engine's own process (vocabulary, HTTP server) and everything else on the host."""

DEFAULT_BATCH = 2048
"""`n_batch` of llama.cpp's `common_params`."""
EXACT_STEPS = 3
"""Corrections after which a safe context is taken as it is: buffers are linear in the context, so one is enough but for
the kink where another phase becomes the largest."""


class HostRoom:
    """What the host may be given; unified GPUs draw on the same memory.

    Layouts hold it and not their setup: a cycle would stay until the collector runs.
    """

    def __init__(self, budget: int, gpus: Sequence[Device]) -> None:
        self.budget = budget
        self.unified = [index for index, gpu in enumerate(gpus) if gpu.unified]

    def short(self, used_bytes: Sequence[int]) -> int:
        """Return the bytes the host lacks, 0 or less when it has room."""
        return used_bytes[-1] + sum([used_bytes[index] for index in self.unified]) - self.budget


class LlamaSetup:
    """One point of the space but for the context and the layout. Not thread-safe: it keeps what it has worked out."""

    def __init__(
        self,
        prepared: Prepared,
        quant: str,
        devices: Devices,
        settings: Settings,
        *,
        request: Request,
        lens: Lens,
        purpose: Purpose,
    ) -> None:
        self.prepared, self.quant, self.devices, self.settings = prepared, quant, devices, settings
        self.weights = weights = prepared.weights(quant)
        self.request = request
        self.lenient = False
        """Whether the quick look passes over nothing that may fit."""
        self._layouts: dict[tuple[int, bool], Layouts] = {}
        self.blocks = weights.spec.block_count
        experts = weights.cumulative_expert_bytes
        self.experts_end = bisect_left(experts, experts[-1])
        self.host_budget = devices.host.ram_available_bytes - HOST_RESERVE_BYTES
        self.host_room = HostRoom(self.host_budget, devices.gpus)
        self.depth_tokens = request.depth_tokens or 0
        self.prompt_tokens = request.prompt_tokens or purpose.prompt_tokens
        self.concurrency = max(lens.concurrency, request.concurrency)
        self._rates: dict[Placement, float | None] = {}
        self._waits: dict[Placement, float | None] = {}

    @cached_property
    def kinds(self) -> tuple[Device, ...]:
        """What decides how fast each GPU is."""
        return tuple([speed_facts(gpu) for gpu in self.devices.gpus])

    @property
    def alike(self) -> bool:
        """Whether the GPUs are equally fast."""
        return all(kind == self.kinds[0] for kind in self.kinds[1:])

    @cached_property
    def build(self) -> Build:
        """The rules of the llama.cpp build to plan for."""
        return build_of(build_number(self.request))

    @cached_property
    def speed(self) -> throughput.SpeedModel:
        """Speed of any placement."""
        return throughput.SpeedModel(
            self.weights,
            self.devices,
            self.settings,
            engine=self.request.engine or "llama.cpp",
            work=self.prepared.work(self.quant, self.settings),
        )

    @cached_property
    def memory(self) -> MemoryModel:
        """The exact memory model, built when exact bytes are first asked for."""
        prepared, settings = self.prepared, self.settings
        return MemoryModel(
            self.weights,
            self.devices,
            settings,
            self.build,
            sums=prepared.sums(settings),
            compute=prepared.compute(self.quant, settings, self.devices, self.build),
        )

    @cached_property
    def needs(self) -> QuickMemory:
        """The quick look at memory, made when bytes are first asked for."""
        return QuickMemory(self.prepared, self.quant, self.devices, self.settings)

    def look(self, *, lenient: bool) -> None:
        """Say whether the quick look passes over nothing that may fit."""
        self.lenient = self.needs.lenient = lenient

    def layouts(self, context_tokens: int) -> Layouts:
        """Return the layouts at a context, made anew where an exact look has changed what is known of memory."""
        key = context_tokens, self.lenient
        known = self._layouts.get(key)
        if known is None:
            known = self._layouts[key] = Layouts(
                self.needs,
                self.budgets,
                context_tokens,
                experts_end=self.experts_end,
                host_short=self.host_room.short,
                alike=self.alike,
            )
        return known

    @cached_property
    def budgets(self) -> tuple[int, ...]:
        """What each GPU may be given."""
        gpus = self.devices.gpus
        if not gpus:
            return ()
        runtimes = self.needs.runtime
        return tuple([gpu_budget(gpu, self.request, runtime) for gpu, runtime in zip(gpus, runtimes, strict=True)])

    def overflow(self, context_tokens: int, ubatch: int) -> tuple[int, int, int]:
        """Return what the GPUs cannot hold with the smallest compute buffer on one of them, all experts, all blocks."""
        needs = self.needs
        stack = needs.stack(context_tokens)
        held = stack.all_bytes if self.devices.gpus else 0
        buffer, copies = needs.least_compute(context_tokens, ubatch)
        room = sum([budget for budget in self.budgets if budget > 0])
        over = held + buffer + min(needs.runtime, default=0) - room
        blocks = held - stack.head_bytes
        return over + (copies if over > 0 else 0), stack.experts[-1], blocks

    def overlap(self, ubatch: int, *, spilled: bool) -> float:
        """Return the least time of a prompt, relative to its micro-batches one after the other on all devices.

        The host takes part where something is `spilled` to it.
        """
        return least_overlap(len(self.devices.gpus) + spilled, ubatch, self.prompt_tokens)

    def host_short(self, used_bytes: Sequence[int]) -> int:
        """Return the bytes the host lacks, 0 or less when it has room."""
        return self.host_room.short(used_bytes)

    def exact_bytes(self, placement: Placement, context_tokens: int) -> tuple[int, ...]:
        """Return what each device holds by the exact memory model, and learn from it for further quick looks."""
        exact = self.memory.per_device_bytes(placement, context_tokens)
        self.needs.correct(placement, context_tokens, exact)
        self._layouts.clear()
        return exact

    def holds(self, found: Found) -> bool:
        """Hold a found plan against the exact memory model; what is off is corrected in further looks."""
        exact = self.exact_bytes(found.placement, found.context_tokens)
        within = all(use <= budget for use, budget in zip(exact, self.budgets, strict=False))
        return within and (found.short_bytes > 0 or self.host_short(exact) <= 0)

    def safe_tokens(self, found: Found, most_tokens: int) -> int:
        """Return the largest context the layout of a found plan holds, by the exact memory model."""
        limits = (*self.budgets, self.host_budget)
        safe = self.needs.safe_tokens(found.placement, limits, most_tokens)
        for _ in range(EXACT_STEPS):
            if not safe:
                break
            exact = self.exact_bytes(found.placement, safe)
            solved = self.needs.safe_tokens(found.placement, limits, most_tokens)
            if solved >= safe and all(use <= limit for use, limit in zip(exact, limits, strict=True)):
                break
            safe = solved
        return safe

    def rate(self, placement: Placement) -> float | None:
        """Return the decode rate the lens looks at: of one stream, or of all together for serving modes."""
        if placement not in self._rates:
            if self.concurrency > 1:
                rate = self.speed.aggregate(placement, self.concurrency, depth_tokens=self.depth_tokens)
            else:
                rate = self.speed.decode_rate(placement, depth_tokens=self.depth_tokens)
            self._rates[placement] = rate
        return self._rates[placement]

    def ttft(self, placement: Placement) -> float | None:
        """Return the warm time to the first token of the workload's prompt."""
        if placement not in self._waits:
            self._waits[placement] = self.speed.ttft_s(
                placement, prompt_tokens=self.prompt_tokens, depth_tokens=self.depth_tokens
            )
        return self._waits[placement]

    def paged_ttft(self, placement: Placement, short_bytes: int) -> float | None:
        """Return the warm time to the first token when `short_bytes` of the weights are read from disk on the way."""
        return self.speed.paged_ttft_s(
            placement, short_bytes, prompt_tokens=self.prompt_tokens, depth_tokens=self.depth_tokens
        )

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


def logical_batch(ubatch: int) -> int:
    """Return llama.cpp's logical batch (`-b`, 2048 by default) that goes with a micro-batch."""
    return max(DEFAULT_BATCH, ubatch)


def least_overlap(parts: int, ubatch: int, prompt_tokens: int) -> float:
    """Return the least time of a prompt over so many devices, relative to no overlap (`SpeedModel` has the formula)."""
    if parts < 2 or ubatch >= prompt_tokens or logical_batch(ubatch) <= ubatch:  # noqa: PLR2004 - one overlaps nothing
        return 1.0
    return 1.0 - shipped().shared.pipeline * (1.0 - 1.0 / parts)


def gpu_budget(gpu: Device, request: Request, runtime_bytes: int) -> int:
    """Return the bytes a plan may put on a GPU, `runtime_bytes` of its own context included.

    Free memory less a margin. By default the margin is what processes grow by after loading, and a little for the
    compositor of a card with a screen; `--margin` counts like llama.cpp's `--fit-target`, the context inside it.
    """
    if request.margin_bytes is not None:
        return gpu.memory_free_bytes - max(0, request.margin_bytes - runtime_bytes)
    return gpu.memory_free_bytes - GROWTH_BYTES - (DISPLAY_BYTES if gpu.display_active else 0)


def without_identity(gpu: Device) -> Device:
    """Return a GPU without its name, place and memory."""
    return structs.replace(
        gpu, name="", memory_total_bytes=0, memory_free_bytes=0, uuid=None, index=None, pci_address=None,
        numa_node=None, display_active=False, sheet=None, peer_bytes_per_s=None, driver_version=None,
    )  # fmt: skip


speed_facts = Latest(without_identity)
"""What of a GPU decides how fast it is; GPUs with equal facts are one kind."""
