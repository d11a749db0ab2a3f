from __future__ import annotations

import re
import socket
import uuid

import msgspec

from willitrun_here.fleet import operations
from willitrun_here.fleet.app import SECURITY_HEADERS, Options
from willitrun_here.fleet.auth import create_token, revoke_token
from willitrun_here.fleet.document import MAX_BODY_BYTES, encode

AGENT = uuid.UUID("0b0e6a52-6c5e-4d86-9a52-0f0a3d1b7a11")
GUARDED = [operation for operation in operations.ALL if operation.access != "open"]


def address(operation):
    return operation.path.replace("{agent_id}", str(AGENT)).replace("{sequence}", "1")


def test_every_operation_refuses_without_a_token_and_with_any_wrong_one(server, clock):
    now = clock()
    revoked = create_token(server.engine, "read", now=now)
    revoke_token(server.engine, revoked, now=now)
    wrong = {
        "none": None,
        "nonsense": "wih_read_nonsense",
        "empty": "",
        "not ascii": "t\u00f6ken",
        "expired read": create_token(server.engine, "read", now=now - 100, lifetime_s=1.0),
        "expired enrolment": create_token(server.engine, "enrol", now=now - 100, lifetime_s=1.0),
        "revoked": revoked,
    }
    kinds = {
        "enrol": create_token(server.engine, "enrol", now=now),
        "read": create_token(server.engine, "read", now=now),
        "agent": server.secret(agent=uuid.uuid4()),
    }
    for operation in GUARDED:
        unfit = {f"of {kind}": token for kind, token in kinds.items() if not fits(kind, operation.access)}
        for name, token in (wrong | unfit).items():
            clock.now += 1.0  # refused requests are slowed down
            headers = {} if token is None else {"Authorization": f"Bearer {token}".encode().decode("latin-1")}
            status, _, _ = server.call(operation.method, address(operation), headers=headers, body=b"{}")
            assert status in (401, 403), (operation.name, name, status)


def fits(kind, access):
    # The agent's token here is another agent's, so it fits nothing.
    return (kind == "enrol" and access == "enrol") or (kind == "read" and access in ("read", "page"))


def test_open_operations_are_few_and_known():
    assert {operation.name for operation in operations.ALL if operation.access == "open"} == {
        "healthz", "login_form", "login", "logout", "static",
    }  # fmt: skip


def test_an_agent_writes_under_its_own_name_only(server, make_report, make_machine):
    own = server.secret()
    other = make_report(make_machine(), 1, agent=uuid.uuid4())
    assert server.put(other, own)[0] == 401
    mine = make_report(make_machine(), 1)
    status, _, body = server.put(mine, own)
    assert (status, msgspec.json.decode(body)) == (200, {"result": "stored", "need": []})
    assert server.put(mine, own)[2] == b'{"result":"duplicate","need":[]}'
    path = f"/api/v1/agents/{AGENT}/reports/9"
    assert server.call("PUT", path, token=own, body=encode(mine))[0] == 400


def test_another_machine_with_the_same_token_is_told_that_it_is_a_clone(server, make_report, make_machine):
    own = server.secret(fingerprint={"machine": "m1", "product": "p1"})
    from willitrun_here.fleet.document import Fingerprint  # noqa: PLC0415

    moved = make_report(make_machine(), 1, fingerprint=Fingerprint(machine="m2", product="p1"))
    assert server.put(moved, own)[0] == 200  # a new machine id on the same hardware: a container made anew
    other = make_report(make_machine(), 2, fingerprint=Fingerprint(machine="m1", product="p2"))
    assert server.put(other, own)[0] == 409
    assert server.enrol(fingerprint={"machine": "m1", "product": "p2"})[0] == 409


def test_bodies_are_limited_whether_their_length_is_told_or_not(server):
    token = server.secret()
    path = f"/api/v1/agents/{AGENT}/reports/1"
    assert server.call("PUT", path, token=token, body=b"x" * (MAX_BODY_BYTES + 1))[0] == 413
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
        head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n"
        raw.sendall(head.encode())
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        try:
            for _ in range(8):
                raw.sendall(chunk)
        except OSError:
            pass
        assert b" 413 " in raw.recv(1024)


BAD_BODIES = (b"", b"{", b"[]", b"null", b'{"schema":1}', b"\xff\xfe", b'{"schema":"willitrun.report/2.0"}')


def test_bad_documents_are_answered_with_400_and_a_reason(server):
    secret = server.secret()
    for body in BAD_BODIES:
        status, _, answer = server.call("PUT", f"/api/v1/agents/{AGENT}/reports/1", token=secret, body=body)
        assert (status, msgspec.json.decode(answer)["code"]) == (400, "not-acceptable"), body


WRONG_QUERIES = (
    "sort=age", "limit=0", "limit=x", "after=%00", "after=!!", "after=bnVsbA", "min_free_bytes=-1", "nosuch=1",
    "q=%00", f"q={'x' * 300}", "status=dead",
)  # fmt: skip


