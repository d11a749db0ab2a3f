from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_estimator.request import Request
from willitrun_here.cli.arguments import MOST_TOKENS
from willitrun_here.cli.options import COUNT_OR_ALL, SIZE, TOKENS
from willitrun_here.cli.question import check, request
from willitrun_here.errors import UsageError


@pytest.mark.parametrize(
    ("text", "tokens"), [("8192", 8192), ("32k", 32768), ("128K", 131072), ("1M", 1048576), ("1", 1), (5, 5)]
)
def test_tokens(text, tokens):
    assert TOKENS.convert(text, None, None) == tokens


@pytest.mark.parametrize("text", ["", "k", "0", "0k", "-1", "1.5k", "9999M", "²", "٣", "1e3", "9" * 5000])
def test_what_is_no_number_of_tokens(text):
    with pytest.raises(click.BadParameter, match="not a number of tokens"):
        TOKENS.convert(text, None, None)


def test_counts_and_words():
    assert [COUNT_OR_ALL.convert(text, None, None) for text in ("0", "33", "all", "auto", 7)] == [
        0,
        33,
        "all",
        "auto",
        7,
    ]
    for text in ("-1", "some", "²", ""):
        with pytest.raises(click.BadParameter):
            COUNT_OR_ALL.convert(text, None, None)


def test_sizes():
    assert SIZE.convert("2GiB", None, None) == 2 << 30
    assert SIZE.convert(5, None, None) == 5
    for text in ("2 GiBs", "-1", "9" * 400, "9999999TiB"):
        with pytest.raises(click.BadParameter):
            SIZE.convert(text, None, None)


def test_auto_is_left_open():
    asked = request({"quant": "auto", "flash_attention": "auto", "context": None, "gpu_layers": "all"})
    assert asked == Request(gpu_layers="all")
    assert request({"flash_attention": "on"}).flash_attention is True
    assert request({"flash_attention": "off"}).flash_attention is False


@pytest.mark.parametrize(
    "asked",
    [
        Request(context=0),
        Request(context=MOST_TOKENS + 1),
        Request(concurrency=0),
        Request(gpu_layers=-1),
        Request(cpu_moe_layers=-1),
        Request(depth_tokens=-1),
        Request(margin_bytes=-1),
        Request(min_decode=0.0),
        Request(max_ttft=float("inf")),
        Request(gpu_memory_utilization=0.0),
        Request(gpu_memory_utilization=float("nan")),
        Request(kv_type="q9"),
        Request(backend="x"),
        Request(context=4096, prompt_tokens=4097),
    ],
)
def test_what_makes_no_sense_is_refused(asked):
    with pytest.raises(UsageError, match="--"):
        check(asked)


@given(st.integers(1, MOST_TOKENS), st.integers(0, 200) | st.just("all"), st.floats(0.01, 1))
def test_what_makes_sense_passes(context, layers, share):
    check(Request(context=context, gpu_layers=layers))
    check(Request(gpu_memory_utilization=share, engine="vllm", depth_tokens=0, context=context))
