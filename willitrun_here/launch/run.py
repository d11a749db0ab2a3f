"""`launch --exec`: start the planned command, watch it, hold plan against reality, and keep it serving."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from itertools import pairwise

from msgspec import Struct, structs

from willitrun_estimator.plan import Answer, Plan
from willitrun_estimator.request import Request
from willitrun_here.calibrate.busy import MOST_BUSY, others_share, processor
from willitrun_here.errors import LaunchError, UsageError
from willitrun_here.launch import llama_cpp, log, numa, visible
from willitrun_here.launch.log import Compared
from willitrun_here.launch.process import Probe, Server
from willitrun_here.launch.target import MIB, Target
from willitrun_here.places import program
from willitrun_probe.machine import Machine
from willitrun_probe.units import format_bytes, format_rate, format_seconds

READY_S = 1800.0
"""Longest wait for a model to load: a download of tens of GiB may come before it."""
MOST_TRIES = 4
STEP_BYTES = 512 * MIB
"""Taken off the free memory after a failure, doubled with every further one: what was reported free was not."""


class Comparison(Struct, frozen=True, kw_only=True):
    """Planned against actual, after the engine came up."""

    load_s: float
    buffers: tuple[Compared, ...]
    planned_decode_tokens_per_s: float | None
    planned_prefill_tokens_per_s: float | None
    probe: Probe | None
    gpu_free_bytes: tuple[int | None, ...] = ()
    """Free memory left on each planned GPU, None where the driver does not say."""
    tries: int = 1
    others_share: float | None = None
    """Share of the processor that other programs took during the request, None where it is unknown."""


def execute(target: Target, result: Answer, asked: Request, *, check_only: bool, as_json: bool) -> int:
    """Start the plan on this machine; after the comparison keep serving until Ctrl-C, or stop if only checking."""
    if target.plan.engine != "llama.cpp":
        raise UsageError(f"--exec starts llama.cpp and the plan is for {target.plan.engine}", "Add --engine llama.cpp.")
    if target.flags.assumed and "/" in target.program:
        raise LaunchError(
            f"{target.program} does not answer --help as llama-server does",
            "Run it by hand: a missing library or another program of that name shows itself.",
        )
    if target.flags.assumed:
        raise LaunchError(
            "no llama-server was found on PATH",
            "Install llama.cpp, or name the program in WILLITRUN_LLAMA_SERVER.",
        )
    target = reached(target)
    if in_use(target.host, target.port):
        raise LaunchError(f"port {target.port} of {target.host} is in use", "Take another one with --port.")
    with ended_by_signals():
        return serve(target, result, asked, check_only=check_only, as_json=as_json)


def serve(target: Target, result: Answer, asked: Request, *, check_only: bool, as_json: bool) -> int:
    """Start, compare, show, and keep serving. Raises LaunchError when the engine stops by itself."""
    from willitrun_here.launch.keep import keep  # noqa: PLC0415 - only when something was measured

    server, comparison, target = start(target, result, asked, replan=replan_here)
    with server:
        if server.process.poll() is not None:
            raise LaunchError(
                f"the engine stopped at its first request:\n{log.own_words(list(server.lines))}",
                "The command was: " + shell(target),
            )
        keep(target, comparison)
        show(comparison, target.plan, as_json=as_json)
        if check_only:
            return 0
        try:
            sys.stderr.write(f"\nserving on http://{target.host}:{target.port} - Ctrl-C stops it\n")
            code = server.wait()
        except KeyboardInterrupt:
            sys.stderr.write("\nstopping\n")
            return 0
        if code:
            raise LaunchError(f"the engine stopped with exit code {code}:\n{log.own_words(list(server.lines))}")
        return 0


def reached(target: Target) -> Target:
    """Return the target with the address that the user's own arguments give; the engine takes the last one."""
    host, port, words = target.host, target.port, target.extra
    for name, value in pairwise(words):
        if name == "--host":
            host = value
        elif name == "--port" and value.isdigit():
            port = int(value)
    return structs.replace(target, host=host, port=port)


