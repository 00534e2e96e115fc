"""Checks bodies against the schemas of docs/openapi/etsi020.yaml."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

_DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi" / "etsi020.yaml"


@cache
def document() -> dict[str, Any]:
    """The whole OpenAPI document."""
    loaded: dict[str, Any] = yaml.safe_load(_DOCUMENT.read_text())
    return loaded


@cache
def _validator(name: str) -> Draft202012Validator:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document()["components"]}
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def check(name: str, body: bytes) -> Any:
    """The parsed body; fails unless it is a `name` by the document."""
    parsed = json.loads(body)
    errors = [f"{error.json_path}: {error.message}" for error in _validator(name).iter_errors(parsed)]
    assert not errors, errors
    return parsed


def conforms(name: str, body: bytes) -> bool:
    """Whether the body is a `name` by the document."""
    return _validator(name).is_valid(json.loads(body))
