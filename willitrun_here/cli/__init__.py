"""The command line: parsing and exit codes only. Every command lives in a module of its own, imported when used."""

from __future__ import annotations

from collections.abc import Mapping

COMMANDS: Mapping[str, tuple[str, str]] = {
    "probe": ("willitrun_here.cli.probe", "This machine and the evidence: which source answered, what failed, why."),
    "check": ("willitrun_here.cli.check", "The whole answer for one model on a machine."),
    "recommend": ("willitrun_here.cli.recommend", "The best models for a machine, ranked."),
    "launch": ("willitrun_here.cli.launch", "The tuned command for one model; --exec starts it and checks it."),
    "compare": ("willitrun_here.cli.compare", "One model on several machines, side by side."),
    "feel": ("willitrun_here.cli.feel", "Play an answer at the speed this machine would give it."),
    "calibrate": ("willitrun_here.cli.calibrate", "Measure this machine once and keep the corrections."),
    "models": ("willitrun_here.cli.models", "The model catalog and the models on this machine."),
    "gpus": ("willitrun_here.cli.gpus", "The accelerator catalog."),
    "batch": ("willitrun_here.cli.batch", "JSON Lines in, JSON Lines out: one question a line."),
    "site": ("willitrun_here.cli.site", "Write linked pages for many models of a machine."),
    "report": ("willitrun_here.cli.report", "Report this machine into a fleet inventory."),
    "fleet": ("willitrun_here.cli.fleet", "The fleet inventory: serve, list, where, plan, import, export, collect."),
    "doctor": ("willitrun_here.cli.doctor", "What was tried, what is wrong, what to type."),
    "record": ("willitrun_here.cli.record", "A redacted, replayable recording of this machine."),
}

PLAIN = frozenset({"probe", "check", "recommend"})
"""Commands whose parameters are values (`PARAMETERS`), so that they run without click where the line is plain."""
