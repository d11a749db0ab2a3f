"""Banked residual streams at their edges: what is banked when, and blocks that lack a part."""

from __future__ import annotations

from msgspec import structs

from willitrun_catalog.model import Layer, NoFfn, NoMixer
from willitrun_catalog.shipped import model
from willitrun_estimator.compute.builder import Builder
from willitrun_estimator.compute.form import U
from willitrun_estimator.compute.operations import Homes
from willitrun_estimator.compute.residual_mix import BLOCKS_BANKED, Bank, block
from willitrun_estimator.placement import Settings

SPEC = model("kimi-k3")
HOMES = Homes(0, 0, 0)


def builder() -> Builder:
    return Builder(structs.replace(SPEC), Settings(context_tokens=4096), host=1)


def test_an_empty_bank_mixes_nothing() -> None:
    b = builder()
    stream = b.graph.input("x", (SPEC.hidden_size, U))
    assert Bank(b).mixed(lambda: stream, b.graph.weight("score", 0)) is stream
    assert not b.graph.nodes


def test_a_bank_is_joined_once_and_where_it_is_read() -> None:
    b = builder()
    bank = Bank(b)
    streams = [b.graph.input(name, (SPEC.hidden_size, U)) for name in "abc"]
    bank.push(streams[0])
    bank.push(streams[1])
    assert not b.graph.nodes
    for _ in range(2):
        bank.mixed(lambda: streams[2], b.graph.weight("score", 0))
    joined = [node for node in b.graph.nodes if node.name == "banked"]
    assert [node.dims for node in joined] == [(SPEC.hidden_size, 2, U)]
    assert [node.dims for node in b.graph.nodes if node.name == "soft_max"] == [(3, U)] * 2


def test_a_block_without_a_network_gives_what_its_mixer_gives() -> None:
    b = builder()
    bank = Bank(b)
    first = b.graph.input("x", (SPEC.hidden_size, U))
    layer = Layer(mixers=(NoMixer(),), ffn=NoFfn())
    stream = block(b, bank, layer, lambda: first, HOMES, 0)
    assert stream().name == "norm"
    later = block(b, bank, layer, stream, HOMES, BLOCKS_BANKED - 1)
    assert later().name == "residual"
