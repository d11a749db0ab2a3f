from __future__ import annotations

import re
from itertools import pairwise

from willitrun_here.render import machine_page, topology
from willitrun_probe.machine import (
    Cpu,
    Disk,
    Engine,
    Finding,
    Gpu,
    Holder,
    Link,
    Machine,
    Memory,
    Pcie,
    Source,
)  # fmt: skip

GIB = 1024**3


def gpu(index: int, count: int, **changes) -> Gpu:
    links = tuple(
        Link(kind="nvlink", peer=f"GPU-{other}", bytes_per_s=56e9) for other in range(count) if other != index
    )
    values = {
        "vendor": "nvidia", "name": "NVIDIA GeForce RTX 3090", "uuid": f"GPU-{index}", "memory_total_bytes": 24 * GIB,
        "memory_free_bytes": 17 * GIB, "memory_reserved_bytes": GIB // 2, "links": links,
        "pcie": Pcie(generation=1, width=16, max_generation=4, max_width=16, bytes_per_s=31.5e9),
        "holders": (Holder(pid=7, name="<b>python</b>", bytes=4 * GIB), Holder(pid=8, bytes=None)),
    } | changes  # fmt: skip
    return Gpu(**values)


def machine(count: int) -> Machine:
    return Machine(
        name="rack7 <script>", observed_at="2026-11-22T00:00:00Z", gpus=tuple(gpu(i, count) for i in range(count)),
        cpu=Cpu(name="AMD EPYC 7313", physical_cores=16, usable_threads=16),
        memory=Memory(total_bytes=128 * GIB, available_bytes=118 * GIB),
        disks=(Disk(path="/models", purpose="home", free_bytes=GIB),),
        engines=(Engine(name="llama.cpp", version="b7200"),),
        sources=(
            Source(name="nvml", outcome="answered", seconds=0.02),
            Source(name="kfd", outcome="failed", seconds=1, reason="EIO"),
        ),
        findings=(Finding(code="gpu-hidden", subject="GPU 1", reason="hidden", advice="unset it"),),
    )  # fmt: skip


def test_a_machine_page_shows_facts_evidence_and_findings():
    html = machine_page.render(machine(2))
    for words in ("EIO", "unset it", "17.0 GiB free of 24.0 GiB", "128.0 GiB", "b7200", "/models", "NVLink 56 GB/s"):
        assert words in html
    assert "<b>python" not in html
    assert "&lt;b&gt;python" in html
    assert html.count("<script") == 1


def test_memory_bars_add_up_to_the_device():
    for bar in machine_page._bars(machine(2)):
        ends = [(part["x"], part["x"] + part["width"]) for part in bar["parts"]]
        assert ends[0][0] == 0
        assert abs(ends[-1][1] - 100) < 0.01
        assert all(abs(end - start) < 0.01 for (_, end), (start, _) in pairwise(ends))


def test_links_are_drawn_once_and_inside_the_picture():
    drawing = topology.draw(machine(4))
    assert drawing.count('class="wire nvlink"') == 6
    assert drawing.count('class="wire pcie"') == 4
    width = int(re.search(r'width="(\d+)"', drawing).group(1))
    assert all(0 <= float(x) <= width for x in re.findall(r'<text[^>]* x="([\d.]+)"', drawing))
    assert all(float(y) > 0 for y in re.findall(r'<text[^>]* y="([-\d.]+)"', drawing))


def test_a_full_mesh_of_many_is_one_bar():
    drawing = topology.draw(machine(8))
    assert drawing.count('class="wire nvlink"') == 9
    assert "NVLink 56 GB/s between any two" in drawing
    partial = Machine(
        name="m",
        observed_at="2026-11-22T00:00:00Z",
        gpus=(*machine(4).gpus[:3], gpu(3, 4, links=()), gpu(4, 1, links=())),
    )
    assert topology.draw(partial).count('class="wire nvlink"') == 6


def test_unknown_memory_is_left_out_not_drawn_as_nought():
    unknown = Machine(name="m", observed_at="2026-11-22T00:00:00Z", gpus=(gpu(0, 1, memory_free_bytes=None),))
    assert machine_page._bars(unknown) == []
    assert "no GPU" in machine_page.render(Machine(name="m", observed_at="2026-11-22T00:00:00Z"))
    assert topology.draw(Machine(name="m", observed_at="2026-11-22T00:00:00Z")) is None
