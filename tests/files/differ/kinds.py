"""Kinds of columns: the Arrow types that a kind may have in a file, and arrays of them.

Each kind follows "Columns of several files" of docs/FILES.md: whatever types of one kind the files of a directory
have, one type holds the values of all.
"""

from __future__ import annotations

import decimal
import random
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from . import limits

INTEGERS = [
    pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(),
]
FLOATS = [pa.float16(), pa.float32(), pa.float64()]
UNITS = ["s", "ms", "us", "ns"]
UTC_NAMES = ["UTC", "Etc/UTC", "+00:00", "Z"]
WORDS = [
    "", "a", "b", "ä", "null", "NULL", "NaN", "0", " ", "a,b", 'q"q', "line\nbreak", "\t", "é" * 9, "x" * 300, "𝄞",
]
_WIDE = decimal.Context(prec=100)


def range_of(kind: pa.DataType) -> tuple[int, int]:
    """The least and the greatest value of an integer type."""
    bits = kind.bit_width
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if pa.types.is_signed_integer(kind) else (0, (1 << bits) - 1)


def integer(rng: random.Random, low: int, high: int) -> int:
    """An integer: often one of the ends or a small one."""
    choice = rng.random()
    if choice < 0.15:
        return rng.choice([low, high])
    if choice < 0.5:
        return rng.randint(max(low, -9), min(high, 9))
    bits = rng.randint(1, max(high.bit_length(), 1))
    value = rng.getrandbits(bits) * rng.choice([1, -1])
    return min(max(value, low), high)


class Kind:
    """A kind of column."""

    #: Formats whose writer knows no type of the kind.
    not_in: tuple[str, ...] = ()
    can_be_dictionary = False
    #: Whether a filter can compare its values with a literal.
    is_comparable = False

    def plain(self, rng: random.Random, form: str) -> pa.DataType:
        """A type of a file."""
        raise NotImplementedError

    def item(self, rng: random.Random, kind: pa.DataType) -> Any:
        """A value for a type, as pyarrow takes it."""
        raise NotImplementedError

    def pick(self, rng: random.Random, form: str) -> pa.DataType:
        """A type of a file: also the type of NULL, or a dictionary."""
        if rng.random() < 0.04:
            return pa.null()
        while True:
            kind = self.plain(rng, form)
            if self.can_be_dictionary and rng.random() < 0.1:
                kind = pa.dictionary(rng.choice(INTEGERS), kind)
            reason = limits.of_type(kind, form)
            if reason is None:
                return kind
            limits.met[reason] += 1

    def items(self, rng: random.Random, kind: pa.DataType, count: int, nulls: float) -> list[Any]:
        """Values with NULLs."""
        return [None if rng.random() < nulls else self.item(rng, kind) for _ in range(count)]

    def array(self, rng: random.Random, kind: pa.DataType, count: int, nulls: float) -> pa.Array:
        """An array. `nulls` is the share of NULLs."""
        if pa.types.is_null(kind):
            return pa.nulls(count)
        if pa.types.is_dictionary(kind):
            return self._dictionary(rng, kind, count, nulls)
        return pa.array(self.items(rng, kind, count, nulls), kind)

    def _dictionary(self, rng: random.Random, kind: pa.DictionaryType, count: int, nulls: float) -> pa.Array:
        size = rng.randint(1, 20)
        inner = nulls if rng.random() < 0.3 else 0
        # Now and then a value is there twice, or NULL.
        values = self.array(rng, kind.value_type, size, inner)
        indices = [None if rng.random() < nulls else rng.randrange(len(values)) for _ in range(count)]
        return pa.DictionaryArray.from_arrays(pa.array(indices, kind.index_type), values)


@dataclass
class Numbers(Kind):
    """Integers with integers, decimals or floats."""

    form: str
    can_be_dictionary = True
    is_comparable = True

    def plain(self, rng: random.Random, form: str) -> pa.DataType:
        if self.form == "decimal" and rng.random() < 0.7:
            return _decimal(rng)
        if self.form == "float" and rng.random() < 0.7:
            return rng.choice(FLOATS)
        return rng.choice(INTEGERS)

    def item(self, rng: random.Random, kind: pa.DataType) -> Any:
        if pa.types.is_integer(kind):
            low, high = range_of(kind)
            if self.form == "float":
                low, high = max(low, -(1 << 53)), min(high, 1 << 53)
            return integer(rng, low, high)
        if pa.types.is_decimal(kind):
            digits = integer(rng, 1 - 10**kind.precision, 10**kind.precision - 1)
            return decimal.Decimal(digits).scaleb(-kind.scale, _WIDE)
        if rng.random() < 0.3:
            return rng.choice([float("nan"), -0.0, 0.0, float("inf"), float("-inf"), 1.5, -1.5])
        if pa.types.is_float16(kind):
            return rng.uniform(-1000, 1000)
        return rng.uniform(-1, 1) * 10.0 ** rng.randint(-30, 30)


