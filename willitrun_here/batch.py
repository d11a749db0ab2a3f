"""Many questions at once: JSON Lines in, JSON Lines out, in order, with bounded memory, on all cores."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import lru_cache
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import structs

from willitrun_estimator.answer import SECTIONS, Section, answer_on
from willitrun_estimator.calibration import Corrections
from willitrun_estimator.device import Devices
from willitrun_estimator.hardware import devices
from willitrun_estimator.prepared import Prepared
from willitrun_estimator.request import Request
from willitrun_here.ask import completed, corrections_of, open_model, prepared_of, sheet_of
from willitrun_here.errors import AgentError, UsageError, known_errors
from willitrun_here.recent import Recent
from willitrun_probe.machine import Machine

if TYPE_CHECKING:
    from multiprocessing.pool import AsyncResult

CHUNK_LINES = 200
"""Lines a worker gets at once: large enough that handing them over costs little, small enough to stream."""
AHEAD = 2
"""Chunks in work while the next one is read."""
MOST_LINE_BYTES = 1 << 20
MOST_ANSWER_BYTES = 16 << 20
"""Packed answers a worker keeps: some 20,000 with plan and speed."""


class About(msgspec.Struct):
    """What of a line decides who answers it."""

    model: str = ""


_about = msgspec.json.Decoder(About)
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(dict[str, Any])


def answers(lines: Iterable[bytes], *, jobs: int) -> Iterator[bytes]:
    """Yield one JSON line per non-empty input line, in order; a bad line yields an error object and nothing stops."""
    chunks = chunked(lines, CHUNK_LINES * jobs)
    first = next(chunks, [])
    if jobs <= 1 or len(first) <= CHUNK_LINES:  # so few are not worth a second process
        for chunk in chain([first], chunks):
            yield from answer_chunk(chunk)
        return
    yield from answered_in_parallel(chain([first], chunks), jobs)


def answered_in_parallel(chunks: Iterable[list[bytes]], jobs: int) -> Iterator[bytes]:
    """Answer chunks in worker processes; two chunks are read ahead, so memory stays flat.

    Lines about one model go to one worker as far as that shares the work evenly: what a worker has learnt of a model
    the others need not learn too.
    """
    import multiprocessing  # noqa: PLC0415 - only for many lines

    context = multiprocessing.get_context("fork")
    with ExitStack() as stack:
        workers = [stack.enter_context(context.Pool(1)) for _ in range(jobs)]
        waiting: deque[tuple[list[list[int]], list[AsyncResult[list[bytes]]]]] = deque()
        for chunk in chunks:
            if len(waiting) == AHEAD:
                yield from put_together(*waiting.popleft())
            parts = shares(chunk, jobs)
            asked = zip(workers, parts, strict=True)
            waiting.append(
                (parts, [worker.apply_async(answer_chunk, ([chunk[i] for i in part],)) for worker, part in asked])
            )
        while waiting:
            yield from put_together(*waiting.popleft())


def shares(chunk: list[bytes], jobs: int) -> list[list[int]]:
    """Return which lines of a chunk each worker takes: equally many, neighbours by model."""
    order = sorted(range(len(chunk)), key=lambda i: model_of(chunk[i]))
    cuts = [len(chunk) * job // jobs for job in range(jobs + 1)]
    return [order[start:end] for start, end in pairwise(cuts)]


def model_of(line: bytes) -> str:
    """Return the model a line names; nothing where the line cannot be read."""
    try:
        return _about.decode(line).model
    except msgspec.MsgspecError:
        return ""


def put_together(parts: list[list[int]], answered_by: list[AsyncResult[list[bytes]]]) -> list[bytes]:
    """Return the answers of a chunk in the order of its lines."""
    found: dict[int, bytes] = {}
    for part, result in zip(parts, answered_by, strict=True):
        found |= zip(part, result.get(), strict=True)
    return [found[i] for i in range(len(found))]


def chunked(lines: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """Group non-empty lines."""
    kept = (line for line in lines if line.strip())
    while chunk := list(islice(kept, size)):
        yield chunk


def answer_chunk(chunk: list[bytes]) -> list[bytes]:
    """Answer a group of lines.

    The cycle collector waits until the group is done: answers leave no cycles behind, and looking for some among all
    that is kept took a quarter of the time.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        return [answer_line(line) for line in chunk]
    finally:
        if collected:
            gc.enable()


def answer_line(line: bytes) -> bytes:
    """Answer one line; errors become an object with the request's id, a message and an exit code."""
    identity: Any = None
    try:
        if len(line) > MOST_LINE_BYTES:
            raise UsageError(f"a line of {len(line)} bytes", f"At most {MOST_LINE_BYTES} are read.")
        asked = _decoder.decode(line)
        identity = asked.pop("id", None)
        request = _encoder.encode(asked)
        answer = RECENT.get(request)
        if answer is None:
            answer = _encoder.encode(answered(asked))
            RECENT.keep(request, answer)
        return with_id(answer, identity)
    except (msgspec.MsgspecError, RecursionError) as error:
        return failed(identity, str(error), "", 2)
    except known_errors() as error:
        return failed(identity, str(error), getattr(error, "advice", ""), int(getattr(error, "exit_code", 4)))


