from __future__ import annotations

import shutil
import stat
import subprocess
import uuid
from pathlib import Path

import pytest

from willitrun_here.fleet.errors import FleetError
from willitrun_here.fleet.identity import (
    APPLICATION_ID,
    application_specific,
    fingerprint,
    load_agent,
    load_secret,
    read_secret,
    save_agent,
    save_secret,
)  # fmt: skip


def test_the_application_specific_id_is_systemds(tmp_path):
    program = shutil.which("systemd-id128")
    machine_id = "/etc/machine-id"
    done = program and subprocess.run(
        [program, "machine-id", f"--app-specific={APPLICATION_ID.hex}"], capture_output=True, text=True, check=False
    )
    if not done or done.returncode:
        pytest.skip("no systemd-id128 or no machine id here: apt-get install systemd && systemd-machine-id-setup")
    assert application_specific(Path(machine_id).read_text().strip()) == done.stdout.strip()


def test_an_application_specific_id_is_a_version_4_uuid_and_not_the_machine_id():
    derived = application_specific("9d1bd52f8e2f4b6e9a0d3c5a7b1e2f30")
    assert uuid.UUID(derived).version == 4
    assert derived != "9d1bd52f8e2f4b6e9a0d3c5a7b1e2f30"
    assert application_specific("not an id") is None


def test_fingerprints_hash_what_is_there_and_are_unknown_where_it_is_not(tmp_path):
    assert fingerprint(tmp_path).machine is None
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("9d1bd52f8e2f4b6e9a0d3c5a7b1e2f30\n")
    (tmp_path / "sys/class/dmi/id").mkdir(parents=True)
    (tmp_path / "sys/class/dmi/id/product_uuid").write_text("4C4C4544-0042-CANARY\n")
    found = fingerprint(tmp_path)
    assert len(found.machine) == 32
    assert len(found.product) == 64
    assert "9d1bd52f" not in found.machine
    assert "CANARY" not in found.product


def test_an_agent_keeps_its_id_and_its_secret_is_its_users_alone(tmp_path):
    folder = tmp_path / "state"
    agent = load_agent(folder)
    assert load_agent(folder) == agent
    save_secret(folder, "wih_agent_x")
    assert load_secret(folder) == "wih_agent_x"
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    save_secret(folder, None)
    assert load_secret(folder) is None


def test_a_damaged_record_is_an_error_with_advice_and_never_a_new_identity(tmp_path):
    save_agent(tmp_path, load_agent(tmp_path))
    (tmp_path / "agent.json").write_text("{")
    with pytest.raises(FleetError, match="cannot read"):
        load_agent(tmp_path)


def test_secrets_come_from_files_that_others_cannot_write(tmp_path):
    file = tmp_path / "token"
    with pytest.raises(FleetError):
        read_secret(file)
    file.write_text("\n")
    with pytest.raises(FleetError, match="empty"):
        read_secret(file)
    file.write_text(" wih_enrol_x \n")
    assert read_secret(file) == "wih_enrol_x"
    file.chmod(0o666)
    with pytest.raises(FleetError, match="anybody can write"):
        read_secret(file)