def _decimal(rng: random.Random) -> pa.DataType:
    """A decimal of at most 38 whole and 30 fractional digits, so that each two have a common type."""
    make, most = rng.choice(
        [(pa.decimal32, 9), (pa.decimal64, 18), (pa.decimal128, 38), (pa.decimal128, 38), (pa.decimal256, 68)]
    )
    scale = rng.randint(0, min(most, 30))
    whole = rng.randint(0 if scale else 1, min(most - scale, 38))
    return make(scale + whole, scale)


@dataclass
class Choice(Kind):
    """One of some types, all of which hold the same values."""

    types: list[pa.DataType]
    make: Any
    not_in: tuple[str, ...] = ()
    can_be_dictionary: bool = False
    is_comparable: bool = True

    def plain(self, rng: random.Random, form: str) -> pa.DataType:
        return rng.choice(self.types)

    def item(self, rng: random.Random, kind: pa.DataType) -> Any:
        return self.make(rng, kind)


def _text(rng: random.Random, _kind: pa.DataType) -> str:
    return rng.choice(WORDS) + (str(rng.randint(0, 99)) if rng.random() < 0.5 else "")


def _bytes(rng: random.Random, kind: pa.DataType) -> bytes:
    return rng.randbytes(kind.byte_width if pa.types.is_fixed_size_binary(kind) else rng.choice([0, 1, 3, 12, 13, 40]))


def _moment(rng: random.Random, kind: pa.DataType) -> int:
    """A time that nanoseconds of 64 bits hold, in the unit of the type."""
    most = (1 << 63) // {"s": 10**9, "ms": 10**6, "us": 1000, "ns": 1}[kind.unit] - 1
    return integer(rng, -most, most)


def _time(rng: random.Random, kind: pa.DataType) -> int:
    return integer(rng, 0, 86_400 * {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}[kind.unit] - 1)


def _day(rng: random.Random, kind: pa.DataType) -> int:
    days = integer(rng, -(1 << 20), 1 << 20)
    return days if pa.types.is_date32(kind) else days * 86_400_000


def text() -> Kind:
    """Texts."""
    return Choice([pa.utf8(), pa.large_utf8(), pa.string_view()], _text, (), True)


def binary() -> Kind:
    """Bytes."""
    types = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3), pa.binary(16)]
    return Choice(types, _bytes, (), True)


