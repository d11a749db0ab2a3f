from __future__ import annotations

import subprocess
import sys

import pytest

from willitrun_here.calibrate.busy import Processor, others_share, processor


def test_the_kernel_tells_how_busy_the_processor_was():
    now = processor()
    assert 0 < now.busy_s <= now.total_s
    assert 0 < now.own_s < now.total_s


def test_an_engine_s_time_is_our_own():
    script = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass\nprint(); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as engine:
        engine.stdout.readline()
        before, after = processor(), processor(engine.pid)
        engine.communicate(b"\n")
    assert after.own_s - before.own_s == pytest.approx(0.5, abs=0.2)
    assert processor(engine.pid) is None


@pytest.mark.parametrize(
    ("since", "now", "share"),
    [
        (Processor(0.0, 0.0, 0.0), Processor(10.0, 20.0, 4.0), 0.3),
        (Processor(5.0, 10.0, 1.0), Processor(6.0, 20.0, 3.0), 0.0),
        (Processor(5.0, 10.0, 1.0), Processor(5.0, 10.0, 1.0), None),
        (None, Processor(5.0, 10.0, 1.0), None),
        (Processor(5.0, 10.0, 1.0), None, None),
    ],
)
def test_what_others_took_is_what_is_not_ours(since, now, share):
    assert others_share(since, now) == share
