"""The table of machines as comma-separated values (RFC 4180), safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

import msgspec

from willitrun_here.fleet.query import MachineRow

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""A cell that begins so is run as a formula by spreadsheets; host names come from machines that may be hostile
(https://owasp.org/www-community/attacks/CSV_Injection)."""


def csv_text(rows: Iterable[MachineRow]) -> str:
    """Write machines as CSV with a header line; unknown is an empty cell, labels are one JSON cell."""
    text = io.StringIO()
    writer = csv.writer(text)
    names = [field.name for field in msgspec.structs.fields(MachineRow)]
    writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(getattr(row, name)) for name in names])
    return text.getvalue()


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, dict):
        return msgspec.json.encode(value, order="sorted").decode()
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return "'" + value
    return value
