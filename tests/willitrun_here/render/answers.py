"""Answers written by hand, in real proportions: Kimi Linear on an A100 and, spilling over, on an MI100."""

from __future__ import annotations

from msgspec.structs import replace

from willitrun_estimator.plan import (
    Alternative,
    Answer,
    Command,
    Context,
    CurvePoint,
    DeviceUse,
    Fit,
    GpuFacts,
    Grade,
    Improvement,
    Interval,
    Limit,
    MachineFacts,
    MeasuredRow,
    ModelFacts,
    ModeRow,
    Plan,
    Quality,
    QuantOption,
    ScorePart,
    Serving,
    Speed,
    Status,
    Tag,
    Tags,
    WorkloadRow,
)
from willitrun_estimator.request import Request

MIB = 1024**2
GIB = 1024**3

KIMI = ModelFacts(
    name="kimi-linear-48b-a3b-instruct",
    title="Kimi Linear 48B A3B Instruct",
    source="catalog",
    architecture="kimi-linear",
    params=49_122_675_072,
    active_params=3_484_453_248,
    max_context_tokens=1_048_576,
    capabilities=("tools",),
    license="mit",
    release_date="2025-10-30",
    hf_id="moonshotai/Kimi-Linear-48B-A3B-Instruct",
)
KV_BYTES_PER_TOKEN = 7 * (512 + 64) * 2
QUANTS: tuple[tuple[str, float, Quality], ...] = (
    ("Q2_K", 3.03, Quality(level="very-low", kl_divergence=0.42, basis="llama.cpp perplexity table, Llama 3 8B")),
    ("IQ3_XS", 3.36, Quality(level="low", kl_divergence=0.205, basis="llama.cpp perplexity table, Llama 3 8B")),
    ("Q3_K_S", 3.54, Quality(level="low", kl_divergence=0.212, basis="llama.cpp perplexity table, Llama 3 8B")),
    ("MXFP4", 4.41, Quality(level="unknown", kl_divergence=None, basis="no published comparison")),
    ("NVFP4", 4.52, Quality(level="unknown", kl_divergence=None, basis="no published comparison")),
    ("Q4_K_M", 4.89, Quality(level="medium", kl_divergence=0.0313, basis="llama.cpp perplexity table, Llama 3 8B")),
    ("Q5_K_M", 5.71, Quality(level="high", kl_divergence=0.0108, basis="llama.cpp perplexity table, Llama 3 8B")),
    ("Q6_K", 6.57, Quality(level="very-high", kl_divergence=0.0055, basis="llama.cpp perplexity table, Llama 3 8B")),
    ("Q8_0", 8.51, Quality(level="very-high", kl_divergence=0.0014, basis="llama.cpp perplexity table, Llama 3 8B")),
    ("BF16", 16.01, Quality(level="maximum", kl_divergence=0.0, basis="the unquantized weights")),
)


def interval(expected: float, spread: float = 0.3) -> Interval:
    return Interval(expected=expected, low=expected * (1 - spread), high=expected * (1 + spread))


def device(name: str, weights: int, cache: int, free: int, **parts: int) -> DeviceUse:
    use = {"recurrent_bytes": 43 * MIB, "compute_bytes": 334 * MIB, "output_bytes": 0, "runtime_bytes": 452 * MIB}
    use |= parts
    return DeviceUse(
        name=name, kind="gpu", weights_bytes=weights, kv_cache_bytes=cache, free_bytes=free,
        total_bytes=weights + cache + sum(use.values()), **use,
    )  # fmt: skip


def host(weights: int, free: int) -> DeviceUse:
    return DeviceUse(
        name="host memory", kind="host", weights_bytes=weights, kv_cache_bytes=0, recurrent_bytes=0,
        compute_bytes=38 * MIB, output_bytes=640 * 1024, runtime_bytes=0,
        total_bytes=weights + 38 * MIB + 640 * 1024, free_bytes=free,
    )  # fmt: skip


def status_of(needed: int, free: int) -> Status:
    if needed > free:
        return "offload" if needed < free * 1.6 else "paging"
    return "comfortable" if needed < 0.8 * free else "fits" if needed < 0.9 * free else "tight"


