"""Errors of this package: one small tree, each with fields and an advice. Libraries raise; the cli prints."""

from __future__ import annotations


class CatalogError(Exception):
    """The catalog cannot answer: an unknown name, an unreadable file, a broken entry."""

    exit_code = 4

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice


class FileFormatError(CatalogError):
    """A file is not what it claims to be, or ends too early.

    `offset` is where in the file, `field` what was being read there; both are part of the message.
    """

    def __init__(self, path: str, reason: str, *, field: str = "", offset: int | None = None, advice: str = "") -> None:
        where = [part for part in (field, None if offset is None else f"offset {offset}") if part]
        place = f" ({', '.join(where)})" if where else ""
        super().__init__(f"{path}: {reason}{place}", advice)
        self.path = path
        self.reason = reason
        self.field = field
        self.offset = offset


class FileAccessError(CatalogError):
    """A path or address exists only in part, is the wrong kind of thing, or may not be read."""

    def __init__(self, path: str, reason: str, advice: str = "") -> None:
        super().__init__(f"{path}: {reason}", advice)
        self.path = path
        self.reason = reason


class HubError(CatalogError):
    """A model hub refused, was out of reach or sent something broken. `status` is its HTTP status, if any."""

    def __init__(self, source: str, reason: str, *, status: int | None = None, advice: str = "") -> None:
        super().__init__(f"{source}: {reason}", advice)
        self.source = source
        self.reason = reason
        self.status = status


class UnknownNameError(CatalogError):
    """A name that the catalog does not know. `nearest` are the closest ones it does."""

    thing = "name"

    def __init__(self, query: str, nearest: tuple[str, ...] = ()) -> None:
        advice = f"nearest: {', '.join(nearest)}" if nearest else ""
        super().__init__(f"unknown {self.thing} {query!r}", advice)
        self.query = query
        self.nearest = nearest


class UnknownModel(UnknownNameError):  # noqa: N818 - the name others catch
    """A model name that the catalog does not know."""

    thing = "model"


class UnknownGpu(UnknownNameError):  # noqa: N818 - the name others catch
    """An accelerator name that the catalog does not know."""

    thing = "GPU"
