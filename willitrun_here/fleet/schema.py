"""The JSON Schema of the report document: `python -m willitrun_here.fleet.schema > docs/schemas/report.json`."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from willitrun_here.fleet.document import SCHEMA, Report


def report_schema() -> dict[str, Any]:
    """Return the schema (2020-12) of what this version writes. Readers ignore members they do not know."""
    schema = msgspec.json.schema(Report)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA, **schema}


def text() -> str:
    """Write the schema as it is kept in the documentation."""
    return msgspec.json.format(msgspec.json.encode(report_schema(), order="sorted"), indent=2).decode() + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
