from __future__ import annotations

import shutil
import ssl
import subprocess

import pytest

from willitrun_here.fleet.agent import beat
from willitrun_here.fleet.errors import FleetUsageError, UnreachableError
from willitrun_here.fleet.send import Security, connect
from willitrun_here.fleet.serve import Listen, check_listen, peer_protocol, subject_of


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, the server's certificate for 127.0.0.1 and one of an agent."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl here: apt-get install openssl")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words):
        subprocess.run([program, *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test authority",
            "-addext", "keyUsage=critical,keyCertSign", "-addext", "basicConstraints=critical,CA:TRUE")  # fmt: skip
    for name, extra in (("server", "subjectAltName=IP:127.0.0.1"), ("agent", "extendedKeyUsage=clientAuth")):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/O=site/CN={name}-1")
        (folder / "extension").write_text(extra + "\nauthorityKeyIdentifier=keyid\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-out", f"{name}.pem",
                "-days", "2", "-extfile", "extension")  # fmt: skip
    return folder


@pytest.fixture
def tls_server(start_server, sqlite_engine, certificates):
    listen = {
        "ssl_certfile": certificates / "server.pem", "ssl_keyfile": certificates / "server.key",
        "ssl_ca_certs": str(certificates / "ca.pem"), "ssl_cert_reqs": ssl.CERT_OPTIONAL, "http": peer_protocol(),
    }  # fmt: skip
    server = start_server(sqlite_engine, listen=listen)
    server.url = server.url.replace("http:", "https:")
    return server


def run(server, setup, machine, security, token, clock):
    send = connect(server.url, security, timeout_s=5)
    return beat(machine, setup, send, enrol_token=token, now=clock, patient=False)


def test_reports_go_over_tls_that_is_verified(tls_server, setup_at, make_machine, certificates, clock):
    token = tls_server.enrol_token()
    trusting = Security(ca_file=certificates / "ca.pem")
    assert run(tls_server, setup_at("a"), make_machine(), trusting, token, clock).delivered == 1
    refused = run(tls_server, setup_at("b"), make_machine(), Security(), token, clock)
    assert (refused.delivered, refused.waiting) == (0, 1)
    assert "--ca-file" in refused.advice


def test_an_agent_with_a_certificate_needs_no_token(tls_server, setup_at, make_machine, certificates, clock):
    shown = Security(
        ca_file=certificates / "ca.pem",
        certificate_file=certificates / "agent.pem",
        key_file=certificates / "agent.key",
    )
    setup = setup_at(certified=True)
    send = connect(tls_server.url, shown, timeout_s=5)
    for free in (9, 3):
        done = beat(make_machine(free=free), setup, send, enrol_token=None, now=clock, patient=False)
        assert (done.delivered, done.problem) == (1, None)
    assert not (setup.directory / "token").exists()


def test_a_certificate_belongs_to_the_agent_that_showed_it_first(
    tls_server, setup_at, make_machine, certificates, clock
):
    from willitrun_here.fleet.errors import RefusedError  # noqa: PLC0415

    shown = Security(
        ca_file=certificates / "ca.pem",
        certificate_file=certificates / "agent.pem",
        key_file=certificates / "agent.key",
    )
    token_agent = setup_at("a")
    trusting = Security(ca_file=certificates / "ca.pem")
    run(tls_server, token_agent, make_machine(), trusting, tls_server.enrol_token(), clock)
    (token_agent.directory / "token").unlink()
    token_agent = setup_at("a", certified=True)
    send = connect(tls_server.url, shown, timeout_s=5)
    with pytest.raises(RefusedError):
        beat(make_machine(), token_agent, send, enrol_token=None, now=clock, patient=False)


def test_addresses_beyond_loopback_need_tls():
    check_listen(Listen())
    check_listen(Listen(host="::1"))
    check_listen(Listen(host="0.0.0.0", allow_plain_http=True))  # noqa: S104
    for listen in (Listen(host="0.0.0.0"), Listen(host="fleet.example"), Listen(client_ca_file="ca.pem")):  # noqa: S104
        with pytest.raises(FleetUsageError):
            check_listen(listen)


def test_subjects_are_one_line():
    assert subject_of({"subject": ((("organizationName", "site"),), (("commonName", "n1"),))}) == (
        "organizationName=site,commonName=n1"
    )
    assert subject_of(None) is None
    assert subject_of({}) is None


def test_wrong_certificate_files_are_a_usage_error(tmp_path):
    (tmp_path / "bad.pem").write_text("x")
    with pytest.raises((FleetUsageError, UnreachableError)):
        connect("https://127.0.0.1:1", Security(ca_file=tmp_path / "bad.pem"))
