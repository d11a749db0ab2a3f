"""The template environment: everything is escaped, and style and script are allowed by their hashes alone.

This module brings Jinja2 with it: import the page renderers where a page is written, not where a command is declared.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from msgspec import Struct

from willitrun_here import __version__

TEMPLATES = Path(__file__).parent / "templates"


class Link(Struct, frozen=True, kw_only=True):
    """A link to another page of the same site."""

    href: str
    text: str


@cache
def environment() -> Environment:
    """Return the environment of this package's templates; a name that is not given is an error."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["unbroken"] = unbroken
    return made


def unbroken(text: str) -> str:
    """Return text whose ranges (`52-96`) a browser does not break at the dash."""
    return text.replace("\u2013", "\u2060\u2013\u2060")


@cache
def asset(name: str) -> str:
    """Return a style sheet or script of the templates folder."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def source_hash(text: str) -> str:
    """Return the content-security-policy source of an inline element with exactly this text."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


@cache
def policy() -> str:
    """Return a policy under which a page can load nothing and run only its own script."""
    return (
        f"default-src 'none'; style-src {source_hash(asset('style.css'))}; "
        f"script-src {source_hash(asset('page.js'))}; base-uri 'none'; form-action 'none'"
    )


def json_text(value: object) -> Markup:
    """Return JSON that cannot end the script element it is written into."""
    text = msgspec.json.encode(value).decode()
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)  # noqa: S704 - no sign of markup is left in it


def safe(svg: str) -> Markup:
    """Mark a drawing of this package as markup: its texts were escaped where it was drawn."""
    return Markup(svg)  # noqa: S704 - escaped in plots, card and topology


def render_template(name: str, *, page_title: str, description: str, **values: Any) -> str:
    """Fill a template that extends `base.html`."""
    values.setdefault("links", ())
    values.setdefault("crumb", "")
    return (
        environment()
        .get_template(name)
        .render(
            page_title=page_title,
            description=description,
            policy=policy(),
            style=Markup(asset("style.css")),  # noqa: S704 - our own file
            script=Markup(asset("page.js")),  # noqa: S704 - our own file
            version=__version__,
            **values,
        )
    )
