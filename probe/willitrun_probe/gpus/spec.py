"""Answers of a vendor library as text: one C function a line. Recorders write it, replays and the test fakes read it.

    sys  nvmlInitWithFlags = !18
    gpu0 nvmlDeviceGetName = "NVIDIA H200"
    gpu0 nvmlDeviceGetMemoryInfo_v2 = 150754820096 654311424 150099000000 1508672
    gpu0/mig1 nvmlDeviceGetUUID = "MIG-…"
    *    nvmlDeviceGetEccMode = !3

The key is the C function's name, arguments behind colons. Values fill its out-parameters or struct fields in their
order of declaration. `!N` is a return code; a line that is missing answers "not supported". `~MS` waits first, HANG
waits for ever, SEGV crashes, EXIT ends the process. The last of several lines for the same call wins; `*` answers for
every target that has no line of its own.
"""

from __future__ import annotations

import re
from typing import NamedTuple

ABSENT = "absent"
"""Given instead of a library's path: there is none, as on a recorded machine without one."""

Value = str | int
Answer = list[Value] | int
"""Values, or a return code other than success."""

# Compiled when a spec is read: a probe of real hardware reads none.
_LINE = r"(\S+)\s+(\S+)\s+=(.*)"
_WORD = r'"((?:[^"\\]|\\.)*)"|(\S+)'
_NUMBER = r"(?a)-?(?:0x[0-9a-fA-F]{1,16}|[0-9]{1,20})"
_RANGE = r"(?a)gpu([0-9]{1,3})-([0-9]{1,3})(.*)"


class Libraries(NamedTuple):
    """Vendor libraries to load instead of the system's.

    A `.spec` file is replayed, `ABSENT` is a library that is not installed, None the system's own.
    """

    nvml: str | None = None
    amdsmi: str | None = None


class Line(NamedTuple):
    """One answer with what happens before it."""

    wait_s: float
    action: str
    """`HANG`, `SEGV`, `EXIT` or empty."""
    answer: Answer


Spec = dict[tuple[str, str], Line]


def parse_spec(text: str) -> Spec:
    """Read a spec; lines that are none are left out. `gpu0-7` stands for eight targets."""
    found: Spec = {}
    for raw in text.splitlines():
        match = re.fullmatch(_LINE, raw.strip())
        if match is None or raw.lstrip().startswith("#"):
            continue
        line = parse_answer(match.group(3))
        for target in _targets(match.group(1)):
            found[target, match.group(2)] = line
    return found


def parse_answer(text: str) -> Line:
    """Read what stands behind the equals sign."""
    wait_s, action, values = 0.0, "", list[Value]()
    for quoted, word in re.findall(_WORD, text):
        if not word:
            values.append(quoted.replace('\\"', '"').replace("\\\\", "\\"))
        elif word.startswith("~") and word[1:].isdigit():
            wait_s += int(word[1:]) / 1000
        elif word.startswith("!") and word[1:].lstrip("-").isdigit():
            return Line(wait_s, action, int(word[1:]))
        elif word in {"HANG", "SEGV", "EXIT"}:
            return Line(wait_s, word, [])
        else:
            values.append(int(word, 0) if re.fullmatch(_NUMBER, word) and not _octal(word) else word)
    return Line(wait_s, action, values)


def write_line(target: str, key: str, answer: Answer) -> str:
    """Write one answer as `parse_spec` reads it."""
    if isinstance(answer, int):
        return f"{target} {key} = !{answer}"
    return f"{target} {key} = {' '.join(_token(value) for value in answer)}".rstrip()


def _token(value: Value) -> str:
    if isinstance(value, int):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{"".join(char if char.isprintable() else " " for char in escaped)}"'


def _octal(word: str) -> bool:
    digits = word.lstrip("-")
    return len(digits) > 1 and digits.startswith("0") and not digits.startswith("0x")


def _targets(target: str) -> list[str]:
    match = re.fullmatch(_RANGE, target)
    if match is None:
        return [target]
    return [f"gpu{index}{match.group(3)}" for index in range(int(match.group(1)), int(match.group(2)) + 1)]
