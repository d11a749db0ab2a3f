"""Takes names and ids out of what was read on a machine; equal ones stay equal."""

from __future__ import annotations

import re
from collections.abc import Mapping

from willitrun_probe.host.storage import model_folders

_UUID = re.compile(r"\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b")
_LONG_HEX = re.compile(r"\b[0-9a-f]{32,64}\b")
_UNIQUE_ID = re.compile(r"(?m)^(unique_id )([0-9]{3,20})$")
_KFD_PROCESS = re.compile(r"(/kfd/proc/)([0-9]+)(?=/)")
_SERIAL = re.compile(r"(?m)^(Serial\s*:).*$")
_PROCESS_FILE = re.compile(r"/proc/[0-9]+/.*")


class Redaction:
    """Replaces ids by stand-ins that stay the same throughout one recording."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._stand_ins: dict[str, str] = {}
        self._numbers: dict[int, int] = {}
        self._environment = environment
        self._home = environment.get("HOME", "").rstrip("/")

    def __call__(self, text: str) -> str:
        """Return text without ids, and with the home folder renamed."""
        text = _UUID.sub(lambda m: self._stand_in(m.group().lower(), "00000000-0000-4000-8000-{:012x}"), text)
        text = _LONG_HEX.sub(lambda m: self._stand_in(m.group(), "{:064x}"), text)
        text = _UNIQUE_ID.sub(lambda m: f"{m.group(1)}{self._number(int(m.group(2)))}", text)
        text = _KFD_PROCESS.sub(lambda m: m.group(1) + str(1000 + self._number(int(m.group(2)))), text)
        if self._home.count("/") > 1 or self._home == "/root":
            text = re.sub(rf"{re.escape(self._home)}(?![\w.-])", "/home/user", text)
        return text

    def files(self, files: Mapping[str, str]) -> dict[str, str]:
        """Return the files without those of other processes, and the lines of the rest that tell something."""
        return {path: self._file(path, text) for path, text in files.items() if not _PROCESS_FILE.fullmatch(path)}

    def _file(self, path: str, text: str) -> str:
        if path.endswith("/unique_id"):
            return self._unique_id(text)
        if path == "/proc/sys/kernel/hostname":
            return "recorded\n"
        if path == "/proc/cpuinfo":
            return _SERIAL.sub(r"\1 0", text)
        if path == "/proc/self/mountinfo":
            folders = [folder for _, folder in model_folders(self._environment)]
            return "".join(line for line in text.splitlines(keepends=True) if _telling_mount(line, folders))
        if path == "/proc/self/status":
            return "".join(line for line in text.splitlines(keepends=True) if line.startswith("Cpus_allowed_list"))
        return text

    def _unique_id(self, text: str) -> str:
        """Return the stand-in of a hexadecimal unique id, the one that its decimal form gets too."""
        digits = text.strip().lower().removeprefix("0x")
        known = digits and len(digits) <= 16 and all(digit in "0123456789abcdef" for digit in digits)  # noqa: PLR2004
        return f"{self._number(int(digits, 16)):016x}\n" if known else "\n"

    def _number(self, found: int) -> int:
        return self._numbers.setdefault(found, len(self._numbers) + 1) if found else 0

    def _stand_in(self, found: str, form: str) -> str:
        return self._stand_ins.setdefault(found, form.format(len(self._stand_ins) + 1))


def _telling_mount(line: str, folders: list[str]) -> bool:
    fields = line.split(" ")
    if len(fields) < 5:  # noqa: PLR2004 - proc(5), mountinfo
        return False
    point = fields[4].rstrip("/")
    kind = line.partition(" - ")[2]
    return kind.startswith("cgroup") or not point or any(f == point or f.startswith(f"{point}/") for f in folders)