def in_use(host: str, port: int) -> bool:
    """Tell whether something listens there already: its `/health` would be taken for the engine's."""
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP like Ctrl-C while the engine runs: it has its own session and would outlive us."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def replan_here(machine: Machine, asked: Request, spec: object) -> tuple[Plan | None, Answer]:
    """Plan again for a machine with less free memory."""
    from willitrun_catalog.model import ModelSpec  # noqa: PLC0415
    from willitrun_here.ask import ask  # noqa: PLC0415

    assert isinstance(spec, ModelSpec)  # noqa: S101 - keeps the callable's type simple
    result = ask(machine, spec, asked, sections=frozenset({"plan", "speed", "context"}), commands=False)
    return (None if result.fit.status == "too-large" else result.plan), result


def start(
    target: Target,
    result: Answer,
    asked: Request,
    *,
    replan: Callable[[Machine, Request, object], tuple[Plan | None, Answer]],
    say: Callable[[str], object] = sys.stderr.write,
) -> tuple[Server, Comparison, Target]:
    """Start the engine and compare; when memory runs out, take the next plan and say so.

    Raises LaunchError with the engine's own words when it fails for another reason or no plan is left.
    """
    for attempt in range(1, MOST_TRIES + 1):
        server = launch(target, say)
        try:
            ready_s = server.wait_until_ready(READY_S)
            if ready_s is not None:
                return server, measured(server, target, result, ready_s, attempt), target
        except BaseException:
            server.stop()
            raise
        server.stop()
        lines = list(server.lines)
        if not log.ran_out_of_memory(lines):
            raise LaunchError(f"the engine did not start:\n{log.own_words(lines)}", "The command was: " + shell(target))
        if attempt == MOST_TRIES:
            break
        machine = shrunk(target, STEP_BYTES << (attempt - 1))
        # What counts now is what is free, also where the question was about an idle machine.
        plan, result = replan(machine, structs.replace(asked, assume_idle=False), target.spec)
        if plan is None:
            break
        say(
            f"\nout of memory: {log.own_words(lines, most=1)}\n"
            f"next plan: {plan.quant}, {plan.gpu_layers} layers on the GPU, "
            f"{plan.cpu_moe_layers} with experts in RAM, {plan.context_tokens} tokens\n"
        )
        target = structs.replace(target, plan=plan, machine=machine)
    raise LaunchError("the engine ran out of memory with every plan tried", "Close other programs or ask for less.")


def shell(target: Target) -> str:
    """Return the command line of a target."""
    return llama_cpp.render(target).shell


def launch(target: Target, say: Callable[[str], object]) -> Server:
    """Start the engine, verbose enough that it names its buffers, showing dots while tensors load."""
    built = llama_cpp.render(target)
    argv = list(built.argv)
    if argv[0] == "numactl" and program(argv[0]) is None:
        say("numactl is not installed: the server is not placed on memory nodes\n")
        argv = argv[len(numa.prefix(target)) :]
    argv += ["-lv", "4"] if "-lv" in target.flags and "-lv" not in target.extra else []
    say(f"starting {target.spec.title} {target.plan.quant}\n")
    shown = threading.Event()

    def heard(line: str) -> None:
        if "load_tensors" in line and not shown.is_set():
            shown.set()
            say("loading the weights\n")

    try:
        return Server(argv, built.env, host=target.host, port=target.port, heard=heard)
    except OSError as error:
        raise LaunchError(
            f"{argv[0]} cannot be started: {error.strerror}", "The command was: " + shell(target)
        ) from None