GRADES: tuple[tuple[int, Grade], ...] = ((90, "S"), (78, "A"), (65, "B"), (50, "C"), (30, "D"))


def letter(score: int) -> Grade:
    return next((grade for least, grade in GRADES if score >= least), "F")


def quant_option(name: str, bits: float, quality: Quality, *, gpu: GpuFacts, best: str, rate: float) -> QuantOption:
    file = round(KIMI.params * bits / 8)
    needed = file + 900 * MIB + 32768 * KV_BYTES_PER_TOKEN
    free = gpu.memory_free_bytes
    over = max(0, needed - free)
    decode = rate * 4.89 / bits / (1 + 6 * over / free)
    score = max(4, round(92 - 45 * (quality.kl_divergence or 0.04) ** 0.5 - 70 * over / free))
    return QuantOption(
        quant=name, bits_per_weight=bits, file_bytes=file, memory_bytes=needed, quality=quality,
        status=status_of(needed, free), decode_tokens_per_s=decode, score=score, grade=letter(score),
        best=name == best, engine="vllm" if name == "NVFP4" else "llama.cpp", context_tokens=32768,
        decode=interval(decode), ttft_s=1.4 * (1 + 3 * over / free), headroom_bytes=free - needed,
        offloaded_fraction=over / file, safe_context_tokens=262144 if over == 0 else 32768,
        devices=(
            device(gpu.name, file - 210 * MIB - over, 32768 * KV_BYTES_PER_TOKEN, free),
            host(210 * MIB + over, 118 * GIB),
        ),
    )  # fmt: skip


def command(shell: str, *notes: str, files: dict[str, str] | None = None) -> Command:
    return Command(argv=tuple(shell.split()), env={}, shell=shell, notes=notes, files=files or {})


