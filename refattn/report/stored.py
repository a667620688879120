"""A report read back from its JSON file, and held to its published layout (ours).

`require` knows the part of JSON Schema by which ``schema/report.schema.json`` says which fields there are and of which
type, so a file that was cut or edited is refused with the field's name before anything is made of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from refattn.report.document import SCHEMA, schema

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "integer": (int,),
    "number": (int, float), "null": (type(None),),
}  # fmt: skip


def read(text: str | bytes) -> dict[str, Any]:
    """Return a report from the text of its JSON file; ``ValueError`` says what is not as its layout asks.

    >>> read('{"schema": "refattn-report/0"}')
    Traceback (most recent call last):
        ...
    ValueError: the layout 'refattn-report/0' came, a report of the layout 'refattn-report/...' was wanted
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON came ({error}), a report of the layout {SCHEMA!r} was wanted") from None
    layout = found.get("schema") if isinstance(found, dict) else None
    if layout != SCHEMA:
        told = "something else" if layout is None else f"the layout {layout!r}"
        raise ValueError(f"{told} came, a report of the layout {SCHEMA!r} was wanted")
    document: dict[str, Any] = found
    require(document, schema())
    return document


def require(value: Any, layout: Mapping[str, Any], name: str = "report", root: Mapping[str, Any] | None = None) -> None:
    """Raise ``ValueError`` naming the first field that a layout asks for and a value lacks, or that is of another type.

    >>> require({"rows": [{}]}, {"properties": {"rows": {"items": {"type": "object", "required": ["id"]}}}})
    Traceback (most recent call last):
        ...
    ValueError: report.rows[0].id: nothing came, a field was wanted
    """
    root = layout if root is None else root
    while "$ref" in layout:
        layout = root["$defs"][layout["$ref"].rpartition("/")[2]]
    if "anyOf" in layout:
        _require_any(value, layout["anyOf"], name, root)
    kinds = layout.get("type", list(_TYPES))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not any(isinstance(value, _TYPES[kind]) and isinstance(value, bool) <= (kind == "boolean") for kind in kinds):
        raise ValueError(f"{name}: {type(value).__name__} came, {' or '.join(kinds)} was wanted")
    if "enum" in layout and value not in layout["enum"]:
        raise ValueError(f"{name}: {value!r} came, one of {layout['enum']} was wanted")
    if isinstance(value, dict):
        for field in layout.get("required", ()):
            if field not in value:
                raise ValueError(f"{name}.{field}: nothing came, a field was wanted")
        for field, inner in layout.get("properties", {}).items():
            if field in value:
                require(value[field], inner, f"{name}.{field}", root)
    elif isinstance(value, list):
        for place, one in enumerate(value):
            require(one, layout.get("items", {}), f"{name}[{place}]", root)


def _require_any(value: Any, layouts: list[Mapping[str, Any]], name: str, root: Mapping[str, Any]) -> None:
    told = []
    for layout in layouts:
        try:
            return require(value, layout, name, root)
        except ValueError as error:
            told.append(str(error))
    raise ValueError(told[0])
