"""This program beside its peers, in one run on one machine: hardware, one model, five recommendations, the catalog.

    python benchmarks/peers.py [--runs 9] [--with whichllm] [--folder DIR] [--write]

Each program is installed from a package index into a virtual environment of its own (kept in the folder, so that a
second run needs no network; this program is installed again from this tree). Commands alternate, with a fresh home
folder and after a round that is not counted. A bar is held against the fastest of the runs, because other work on the
machine only ever adds; medians, processor time and peak memory stand beside it. `--write` puts the result into
docs/performance.md. Takes about a minute for seven runs, and half a minute more to install.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from processes import (
    ROOT,
    Timing,
    alternate,
    environment_with_home,
    installed_bytes,
    python_venv,
    table,
    this_machine,
    verdict,
    write_section,
)

MIB = 1024**2
OURS = "willitrun-here"
QUESTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "version": ("`--version`", ("--version",)),
    "help": ("`--help`", ("--help",)),
    "hardware": ("the hardware", ("probe", "--json")),
    "model": ("one model", ("check", "llama-3.1-8b", "--json")),
    "five": ("five recommendations", ("recommend", "--limit", "5", "--json")),
    "ten": ("recommendations as they come", ("recommend", "--json")),
    "catalog": ("the whole catalog", ("recommend", "--all", "--json")),
}
"""What is asked, and how this program is asked."""


class Peer(NamedTuple):
    """Another program, and how it is asked the same."""

    name: str
    source: str
    requirement: str
    executable: str
    commands: Mapping[str, tuple[str, ...]]


LLMFIT = Peer(
    "llmfit",
    "https://github.com/AlexsJones/llmfit",
    "llmfit",
    "llmfit",
    {
        "version": ("--version",),
        "help": ("--help",),
        "hardware": ("system", "--json"),
        "model": ("info", "meta-llama/Llama-3.1-8B-Instruct", "--json"),
        "five": ("recommend", "-n", "5", "--json"),
        "ten": ("recommend", "-n", "10", "--json"),
        "catalog": ("recommend", "-n", "100000", "--json"),
    },
)
FURTHER = {
    "whichllm": Peer(
        "whichllm",
        "https://github.com/Andyyyy64/whichllm",
        "whichllm",
        "whichllm",
        {"version": ("--version",), "help": ("--help",), "hardware": ("hardware",)},
    ),
}
"""Peers by flag; what needs the network or asks back is left out."""
MOST_OVER_BARE = 2.5
MOST_PROBE_S = 0.15
MOST_PROBE_RATIO = 2.5
MOST_CHECK_RATIO = 1.0
MOST_RECOMMEND_RATIO = 0.6
MOST_RECOMMEND_BYTES = 80 * MIB
MOST_INSTALLED_BYTES = 40_000_000


REMARK = (
    "`check` plans all quantizations, placements and cache types and answers with every section; a recommendation of "
    "ours is such a plan for each model. llmfit's catalog is larger and its answers shorter."
)


def bars(ours: Mapping[str, Timing], bare: Timing, peer: Mapping[str, Timing], size: int) -> list[list[str]]:
    """Hold what was measured against the bars."""
    rows = []

    def add(what: str, value: float, shown: str, bar: float, bar_shown: str) -> None:
        rows.append([what, shown, bar_shown, verdict(value, bar)])

    for name in ("version", "help"):
        ratio = ours[name].fastest_s / bare.fastest_s
        add(QUESTIONS[name][0], ratio, f"{ratio:.2f} x", MOST_OVER_BARE, "<= 2.5 x `python -c pass`")
    over = ours["hardware"].fastest_s - bare.fastest_s
    add("`probe --json`", over, f"{over * 1000:.0f} ms", MOST_PROBE_S, "<= 150 ms above `python -c pass`")
    for name, command, most, other in (
        ("hardware", "`probe --json`", MOST_PROBE_RATIO, "system --json"),
        ("model", "`check MODEL --json`", MOST_CHECK_RATIO, "info"),
        ("ten", "`recommend --json`", MOST_RECOMMEND_RATIO, "recommend -n 5"),
    ):
        beside = peer["five" if name == "ten" else name]
        ratio = ours[name].fastest_s / beside.fastest_s
        add(command, ratio, f"{ratio:.2f} x", most, f"<= {most} x `llmfit {other}`")
    peak = ours["ten"].peak_bytes
    add("`recommend --json`, peak memory", peak, f"{peak / MIB:.0f} MiB", MOST_RECOMMEND_BYTES, "<= 80 MiB")
    add("installed, with dependencies", size, f"{size / 1e6:.1f} MB", MOST_INSTALLED_BYTES, "<= 40 MB without extras")
    return rows


def figures(name: str, timings: Mapping[str, Timing]) -> list[list[str]]:
    """Return one row for each thing asked of a program."""
    rows = []
    for question, (what, _) in QUESTIONS.items():
        if question in timings:
            one = timings[question]
            times = [f"{1000 * value:.0f}" for value in (one.fastest_s, one.median_s, one.cpu_s)]
            rows.append([what, name, *times, f"{one.peak_bytes / MIB:.0f}"])
    return rows


def version_of(program: Path) -> str:
    """Return the version that a program tells, its last word."""
    told = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True).stdout.split()
    return told[-1]


def main() -> int:
    """Install, measure, print; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--with", dest="further", action="append", choices=sorted(FURTHER), default=[])
    parser.add_argument("--folder", type=Path, default=Path("~/.cache/willitrun-here/peers").expanduser())
    parser.add_argument("--write", action="store_true", help="also write docs/performance.md")
    options = parser.parse_args()
    own = python_venv(options.folder / OURS, ["--force-reinstall", str(ROOT)], refresh=True)
    peers = [LLMFIT, *(FURTHER[name] for name in options.further)]
    bins = {peer.name: python_venv(options.folder / peer.name, [peer.requirement], refresh=False) for peer in peers}
    commands = {"bare": (str(own / "python"), "-c", "pass")}
    for question, (_, arguments) in QUESTIONS.items():
        commands[f"{OURS} {question}"] = (str(own / OURS), *arguments)
        for peer in peers:
            if question in peer.commands:
                commands[f"{peer.name} {question}"] = (
                    str(bins[peer.name] / peer.executable),
                    *peer.commands[question],
                )
    with tempfile.TemporaryDirectory() as home:
        timings = alternate(commands, environment_with_home(Path(home)), options.runs)
    by_name = {
        name: {key.split()[1]: value for key, value in timings.items() if key.split()[0] == name}
        for name in (OURS, *bins)
    }
    sizes = {name: installed_bytes(options.folder / name) for name in (OURS, *bins)}
    held = bars(by_name[OURS], timings["bare"], by_name["llmfit"], sizes[OURS])
    rows = [row for name in by_name for row in figures(name, by_name[name])]
    order = [what for what, _ in QUESTIONS.values()]
    rows.sort(key=lambda row: order.index(row[0]))
    bare = timings["bare"]
    rows.insert(0, ["`python -c pass`", "", *(f"{1000 * value:.0f}" for value in bare_times(bare)), ""])
    programs = [
        [name, version_of(folder / (OURS if name == OURS else name)), f"{sizes[name] / 1e6:.1f}"]
        for name, folder in ((OURS, own), *bins.items())
    ]
    text = "\n\n".join(
        (
            f"## Beside its peers\n\nMeasured {this_machine()}",
            table(("what", "measured", "bar", ""), held),
            f"Milliseconds and MiB, {options.runs} runs of each in turn:",
            table(("what", "program", "fastest", "median", "processor", "peak"), rows),
            table(("program", "version", "MB installed"), programs),
            REMARK,
        )
    )
    print(text)
    if options.write:
        write_section("peers", text)
    return int(any(row[3] == "missed" for row in held))


def bare_times(bare: Timing) -> tuple[float, float, float]:
    """Return the times of the bare interpreter."""
    return bare.fastest_s, bare.median_s, bare.cpu_s


if __name__ == "__main__":
    sys.exit(main())
