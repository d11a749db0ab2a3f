"""One line of JSON to one line of JSON: an answer, or an error; what many lines share is worked out once."""

from __future__ import annotations

import gc
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import structs

from willitrun_estimator.answer import SECTIONS, Section, answer_on
from willitrun_estimator.calibration import Corrections
from willitrun_estimator.device import Devices
from willitrun_estimator.hardware import devices
from willitrun_estimator.prepared import Prepared
from willitrun_estimator.request import Request
from willitrun_here.ask import completed, corrections_of, open_model, prepared_of, sheet_of
from willitrun_here.errors import UsageError, known_errors
from willitrun_here.recent import Recent
from willitrun_probe.machine import Machine

MOST_LINE_BYTES = 1 << 20
MOST_ANSWER_BYTES = 8 << 20
"""Packed answers a worker keeps: some 10,000 with plan and speed."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(dict[str, Any])


def answer_lines(lines: list[bytes]) -> list[bytes]:
    """Answer a group of lines.

    The cycle collector waits until the group is done: answers leave no cycles behind, and looking for some among all
    that is kept took a quarter of the time.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        return [answer_line(line) for line in lines]
    finally:
        if collected:
            gc.enable()


def answer_line(line: bytes) -> bytes:
    """Answer one line; errors become an object with the request's id, a message and an exit code."""
    identity: Any = None
    try:
        asked = read(line)
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
    except Exception as error:  # noqa: BLE001 - a defect that one line shows must not cost the others their answers
        return failed(identity, f"a defect: {error!r}", "Please report the line that shows it.", 4)


def read(line: bytes) -> dict[str, Any]:
    """Decode a line. Raises UsageError for one that is too long and MsgspecError for one that is no object."""
    if len(line) > MOST_LINE_BYTES:
        raise UsageError(f"a line of more than {MOST_LINE_BYTES} bytes", "Longer ones are not read.")
    return _decoder.decode(line)


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
