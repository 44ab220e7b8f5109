"""Literals of SQL, and the order of values that filters, extremes and sorts use."""

from __future__ import annotations

import decimal
import functools
from typing import Any

import pyarrow as pa

from .values import NAN, NEGATIVE_ZERO, Value

_UNITS = {"s": ("Second", 10**9), "ms": ("Millisecond", 10**6), "us": ("Microsecond", 1000), "ns": ("Nanosecond", 1)}
_EXACT = decimal.Context(prec=200)


def is_comparable(kind: pa.DataType) -> bool:
    """Whether values of the type are compared with literals here."""
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    is_time = pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind)
    return is_number or is_time or is_text(kind) or pa.types.is_boolean(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether the type is one of text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_literal(value: Value, kind: pa.DataType) -> bool:
    """Whether SQL has a plain literal of the value."""
    if value is None or value in (NAN, NEGATIVE_ZERO):
        return False
    if pa.types.is_floating(kind):
        return value not in (float("inf"), float("-inf"))
    if pa.types.is_decimal(kind):
        return kind.precision <= 38
    return True


def of_value(value: Value, kind: pa.DataType) -> str:
    """A literal of a value of a column of the type."""
    if is_text(kind):
        return "'" + value.replace("'", "''") + "'"
    if pa.types.is_boolean(kind):
        return "true" if value[1] else "false"
    if pa.types.is_integer(kind):
        signed = "" if pa.types.is_signed_integer(kind) else "U"
        return f"arrow_cast('{value}', '{signed}Int{kind.bit_width}')" if abs(value) >= 1 << 62 else str(value)
    if pa.types.is_decimal(kind):
        return f"arrow_cast('{decimal.Decimal(value):f}', 'Decimal{kind.bit_width}({kind.precision}, {kind.scale})')"
    if pa.types.is_floating(kind):
        return f"arrow_cast('{value!r}', 'Float{kind.bit_width}')"
    return _time(value, kind)


def _time(value: Value, kind: pa.DataType) -> str:
    number = value[-1]
    if pa.types.is_date32(kind):
        return f"arrow_cast(arrow_cast({number // 86_400_000}, 'Int32'), 'Date32')"
    if pa.types.is_date64(kind):
        return f"arrow_cast({number}, 'Date64')"
    name, factor = _UNITS[kind.unit]
    if pa.types.is_timestamp(kind):
        zone = f'Some("{kind.tz}")' if kind.tz else "None"
        return f"arrow_cast({number // factor}, 'Timestamp({name}, {zone})')"
    integer = "Int32" if kind.bit_width == 32 else "Int64"
    return f"arrow_cast(arrow_cast({number // factor}, '{integer}'), 'Time{kind.bit_width}({name})')"


def compared(value: Value) -> Any:
    """A key of comparisons, for which -0.0 equals 0.0."""
    return ordered(0.0 if value == NEGATIVE_ZERO else value)


def ordered(value: Value) -> Any:
    """A key of sorts. NaN is greater than every number, text goes by its bytes in UTF-8."""
    if value is None:
        return (0, 0)
    if value == NAN:
        return (1, 0)
    if value == NEGATIVE_ZERO:
        return (0, 0, -1)
    if isinstance(value, str):
        return (0, value.encode())
    if isinstance(value, tuple):
        return (0, value[-1])
    return (0, value, 0)


@functools.total_ordering
class Reversed:
    """A key of the reverse order."""

    def __init__(self, value: Value) -> None:
        self.key = ordered(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reversed) and self.key == other.key

    def __lt__(self, other: Reversed) -> bool:
        return self.key > other.key


def total(present: list[Value]) -> Value:
    """The exact sum of integers or decimals."""
    if all(isinstance(value, int) for value in present):
        return sum(present)
    return functools.reduce(_EXACT.add, (decimal.Decimal(value) for value in present), decimal.Decimal(0))


def sum_fits(total_value: Value, kind: pa.DataType) -> bool:
    """Whether the type of the sum holds it: 64 bits, or ten more digits of a decimal."""
    if pa.types.is_integer(kind):
        low, high = (-(1 << 63), 1 << 63) if pa.types.is_signed_integer(kind) else (0, 1 << 64)
        return low <= total_value < high
    most = {32: 9, 64: 18, 128: 38, 256: 76}[kind.bit_width]
    return abs(total_value) < decimal.Decimal(10) ** (min(kind.precision + 10, most) - kind.scale)
