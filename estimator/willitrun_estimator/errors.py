"""Errors of this package: one small tree, each with fields and an advice. Libraries raise; the cli prints."""

from __future__ import annotations


class EstimatorError(Exception):
    """A question that has no answer: contradicting or impossible options."""

    exit_code = 2

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
