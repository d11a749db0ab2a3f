"""Write plain data as YAML: block style, every string quoted as JSON (which YAML reads), so nothing can be mistaken."""

from __future__ import annotations

import json
import re
from typing import Any

_PLAIN_KEY = re.compile(r"[A-Za-z_][\w./-]*")


def to_yaml(value: Any, indent: int = 0) -> str:
    """Return mappings, lists and scalars as YAML text ending in a newline."""
    return "\n".join(lines(value, indent)) + "\n"


def lines(value: Any, indent: int) -> list[str]:
    """Return the lines of a mapping or list at an indentation."""
    pad = "  " * indent
    out: list[str] = []
    items = value.items() if isinstance(value, dict) else [(None, item) for item in value]
    for key, item in items:
        head = f"{pad}-" if key is None else f"{pad}{key if _PLAIN_KEY.fullmatch(key) else json.dumps(key)}:"
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


def scalar(value: Any) -> str:
    """Return one value on one line."""
    if isinstance(value, dict | list):
        return "{}" if isinstance(value, dict) else "[]"
    return json.dumps(value, ensure_ascii=False)
