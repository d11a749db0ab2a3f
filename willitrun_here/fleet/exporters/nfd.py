"""A feature file for Kubernetes' Node Feature Discovery: stable facts as labels, never free memory.

Rules of the local source: at most 64 kB, `key=value` lines, `# +expiry-time=` so that labels of a dead agent go
(https://kubernetes-sigs.github.io/node-feature-discovery/stable/usage/customization-guide.html#local-feature-source).
Label syntax: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta

from willitrun_probe.machine import Machine
from willitrun_probe.units import GIB

LIFETIME = timedelta(hours=2)
MAX_BYTES = 64 * 1024
MAX_LABEL = 63


def feature_file(machine: Machine, *, now: datetime, runs: Mapping[str, str] | None = None) -> str:
    """Write the features of a machine; `runs` maps names of models to the quantization that runs them."""
    gpus = [gpu for gpu in machine.gpus if gpu.visible and gpu.usable]
    sizes = [gpu.memory_total_bytes for gpu in gpus if gpu.memory_total_bytes is not None]
    features: dict[str, str] = {"willitrun.gpus": str(len(gpus))}
    if sizes:
        features["willitrun.largest-gpu-gib"] = str(max(sizes) // GIB)
        features["willitrun.gpu-memory-gib"] = str(sum(sizes) // GIB)
    if machine.memory.total_bytes is not None:
        features["willitrun.ram-gib"] = str(machine.memory.total_bytes // GIB)
    kinds = Counter(gpu.name for gpu in gpus)
    if len(kinds) == 1:
        features["willitrun.gpu-model"] = slug(next(iter(kinds)))
    for engine in machine.engines:
        features[f"willitrun.engine.{slug(engine.name)}"] = slug(engine.version or "unknown")
    for model, quant in sorted((runs or {}).items()):
        features[f"willitrun.runs.{slug(model, MAX_LABEL - len('willitrun.runs.'))}"] = slug(quant)
    lines = [f"# +expiry-time={(now + LIFETIME).strftime('%Y-%m-%dT%H:%M:%SZ')}"]
    size = len(lines[0]) + 1
    for key, value in features.items():
        line = f"{key[:MAX_LABEL].rstrip('-._')}={value}"
        size += len(line) + 1
        if size > MAX_BYTES:
            break
        lines.append(line)
    return "\n".join(lines) + "\n"


def slug(text: str, longest: int = MAX_LABEL) -> str:
    """Turn a name into a label value: lower case letters, digits, dots and dashes, at most 63, alphanumeric ends."""
    words = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
    return words[:longest].rstrip("-.") or "unknown"
