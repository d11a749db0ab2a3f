"""The curves of one setup: one user's speed, and speed against concurrency with the largest that keeps the targets."""

from __future__ import annotations

from msgspec import Struct

from willitrun_catalog.model import ModelSpec
from willitrun_estimator.device import Device
from willitrun_estimator.plan import Interval, Serving, Speed
from willitrun_estimator.request import Request
from willitrun_estimator.score import PURPOSES
from willitrun_estimator.vllm import batching, cache
from willitrun_estimator.vllm.batching import StepShape, Terms, step_shape
from willitrun_estimator.vllm.objectives import CONCURRENCY
from willitrun_estimator.vllm.rates import Rates, rates
from willitrun_estimator.vllm.settings import Setup
from willitrun_estimator.vllm.versions import Rules


def lengths(request: Request) -> tuple[int, int]:
    """Give prompt and answer in tokens: as asked, or those of the workload."""
    purpose = PURPOSES[request.workload]
    return request.prompt_tokens or purpose.prompt_tokens, request.output_tokens or purpose.output_tokens


def shape_of(spec: ModelSpec, setup: Setup) -> StepShape:
    """Reduce a setup to what its steps cost."""
    return step_shape(
        spec,
        setup.stages,
        setup.checkpoint,
        tensor_parallel=setup.split.tensor_parallel,
        max_num_batched_tokens=setup.max_num_batched_tokens,
    )


def running_limit(setup: Setup, rules: Rules, tokens: int) -> float:
    """Count the sequences of that many tokens that one engine runs at once: `--max-num-seqs` or what the pool holds."""
    per_request = max(
        cache.blocks_per_request(
            layout,
            rules,
            context_tokens=tokens,
            max_num_batched_tokens=setup.max_num_batched_tokens,
            prefix_caching=setup.prefix_caching,
        )
        for layout in setup.layouts
    )
    return max(1.0, min(float(setup.max_num_seqs), cache.concurrency(setup.blocks, per_request)))


class Load(Struct, frozen=True, kw_only=True):
    """What every user asks of a setup; `at` gives the operating point of a number of users."""

    setup: Setup
    shape: StepShape
    device: Device
    limit: float
    prompt: int
    output: int
    held_bytes: float
    """Cache of one sequence at its mean length, per rank."""

    def at(self, users: float) -> Terms:
        """Describe one operating point."""
        return batching.terms(
            self.shape,
            self.device,
            concurrency=users,
            running_limit=self.limit,
            cache_bytes_per_sequence=self.held_bytes,
            input_tokens=self.prompt,
            output_tokens=self.output,
            data_parallel=self.setup.split.data_parallel,
        )


def load_of(spec: ModelSpec, setup: Setup, device: Device, *, limit: float, prompt: int, output: int) -> Load:
    """Prepare the operating points of one kind of request."""
    held = batching.cache_bytes(
        spec,
        tensor_parallel=setup.split.tensor_parallel,
        kv_type=setup.kv_type,
        context_tokens=prompt + output / 2,
    )
    return Load(
        setup=setup,
        shape=shape_of(spec, setup),
        device=device,
        limit=limit,
        prompt=prompt,
        output=output,
        held_bytes=held,
    )


def known(device: Device) -> bool:
    """Tell whether enough is known of a device to say a speed."""
    return bool(device.bandwidth_bytes_per_s and device.flops_per_s)


def serving_curve(spec: ModelSpec, setup: Setup, device: Device, request: Request, rules: Rules) -> Serving | None:
    """Give the speed at 1, 2, 4 … 512 users; None where the device's rates are unknown."""
    if not known(device):
        return None
    constants = rates(device)
    prompt, output = lengths(request)
    limit = running_limit(setup, rules, prompt + output // 2)
    load = load_of(spec, setup, device, limit=limit, prompt=prompt, output=output)
    points = [load.at(users) for users in CONCURRENCY]
    rate = [batching.output_tokens_per_s(one, constants) for one in points]
    return Serving(
        concurrency=CONCURRENCY,
        output_tokens_per_s=tuple(rate),
        ttft_s=tuple(
            batching.ttft_s(one, constants, concurrency=users) for one, users in zip(points, CONCURRENCY, strict=True)
        ),
        time_per_token_s=tuple(batching.time_per_token_s(one, constants) for one in points),
        low_tokens_per_s=tuple(value * constants.low for value in rate),
        high_tokens_per_s=tuple(value * constants.high for value in rate),
        max_concurrency=_largest(load, request, constants),
    )


def _largest(load: Load, request: Request, constants: Rates) -> int:
    """Find the most users who all run at once and get the asked speed and time to first token; 0 when none."""
    most = max(1, min(CONCURRENCY[-1], int(load.limit * load.setup.split.data_parallel)))

    def kept(users: int) -> bool:
        one = load.at(users)
        each = batching.output_tokens_per_s(one, constants) / users
        wait = batching.ttft_s(one, constants, concurrency=users)
        slow = request.min_decode is not None and each < request.min_decode
        late = request.max_ttft is not None and wait > request.max_ttft
        return not slow and not late

    if request.min_decode is None and request.max_ttft is None:
        return most
    return max((users for users in range(1, most + 1) if kept(users)), default=0)


def pace(spec: ModelSpec, setup: Setup, device: Device, request: Request) -> Speed | None:
    """Give one user's speed; None where the device's rates are unknown."""
    if not known(device):
        return None
    constants = rates(device)
    prompt, _ = lengths(request)
    alone = load_of(spec, setup, device, limit=1, prompt=request.depth_tokens or 0, output=1).at(1)
    full = load_of(spec, setup, device, limit=1, prompt=prompt, output=1).at(1)
    decode = 1 / batching.step_s(alone, constants)
    seconds = batching.request_s(full, constants)
    first = seconds + batching.step_s(full, constants)
    return Speed(
        decode_tokens_per_s=Interval(expected=decode, low=decode * constants.low, high=decode * constants.high),
        prefill_tokens_per_s=Interval(
            expected=prompt / seconds, low=prompt / seconds * constants.low, high=prompt / seconds * constants.high
        ),
        ttft_s=Interval(expected=first, low=first / constants.high, high=first / constants.low),
    )
