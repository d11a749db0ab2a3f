"""Lines through processes and pipes: in order, as they come, bounded, and to the end whatever happens."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from willitrun_here import stream
from willitrun_here.batch import MOST_LINE_BYTES
from willitrun_here.errors import AgentError
from willitrun_here.workers import Workers

LINE = {"model": "llama-3.2-1b", "machine": "RTX 3090, 64 GiB RAM", "quant": "Q4_K_M", "sections": ["plan"]}


def line(**fields) -> bytes:
    return json.dumps({**LINE, **fields}).encode()


def groups(lines, size=100):
    lines = iter(lines)
    return iter(lambda: list(itertools.islice(lines, size)), [])


def flat(found):
    return [json.loads(one) for group in found for one in group]


@pytest.mark.parametrize("jobs", [1, 2])
def test_order_and_ids_are_kept(jobs):
    many = [line(id=i) if i % 7 else b"nonsense" for i in range(450)]
    found = flat(stream.answered(groups(many), jobs=jobs))
    assert [one["id"] for one in found] == [i if i % 7 else None for i in range(450)]
    assert [("error" in one) for one in found] == [i % 7 == 0 for i in range(450)]


def test_few_lines_need_no_second_process(monkeypatch):
    monkeypatch.setattr(stream, "answered_in_parallel", None)
    assert len(flat(stream.answered(groups([line()] * stream.FEW_LINES), jobs=8))) == stream.FEW_LINES
    assert list(stream.answered([], jobs=8)) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_reading_ahead_is_bounded_and_ends_with_the_reader(jobs):
    read = itertools.count()
    before = threading.active_count()
    lines = (b"nonsense" for _ in iter(lambda: next(read), 10**9))
    found = stream.answered(groups(lines), jobs=jobs)
    assert [len(next(found)) for _ in range(3)] == [100] * 3
    time.sleep(0.2)
    assert next(read) <= 100 * (stream.AHEAD + 3 + 3)
    found.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_what_reading_fails_with_is_raised():
    def failing():
        yield [b"nonsense"] * 300
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        flat(stream.answered(failing(), jobs=2))


def test_lines_are_cut_out_of_blocks():
    text = b'{"a": 1}\n\n  \r\n{"b": 2}\r\n' + b"x" * 200_000 + b"\nlast"
    found = [one for group in stream.blocks(io.BytesIO(text)) for one in group]
    assert found == [b'{"a": 1}', b'{"b": 2}\r', b"x" * 200_000, b"last"]
    assert list(stream.blocks(io.BytesIO(b"\n \n"))) == []


def test_of_a_line_without_end_only_the_beginning_is_kept():
    class Endless(io.RawIOBase):
        left = 400

        def read(self, size=-1):
            self.left -= 1
            return b"x" * size if self.left > 0 else b"\nlast\n" if self.left == 0 else b""

    long, last = [one for group in stream.blocks(Endless()) for one in group]
    assert MOST_LINE_BYTES < len(long) <= MOST_LINE_BYTES + stream.BLOCK_BYTES + 1
    assert last == b"last"


def test_a_worker_gets_neighbours_by_model_and_all_get_the_same_number():
    group = [line(id=i, model=("phi-2", "gemma-3-1b", "qwen3-4b", "llama-3.2-1b")[i % 4]) for i in range(40)]
    parts = stream.shares([*group, b"nonsense", b'{"model": 3}'], 2)
    assert sorted(i for part in parts for i in part) == list(range(42))
    assert [len(part) for part in parts] == [21, 21]
    names = [{stream.model_of(group[i]) for i in part if i < 40} for part in parts]
    assert names == [{"gemma-3-1b", "llama-3.2-1b"}, {"llama-3.2-1b", "phi-2", "qwen3-4b"}]
    assert [len(part) for part in stream.shares(group[:1], 3)] == [0, 0, 1]


def reverse(lines):
    return [one[::-1] for one in lines]


def kill(lines):
    os.kill(os.getpid(), signal.SIGKILL)
    return lines


def test_each_worker_works_on_its_parts_in_order():
    with Workers(2, reverse) as workers:
        first, second = workers.hand_out([[b"ab"], [b"cd"]]), workers.hand_out([[b"ef"], []])
        assert [one.result() for one in (*first, *second)] == [[b"ba"], [b"dc"], [b"fe"], []]


def test_a_worker_that_is_killed_is_said():
    with Workers(2, kill) as workers, pytest.raises(AgentError, match="ended") as raised:
        workers.hand_out([[b"a"], [b"b"]])[0].result()
    assert "--jobs" in raised.value.advice


def command(*options):
    return subprocess.Popen(
        [sys.executable, "-m", "willitrun_here", "batch", *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


@pytest.mark.parametrize("many", [1, 300])
def test_who_waits_for_an_answer_gets_it_before_the_next_line(many):
    with command("--jobs", "2") as process:
        for start in range(0, 3 * many, many):
            process.stdin.write(b"".join(line(id=i) + b"\n" for i in range(start, start + many)))
            process.stdin.flush()
            assert [json.loads(process.stdout.readline())["id"] for _ in range(many)] == [*range(start, start + many)]
        process.stdin.close()
    assert process.returncode == 0


def test_a_closed_pipe_ends_it_though_more_could_be_read():
    process = command("--jobs", "2")
    process.stdin.write(b"".join(line(id=i) + b"\n" for i in range(300)))
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["id"] == 0
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        for _ in range(200):
            pipe.write((line() + b"\n") * 100)
            pipe.flush()
    assert process.wait(timeout=30) in (0, 141)


def test_an_interrupt_ends_it_without_a_traceback():
    with subprocess.Popen(
        [sys.executable, "-m", "willitrun_here", "batch", "--jobs", "2"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        process.stdin.write(b"".join(line(id=i) + b"\n" for i in range(300)))
        process.stdin.flush()
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stderr.read().split() == [b"stopped"]
        process.stdin.close()
