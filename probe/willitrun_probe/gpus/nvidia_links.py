"""NVLink, PCI Express topology and peer access between NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from willitrun_probe.findings import finding
from willitrun_probe.gpus.answers import Answers
from willitrun_probe.gpus.nvml import MOST_LINKS
from willitrun_probe.host.pci import normal_address
from willitrun_probe.machine import Finding, Gpu, Link

_LINK_BYTES_PER_S = {
    # one NVLink in one direction by nvmlNvlinkVersion: 1.0 20 GB/s, 2.x to 4.0 25 GB/s, 5.0 50 GB/s
    # (NVIDIA P100, V100, A100, H100 and Blackwell architecture white papers)
    1: 20e9, 2: 25e9, 3: 25e9, 4: 25e9, 5: 25e9, 6: 25e9, 7: 50e9,
}  # fmt: skip
_GPU, _SWITCH = 0, 2
_TOPOLOGY = {0: "internal", 10: "single-switch", 20: "multi-switch", 30: "host-bridge", 40: "node", 50: "system"}


def links_of(
    gpus: Mapping[str, Gpu], devices: Mapping[int, Mapping[str, Any]], pairs: Any
) -> tuple[dict[str, tuple[Link, ...]], list[Finding]]:
    """Return each GPU's links to the others by its UUID or PCI address; `gpus` are keyed by target (`gpu0`)."""
    names = {target: gpu.uuid or gpu.pci_address or target for target, gpu in gpus.items()}
    addresses = {gpu.pci_address: target for target, gpu in gpus.items() if gpu.pci_address}
    found: dict[str, tuple[Link, ...]] = {}
    findings: list[Finding] = []
    for target, gpu in gpus.items():
        answers = Answers(devices[int(target[3:])].get("answers"))
        direct, switched, inactive = _nvlinks(answers, addresses)
        if inactive and (direct or switched):
            findings.append(
                finding(
                    "nvlink-inactive", gpu.pci_address or gpu.name, f"{inactive} links are down while others are up"
                )
            )
        links = []
        for other, name in names.items():
            if other != target:
                rate = direct.get(other, 0.0) + switched
                topology, peer_to_peer = _pair(pairs, target, other)
                if rate or topology or peer_to_peer is not None:
                    links.append(_link(rate, name, topology, peer_to_peer))
        if links:
            found[names[target]] = tuple(links)
    return found, findings


def _link(rate: float, peer: str, topology: str | None, peer_to_peer: bool | None) -> Link:
    kind: Literal["nvlink", "pcie", "unknown"] = "nvlink" if rate else "pcie" if topology else "unknown"
    return Link(kind=kind, peer=peer, bytes_per_s=rate or None, peer_to_peer=peer_to_peer, topology=topology)


def _pair(pairs: Any, target: str, other: str) -> tuple[str | None, bool | None]:
    """Return (topology, peer access) of two GPUs; they are asked in one direction only."""
    first, second = sorted((target, other), key=lambda name: int(name[3:]))
    answers = Answers(pairs.get(first) if isinstance(pairs, dict) else None)
    level = answers.integer(f"nvmlDeviceGetTopologyCommonAncestor:{second}")
    status = answers.integer(f"nvmlDeviceGetP2PStatus:{second}:0")
    return _TOPOLOGY.get(level) if level is not None else None, None if status is None else status == 0


def _nvlinks(answers: Answers, addresses: Mapping[str, str]) -> tuple[dict[str, float], float, int]:
    """Return the rate to each direct neighbour, the rate into switches, and how many links are down."""
    direct: dict[str, float] = {}
    switched = 0.0
    inactive = 0
    for link in range(MOST_LINKS):
        state = answers.integer(f"nvmlDeviceGetNvLinkState:{link}")
        if state is None:
            break
        if state != 1:
            inactive += 1
            continue
        rate = _LINK_BYTES_PER_S.get(answers.integer(f"nvmlDeviceGetNvLinkVersion:{link}") or 0, 0.0)
        remote = answers.integer(f"nvmlDeviceGetNvLinkRemoteDeviceType:{link}")
        pci = answers.values(f"nvmlDeviceGetNvLinkRemotePciInfo_v2:{link}")
        neighbour = addresses.get(normal_address(str(pci[0])) or "") if pci else None
        if neighbour is not None:
            direct[neighbour] = direct.get(neighbour, 0.0) + rate
        elif remote == _SWITCH:
            switched += rate
    return direct, switched, inactive
