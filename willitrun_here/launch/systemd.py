"""A systemd unit that keeps the planned server running, with the hardening a network service should have."""

from __future__ import annotations

from pathlib import Path

from willitrun_here.launch import llama_cpp, numa, visible
from willitrun_here.launch.target import Target, artifact


def quoted(word: str) -> str:
    """Quote one word of ExecStart: systemd has its own escapes, and `%` and `$` are special."""
    escaped = assigned(word).replace("$", "$$")
    return f'"{escaped}"' if not escaped or any(c in escaped for c in " \t\"';|\\") else escaped


def assigned(word: str) -> str:
    """Escape what stands between double quotes in a unit: backslash, quote, line ends and `%` specifiers."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return escaped.replace("\n", "\\n").replace("\r", "\\r")


def described(text: str) -> str:
    """Return text for one line of a unit: a model's title comes from its file and may hold anything."""
    return " ".join(text.split()).replace("%", "%%").rstrip("\\ ")


HOMES = ("/home/", "/root/", "/run/user/")
"""What ProtectHome= covers (systemd.exec(5))."""


def unit(target: Target) -> str:
    """Return the unit file; directives are those of systemd 243 (September 2019) and later."""
    weights = artifact(target)
    path = None if weights.path is None else str(Path(weights.path).absolute())
    model = llama_cpp.model_arguments(target) if path is None else ["-m", path]
    start = [target.program, *model, *llama_cpp.server_arguments(target), *target.extra]
    lines = [f'Environment="{name}={assigned(value)}"' for name, value in visible.environment(target).items()]
    lines += [
        "DynamicUser=yes",
        "CacheDirectory=llama.cpp",
        "Environment=HOME=%C/llama.cpp LLAMA_CACHE=%C/llama.cpp",
        "ExecStart=" + " ".join(map(quoted, start)),
        "Restart=on-failure",
        "RestartSec=5",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        *home_directives([str(Path(name).parent) for name in (path, target.program) if name is not None]),
        "PrivateTmp=yes",
    ]
    if target.plan.gpu_uuids and target.plan.backend != "cuda":
        # NVIDIA's device files are open to everyone; those of the kernel's own drivers to these groups.
        lines.append("SupplementaryGroups=video render")
    lines += numa.directives(target)
    return (
        "[Unit]\n"
        f"Description=llama-server with {described(target.spec.title)} {target.plan.quant}\n"
        "After=network-online.target\n"
        "Wants=network-online.target\n"
        "\n"
        "[Service]\n" + "\n".join(lines) + "\n\n[Install]\nWantedBy=multi-user.target\n"
    )


def home_directives(folders: list[str]) -> list[str]:
    """Hide the homes from the unit's own user, but for folders it needs, which it could not enter otherwise.

    A colon inside quotes does not begin the target of a mount.
    """
    needed = sorted({folder for folder in folders if f"{folder}/".startswith(HOMES)})
    if not needed:
        return ["ProtectHome=yes"]
    return ["ProtectHome=tmpfs", *(f'BindReadOnlyPaths="{assigned(folder)}"' for folder in needed)]
