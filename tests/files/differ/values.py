"""Values of Arrow arrays in a form that does not depend on their types.

One value has one form, whatever integer, decimal, unit or string type holds it. So a widened column equals the column
that was written. NULL is None.
"""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Value = Any
NAN = ("nan",)
NEGATIVE_ZERO = ("-0.0",)

_NANOSECONDS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1000, "ns": 1}
_DAY_MS = 86_400_000


def of_float(value: float) -> Value:
    """A float. NaN equals NaN, and -0.0 differs from 0.0."""
    if math.isnan(value):
        return NAN
    if value == 0 and math.copysign(1, value) < 0:
        return NEGATIVE_ZERO
    return value


def of_bool(value: bool) -> Value:
    """A truth value. Python's True equals 1, this one does not."""
    return ("bool", bool(value))


def of_struct(fields: dict[str, Value]) -> Value:
    """A struct. A field that is NULL equals a field that the type lacks."""
    return {name: value for name, value in fields.items() if value is not None}


def of_chunked(column: pa.ChunkedArray) -> list[Value]:
    """The values of a column."""
    return [value for chunk in column.chunks for value in of_array(chunk)]


def of_array(array: pa.Array) -> list[Value]:
    """The values of an array."""
    kind = array.type
    if pa.types.is_null(kind):
        return [None] * len(array)
    if pa.types.is_dictionary(kind):
        values = of_array(array.dictionary)
        return [None if index is None else values[index] for index in array.indices.to_pylist()]
    if pa.types.is_run_end_encoded(kind):
        return of_array(pc.run_end_decode(array))
    if pa.types.is_struct(kind):
        return _structs(array)
    if pa.types.is_map(kind):
        return _maps(array)
    if pa.types.is_nested(kind):
        return _lists(array)
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return _times(array)
    values = array.to_pylist()
    if pa.types.is_floating(kind):
        return [None if value is None else of_float(float(value)) for value in values]
    if pa.types.is_boolean(kind):
        return [None if value is None else of_bool(value) for value in values]
    if pa.types.is_interval(kind):
        return [None if value is None else ("interval", *value) for value in values]
    return values


def _structs(array: pa.StructArray) -> list[Value]:
    names = [field.name for field in array.type]
    columns = [of_array(array.field(place)) for place in range(len(names))]
    valid = array.is_valid().to_pylist()
    rows = zip(*columns) if columns else [()] * len(array)
    return [of_struct(dict(zip(names, row))) if ok else None for ok, row in zip(valid, rows)]


def _lists(array: pa.Array) -> list[Value]:
    lengths = pc.list_value_length(array).to_pylist()
    items, at, rows = of_array(array.flatten()), 0, []
    for length in lengths:
        rows.append(None if length is None else items[at : at + length])
        at += length or 0
    return rows


def _maps(array: pa.MapArray) -> list[Value]:
    keys, items, offsets = of_array(array.keys), of_array(array.items), array.offsets.to_pylist()
    valid = array.is_valid().to_pylist()
    first = offsets[0] if len(keys) < (offsets[-1] if offsets else 0) else 0
    pairs = [list(zip(keys[a - first : b - first], items[a - first : b - first])) for a, b in zip(offsets, offsets[1:])]
    return [("map", pair) if ok else None for ok, pair in zip(valid, pairs)]


def _times(array: pa.Array) -> list[Value]:
    kind = array.type
    bits = pa.int32() if kind.bit_width == 32 else pa.int64()
    numbers = array.view(bits).to_pylist()
    if pa.types.is_date(kind):
        tag, factor = ("date",), _DAY_MS if pa.types.is_date32(kind) else 1
    elif pa.types.is_timestamp(kind):
        tag, factor = ("timestamp", _zone(kind.tz)), _NANOSECONDS[kind.unit]
    else:
        name = "time" if pa.types.is_time(kind) else "duration"
        tag, factor = (name,), _NANOSECONDS[kind.unit]
    return [None if number is None else (*tag, number * factor) for number in numbers]


def _zone(zone: str | None) -> str | None:
    return "UTC" if zone in ("UTC", "Etc/UTC", "Z", "+00:00", "-00:00") else zone


def equal(first: Value, second: Value) -> bool:
    """Whether two values are the same. Numbers of different types are compared exactly."""
    if isinstance(first, (str, bytes, tuple, dict, list)) or isinstance(second, (str, bytes, tuple, dict, list)):
        return type(first) is type(second) and first == second
    return first == second


def shown(value: Value) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"
