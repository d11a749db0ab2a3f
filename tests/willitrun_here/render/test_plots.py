from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from willitrun_here.render import plots
from willitrun_here.render.breakdown import bars


@given(st.floats(min_value=1e-6, max_value=1e15))
def test_ticks_are_round_even_and_reach_the_top(top):
    ticks = plots.nice_ticks(top)
    assert ticks[0] == 0
    assert ticks[-1] >= top * (1 - 1e-9)
    assert ticks[-2] < top
    assert 3 <= len(ticks) <= 7
    assert {round((b - a) / ticks[1], 6) for a, b in pairwise(ticks)} == {1.0}
    assert round(ticks[1] / 10 ** math.floor(math.log10(ticks[1]) + 1e-9), 6) in {1, 2, 2.5, 5}


@pytest.mark.parametrize("name", ["a100", "mi100", "two_gpus"])
def test_drawn_points_stay_inside_the_picture(answers, name):
    answer = getattr(answers, name)()
    for plot in (plots.memory_plot(answer), plots.speed_plot(answer), plots.serving_plot(answer.serving)):
        assert plot is not None
        for x, y in re.findall(r"([\d.]+),([\d.]+)", " ".join(re.findall(r'points="([^"]+)"', plot))):
            assert plots.LEFT - 0.1 <= float(x) <= plots.WIDTH - plots.RIGHT + 0.1
            assert plots.TOP - 0.1 <= float(y) <= plots.HEIGHT - plots.BOTTOM + 0.1


def test_the_memory_line_crosses_the_rule_where_memory_ends(answers):
    answer = answers.a100()
    plot = plots.memory_plot(answer)
    rule = float(re.search(r'class="rule" [^>]*y1="([\d.]+)"', plot).group(1))
    heights = [
        float(y) for _, y in re.findall(r"([\d.]+),([\d.]+)", re.search(r'"line" points="([^"]+)"', plot).group(1))
    ]
    fits = [point.device_bytes[0] <= answer.plan.devices[0].free_bytes for point in answer.curve]
    assert fits == [height >= rule for height in heights]
    assert not fits[-1]


def test_several_gpus_plot_the_fullest(answers):
    answer = answers.two_gpus()
    assert "20.0 GiB free" in plots.memory_plot(answer)


def test_no_curve_no_plot(answers):
    answer = answers.a100()
    assert plots.memory_plot(replace(answer, curve=())) is None
    assert plots.speed_plot(replace(answer, curve=answer.curve[:1])) is None


def test_names_are_escaped(answers):
    assert "<img" not in plots.memory_plot(answers.hostile())


@pytest.mark.parametrize("name", ["a100", "mi100", "too_large", "two_gpus"])
def test_bar_segments_add_up_to_the_device(answers, name):
    answer = getattr(answers, name)()
    for bar, use in zip(bars(answer), answer.plan.devices, strict=True):
        assert sum(segment.bytes for segment in bar.segments) == bar.extent_bytes
        parts = {segment.key: segment.bytes for segment in bar.segments}
        assert sum(size for key, size in parts.items() if key not in {"taken", "headroom"}) == use.total_bytes
        rects = plots.bar_rects(bar, bar.extent_bytes)
        assert sum(width for *_, width in rects) == pytest.approx(100, abs=0.05)
