from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

DATA = Path(__file__).parents[3] / "willitrun_here" / "data"
UNITS = sorted((DATA / "systemd").iterdir())


@pytest.fixture
def analyze(tmp_path):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze here: apt-get install systemd")
    for unit in UNITS:  # the program need not be installed where the tests run
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/bin/willitrun-here", "/bin/true"))

    def run(*words):
        return subprocess.run([program, *words], capture_output=True, text=True, check=False, cwd=tmp_path)

    return run


def test_systemd_accepts_the_units_without_a_word(analyze):
    done = analyze("verify", "--man=no", *(f"./{unit.name}" for unit in UNITS))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("unit", [unit.name for unit in UNITS if unit.suffix == ".service"])
def test_services_are_hardened(analyze, unit):
    done = analyze("security", "--offline=yes", "--threshold=25", f"./{unit}")
    assert done.returncode == 0, done.stdout[-500:]


def pods():
    documents = list(yaml.safe_load_all((DATA / "kubernetes" / "report.yaml").read_text()))
    return [item["spec"]["template"]["spec"] for item in documents if item["kind"] == "DaemonSet"]


def test_daemon_sets_are_unprivileged_and_take_no_gpu_away():
    assert len(pods()) == 2
    for pod in pods():
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert "hostNetwork" not in pod
        assert "hostPID" not in pod
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert pod["securityContext"]["runAsNonRoot"] is True
        for amounts in container["resources"].values():
            assert set(amounts) <= {"cpu", "memory"}


def test_state_outlives_the_pod_and_the_secret_is_a_file():
    for pod in pods():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert "hostPath" in volumes[mounts["/state"]]
        assert "secret" in volumes[mounts["/enrol"]]
        assert "--enrol-token-file" in pod["containers"][0]["args"]
