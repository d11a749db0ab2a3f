"""Errors of the fleet, below `AgentError`.

FleetError                (exit 4)
 ├── UnreachableError     the server did not answer, or asked to come back later
 ├── RefusedError         the server answered and said no
 ├── DocumentError        a report or a question that cannot be accepted; never retried
 ├── CloneError           two machines write under one agent id
 ├── StoreError           the database cannot be opened or is of another version
 └── FleetUsageError      options that make no sense together (exit 2)
"""

from __future__ import annotations

from willitrun_here.errors import AgentError


class FleetError(AgentError):
    """Something in the fleet did not work."""

    exit_code = 4


class UnreachableError(FleetError):
    """The server did not answer, or asked to come back later; `retry_after_s` is its wish."""

    def __init__(self, message: str, advice: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message, advice)
        self.retry_after_s = retry_after_s


class RefusedError(FleetError):
    """The server answered and said no."""


class DocumentError(FleetError):
    """A report or a question that cannot be accepted, now or later; `accepts` names the schemas that are read."""

    def __init__(self, message: str, advice: str = "", *, accepts: tuple[str, ...] = ()) -> None:
        super().__init__(message, advice)
        self.accepts = accepts


class CloneError(FleetError):
    """Two machines write under one agent id."""


class StoreError(FleetError):
    """The database cannot be opened or has another version."""


class FleetUsageError(FleetError):
    """Options that make no sense together."""

    exit_code = 2
