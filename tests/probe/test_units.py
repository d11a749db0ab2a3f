"""Sizes and rates to and from people's words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_probe.units import format_bytes, format_rate, format_seconds, format_tokens, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 * 2**20),
        ("64 GiB", 64 * 2**30),
        ("8G", 8 * 2**30),
        ("24GB", 24 * 10**9),
        ("1.5k", 1536),
        ("10", 10),
    ],
)
def test_sizes_as_people_write_them(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1G", "1 furlong", "1e9", "\u0663 GiB"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="not a size"):
        parse_bytes(text)


@given(st.integers(0, 2**60))
def test_a_written_size_is_within_its_last_digit(size):
    written = parse_bytes(format_bytes(size))
    assert abs(written - size) <= max(0.051 * 2**10, size * 0.051)


def test_formats():
    assert [format_bytes(x) for x in (None, 0, 1536, 25769803776, -2048)] == [
        "-",
        "0 B",
        "1.5 KiB",
        "24.0 GiB",
        "-2.0 KiB",
    ]
    assert [format_rate(x) for x in (None, 936.1e9, 5.3e12, 12.0)] == ["-", "936 GB/s", "5.3 TB/s", "12 B/s"]
    assert [format_tokens(x) for x in (None, 4096, 131072, 1000, 2**20)] == ["-", "4K", "128K", "1000", "1M"]
    assert [format_seconds(x) for x in (None, 0.045, 1.25, 200.0)] == ["-", "45 ms", "1.2 s", "3 min 20 s"]
