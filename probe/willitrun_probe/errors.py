"""Errors of this package: one small tree, each with fields and an advice. Libraries raise; the cli prints."""

from __future__ import annotations


class ProbeError(Exception):
    """The probe was asked for something it cannot do, like an unreadable recording; a sick device is a Finding."""

    exit_code = 4

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
