"""Errors of this package: one small tree, each with fields and an advice. Libraries raise; the cli prints."""

from __future__ import annotations


class CatalogError(Exception):
    """The catalog cannot answer: an unknown name, an unreadable file, a broken entry."""

    exit_code = 4

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
