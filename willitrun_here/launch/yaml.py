"""Write plain data as YAML: block style, every string quoted as JSON (which YAML reads), so nothing can be mistaken."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""Keys that YAML 1.1 would read as booleans or null (yaml.org/type/bool.html)."""


def to_yaml(value: Any, indent: int = 0) -> str:
    """Return mappings, lists and scalars as YAML text ending in a newline."""
    return "\n".join(lines(value, indent) if value else [scalar(value)]) + "\n"


def lines(value: Any, indent: int) -> list[str]:
    """Return the lines of a mapping or list at an indentation."""
    pad = "  " * indent
    out: list[str] = []
    items = value.items() if isinstance(value, dict) else [(None, item) for item in value]
    for key, item in items:
        head = f"{pad}-" if key is None else f"{pad}{key_text(key)}:"
        if isinstance(item, dict | list) and item:
            nested = lines(item, indent + 1)
            if key is None:
                out.append(f"{head} {nested[0].strip()}")
                out.extend(nested[1:])
            else:
                out.append(head)
                out.extend(nested)
        else:
            out.append(f"{head} {scalar(item)}")
    return out


def commented(notes: Iterable[str | None]) -> str:
    """Return remarks as the comment lines that a file ends with."""
    return "".join(f"# {' '.join(note.split())}\n" for note in notes if note)


def scalar(value: Any) -> str:
    """Return one value on one line."""
    if isinstance(value, dict | list):
        return "{}" if isinstance(value, dict) else "[]"
    return quoted(value) if isinstance(value, str) else json.dumps(value)


def key_text(key: str) -> str:
    """Return a key, quoted unless it is a plain word to every reader."""
    return key if _PLAIN_KEY.fullmatch(key) and key.lower() not in _WORDS else quoted(key)


def quoted(text: str) -> str:
    """Return text in double quotes; what cannot be printed is escaped in YAML's own way."""
    escaped = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped)