def test_wrong_queries_are_answered_with_400(server):
    read = server.read_token()
    for query in WRONG_QUERIES:
        assert server.call("GET", f"/api/v1/machines?{query}", token=read)[0] == 400, query


def test_every_answer_carries_the_headers_that_protect_a_browser(server):
    token = server.read_token()
    for path in ("/", "/healthz", "/login", "/nothing", "/static/fleet.css", "/api/v1/machines", "/openapi.json"):
        _, headers, _ = server.call("GET", path, token=token)
        for name, value in SECURITY_HEADERS.items():
            assert headers.get(name.lower(), headers.get(name)) in (value, "max-age=3600"), (path, name)
    assert "unsafe" not in SECURITY_HEADERS["Content-Security-Policy"]


def test_unknown_paths_and_methods_are_answered_as_json(server):
    assert server.call("GET", "/nothing")[0] == 404
    status, headers, _ = server.call("DELETE", "/healthz")
    assert (status, "GET" in headers.get("allow", headers.get("Allow", ""))) == (405, True)


def fill(server, make_report, make_machine, count=25):
    for number in range(count):
        agent = uuid.UUID(int=number + 1)
        machine = make_machine(f"node-{number:03d}", gpus=number % 3, free=number % 24, at=server.clock.now)
        labels = {"site": "ams1" if number % 2 else "fra1"}
        secret = server.secret(agent=agent, fingerprint={"machine": f"m{number}"})
        from willitrun_here.fleet.document import Fingerprint  # noqa: PLC0415

        report = make_report(machine, 1, agent=agent, fingerprint=Fingerprint(machine=f"m{number}"), labels=labels)
        assert server.put(report, secret)[0] == 200


def test_pages_show_every_machine_once_in_every_order(start_server, engine, make_report, make_machine):
    server = start_server(engine)
    fill(server, make_report, make_machine, 12)
    read = server.read_token()
    for sort in ("name", "-name", "vram", "-vram", "free", "-free", "ram", "-ram", "seen", "-seen"):
        seen, after = [], ""
        while after is not None:
            page = server.get(f"/api/v1/machines?limit=5&sort={sort}&after={after}", read)
            seen += [row["agent_id"] for row in page["machines"]]
            after = page["next"]
        assert len(seen) == len(set(seen)) == 12, sort


def test_filters_mean_what_they_say(start_server, engine, make_report, make_machine):
    server = start_server(engine)
    fill(server, make_report, make_machine, 12)
    read = server.read_token()

    def count(query):
        return len(server.get(f"/api/v1/machines?{query}", read)["machines"])

    assert count("q=NODE-00") == 10
    assert count("q=%25") == 0
    assert count("gpu=rtx") == 8
    assert count("label=site=ams1") == 6
    assert count("label=site=ams") == 0
    assert count("min_free_bytes=1") == 8
    assert (count("status=live"), count("status=late")) == (12, 0)
    server.clock.now += 3600
    assert (count("status=live"), count("status=late")) == (0, 12)
    server.clock.now += 86400
    assert count("status=gone") == 12
    assert server.get("/api/v1/totals", read)["gone"] == 12


def test_totals_and_metrics_sum_the_fleet(start_server, engine, make_report, make_machine):
    server = start_server(engine)
    fill(server, make_report, make_machine, 6)
    read = server.read_token()
    totals = server.get("/api/v1/totals", read)
    assert (totals["machines"], totals["live"], totals["gpus"]) == (6, 6, {"NVIDIA GeForce RTX 3090": 6})
    assert totals["vram_total_bytes"] == 6 * 24 * 1024**3
    status, _headers, body = server.call("GET", "/metrics", token=read)
    text = body.decode()
    assert status == 200
    assert 'willitrun_fleet_machines{status="live"} 6.0' in text
    assert 'willitrun_fleet_reports_total{result="stored"} 6.0' in text
    assert 'willitrun_fleet_gpus{model="NVIDIA GeForce RTX 3090"} 6.0' in text
    assert "node-00" not in text


def test_csv_has_one_line_a_machine_and_no_formulas(server, make_report, make_machine):
    secret = server.secret()
    assert server.put(make_report(make_machine('=HYPERLINK("x")'), 1), secret)[0] == 200
    status, _headers, body = server.call("GET", "/api/v1/machines.csv", token=server.read_token())
    lines = body.decode().splitlines()
    assert status == 200
    assert len(lines) == 2
    assert lines[0].startswith("agent_id,name,status,gpus")
    assert "\"'=HYPERLINK" in lines[1]