def kimi(gpu: GpuFacts, *, quant: str, rate: float, file_bytes: int, cpu_moe_layers: int, context: int) -> Answer:
    """Return the answer for Kimi Linear on one GPU with 126 GiB of RAM."""
    over = cpu_moe_layers * 1000 * MIB
    cache = context * KV_BYTES_PER_TOKEN
    on_gpu = device(gpu.name, file_bytes - 210 * MIB - over, cache, gpu.memory_free_bytes)
    in_ram = host(210 * MIB + over, 118 * GIB)
    headroom = on_gpu.free_bytes - on_gpu.total_bytes
    status: Status = "offload" if cpu_moe_layers else "tight"
    plan = Plan(
        engine="llama.cpp", quant=quant, context_tokens=context, kv_type="f16", flash_attention=True, gpu_layers=28,
        layers=27, cpu_moe_layers=cpu_moe_layers, tensor_split=(), ubatch=512, batch=2048, threads=16, parallel=1,
        file_bytes=file_bytes, devices=(on_gpu, in_ram), memory_bytes=on_gpu.total_bytes + in_ram.total_bytes,
        offloaded_fraction=over / file_bytes, backend="cuda" if "A100" in gpu.name else "rocm",
    )  # fmt: skip
    contexts = (1024, 4096, 16384, 65536, 131072, 262144, 524288, 1048576)
    curve = tuple(
        CurvePoint(
            context_tokens=tokens,
            device_bytes=(
                on_gpu.total_bytes - cache + tokens * KV_BYTES_PER_TOKEN,
                in_ram.total_bytes,
            ),
            decode_tokens_per_s=interval(rate / (1 + tokens / 900_000)),
        )
        for tokens in contexts
    )
    file = "kimi-linear-48b-a3b-instruct-" + quant
    moe = f" --n-cpu-moe {cpu_moe_layers}" if cpu_moe_layers else ""
    repo = f"mradermacher/Kimi-Linear-48B-A3B-Instruct-GGUF:{quant}"
    serve = f"-c {context} -ngl 999{moe} -fa on --threads 16"
    lens = (("balanced", 83, 1), ("interactive", 85, 1), ("light-api", 79, 6), ("scale-out", 62, 32))
    loss = 0.62 if cpu_moe_layers else 1.0
    workloads = (
        ("chat", 84, 512, 256, 0.5), ("coding", 83, 2048, 512, 1.4), ("agentic", 80, 8192, 512, 5.3),
        ("reasoning", 78, 1024, 4096, 0.8), ("rag", 81, 6144, 256, 4.0),
    )  # fmt: skip
    missing = (
        f"about {over / GIB:.1f} GiB of expert weights stay in host memory"
        if cpu_moe_layers
        else "everything is on the GPU"
    )
    return Answer(
        model=KIMI,
        machine=MachineFacts(
            name="rack7-node2", gpus=(gpu,), ram_available_bytes=118 * GIB, cpu="AMD EPYC 7313 16-Core Processor",
            threads=16,
        ),
        plan=plan,
        fit=Fit(
            status=status, headroom_bytes=headroom, host_ram_needed_bytes=in_ram.total_bytes,
            message=f"{headroom / GIB:.1f} GiB of GPU memory stay free; {missing}.",
        ),
        speed=Speed(
            decode_tokens_per_s=interval(rate), prefill_tokens_per_s=interval(1480 * loss, 0.45),
            ttft_s=Interval(expected=1.4 / loss, low=1.0 / loss, high=2.6 / loss),
            ttft_cold_s=Interval(expected=11.9, low=8.1, high=20.4),
            load_s=Interval(expected=10.5, low=7.1, high=17.8),
            measured=(
                MeasuredRow(
                    tokens_per_s=61.2, test="tg128 at depth 8192, Q2_K, RTX 3090",
                    source="github:ggml-org/llama.cpp#17592", date="2025-12-02",
                ),
            ),
        ),
        context=Context(safe_tokens=524288 if status == "tight" else 65536, max_tokens=1_048_576),
        serving=Serving(
            concurrency=(1, 2, 4, 8, 16, 32),
            output_tokens_per_s=tuple(round(rate * n**0.55, 1) for n in (1, 2, 4, 8, 16, 32)),
            ttft_s=tuple(round(1.4 * n**0.7, 2) for n in (1, 2, 4, 8, 16, 32)),
            time_per_token_s=tuple(round(n**0.45 / rate, 4) for n in (1, 2, 4, 8, 16, 32)),
            low_tokens_per_s=tuple(round(0.6 * rate * n**0.55, 1) for n in (1, 2, 4, 8, 16, 32)),
            high_tokens_per_s=tuple(round(1.5 * rate * n**0.55, 1) for n in (1, 2, 4, 8, 16, 32)),
            max_concurrency=16,
        ),
        score=round(83 * loss),
        grade=letter(round(83 * loss)),
        tags=Tags(
            runtime=Tag(value="llama.cpp", reason="the only installed engine that reads this architecture"),
            capacity=Tag(
                value="tight" if status == "tight" else "short",
                reason=f"{on_gpu.total_bytes / GIB:.1f} GiB of {on_gpu.free_bytes / GIB:.1f} GiB free: above 90 %",
            ),
            bandwidth=Tag(value="high", reason="1555 GB/s ≥ 1000 GB/s"),
            stack=Tag(value="optimized", reason="CUDA kernels exist for every operation of kimi-linear"),
            bottleneck=Tag(
                value="host memory" if cpu_moe_layers else "kernel launches",
                reason="61 % of a token's time" if cpu_moe_layers else "54 % of a token's time, bandwidth 38 %",
            ),
        ),
        quants=tuple(quant_option(*row, gpu=gpu, best=quant, rate=rate) for row in QUANTS),
        workloads=tuple(
            WorkloadRow(
                workload=workload, grade=letter(round(score * loss)), status=status, decode_tokens_per_s=rate,
                ttft_s=ttft / loss, context_tokens=65536, score=round(score * loss), prompt_tokens=prompt,
                output_tokens=output,
            )
            for workload, score, prompt, output, ttft in workloads
        ),
        limits=(
            (
                Limit(code="offload", message="Experts of 3 layers are read from host memory for every token."),
                Limit(code="low-headroom", message="Less than 5 % of the GPU's memory stays free."),
            )
            if cpu_moe_layers
            else (Limit(code="low-headroom", message="6 % of the GPU's memory stays free."),)
        ),
        improvements=(
            Improvement(code="more-vram", message="With 48 GiB of GPU memory Q5_K_M fits whole.", gain=0.62),
            Improvement(code="kv-q8_0", message="A q8_0 KV cache lets twice the context fit.", gain=0.21),
            Improvement(code="newer-engine", message="llama.cpp b6900 fuses the delta rule.", gain=0.08),
        ),
        runner_up=Alternative(
            quant="Q5_K_M", context_tokens=65536, kv_type="q8_0", gpu_layers=28, cpu_moe_layers=4, score=74.2,
            decode_tokens_per_s=38.0, reason="better quality, but four layers of experts in host memory cost speed",
        ),
        score_parts=(
            ScorePart(name="quality", value=0.88, weight=0.40, reason="exp(-4 x 0.031 KL divergence)"),
            ScorePart(name="decode", value=0.93, weight=0.30, reason="74 / (74 + 5.3) tokens/s"),
            ScorePart(name="first token", value=0.74, weight=0.15, reason="4.0 / (4.0 + 1.4) s"),
            ScorePart(name="context", value=1.0, weight=0.15, reason="262144 of 8192 tokens wanted"),
        ),
        findings=("Published speeds of this architecture are few: the interval is wide.",),
        commands={
            "llama.cpp": command(
                f"llama-server -hf {repo} {serve}", "Needs llama.cpp b7200 or newer for kimi-linear."
            ),
            "ollama": command(
                "ollama run kimi-linear-here", files={"Modelfile": f"FROM ./{file}.gguf\nPARAMETER num_ctx {context}\n"}
            ),
            "vllm": command("vllm serve moonshotai/Kimi-Linear-48B-A3B-Instruct --trust-remote-code"),
            "docker": command(
                f"docker run --rm --gpus all -p 8080:8080 ghcr.io/ggml-org/llama.cpp:server-cuda -hf {repo} {serve}"
            ),
        },
        request=Request(),
        curve=curve,
        modes=tuple(
            ModeRow(
                mode=mode, score=round(score * loss), grade=letter(round(score * loss)), quant=quant, status=status,
                context_tokens=context if concurrency == 1 else 8192 * concurrency,
                decode_tokens_per_s=interval(rate / concurrency**0.45), ttft_s=1.4 / loss * concurrency**0.7,
                concurrency=concurrency,
                output_tokens_per_s=rate * concurrency**0.55 if concurrency > 1 else None,
            )
            for mode, score, concurrency in lens
        ),
    )  # fmt: skip


