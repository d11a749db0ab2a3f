from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_here.fleet.document import MAX_BODY_BYTES, decode, digest, encode
from willitrun_here.fleet.errors import DocumentError
from willitrun_here.fleet.schema import report_schema, text

SCHEMA_FILE = Path(__file__).parents[3] / "docs" / "schemas" / "report.json"


def changed(report, **members):
    raw = msgspec.json.decode(encode(report))
    raw.update(members)
    return msgspec.json.encode(raw)


def test_the_schema_in_the_documentation_is_the_one_of_this_code():
    assert SCHEMA_FILE.read_text() == text(), "python -m willitrun_here.fleet.schema > docs/schemas/report.json"


def test_reports_validate_against_the_schema(make_report, make_machine):
    schema = report_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for report in (make_report(make_machine(gpus=2), 1), make_report(make_machine(gpus=0), 2, with_facts=False)):
        jsonschema.validate(json.loads(encode(report)), schema)


def test_a_report_survives_the_way(make_report, make_machine):
    report = make_report(make_machine(), 7)
    assert decode(encode(report))[0] == report


def test_a_newer_minor_version_is_read_and_kept_whole(make_report, make_machine):
    body = changed(make_report(make_machine(), 1), schema="willitrun.report/1.7", weather="fine")
    report, raw = decode(body)
    assert report.sequence == 1
    assert raw["weather"] == "fine"


@pytest.mark.parametrize(
    "schema", ["willitrun.report/2.0", "willitrun.report/10.0", "willitrun.machine/1", "", "x" * 300]
)
def test_another_major_version_is_refused_with_the_versions_that_are_read(schema, make_report, make_machine):
    with pytest.raises(DocumentError) as caught:
        decode(changed(make_report(make_machine(), 1), schema=schema))
    assert caught.value.accepts == ("willitrun.report/1.0",)


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"sequence": 0}, "$.sequence"),
        ({"sequence": 2**63}, "$.sequence"),
        ({"sequence": True}, "$.sequence"),
        ({"agent_id": "me"}, "$.agent_id"),
        ({"observed_at": "yesterday"}, "$.observed_at"),
        ({"observed_at": "2026-11-21T22:10:00"}, "$.observed_at"),
        ({"labels": {"a": "x" * 257}}, "$.labels"),
        ({"labels": {"a": "\0"}}, "$.labels.a"),
        ({"labels": {str(n): "" for n in range(33)}}, "$.labels"),
        ({"state": {"gpus": [{"key": "k"}] * 65}}, "$.state.gpus"),
        ({"state": {"ram_free_bytes": -1}}, "$.state.ram_free_bytes"),
        ({"weather": "x" * 257}, "$.weather"),
        ({"weather": [[[[[[[[[[[[[[1]]]]]]]]]]]]]]}, "$.weather"),
        ({"facts_hash": "sha256:0"}, "$.facts_hash"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_path(members, path, make_report, make_machine):
    with pytest.raises(DocumentError) as caught:
        decode(changed(make_report(make_machine(), 1), **members))
    assert path in caught.value.message


def test_a_body_beyond_the_limit_is_not_even_decoded():
    with pytest.raises(DocumentError, match="bytes"):
        decode(b"[" * (MAX_BODY_BYTES + 1))


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_any_bytes_end_in_an_error_that_is_known(body):
    with pytest.raises(DocumentError):
        decode(body)


def test_deep_nesting_ends_in_an_error_that_is_known():
    with pytest.raises(DocumentError):
        decode(b'{"schema":"willitrun.report/1.0","x":' + b"[" * 100_000)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(VALUES)
def test_the_digest_depends_on_values_and_not_on_their_layout(value):
    pretty = json.dumps(value, indent=3, sort_keys=False)
    assert digest(msgspec.json.decode(pretty)) == digest(msgspec.json.decode(msgspec.json.encode(value)))
