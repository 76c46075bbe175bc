"""Columns of parquet files that hold lists, structs or maps: each cell becomes JSON, as cells of JSON tables are."""

import json
from typing import Any

import pyarrow as pa

INSIDE = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean, pa.types.is_integer),
    *(pa.types.is_floating, pa.types.is_decimal, pa.types.is_temporal),
)  # types of values in a list or struct; those without bytes of their own could be many in a small file


def check_nested(name: str, kind: pa.DataType) -> None:
    """Check that the values of a nested column can be written as JSON.

    Raises:
        ValueError: They cannot.
    """
    if pa.types.is_struct(kind) and kind.num_fields:
        parts = [kind.field(number).type for number in range(kind.num_fields)]
    elif pa.types.is_map(kind):
        parts = [kind.key_type, kind.item_type]
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        parts = [kind.value_type]
    elif any(check(kind) for check in INSIDE):
        parts = []
    else:
        raise ValueError(f"the column {name} holds values of type {str(kind)[:80]}")
    for part in parts:
        check_nested(name, part)


def json_cells(name: str, column: pa.Array, most: int) -> tuple[pa.Array, dict[int, str]]:
    """Return the cells of a nested column as JSON.

    Args:
        name: Of the column.
        column: Its cells; ``check_nested`` has accepted their type.
        most: Bytes that a cell may have.

    Returns:
        The cells as strings, None for null, and the reason for each row whose cell is larger and left out.
    """
    texts, reasons = list[str | None](), dict[int, str]()
    kind, plain = column.type, _plain_of(column.type)
    for row in range(len(column)):
        size = column.slice(row, 1).nbytes
        if size > most:
            reasons[row] = f"{name} has {size} bytes, more than {most}"
            texts.append(None)
            continue
        value = column[row].as_py()
        value = _with_maps(value, kind) if not plain else value
        texts.append(None if value is None else json.dumps(value, ensure_ascii=False, default=str))
    return pa.array(texts, pa.string()), reasons


def _plain_of(kind: pa.DataType) -> bool:
    """Return whether a type holds no map, which pyarrow gives as pairs."""
    return "map<" not in str(kind)


def _with_maps(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_map(kind):
        return {str(key): _with_maps(item, kind.item_type) for key, item in value}
    if pa.types.is_struct(kind):
        return {field.name: _with_maps(value[field.name], field.type) for field in kind}
    if isinstance(value, list):
        return [_with_maps(item, kind.value_type) for item in value]
    return value
