"""What setups share of a device is that device's."""

from __future__ import annotations

import gc

from msgspec import structs

from willitrun_catalog.find import find_model
from willitrun_estimator import setup
from willitrun_estimator.answer import answer_on
from willitrun_estimator.device import Devices
from willitrun_estimator.hardware import devices
from willitrun_estimator.prepared import Prepared
from willitrun_estimator.question import Question
from willitrun_estimator.request import Request
from willitrun_estimator.throughput import products
from willitrun_estimator.throughput.constants import shipped
from willitrun_estimator.throughput.model import SpeedModel, rate_facts
from willitrun_here.ask import sheet_of
from willitrun_here.machines import open_machine

ASKED = Request()


def on(words: str) -> Devices:
    return devices(open_machine(words), ASKED, sheet_of)


def test_gpus_are_one_kind_whatever_their_name_and_memory():
    gpu = on("RTX 3090, 64 GiB RAM").gpus[0]
    other = structs.replace(gpu, name="another", memory_free_bytes=1, uuid="GPU-1")
    slower = structs.replace(gpu, bandwidth_bytes_per_s=1e9)
    assert setup.speed_facts(gpu) == setup.speed_facts(other) != setup.speed_facts(slower)
    assert setup.speed_facts(gpu) is setup.speed_facts(gpu)


def test_products_are_those_of_their_host(monkeypatch):
    monkeypatch.setattr(products, "_RECENT_LIMIT", 1)
    costs = shipped().host
    one, two = (on(words).host for words in ("64 GiB RAM, 8 cores", "64 GiB RAM, 32 cores"))
    assert products.products_of(one, costs, 4e10) is products.products_of(one, costs, 4e10)
    assert products.products_of(one, costs, 5e10).bytes_per_s == 5e10
    assert products.products_of(two, costs, 5e10).decode_cores > products.products_of(one, costs, 5e10).decode_cores


def test_gpus_with_equal_rates_share_their_costs():
    asked = Question(find_model("llama-3.1-8b").spec, on("2x RTX 3090, RTX 4090, 64 GiB RAM"), ASKED)
    speed = asked.setup("Q4_K_M", "f16", 512, (0, 1, 2)).speed
    assert isinstance(speed, SpeedModel)
    assert speed.gpus[0] is speed.gpus[1] is not speed.gpus[2]
    for name in ("bandwidth_bytes_per_s", "fp32_flops_per_s", "power_watts", "link_bytes_per_s"):
        gpu = asked.devices.gpus[0]
        assert rate_facts(gpu) != rate_facts(structs.replace(gpu, **{name: 1.0})), name


def test_advice_can_be_left_out_where_nothing_starts():
    spec, small = find_model("llama-3.1-70b").spec, on("RTX 3090, 16 GiB RAM")
    asked = Request(quant="Q4_K_M", gpu_layers="all")
    with_advice, without = (answer_on(small, spec, asked, advice=advice) for advice in (True, False))
    assert with_advice.fit.status == without.fit.status == "too-large"
    assert with_advice.improvements
    assert without == structs.replace(with_advice, improvements=())


def test_a_question_leaves_no_setup_behind():
    """`batch` keeps the cycle collector waiting."""
    prepared = Prepared(find_model("qwen3-30b-a3b").spec)
    plan_on = on("2x RTX 3060, 64 GiB RAM")
    gc.collect()
    gc.disable()
    try:
        answer_on(plan_on, prepared.spec, Request(quant="Q6_K", gpu_layers="all"), prepared=prepared)
        left = [one for one in gc.get_objects() if isinstance(one, setup.LlamaSetup)]
    finally:
        gc.enable()
    assert left == []