A100 = GpuFacts(
    name="NVIDIA A100 40GB", memory_total_bytes=40 * GIB, memory_free_bytes=40 * GIB - 480 * MIB,
    bandwidth_bytes_per_s=1555e9, uuid="GPU-5ae1c6a2-0f0e-4a1c-9d0b-30f9a1b7f3c1",
)  # fmt: skip
MI100 = GpuFacts(
    name="AMD Instinct MI100 32GB", memory_total_bytes=32 * GIB, memory_free_bytes=32 * GIB - 310 * MIB,
    bandwidth_bytes_per_s=1228.8e9,
)  # fmt: skip


def a100() -> Answer:
    return kimi(A100, quant="Q5_K_M", rate=74.1, file_bytes=35_061_859_000, cpu_moe_layers=0, context=262144)


def mi100() -> Answer:
    return kimi(MI100, quant="Q4_K_M", rate=36.4, file_bytes=30_026_235_000, cpu_moe_layers=3, context=32768)


def too_large() -> Answer:
    """Return the answer for a machine on which nothing starts; the plan is the smallest one, too large all the same."""
    small = GpuFacts(name="NVIDIA GeForce GTX 1650", memory_total_bytes=4 * GIB, memory_free_bytes=3700 * MIB)
    weights = round(KIMI.params * 3.03 / 8)
    uses = (device(small.name, weights, 4096 * KV_BYTES_PER_TOKEN, small.memory_free_bytes), host(210 * MIB, 5 * GIB))
    plan = mi100().plan
    assert plan is not None
    plan = replace(
        plan, quant="Q2_K", context_tokens=4096, cpu_moe_layers=0, devices=uses, file_bytes=weights + 210 * MIB,
        memory_bytes=sum(use.total_bytes for use in uses), offloaded_fraction=0.0,
    )  # fmt: skip
    message = "Kimi Linear 48B A3B Instruct Q2_K does not run here: it needs 18.2 GiB and 8.6 GiB are free."
    return Answer(
        model=KIMI,
        machine=MachineFacts(name="old-laptop", gpus=(small,), ram_available_bytes=5 * GIB),
        plan=plan,
        fit=Fit(
            status="too-large",
            headroom_bytes=small.memory_free_bytes - uses[0].total_bytes,
            host_ram_needed_bytes=uses[1].total_bytes,
            message=message,
        ),
        speed=None, context=Context(safe_tokens=0, max_tokens=1_048_576), serving=None, score=0, grade="F", tags=None,
        quants=(), workloads=(), limits=(Limit(code="too-large", message="9.6 GiB are missing."),),
        improvements=(Improvement(code="more-ram", message="With 32 GiB of memory Q2_K runs.", gain=0.31),),
        request=Request(),
    )  # fmt: skip


