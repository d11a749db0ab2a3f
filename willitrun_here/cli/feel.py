"""`feel MODEL`: play an answer at the speed this machine would give it."""

from __future__ import annotations

from typing import Any

import click

from willitrun_here.cli.basic_options import JSON, MACHINE
from willitrun_here.cli.options import question
from willitrun_here.cli.output import note, print_json
from willitrun_here.cli.question import request


@click.command()
@click.argument("model")
@MACHINE
@question
@click.option(
    "--pace",
    type=click.Choice(("expected", "low", "high")),
    default="expected",
    help="The expected speed, or an end of its interval.",
)
@click.option("--warm", is_flag=True, help="Leave out the first prompt, which waits for the model to load.")
@JSON
def feel(model: str, machine: str, pace: str, warm: bool, as_json: bool, **options: Any) -> int:
    """Play a short conversation at the estimated speed: a cold start, then a warm second prompt.

    With --json nothing is played: the waits and the rate are printed.
    """
    asked = request(options)
    import sys  # noqa: PLC0415 - only when something is played
    import time  # noqa: PLC0415

    from willitrun_here.ask import ask, open_model  # noqa: PLC0415 - after the options were found sound
    from willitrun_here.machines import open_machine  # noqa: PLC0415
    from willitrun_here.render.feel import play, turns  # noqa: PLC0415
    from willitrun_here.render.wording import rate_range, summary  # noqa: PLC0415

    wanted = frozenset({"plan", "speed", "context"})
    result = ask(open_machine(machine), open_model(model), asked, sections=wanted, commands=False)  # type: ignore[arg-type]
    decode = result.speed.decode_tokens_per_s if result.speed is not None else None
    if as_json:
        waits = [{"name": turn.name, "wait_s": turn.wait_s, "tokens": len(turn.pieces)} for turn in turns(result)]
        print_json({"schema": "willitrun.feel/1", "decode_tokens_per_s": decode, "turns": waits})
        return 0 if decode is not None else 1
    note(summary(result))
    if decode is None:
        return 1

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    play(result, write, clock=time.monotonic, sleep=time.sleep, pace=pace, warm_only=warm)  # type: ignore[arg-type]
    note(f"The interval is {rate_range(decode)}: --pace low and --pace high play its ends.")
    return 0
