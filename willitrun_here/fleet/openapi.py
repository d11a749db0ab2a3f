"""The OpenAPI 3.1 document, made from the table of operations and the Structs they validate with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, get_type_hints

import msgspec

from willitrun_here import __version__
from willitrun_here.fleet.document import Problem
from willitrun_here.fleet.endpoint import Operation

REF = "#/components/schemas/{name}"

GUARDED: Mapping[str, tuple[int, ...]] = {
    "open": (),
    "enrol": (401, 413, 429),
    "agent": (401, 403, 413, 429),
    "read": (401, 429),
}
"""What every operation of an access kind may also answer."""


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """Describe operations; those for programs are meant, pages for people need no description."""
    described = list(operations)
    structs: set[Any] = {Problem}
    for operation in described:
        structs |= {kind for kind in operation.answers.values() if isinstance(kind, type)}
        structs |= {operation.body} if operation.body is not None else set()
    ordered = sorted(structs, key=lambda kind: kind.__name__)
    schemas, components = msgspec.json.schema_components(ordered, ref_template=REF)
    references = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, Any] = {}
    for operation in described:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": "willitrun-here fleet", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                kind: {"type": "http", "scheme": "bearer", "description": f"A token for: {kind}."}
                for kind in ("enrol", "agent", "read")
            },
        },
    }


def _operation(operation: Operation, references: Mapping[type, Any]) -> dict[str, Any]:
    answers = dict(operation.answers)
    for status in GUARDED[operation.access]:
        answers.setdefault(status, Problem)
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [*_path_parameters(operation), *_query_parameters(operation)],
        "responses": {str(status): _answer(status, kind, references) for status, kind in sorted(answers.items())},
    }
    if operation.access != "open":
        described["security"] = [{operation.access: []}]
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": references[operation.body]}},
        }
    return described


def _answer(status: int, kind: Any, references: Mapping[type, Any]) -> dict[str, Any]:
    if isinstance(kind, type):
        content = {"application/json": {"schema": references[kind]}}
    else:
        content = {kind: {"schema": {"type": "string"}}}
    return {"description": HTTPStatus(status).phrase, "content": content}


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in operation.path_schemas.items()
    ]


def _query_parameters(operation: Operation) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    hints = get_type_hints(operation.query, include_extras=True)
    parameters = []
    for field in msgspec.structs.fields(operation.query):
        schema = msgspec.json.schema(hints[field.name])
        schema.pop("$defs", None)
        if not field.required and field.default is not None:
            schema["default"] = field.default
        parameters.append(
            {"name": field.encode_name, "in": "query", "required": field.required, "schema": schema}
        )  # fmt: skip
    return parameters
