"""Errors of the agent, and the one place that knows every package's tree.

    AgentError
     ├── UsageError        the options contradict each other or make no sense (exit 2)
     ├── UnreadableError       a machine description, a recording, an input file (exit 4)
     ├── DoesNotRunError        nothing fits; the message says what would (exit 1)
     └── LaunchError      the engine was started and stopped (exit 1)
    willitrun_probe.errors.ProbeError
    willitrun_catalog.errors.CatalogError
    willitrun_estimator.errors.EstimatorError

Every one carries a `message`, an `advice` and an `exit_code`; libraries raise, the cli alone prints and exits.
"""

from __future__ import annotations


class AgentError(Exception):
    """Something the user should read; never a traceback."""

    exit_code = 4

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice


class UsageError(AgentError):
    """Options that contradict each other or make no sense."""

    exit_code = 2


class UnreadableError(AgentError):
    """A file, recording or description that cannot be read."""

    exit_code = 4


class DoesNotRunError(AgentError):
    """Nothing fits here."""

    exit_code = 1


class LaunchError(AgentError):
    """The engine did not start, or stopped while loading."""

    exit_code = 1


def known_errors() -> tuple[type[Exception], ...]:
    """Return the roots of all error trees."""
    from willitrun_catalog.errors import CatalogError  # noqa: PLC0415 - only needed once something failed
    from willitrun_estimator.errors import EstimatorError  # noqa: PLC0415
    from willitrun_probe.errors import ProbeError  # noqa: PLC0415

    return (AgentError, CatalogError, EstimatorError, ProbeError)