def scalar(rng: random.Random) -> Kind:
    """A kind without children."""
    kinds: list[Kind] = [
        Numbers("integer"), Numbers("integer"), Numbers("decimal"), Numbers("float"), text(), text(), binary(),
        Choice([pa.bool_()], lambda rng, kind: rng.random() < 0.5),
        Choice([pa.timestamp(unit) for unit in UNITS], _moment),
        Choice([pa.timestamp(unit, zone) for unit in UNITS for zone in UTC_NAMES], _moment),
        Choice([pa.timestamp(unit, "Europe/Berlin") for unit in UNITS], _moment),
        Choice([pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")], _time),
        Choice([pa.date32(), pa.date64()], _day),
        Choice([pa.duration(unit) for unit in UNITS], _moment),
        Choice([pa.month_day_nano_interval()], _interval, ("parquet",), False, False),
        RunEnds(rng.choice([pa.int32(), pa.utf8(), pa.float64(), pa.timestamp("us")]), rng.choice([16, 32, 64])),
        Choice([pa.null()], None, (), False, False),
    ]
    return rng.choice(kinds)


def _interval(rng: random.Random, _kind: pa.DataType) -> Any:
    return pa.scalar((rng.randint(-9, 9), rng.randint(-99, 99), rng.randint(-(10**12), 10**12)),
                     pa.month_day_nano_interval()).as_py()


@dataclass
class RunEnds(Kind):
    """Run ends of one type."""

    value_type: pa.DataType
    bits: int
    not_in = ("parquet",)

    def plain(self, rng: random.Random, form: str) -> pa.DataType:
        return pa.run_end_encoded(getattr(pa, f"int{self.bits}")(), self.value_type)

    def pick(self, rng: random.Random, form: str) -> pa.DataType:
        return self.plain(rng, form)

    def array(self, rng: random.Random, kind: pa.DataType, count: int, nulls: float) -> pa.Array:
        ends, at = [], 0
        while at < count:
            at = min(count, at + rng.randint(1, 9))
            ends.append(at)
        makers = {pa.int32(): lambda: integer(rng, -(1 << 31), (1 << 31) - 1), pa.utf8(): lambda: _text(rng, kind)}
        make = makers.get(self.value_type, lambda: rng.randint(-1000, 1000))
        values = [None if rng.random() < nulls else make() for _ in ends]
        ends_array = pa.array(ends, kind.run_end_type)
        return pa.RunEndEncodedArray.from_arrays(ends_array, pa.array(values, self.value_type), kind)


@dataclass
class Lists(Kind):
    """Lists of a kind."""

    inner: Kind
    #: Length of each list if some file has lists of a fixed size, else None.
    size: int | None = None

    def plain(self, rng: random.Random, form: str) -> pa.DataType:
        item = pa.field(rng.choice(["item", "element"]), self.inner.pick(rng, form))
        makers = [pa.list_, pa.large_list] + ([pa.list_view, pa.large_list_view] if form == "arrow" else [])
        if self.size is not None and rng.random() < 0.5:
            return pa.list_(item, self.size)
        return rng.choice(makers)(item)

    def array(self, rng: random.Random, kind: pa.DataType, count: int, nulls: float) -> pa.Array:
        if pa.types.is_null(kind):
            return pa.nulls(count)
        is_fixed = pa.types.is_fixed_size_list(kind)
        lengths = [self.size if self.size is not None else rng.randint(0, 3) for _ in range(count)]
        valid = [rng.random() >= nulls for _ in range(count)]
        if not is_fixed:
            lengths = [length if ok else 0 for length, ok in zip(lengths, valid)]
        items = self.inner.array(rng, kind.value_type, sum(lengths), nulls)
        mask = pa.array([not ok for ok in valid], pa.bool_())
        if is_fixed:
            return pa.FixedSizeListArray.from_arrays(items, type=kind, mask=mask)
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        large = pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind)
        offset = pa.int64() if large else pa.int32()
        if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
            maker = pa.LargeListViewArray if large else pa.ListViewArray
            return maker.from_arrays(pa.array(starts[:-1], offset), pa.array(lengths, offset), items, kind, mask=mask)
        maker = pa.LargeListArray if large else pa.ListArray
        return maker.from_arrays(pa.array(starts, offset), items, kind, mask=mask)


@dataclass
class Structs(Kind):
    """Structs. A file may lack fields, but not the first."""

    fields: dict[str, Kind]
    lacks: float = 0.25

    def plain(self, rng: random.Random, form: str) -> pa.DataType:
        names = [name for at, name in enumerate(self.fields) if at == 0 or rng.random() >= self.lacks]
        rng.shuffle(names)
        return pa.struct([pa.field(name, self.fields[name].pick(rng, form)) for name in names])

    def array(self, rng: random.Random, kind: pa.DataType, count: int, nulls: float) -> pa.Array:
        if pa.types.is_null(kind):
            return pa.nulls(count)
        children = [self.fields[child.name].array(rng, child.type, count, nulls) for child in kind]
        mask = pa.array([rng.random() < nulls for _ in range(count)], pa.bool_())
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=mask)


@dataclass
class Maps(Kind):
    """Maps from texts."""

    inner: Kind

    def plain(self, rng: random.Random, form: str) -> pa.DataType:
        key = rng.choice([pa.utf8(), pa.large_utf8()])
        return pa.map_(key, self.inner.pick(rng, form))

    def array(self, rng: random.Random, kind: pa.DataType, count: int, nulls: float) -> pa.Array:
        if pa.types.is_null(kind):
            return pa.nulls(count)
        valid = [rng.random() >= nulls for _ in range(count)]
        starts = [0]
        for ok in valid:
            starts.append(starts[-1] + (rng.randint(0, 3) if ok else 0))
        keys = pa.array([f"k{at}" for at in range(starts[-1])], kind.key_type)
        items = self.inner.array(rng, kind.item_type, starts[-1], nulls)
        mask = pa.array([not ok for ok in valid], pa.bool_())
        return pa.MapArray.from_arrays(pa.array(starts, pa.int32()), keys, items, kind, mask=mask)


def any_kind(rng: random.Random, form: str, depth: int = 0) -> Kind:
    """A kind of column, with children at most three levels deep."""
    while True:
        kind = _any(rng, form, depth)
        if form not in kind.not_in:
            return kind


def _any(rng: random.Random, form: str, depth: int) -> Kind:
    choice = rng.random()
    if depth >= 3 or choice < 0.7:
        return scalar(rng)
    if choice < 0.8:
        return Lists(any_kind(rng, form, depth + 1), rng.choice([None, None, 1, 2, 3]))
    if choice < 0.94:
        names = rng.sample(["a", "b", "c", "A", "x y", "ü"], rng.randint(1, 4))
        return Structs({name: any_kind(rng, form, depth + 1) for name in names})
    return Maps(any_kind(rng, form, depth + 1))
