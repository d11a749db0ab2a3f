"""`check MODEL`: the whole answer for one model."""

from __future__ import annotations

from typing import Any

from willitrun_here.cli.arguments import JSON, MACHINE, Argument, Choice, Option, Path
from willitrun_here.cli.output import console, print_json, print_text
from willitrun_here.cli.question import QUESTION, request

PAGE_COLUMNS = 100


PARAMETERS = (
    Argument("model"),
    MACHINE,
    *QUESTION,
    Option(
        "--format",
        Choice(("text", "json", "markdown", "html", "card", "card-svg")),
        "text",
        "How to print the answer.",
        "shape",
    ),
    Option("--output", Path(writable=True), help="Write to a file instead of stdout."),
    Option("--explain", None, help="Show how the score came about."),
    JSON,
)


def check(
    model: str, machine: str, shape: str, output: str | None, explain: bool, as_json: bool, **options: Any
) -> int:
    """Say whether MODEL runs, how well, with which quantization and plan, and what to type.

    MODEL is a catalog name (llama-3.1-8b, qwen3-30b-a3b, gpt-oss-20b), a .gguf file, a folder with config.json and
    safetensors, ollama:NAME, or hf:ORG/REPO[:FILE]. Exit code 1 means that it does not run here.
    """
    asked = request(options)
    from willitrun_here.ask import ask, open_model  # noqa: PLC0415 - after the options were found sound
    from willitrun_here.machines import open_machine  # noqa: PLC0415

    spec = open_model(model)
    from willitrun_here.cli.output import waiting  # noqa: PLC0415

    with waiting(f"planning {spec.title}", quiet=as_json or shape == "json"):
        result = ask(open_machine(machine), spec, asked)
    if output is not None:
        from pathlib import Path  # noqa: PLC0415

        text = written(result, "json" if as_json else shape, explain=explain)
        Path(output).write_text(text, encoding="utf-8")
    elif as_json or shape == "json":
        print_json(result)
    elif shape == "text":
        from willitrun_here.render.text import render_answer  # noqa: PLC0415

        render_answer(result, console(), explain=explain)
    else:
        print_text(rendered(result, shape))
    return 1 if result.fit.status == "too-large" else 0


def written(result: Any, shape: str, *, explain: bool) -> str:
    """Return what goes into a file: plain text is as wide as a page, without colours."""
    if shape == "json":
        import msgspec  # noqa: PLC0415

        return msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n"
    if shape != "text":
        return rendered(result, shape)
    import io  # noqa: PLC0415

    from rich.console import Console  # noqa: PLC0415

    from willitrun_here.render.text import render_answer  # noqa: PLC0415

    page = io.StringIO()
    render_answer(result, Console(file=page, width=PAGE_COLUMNS, highlight=False), explain=explain)
    return page.getvalue()


def rendered(result: Any, shape: str) -> str:
    """Return the answer in one of the document formats."""
    if shape == "markdown":
        from willitrun_here.render.markdown import render as render_markdown  # noqa: PLC0415

        return render_markdown(result)
    if shape == "html":
        from willitrun_here.render.page import render as render_page  # noqa: PLC0415

        return render_page(result)
    from willitrun_here.render import card  # noqa: PLC0415

    return card.render_svg(result) if shape == "card-svg" else card.render_html(result)