def two_gpus() -> Answer:
    """Return an answer over two GPUs of unequal fill and the host."""
    answer = a100()
    first = replace(A100, name="NVIDIA GeForce RTX 3090", memory_total_bytes=24 * GIB, memory_free_bytes=23 * GIB)
    second = replace(first, memory_free_bytes=20 * GIB)
    uses = tuple(
        device(gpu.name, 16 * GIB, 1 * GIB, gpu.memory_free_bytes, recurrent_bytes=21 * MIB) for gpu in (first, second)
    )
    plan = answer.plan
    assert plan is not None
    uses = (*uses, host(210 * MIB, 118 * GIB))
    curve = tuple(
        replace(point, device_bytes=(point.device_bytes[0] // 2, point.device_bytes[0] // 2, point.device_bytes[1]))
        for point in answer.curve
    )
    return replace(
        answer,
        machine=replace(answer.machine, gpus=(first, second)),
        plan=replace(plan, devices=uses, tensor_split=(14.0, 14.0), memory_bytes=sum(use.total_bytes for use in uses)),
        curve=curve,
    )


def vllm() -> Answer:
    """Return an answer for vLLM over two GPUs, with the pool of its cache and a kernel."""
    answer = two_gpus()
    plan = answer.plan
    assert plan is not None
    plan = replace(
        plan, engine="vllm", quant="FP8", kv_type="auto", tensor_parallel=2, max_num_seqs=32, gpu_layers=27,
        kernel="marlin (weight-only)", tensor_split=(),
        devices=(*plan.devices[:2], replace(host(0, 118 * GIB), compute_bytes=0, output_bytes=0, total_bytes=0)),
    )  # fmt: skip
    option = replace(answer.quants[6], quant="FP8", engine="vllm")
    return replace(answer, plan=plan, quants=(option, replace(option, engine="llama.cpp", best=False)))


HOSTILE = "<img src=x onerror=alert(1)>'\"&</script><script>alert(2)</script>"


def hostile() -> Answer:
    """Return an answer whose names are markup."""
    answer = a100()
    gpu = replace(A100, name=f"GPU {HOSTILE}")
    plan = answer.plan
    assert plan is not None
    uses = (replace(plan.devices[0], name=gpu.name), plan.devices[1])
    return replace(
        answer,
        model=replace(KIMI, name="x" + HOSTILE, title=f"Model {HOSTILE}", hf_id=HOSTILE),
        machine=replace(answer.machine, name=f"host [red]{HOSTILE}", gpus=(gpu,)),
        plan=replace(plan, devices=uses),
        fit=replace(answer.fit, message=HOSTILE),
        quants=tuple(
            replace(option, devices=tuple(replace(use, name=f"{use.kind} {HOSTILE}") for use in option.devices))
            for option in answer.quants
        ),
        limits=(Limit(code=HOSTILE, message=HOSTILE),),
        findings=(HOSTILE, "[bold]not markup[/bold]"),
        commands={"llama.cpp": command(f"llama-server -m '{HOSTILE}'", HOSTILE)},
    )
