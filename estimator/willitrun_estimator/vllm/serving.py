"""The curves of one setup: one user's speed, and speed against concurrency with the largest that keeps the targets."""

from __future__ import annotations

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


def point(
    spec: ModelSpec,
    shape: StepShape,
    setup: Setup,
    device: Device,
    *,
    users: float,
    limit: float,
    prompt: int,
    output: int,
) -> Terms:
    """Describe one operating point of a setup."""
    held = batching.cache_bytes(
        spec,
        tensor_parallel=setup.split.tensor_parallel,
        kv_type=setup.kv_type,
        context_tokens=prompt + output / 2,
    )
    return batching.terms(
        shape,
        device,
        concurrency=users,
        running_limit=limit,
        cache_bytes_per_sequence=held,
        input_tokens=prompt,
        output_tokens=output,
        data_parallel=setup.split.data_parallel,
    )


def known(device: Device) -> bool:
    """Tell whether enough is known of a device to say a speed."""
    return bool(device.bandwidth_bytes_per_s and device.flops_per_s)


def serving_curve(spec: ModelSpec, setup: Setup, device: Device, request: Request, rules: Rules) -> Serving | None:
    """Give the speed at 1, 2, 4 … 512 users; None where the device's rates are unknown."""
    if not known(device):
        return None
    constants, shape = rates(device), shape_of(spec, setup)
    prompt, output = lengths(request)
    limit = running_limit(setup, rules, prompt + output // 2)
    points = [
        point(spec, shape, setup, device, users=users, limit=limit, prompt=prompt, output=output)
        for users in CONCURRENCY
    ]
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
        max_concurrency=_largest(spec, shape, setup, device, request, constants, limit),
    )


def _largest(
    spec: ModelSpec,
    shape: StepShape,
    setup: Setup,
    device: Device,
    request: Request,
    constants: Rates,
    limit: float,
) -> int:
    """Find the most users who all run at once and get the asked speed and time to first token; 0 when none."""
    prompt, output = lengths(request)
    most = min(CONCURRENCY[-1], int(limit * setup.split.data_parallel))

    def kept(users: int) -> bool:
        one = point(spec, shape, setup, device, users=users, limit=limit, prompt=prompt, output=output)
        each = batching.output_tokens_per_s(one, constants) / users
        wait = batching.ttft_s(one, constants, concurrency=users)
        slow = request.min_decode is not None and each < request.min_decode
        late = request.max_ttft is not None and wait > request.max_ttft
        return not slow and not late

    if request.min_decode is None and request.max_ttft is None:
        return max(1, most)
    return max((users for users in range(1, max(1, most) + 1) if kept(users)), default=0)


def pace(spec: ModelSpec, setup: Setup, device: Device, request: Request) -> Speed | None:
    """Give one user's speed; None where the device's rates are unknown."""
    if not known(device):
        return None
    constants, shape = rates(device), shape_of(spec, setup)
    prompt, _ = lengths(request)
    depth = request.depth_tokens or 0
    alone = point(spec, shape, setup, device, users=1, limit=1, prompt=depth, output=1)
    full = point(spec, shape, setup, device, users=1, limit=1, prompt=prompt, output=1)
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
