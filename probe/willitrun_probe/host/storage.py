"""The file systems under the folders where models live."""

from __future__ import annotations

from collections.abc import Mapping

from willitrun_probe.machine import Disk
from willitrun_probe.roots import Roots

NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "drvfs", "virtiofs", "ceph", "glusterfs", "lustre", "beegfs",
     "fuse.sshfs", "fuse.gcsfuse", "fuse.s3fs", "fuse.juicefs", "fuse.rclone", "afs", "gpfs"}
)  # fmt: skip
"""File systems whose reads cross a network or a virtual machine's border."""


_VIRTUAL_BUSES = ("/virtio", "/vmbus", "/vbd-", "/virtual/")
"""Virtual disks say that they spin, whatever is below them."""


def model_folders(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return (purpose, path) of the places where engines keep models, following their own variables.

    huggingface_hub: HF_HUB_CACHE, HF_HOME; ollama: OLLAMA_MODELS; llama.cpp: LLAMA_CACHE, XDG_CACHE_HOME.
    """
    home = environment.get("HOME", "")
    base = home.rstrip("/") if home.startswith("/") else None
    cache = environment.get("XDG_CACHE_HOME") or (f"{base}/.cache" if base is not None else None)
    hub = environment.get("HF_HUB_CACHE") or environment.get("HF_HOME") or (f"{cache}/huggingface" if cache else None)
    candidates = (
        ("huggingface", hub),
        ("ollama", environment.get("OLLAMA_MODELS") or (f"{base}/.ollama/models" if base is not None else None)),
        ("llama.cpp", environment.get("LLAMA_CACHE") or (f"{cache}/llama.cpp" if cache else None)),
        ("home", base or None),
    )
    return tuple((purpose, path) for purpose, path in candidates if path and path.startswith("/"))


def read_disks(roots: Roots, environment: Mapping[str, str]) -> tuple[Disk, ...]:
    """Read the file system below every model folder; a folder not made yet counts where it would be made."""
    mounts = _mounts(roots)
    found: list[Disk] = []
    for purpose, path in model_folders(environment):
        mount = max((m for m in mounts if _holds(m[0], path)), key=lambda m: len(m[0]), default=None)
        space = None
        folder = path.rstrip("/") or "/"
        while space is None and folder:
            space = roots.space(folder)
            if folder == "/":
                break
            folder = folder.rpartition("/")[0] or "/"
        kind = mount[2] if mount else None
        found.append(
            Disk(
                path=path,
                purpose=purpose,
                filesystem=kind,
                total_bytes=space.total_bytes if space else None,
                free_bytes=space.free_bytes if space else None,
                network=None if kind is None else kind in NETWORK,
                rotational=_rotational(roots, mount[1]) if mount else None,
            )
        )
    return tuple(found)


def _mounts(roots: Roots) -> list[tuple[str, str, str]]:
    """Return (mount point, major:minor, file system type) of every mount; later ones cover earlier ones."""
    found: dict[str, tuple[str, str, str]] = {}
    for line in (roots.text("/proc/self/mountinfo") or "").splitlines():
        left, mark, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if mark and len(fields) >= 5 and kind[0]:  # noqa: PLR2004 - proc(5), mountinfo
            point = fields[4].replace("\\040", " ")
            found[point] = (point, fields[2], kind[0])
    return list(found.values())


def _holds(mount_point: str, path: str) -> bool:
    return mount_point in {"/", path} or path.startswith(f"{mount_point.rstrip('/')}/")


def _rotational(roots: Roots, number: str) -> bool | None:
    """Say whether a block device spins; a partition asks the disk it is on."""
    if ":" not in number or "/" in number or number.startswith("0:"):
        return None
    place = roots.link(f"/sys/dev/block/{number}") or ""
    if any(bus in place for bus in _VIRTUAL_BUSES):
        return None
    for folder in (f"/sys/dev/block/{number}", f"/sys/dev/block/{number}/.."):
        value = roots.integer(f"{folder}/queue/rotational")
        if value in {0, 1}:
            return bool(value)
    return None
