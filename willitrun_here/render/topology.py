"""A machine's devices and the links between them, drawn as SVG."""

from __future__ import annotations

from html import escape

from willitrun_here.render.wording import printable
from willitrun_probe.machine import Gpu, Link, Machine
from willitrun_probe.units import format_bytes, format_rate

BOX, GAP, SIDE = 176, 20, 16
CROWD, CROWD_BOX, CROWD_GAP = 5, 136, 10
"""From so many GPUs on they are drawn closer together."""
WIDEST = 980
"""Pixels of the page; a wider drawing is scaled down, but to no less than `LEAST_SCALE`."""
LEAST_SCALE = 0.7
ARCS, GPU_HEIGHT, WIRE, HOST_HEIGHT = 56, 58, 64, 50
MOST_LABELS = 6
"""Arcs between GPUs above this number go without words."""
KIND_WORDS = {"nvlink": "NVLink", "xgmi": "xGMI", "pcie": "PCIe", "unknown": "link"}


def draw(machine: Machine) -> str | None:
    """Return the drawing, None for a machine without GPUs."""
    gpus = [gpu for gpu in machine.gpus if gpu.parent_uuid is None or gpu.kind == "gpu"] or list(machine.gpus)
    if not gpus:
        return None
    box, gap = (BOX, GAP) if len(gpus) < CROWD else (CROWD_BOX, CROWD_GAP)
    width = 2 * SIDE + len(gpus) * box + (len(gpus) - 1) * gap
    pairs = _pairs(gpus)
    top = ARCS if pairs else 8
    height = top + GPU_HEIGHT + WIRE + HOST_HEIGHT + 8
    middles = [SIDE + index * (box + gap) + box / 2 for index in range(len(gpus))]
    host_y = top + GPU_HEIGHT + WIRE
    scale = max(LEAST_SCALE, min(1.0, WIDEST / width))
    size = f'width="{width * scale:.0f}" height="{height * scale:.0f}" viewBox="0 0 {width} {height}"'
    out = [f'<svg class="topology" {size} role="img" aria-label="{_text(_description(machine, gpus, pairs))}">']
    out += _mesh(middles, top, pairs) if _is_mesh(len(gpus), pairs) else _arcs(middles, top, pairs)
    for gpu, x in zip(gpus, middles, strict=True):
        out.append(f'<path class="wire pcie" d="M{x} {top + GPU_HEIGHT}V{host_y}"/>')
        for row, words in enumerate(part for part in _pcie_words(gpu).split(", ") if part):
            out.append(_words(x + 8, top + GPU_HEIGHT + 28 + 17 * row, words, anchor="start"))
        out.append(
            f'<rect class="box" x="{x - box / 2}" y="{top}" width="{box}" height="{GPU_HEIGHT}" rx="8"/>'
            + _words(x, top + 24, _short(gpu.name.removeprefix("NVIDIA ").removeprefix("AMD "), box // 8), strong=True)
            + _words(x, top + 43, format_bytes(gpu.memory_total_bytes))
        )
    out.append(
        f'<rect class="box" x="{SIDE}" y="{host_y}" width="{width - 2 * SIDE}" height="{HOST_HEIGHT}" rx="8"/>'
        + _words(width / 2, host_y + 21, _short(machine.cpu.name or "Host", 24 * len(gpus)), strong=True)
        + _words(width / 2, host_y + 39, f"{format_bytes(machine.memory.total_bytes)} memory")
    )
    out.append("</svg>")
    return "".join(out)


def _is_mesh(count: int, pairs: list[tuple[int, int, Link]]) -> bool:
    """Return whether every GPU is linked to every other alike, through a switch or wire by wire."""
    alike = len({(link.kind, link.bytes_per_s) for _, _, link in pairs}) == 1
    return alike and len(pairs) > MOST_LABELS and len(pairs) == count * (count - 1) // 2


def _mesh(middles: list[float], top: int, pairs: list[tuple[int, int, Link]]) -> list[str]:
    """Draw one bar above the GPUs with a wire to each."""
    link, y = pairs[0][2], top - 24
    out = [f'<path class="wire {link.kind}" d="M{middles[0]} {y}H{middles[-1]}"/>']
    out += [f'<path class="wire {link.kind}" d="M{x} {y}V{top}"/>' for x in middles]
    return [*out, _words((middles[0] + middles[-1]) / 2, y - 8, f"{_link_words(link)} between any two")]


def _arcs(middles: list[float], top: int, pairs: list[tuple[int, int, Link]]) -> list[str]:
    """Draw an arc per pair, the higher the farther apart; words only while they have room."""
    out = []
    for first, second, link in pairs:
        x0, x1 = middles[first], middles[second]
        lift = 14 + (top - 18) * min(1.0, (second - first) / max(1, len(middles) - 1))
        out.append(f'<path class="wire {link.kind}" d="M{x0} {top} C{x0} {top - lift} {x1} {top - lift} {x1} {top}"/>')
        if len(pairs) <= MOST_LABELS:
            out.append(_words((x0 + x1) / 2, top - lift * 0.75 - 5, _link_words(link)))
    return out


def _pairs(gpus: list[Gpu]) -> list[tuple[int, int, Link]]:
    """Return each direct GPU link once, front to back."""
    where = {key: index for index, gpu in enumerate(gpus) for key in (gpu.uuid, gpu.pci_address) if key}
    found: dict[tuple[int, int], Link] = {}
    for index, gpu in enumerate(gpus):
        for link in gpu.links:
            other = where.get(link.peer)
            if other is not None and other != index and link.kind in {"nvlink", "xgmi"}:
                found.setdefault((min(index, other), max(index, other)), link)
    return [(first, second, link) for (first, second), link in sorted(found.items(), key=lambda item: item[0])]


def _link_words(link: Link) -> str:
    rate = f" {format_rate(link.bytes_per_s)}" if link.bytes_per_s else ""
    return KIND_WORDS[link.kind] + rate


def _pcie_words(gpu: Gpu) -> str:
    pcie = gpu.pcie
    if pcie is None:
        return ""
    generation, lanes = pcie.max_generation or pcie.generation, pcie.width or pcie.max_width
    if generation is None or lanes is None:
        return ""
    rate = f", {format_rate(pcie.bytes_per_s)}" if pcie.bytes_per_s else ""
    return f"PCIe {generation} \u00d7{lanes}{rate}"


def _description(machine: Machine, gpus: list[Gpu], pairs: list[tuple[int, int, Link]]) -> str:
    parts = [f"{gpu.name} on {_pcie_words(gpu) or 'the host'}" for gpu in gpus]
    parts += [f"GPU {first} to GPU {second}: {_link_words(link)}" for first, second, link in pairs]
    return f"Topology of {machine.name}. " + "; ".join(parts)


def _words(x: float, y: float, text: str, *, anchor: str = "middle", strong: bool = False) -> str:
    kind = ' class="strong"' if strong else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_text(text)}</text>'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "\u2026"


def _text(text: str) -> str:
    return escape(printable(text))
