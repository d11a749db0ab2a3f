from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from willitrun_here.fleet.app import Options

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
AGENT = uuid.UUID("0b0e6a52-6c5e-4d86-9a52-0f0a3d1b7a11")


@pytest.mark.slow
@pytest.mark.parametrize("access", ["read", "enrol", "agent", "none"])
def test_no_request_made_from_the_schema_is_answered_outside_of_it(
    start_server, sqlite_engine, make_report, make_machine, access, tmp_path
):
    program = shutil.which("schemathesis") or Path(sys.executable).parent / "schemathesis"
    if not Path(program).exists():
        pytest.skip("no schemathesis here: pip install schemathesis")
    server = start_server(sqlite_engine, options=Options(reports_per_s=1e6, enrolments_per_minute=1e6))
    server.fleet.mistakes._per_s = 1e6  # what is refused is what is looked at here
    agent = server.secret()
    server.put(make_report(make_machine(), 1), agent)
    token = {"read": server.read_token(), "enrol": server.enrol_token(), "agent": agent, "none": "nonsense"}[access]
    done = subprocess.run(
        [
            program, "run", f"{server.url}/openapi.json", "-H", f"Authorization: Bearer {token}", "--checks", CHECKS,
            "--max-examples", "25", "--phases", "examples,coverage,fuzzing", "--seed", "7", "--no-color",
            "--request-timeout", "20", "--generation-database", "none",
        ],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