def test_the_model_question_is_answered_over_http(server, make_report, make_machine):
    server.put(make_report(make_machine(free=20), 1), server.secret())
    read = server.read_token()
    answer = server.get("/api/v1/where?model=toy-8b&context=4096&users=2&min_decode=10", read)
    assert [row["verdict"] for row in answer["machines"]] == ["runs-now"]
    assert server.call("GET", "/api/v1/where?model=nosuch", token=read)[0] == 404
    assert server.call("GET", "/api/v1/where?model=/etc/passwd", token=read)[0] == 404
    assert server.call("GET", "/api/v1/where", token=read)[0] == 400
    assert server.call("GET", "/api/v1/where?model=toy-8b&engine=nosuch", token=read)[0] == 400
    assert server.get("/api/v1/plan?model=toy-8b", read)["single"] == ["box"]


def test_too_many_refused_requests_and_reports_are_slowed_down(start_server, sqlite_engine, make_report, make_machine):
    server = start_server(sqlite_engine, options=Options(reports_per_s=0.001, enrolments_per_minute=2))
    secret = server.secret()
    statuses = [server.put(make_report(make_machine(), 1), secret)[0] for _ in range(70)]
    assert statuses[0] == 200
    assert statuses[-1] == 429
    refused = [server.call("GET", "/api/v1/machines", token="wrong") for _ in range(120)]
    assert refused[0][0] == 401
    assert refused[-1][0] == 429
    assert "retry-after" in {name.lower() for name in refused[-1][1]}
    assert [server.enrol(agent=uuid.uuid4())[0] for _ in range(3)][-1] == 429


def test_a_reader_named_by_a_trusted_proxy_needs_no_token(start_server, sqlite_engine):
    trusting = start_server(sqlite_engine, options=Options(trusted_proxies=("127.0.0.1",)))
    headers = {"X-Forwarded-User": "ada"}
    assert trusting.call("GET", "/api/v1/machines", headers=headers)[0] == 200
    assert trusting.call("GET", "/api/v1/machines")[0] == 401


def test_a_forwarded_user_from_anybody_else_is_nobody(server):
    assert server.call("GET", "/api/v1/machines", headers={"X-Forwarded-User": "ada"})[0] == 401


def test_a_login_keeps_the_token_in_a_cookie_that_scripts_and_other_sites_cannot_use(server):
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert server.call("POST", "/login", body=b"token=wrong", headers=form)[0] == 401
    body = f"token={server.read_token()}".encode()
    status, headers, _ = server.call("POST", "/login", body=body, headers=form)
    cookie = next(value for name, value in headers.items() if name.lower() == "set-cookie")
    assert status == 303
    assert {"httponly", "samesite=strict"} <= {part.strip().lower() for part in cookie.split(";")}
    cookie = cookie.split(";")[0]
    assert server.call("GET", "/", headers={"Cookie": cookie})[0] == 200


HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}"


def test_names_from_machines_are_text_on_every_page(server, make_report, make_machine):
    report = make_report(make_machine(HOSTILE, model=HOSTILE), 1, labels={HOSTILE: HOSTILE})
    assert server.put(report, server.secret())[0] == 200
    read = server.read_token()
    for path in (
        "/",
        f"/machines/{AGENT}",
        "/ask?model=toy-8b",
        "/plan?model=toy-8b",
        f"/ask?model={'%3Cscript%3E'}",
        "/totals",
    ):
        _, _, body = server.call("GET", path, token=read)
        text = body.decode()
        assert "<script>alert" not in text and "<script>" not in re.sub(r'<script src="/static', "", text), path  # noqa: PT018
        assert "49" not in re.findall(r"\{\{|&amp;(49)", text)


def test_healthz_says_when_the_database_is_gone(start_server, sqlite_engine, monkeypatch):
    server = start_server(sqlite_engine)
    assert server.call("GET", "/healthz")[0] == 200
    monkeypatch.setattr("willitrun_here.fleet.api._ping", lambda fleet: 1 / 0)
    assert server.call("GET", "/healthz")[0] == 503


def test_the_openapi_document_names_every_operation_for_programs(server):
    document = msgspec.json.decode(server.call("GET", "/openapi.json")[2])
    found = {spec["operationId"] for path in document["paths"].values() for spec in path.values()}
    assert found == {operation.name for operation in operations.API}
    put = document["paths"]["/api/v1/agents/{agent_id}/reports/{sequence}"]["put"]
    assert put["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Report"}
    assert {"200", "400", "401", "409", "413", "429"} <= put["responses"].keys()


def test_the_page_of_groups_shows_every_command(server, make_report, make_machine):
    for number in (1, 2):
        agent = uuid.UUID(int=number)
        secret = server.secret(agent=agent)
        assert server.put(make_report(make_machine(f"n{number}", total=8), 1, agent=agent), secret)[0] == 200
    read = server.read_token()
    status, _, body = server.call("GET", "/plan?model=toy-8b", token=read)
    text = body.decode()
    assert status == 200
    assert "ggml-rpc-server -H n2 -p 50052 -c" in text
    assert "--nnodes 2 --node-rank 1 --master-addr n1 --headless" in text
    assert server.call("GET", "/plan?model=nosuch", token=read)[0] == 400
