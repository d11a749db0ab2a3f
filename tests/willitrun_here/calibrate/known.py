"""A machine and what is known of it, for the tests beside this file."""

from __future__ import annotations

from willitrun_catalog import shipped
from willitrun_estimator.calibration import Corrections, Run
from willitrun_estimator.plan import Plan
from willitrun_probe.machine import Cpu, Disk, Machine, Memory, ProductRate

MACHINE = Machine(
    name="box",
    observed_at="2026-11-22T00:00:00Z",
    shape_hash="0123456789abcdef",
    cpu=Cpu(usable_threads=2),
    memory=Memory(total_bytes=2**34),
    disks=(Disk(path="/models", purpose="llama.cpp"), Disk(path="/root", purpose="home")),
)
RUN = Run(
    test="decode",
    model="llama-3.2-1b-instruct",
    quant="Q4_K_M",
    engine="llama.cpp",
    where="host",
    gpu_layers=0,
    cpu_moe_layers=0,
    predicted_tokens_per_s=40.0,
    measured_tokens_per_s=35.0,
)
KNOWN = Corrections(
    shape_hash=MACHINE.shape_hash,
    measured_at="2026-11-22T00:00:00Z",
    ram_bandwidth_bytes_per_s=40e9,
    disk_read_bytes_per_s={"/models": 2e9},
    product_rates=(ProductRate(weight_type="Q4_K", decode_bytes_per_s=30e9, prefill_ops_per_s=300e9),),
    block_s=4e-5,
    side_s=2e-9,
    runs=(RUN,),
)
PLAN = Plan(
    engine="llama.cpp", quant="Q4_K_M", context_tokens=4096, kv_type="f16", flash_attention=True, gpu_layers=0,
    layers=16, cpu_moe_layers=0, tensor_split=(), ubatch=512, batch=2048, threads=2, parallel=1, file_bytes=1,
    devices=(), memory_bytes=1, offloaded_fraction=0.0,
)  # fmt: skip
SPEC = shipped.model("llama-3.2-1b-instruct")