def shrunk(target: Target, step_bytes: int) -> Machine:
    """Return the machine with less free memory on the planned GPUs, or in RAM for a plan without any."""
    machine = target.machine
    planned = {use.name for use in target.plan.devices if use.kind == "gpu"}
    if not planned:
        left = max(0, (machine.memory.available_bytes or 0) - step_bytes)
        return structs.replace(machine, memory=structs.replace(machine.memory, available_bytes=left))
    gpus = tuple(
        structs.replace(gpu, memory_free_bytes=max(0, (gpu.memory_free_bytes or 0) - step_bytes))
        if gpu.name in planned
        else gpu
        for gpu in machine.gpus
    )
    return structs.replace(machine, gpus=gpus)


def measured(server: Server, target: Target, result: Answer, ready_s: float, attempt: int) -> Comparison:
    """Hold the plan against the log and a short request."""
    since = processor(server.process.pid)
    try:
        probe = server.probe()
    except (OSError, ValueError, HTTPException):
        probe = None
    taken = others_share(since, processor(server.process.pid))
    speed = result.speed
    decode = speed.decode_tokens_per_s.expected if speed and speed.decode_tokens_per_s else None
    prefill = speed.prefill_tokens_per_s.expected if speed and speed.prefill_tokens_per_s else None
    return Comparison(
        load_s=ready_s,
        buffers=tuple(log.compare(target.plan, log.buffers(list(server.lines)), visible.remote_addresses(target))),
        planned_decode_tokens_per_s=decode,
        planned_prefill_tokens_per_s=prefill,
        probe=probe,
        gpu_free_bytes=free_now(target),
        tries=attempt,
        others_share=taken,
    )


def crowded(comparison: Comparison, plan: Plan) -> bool:
    """Tell whether others took so much of a processor that takes part in the plan that its speeds are too low."""
    takes_part = plan.backend == "cpu" or plan.offloaded_fraction > 0
    return takes_part and comparison.others_share is not None and comparison.others_share > MOST_BUSY


def free_now(target: Target) -> tuple[int | None, ...]:
    """Return what is free on the planned GPUs with the model loaded."""
    if not target.plan.gpu_uuids or not any(target.plan.gpu_uuids):
        return ()
    from willitrun_here.machines import here  # noqa: PLC0415 - only with GPUs

    now = {gpu.uuid: gpu.memory_free_bytes for gpu in here().gpus}
    return tuple(now.get(uuid) for uuid in target.plan.gpu_uuids)


def show(comparison: Comparison, plan: Plan, *, as_json: bool) -> None:
    """Print planned against actual."""
    from willitrun_here.cli.output import print_json, print_text  # noqa: PLC0415

    if as_json:
        print_json({"schema": "willitrun.comparison/1", "plan": plan, "comparison": comparison})
        return
    rows = [f"loaded in {format_seconds(comparison.load_s)}", "", f"{'':34}{'planned':>12}{'actual':>12}{'':>9}"]
    rows += [
        f"{row.device[:22]:<22} {row.kind.replace('_', ' '):<11}"
        f"{format_bytes(row.planned_bytes):>12}{format_bytes(row.actual_bytes):>12}{row.difference:>+8.1%}"
        for row in comparison.buffers
    ]
    if comparison.probe is not None:
        for name, planned, actual in (
            ("decode", comparison.planned_decode_tokens_per_s, comparison.probe.decode_tokens_per_s),
            ("prefill", comparison.planned_prefill_tokens_per_s, comparison.probe.prefill_tokens_per_s),
        ):
            shown = "-" if planned is None else format_rate(planned, "tok/s")
            rows.append(f"{'speed':<22} {name:<11}{shown:>12}{format_rate(actual, 'tok/s'):>12}")
        if crowded(comparison, plan):
            rows.append(f"Other programs took {comparison.others_share:.0%} of the processor: the speeds are not kept.")
    for number, free in enumerate(comparison.gpu_free_bytes):
        rows.append(f"{'GPU ' + str(number):<22} {'free now':<11}{'':>12}{format_bytes(free):>12}")
    print_text("\n".join(rows))