RECENT = Recent(MOST_ANSWER_BYTES)
"""A fleet asks the same of many machines of one shape; such questions are answered once a worker."""


def with_id(answer: bytes, identity: Any) -> bytes:
    """Put a request's id into an encoded answer, in which it is the second key and null."""
    return answer.replace(b'"id":null', b'"id":' + _encoder.encode(identity), 1) if identity is not None else answer


def failed(identity: Any, message: str, advice: str, code: int) -> bytes:
    """Return the error line."""
    return _encoder.encode(
        {"schema": "willitrun.check/1", "id": identity, "error": {"message": message, "advice": advice, "code": code}}
    )


def answered(asked: dict[str, Any]) -> Any:
    """Answer one decoded request; with `sections`, only those keys (and schema, id, model, machine, fit)."""
    machine = asked.pop("machine", "here")
    model = asked.pop("model", None)
    if not isinstance(model, str):
        raise UsageError("a request needs a model", 'For example {"model": "llama-3.1-8b"}.')
    sections = asked.pop("sections", None)
    wanted = SECTIONS if sections is None else checked_sections(sections)
    request = to_request(asked)
    key = machine_key(machine)
    plan_on = devices_of(key, request_key(request))
    made_ready = prepared(model)
    result = answer_on(
        plan_on,
        made_ready.spec,
        request,
        sections=wanted,
        corrections=corrections(key),
        prepared=made_ready,
        advice="improvements" in wanted,
    )
    if sections is None or "commands" in sections:
        result = completed(result, machine_of(key), made_ready, request)
    result = structs.replace(result, id=None)
    if sections is None:
        return result
    whole = structs.asdict(result)
    keys = ("schema", "id", "model", "machine", "fit", "score", "grade")
    return {key: whole[key] for key in (*keys, *sections) if key in whole}


def checked_sections(sections: Any) -> frozenset[Section]:
    """Return the sections asked for; raises UsageError for unknown ones."""
    if not isinstance(sections, list) or not all(isinstance(name, str) for name in sections):
        raise UsageError("sections must be a list of names", f"Known: {', '.join(sorted(SECTIONS))}.")
    always = {"model", "machine", "fit", "grade", "commands"}
    unknown = [name for name in sections if name not in SECTIONS and name not in always]
    if unknown:
        raise UsageError(f"unknown section {unknown[0]!r}", f"Known: {', '.join(sorted(SECTIONS))}.")
    return frozenset(name for name in sections if name in SECTIONS)


def to_request(asked: dict[str, Any]) -> Request:
    """Read the options of a line; `auto` means the same as leaving one out. Raises UsageError."""
    from willitrun_here.cli.question import check  # noqa: PLC0415 - the rules are those of the command line

    values = {name: value for name, value in asked.items() if value != "auto" and value is not None}
    if values.get("flash_attention") in ("on", "off"):
        values["flash_attention"] = values["flash_attention"] == "on"
    try:
        request = msgspec.convert(values, Request)
    except msgspec.ValidationError as error:
        raise UsageError(str(error), "See docs/batch.md for the fields.") from None
    check(request)
    return request


def machine_key(machine: Any) -> str:
    """Return a hashable form of the machine: its words, or its object as JSON."""
    if isinstance(machine, str):
        return machine
    if isinstance(machine, dict):
        return msgspec.json.encode(machine, order="sorted").decode()
    raise UsageError("machine must be a string or an object", 'For example "RTX 3090, 64 GiB RAM".')


def request_key(request: Request) -> tuple[str | None, bool]:
    """Return what of a request changes the devices."""
    return request.backend, request.assume_idle


@lru_cache(maxsize=512)
def devices_of(key: str, request: tuple[str | None, bool]) -> Devices:
    """Return the devices of a machine, worked out once."""
    backend, assume_idle = request
    return devices(machine_of(key), Request(backend=backend, assume_idle=assume_idle), sheet_of)


@lru_cache(maxsize=512)
def corrections(key: str) -> Corrections | None:
    """Return what runs of this very machine taught, None for a described one."""
    return corrections_of(machine_of(key))


@lru_cache(maxsize=512)
def machine_of(key: str) -> Machine:
    """Open a machine once."""
    from willitrun_here.machines import from_object, open_machine  # noqa: PLC0415

    if key.startswith("{"):
        return from_object(msgspec.json.decode(key))
    return open_machine(key)


@lru_cache(maxsize=64)
def prepared(model: str) -> Prepared:
    """Open a model once and keep its sums."""
    return prepared_of(open_model(model))


__all__ = ["AgentError", "answer_line", "answers"]
