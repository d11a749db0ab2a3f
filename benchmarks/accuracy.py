"""Accuracy of the predictions, one sub-command a subject: `python benchmarks/accuracy.py memory`.

Each subject is a module `accuracy_SUBJECT.py` beside this file with a function `main(arguments) -> int`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path


def subjects() -> tuple[str, ...]:
    """List what can be checked: the modules beside this one."""
    return tuple(sorted(path.stem.removeprefix("accuracy_") for path in Path(__file__).parent.glob("accuracy_*.py")))


def main(arguments: list[str]) -> int:
    """Hand over to the subject that was asked for."""
    if not arguments or arguments[0] not in subjects():
        sys.stderr.write("usage: accuracy.py {" + "|".join(subjects()) + "} [options]\n")
        return 2
    sys.path.insert(0, str(Path(__file__).parent))
    return int(import_module("accuracy_" + arguments[0]).main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
