"""A systemd unit that keeps the planned server running, with the hardening a network service should have."""

from __future__ import annotations

from willitrun_here.launch import llama_cpp
from willitrun_here.launch.target import Target


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


def unit(target: Target) -> str:
    """Return the unit file."""
    built = llama_cpp.render(target)
    env = "".join(f'Environment="{name}={assigned(value)}"\n' for name, value in built.env.items())
    program, *arguments = built.argv
    start = " ".join([quoted(program), *map(quoted, arguments)])
    return (
        "[Unit]\n"
        f"Description=llama-server with {described(target.spec.title)} {target.plan.quant}\n"
        "After=network-online.target\n"
        "Wants=network-online.target\n"
        "\n"
        "[Service]\n"
        f"{env}"
        "DynamicUser=yes\n"
        "CacheDirectory=llama.cpp\n"
        "Environment=LLAMA_CACHE=%C/llama.cpp\n"
        f"ExecStart={start}\n"
        "Restart=on-failure\n"
        "RestartSec=5\n"
        "NoNewPrivileges=yes\n"
        "ProtectSystem=strict\n"
        "ProtectHome=read-only\n"
        "PrivateTmp=yes\n"
        f"SupplementaryGroups={'video render' if target.plan.gpu_uuids else ''}\n"
        "\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    )
