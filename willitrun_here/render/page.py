"""The fit page: one self-contained HTML file, readable without its script, which only switches what is embedded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from willitrun_estimator.plan import Answer, Command, QuantOption
from willitrun_here.render import card, plots, tables
from willitrun_here.render.breakdown import Bar, bars, device_bars
from willitrun_here.render.environment import Link, json_text, render_template, safe
from willitrun_here.render.facts import facts
from willitrun_here.render.faq import questions
from willitrun_here.render.feel import PACES, Turn, turns
from willitrun_here.render.wording import (
    ENGINE_WORDS,
    GRADE_TONES,
    GRADE_WORDS,
    LEVEL_WORDS,
    MODE_WORDS,
    STATUS_WORDS,
    TONES,
    count,
    current_mode,
    gain,
    hardware,
    number,
    percent,
    rate_range,
    remark,
    runs,
    seconds_range,
    summary,
    title,
    tokens,
    tokens_per_s,
    verdict,
)
from willitrun_probe.units import format_bytes, format_seconds

PACE_WORDS = {"expected": "Expected", "low": "Low end", "high": "High end"}


def render(answer: Answer, *, links: Sequence[Link] = ()) -> str:
    """Return the page of one answer; `links` go to other pages of the same site."""
    return render_template(
        "answer.html",
        page_title=title(answer),
        description=summary(answer),
        crumb=answer.machine.name,
        links=links,
        **page_values(answer),
    )


def page_values(answer: Answer) -> dict[str, Any]:
    """Return what the template shows, all of it words or numbers made of the answer."""
    options, modes = _options(answer), _modes(answer)
    played = turns(answer)
    picture = card.render_svg(answer)
    return {
        "answer": answer,
        "runs": runs(answer),
        "verdict": verdict(answer),
        "status": STATUS_WORDS[answer.fit.status],
        "tone": TONES[answer.fit.status],
        "grade_tone": GRADE_TONES[answer.grade],
        "grade_word": GRADE_WORDS[answer.grade],
        "summary": summary(answer),
        "remark": remark(answer),
        "hardware": hardware(answer),
        "params": count(answer.model.params),
        "context": tokens(answer.plan.context_tokens) if answer.plan else "",
        "tags": _tags(answer),
        "modes": modes,
        "mode_table": tables.mode_table(answer),
        "tiles": _tiles(answer),
        "plan_line": _plan_line(answer),
        "options": options,
        "drawn_bars": _bars(bars(answer)),
        "plots": _plots(answer),
        "curve_table": tables.curve_table(answer),
        "turns": [_turn(turn) for turn in played],
        "paces": [(pace, f"{PACE_WORDS[pace]}: {number(_rate(answer, pace))} tok/s") for pace in PACES]
        if played
        else (),
        "feel_line": _feel_line(answer),
        "limits": [
            {"name": limit.code.replace("-", " ").capitalize(), "message": limit.message} for limit in answer.limits
        ],
        "model_line": _model_line(answer),
        "improvements": [(gain(change.gain), change.message) for change in answer.improvements],
        "runner_up": _runner_up(answer),
        "workload_table": tables.workload_table(answer) if answer.workloads else None,
        "serving_table": tables.serving_table(answer),
        "serving_plot": _serving_plot(answer),
        "quant_table": tables.quant_table(answer) if answer.quants else None,
        "bases": [(option.quant, option.quality.basis) for option in answer.quants],
        "commands": _commands(answer),
        "questions": questions(answer),
        "formula": _formula(answer),
        "measured": _measured(answer),
        "machine_line": _machine_line(answer),
        "card": safe(picture),
        "card_text": picture,
        "share": f"{title(answer)} {verdict(answer)}. {summary(answer)}",
        "data": json_text(
            {
                "options": options,
                "modes": modes,
                "decode": {pace: _rate(answer, pace) for pace in PACES} if played else {},
                "turns": [_turn(turn) for turn in played],
            }
        ),
    }


def _model_line(answer: Answer) -> str:
    model = answer.model
    parts = [f"{count(model.params)} parameters"]
    if model.active_params != model.params:
        parts.append(f"{count(model.active_params)} active per token")
    parts.append(f"context up to {tokens(model.max_context_tokens)}")
    parts += model.capabilities
    parts += [f"licence {model.license}"] if model.license else []
    parts += [f"released {model.release_date}"] if model.release_date else []
    return " \u00b7 ".join(parts)


def _rate(answer: Answer, pace: str) -> float:
    decode = answer.speed.decode_tokens_per_s if answer.speed else None
    return 0.0 if decode is None else float(getattr(decode, pace))


def _tags(answer: Answer) -> list[tuple[str, Any]]:
    if answer.tags is None:
        return []
    return [(name, getattr(answer.tags, name)) for name in ("runtime", "capacity", "bandwidth", "stack", "bottleneck")]


def _modes(answer: Answer) -> list[dict[str, Any]]:
    current = current_mode(answer)
    rows = []
    for row in answer.modes:
        decode = tokens_per_s(row.decode_tokens_per_s.expected if row.decode_tokens_per_s else None)
        plan = (
            f"{row.quant}, {STATUS_WORDS[row.status].lower()}, context {tokens(row.context_tokens)}, "
            f"{decode}{' each' if row.concurrency > 1 else ''}, first token after {format_seconds(row.ttft_s)}"
        )
        if row.output_tokens_per_s is not None:
            plan += f"; {tokens_per_s(row.output_tokens_per_s)} together at {row.concurrency} requests"
        rows.append(
            {
                "key": row.mode,
                "word": MODE_WORDS[row.mode][0],
                "meaning": MODE_WORDS[row.mode][1],
                "grade": f"{row.grade} {row.score}",
                "plan": plan + ".",
                "quant": row.quant,
                "current": row.mode == current,
            }
        )
    if rows and not any(row["current"] for row in rows):
        rows[0]["current"] = True
    return rows


def _tiles(answer: Answer) -> list[tuple[str, str, str, str]]:
    if answer.plan is None:
        return []
    keys = {
        "Decode": "decode",
        "Prefill": "prefill",
        "First token": "ttft",
        "From cold": "cold",
        "Safe context": "context",
        "Memory": "memory",
        "Offload": "offload",
    }
    rows = [("status", "Fit", STATUS_WORDS[answer.fit.status], _headroom(answer.fit.headroom_bytes))]
    rows += [(keys[name], name, value, remark) for name, value, remark in facts(answer) if name in keys]
    return rows


def _headroom(spare_bytes: int | None) -> str:
    if spare_bytes is None:
        return ""
    return f"{format_bytes(spare_bytes)} left" if spare_bytes >= 0 else f"{format_bytes(-spare_bytes)} too much"


def _plan_line(answer: Answer) -> str:
    return next((f"{value}: {remark}." for name, value, remark in facts(answer) if "plan" in name.lower()), "")


def _options(answer: Answer) -> list[dict[str, Any]]:
    plan = answer.plan
    if plan is None:
        return []
    return [
        _option(answer, option, planned=(option.quant, option.engine) == (plan.quant, plan.engine))
        for option in answer.quants
    ]


def _option(answer: Answer, option: QuantOption, *, planned: bool) -> dict[str, Any]:
    """Return one choice of the picker. The planned one shows the plan itself, the others their own best plan."""
    cells = _tiles(answer) if planned else _option_tiles(option)
    drawn = bars(answer) if planned else device_bars(option.devices, answer.machine.gpus)
    line = _plan_line(answer)
    if not planned:
        line = (
            f"{option.quant}: {option.bits_per_weight:.2f} bits per weight, file {format_bytes(option.file_bytes)}, "
            f"{LEVEL_WORDS[option.quality.level].lower()} quality, {ENGINE_WORDS.get(option.engine, option.engine)}, "
            f"context {tokens(option.context_tokens)}. "
            f"To get its command: willitrun-here launch {answer.model.name} --quant {option.quant}"
        )
    return {
        "quant": option.quant,
        "memory": format_bytes(option.memory_bytes),
        "grade": f"{option.grade} {option.score}",
        "planned": planned,
        "line": line,
        "tiles": [(key, value, sub) for key, _, value, sub in cells],
        "bars": _bars(drawn),
    }


def _option_tiles(option: QuantOption) -> list[tuple[str, str, str, str]]:
    context = option.safe_context_tokens
    offload = option.offloaded_fraction
    return [
        ("status", "", STATUS_WORDS[option.status], _headroom(option.headroom_bytes)),
        ("decode", "", tokens_per_s(option.decode_tokens_per_s), rate_range(option.decode) if option.decode else ""),
        ("prefill", "", "-", "of the planned quantization only"),
        ("ttft", "", format_seconds(option.ttft_s), ""),
        ("cold", "", "-", "of the planned quantization only"),
        ("context", "", tokens(context), f"planned with {tokens(option.context_tokens)}"),
        ("memory", "", format_bytes(option.memory_bytes), "on all devices together"),
        ("offload", "", "-" if offload is None else percent(offload), "of the weights in host memory"),
    ]


def _bars(drawn: Sequence[Bar]) -> list[dict[str, Any]]:
    longest = max((bar.extent_bytes for bar in drawn if bar.kind == "gpu"), default=0)
    rows = []
    for bar in drawn:
        scale = longest if bar.kind == "gpu" else bar.extent_bytes
        over = bar.capacity_bytes < bar.extent_bytes
        spare = bar.free_bytes - bar.needed_bytes
        rows.append(
            {
                "name": bar.name,
                "caption": (
                    f"{format_bytes(bar.needed_bytes)} of {format_bytes(bar.free_bytes)} free, {_headroom(spare)}"
                ),
                "edge": round(bar.capacity_bytes / scale * 100, 3) if over else 0,
                "parts": [
                    {"key": key, "label": label, "size": size, "x": x, "width": width}
                    for key, label, size, x, width in plots.bar_rects(bar, scale)
                ],
            }
        )
    return rows


def _plots(answer: Answer) -> list[tuple[str, Any]]:
    pairs = (
        ("Memory needed", plots.memory_plot(answer)),
        ("Decode speed, tokens per second", plots.speed_plot(answer)),
    )
    return [(caption, safe(plot)) for caption, plot in pairs if plot is not None]


def _serving_plot(answer: Answer) -> Any:
    plot = plots.serving_plot(answer.serving) if answer.serving else None
    return None if plot is None else safe(plot)


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "button": f"Play: {turn.name}",
        "prompt": turn.prompt,
        "pieces": turn.pieces,
        "text": "".join(turn.pieces),
        "wait": {
            "expected": turn.wait_s.expected,
            "low": turn.wait_s.high,
            "high": turn.wait_s.low,
        },
    }


def _feel_line(answer: Answer) -> str:
    speed = answer.speed
    if speed is None or speed.decode_tokens_per_s is None or speed.ttft_s is None:
        return ""
    cold = f" {format_seconds(speed.ttft_cold_s.expected)} cold," if speed.ttft_cold_s else ""
    return (
        f"The first token comes after{cold} {format_seconds(speed.ttft_s.expected)} warm "
        f"({seconds_range(speed.ttft_s)}), then {number(speed.decode_tokens_per_s.expected)} tokens every second."
    )


def _runner_up(answer: Answer) -> str:
    other = answer.runner_up
    if other is None:
        return ""
    what = f"{other.quant}, context {tokens(other.context_tokens)}, KV cache {other.kv_type}"
    return f"{what}, {tokens_per_s(other.decode_tokens_per_s)}, score {number(other.score)}. It lost: {other.reason}."


def _commands(answer: Answer) -> list[tuple[str, Command]]:
    if answer.plan is None:
        return []
    return [(ENGINE_WORDS.get(name, name), command) for name, command in answer.commands.items()]


def _formula(answer: Answer) -> str:
    factors = (f"{part.name} {part.value:.2f}^{part.weight:.2f}" for part in answer.score_parts)
    return f"{answer.score} = 100 \u00d7 " + " \u00d7 ".join(factors)


def _measured(answer: Answer) -> list[dict[str, str | None]]:
    rows = answer.speed.measured if answer.speed else ()
    return [
        {"rate": tokens_per_s(row.tokens_per_s), "test": row.test, "source": row.source, "date": row.date}
        for row in rows
    ]


def _machine_line(answer: Answer) -> str:
    machine = answer.machine
    gpus = "; ".join(
        f"{gpu.name}, {format_bytes(gpu.memory_free_bytes)} free of {format_bytes(gpu.memory_total_bytes)}"
        for gpu in machine.gpus
    )
    cpu = f"{machine.cpu}, " if machine.cpu else ""
    ram = f"{cpu}{format_bytes(machine.ram_available_bytes)} of memory available."
    return f"{machine.name}: " + (f"{gpus}; {ram}" if gpus else ram)
