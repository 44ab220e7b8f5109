"""Generates directories of CSV."""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from . import compression
from .directory import Directory, File
from .kinds import WORDS, integer
from .layout import Layout, column_names, row_count
from .values import Value, of_bool, of_float

#: A field: its text and its value.
Cell = tuple[str, Value]
#: Records from which the server infers types.
SAMPLE = 1000
EPOCH = datetime.datetime(1970, 1, 1)


@dataclass
class Dialect:
    """How the files of a directory are written, apart from their line breaks."""

    delimiter: str = ","
    quote: str = '"'
    escape: str | None = None
    comment: str | None = None
    null: str | None = None
    all_text: bool = False
    breaks: bool = True

    def options(self) -> dict[str, object]:
        """The options of the configuration that differ from the server's own."""
        found: dict[str, object] = {}
        for key, value, usual in [
            ("delimiter", self.delimiter, ","), ("quote", self.quote, '"'), ("escape", self.escape, None),
            ("comment", self.comment, None), ("null", self.null, None), ("all_text", self.all_text, False),
        ]:
            if value != usual:
                found[key] = value
        return found

    def field(self, rng: random.Random, text: str, must_quote: bool) -> str:
        """A field as it is written."""
        special = [self.delimiter, self.quote, "\n", "\r"]
        must_quote = must_quote or any(mark in text for mark in special)
        must_quote = must_quote or (self.comment is not None and text.startswith(self.comment))
        if not must_quote and rng.random() > 0.1:
            return text
        if self.escape is not None:
            text = text.replace(self.escape, self.escape * 2)
            text = text.replace(self.quote, rng.choice([self.quote * 2, self.escape + self.quote]))
        else:
            text = text.replace(self.quote, self.quote * 2)
        return self.quote + text + self.quote


def _integer(rng: random.Random, _digits: int) -> Cell:
    value = integer(rng, -(1 << 63), (1 << 63) - 1)
    return str(value), value


def _float(rng: random.Random, _digits: int) -> Cell:
    choice = rng.random()
    if choice < 0.3:
        text = rng.choice(["nan", "NaN", "inf", "-inf", "1.", ".5", "-1e5", "1.5E-3", "-0.0", "0.50", "1e300"])
    elif choice < 0.6:
        text = str(rng.randint(-(1 << 53), 1 << 53) or 1)
    else:
        text = repr(rng.uniform(-1, 1) * 10.0 ** rng.randint(-300, 300))
    return text, of_float(float(text))


def _bool(rng: random.Random, _digits: int) -> Cell:
    value = rng.random() < 0.5
    return rng.choice(["true", "TRUE", "True"] if value else ["false", "FALSE"]), of_bool(value)


def _date(rng: random.Random, _digits: int) -> Cell:
    day = datetime.date(1, 1, 1) + datetime.timedelta(rng.randint(0, 3_600_000))
    return day.isoformat(), ("date", (day - EPOCH.date()).days * 86_400_000)


def _moment(rng: random.Random, digits: int) -> tuple[str, int]:
    moment = datetime.datetime(1700, 1, 1) + datetime.timedelta(seconds=rng.randint(0, 500 * 31_000_000))
    text, fraction = moment.isoformat(rng.choice("T ")), 0
    if digits:
        fraction = rng.randrange(10**digits)
        text += f".{fraction:0{digits}}"
    seconds = (moment - EPOCH) // datetime.timedelta(seconds=1)
    return text, seconds * 10**9 + fraction * 10 ** (9 - digits)


def _timestamp(rng: random.Random, digits: int) -> Cell:
    text, nanoseconds = _moment(rng, digits)
    return text, ("timestamp", None, nanoseconds)


def _instant(rng: random.Random, digits: int) -> Cell:
    text, nanoseconds = _moment(rng, digits)
    hours = rng.choice([0, 2, -5])
    zone = "Z" if hours == 0 else f"{'+' if hours > 0 else '-'}{abs(hours):02}:00"
    return text + zone, ("timestamp", "UTC", nanoseconds - hours * 3600 * 10**9)


def _text(rng: random.Random, _digits: int) -> Cell:
    others = ["1", "true", "2024-01-01", "#x", "'", "\\", "a\\nb", "NA", "\r\n", "x\ry", " pad ", "\ufeff"]
    text = rng.choice([*WORDS, *others])
    return text, text


def _no_number(rng: random.Random, _digits: int) -> Cell:
    text = rng.choice(["007", "-01", "+1", "9223372036854775808", "1_000", "1e400", "12345678901234567890123", "0x1f"])
    return text, text


def _nothing(_rng: random.Random, _digits: int) -> Cell:
    return "", None


@dataclass
class Column:
    """A kind of column."""

    make: Callable[[random.Random, int], Cell]
    is_text: bool = False
    #: The first value of a file, so that its type is known.
    first: Cell | None = None
    #: The type in the configuration.
    declared: str | None = None


COLUMNS = [
    Column(_integer), Column(_integer), Column(_float), Column(_bool), Column(_date), Column(_timestamp),
    Column(_instant), Column(_text, True, ("t", "t")), Column(_text, True, ("u\nv", "u\nv")),
    Column(_no_number, True, ("007", "007")), Column(_nothing),
]
DECLARED = [
    Column(lambda rng, _: _digits(rng, 4), declared="decimal(20, 4)"),
    Column(lambda rng, _: _padded(rng), declared="smallint"),
    Column(_integer, declared="decimal(30, 2)"),
    Column(_date, declared="date"),
]


def _digits(rng: random.Random, scale: int) -> Cell:
    value = Decimal(rng.randint(-(10**15), 10**15)).scaleb(-rng.randint(0, scale))
    return f"{value:f}", value


def _padded(rng: random.Random) -> Cell:
    value = rng.randint(-999, 999)
    return f"{value:05}", value


def fill(directory: Directory, layout: Layout, rng: random.Random) -> None:
    """Writes the files of a directory whose format is csv."""
    dialect = _dialect(rng, layout)
    columns = {name: rng.choice(COLUMNS) for name in column_names(rng, layout.width)}
    directory.options |= dialect.options()
    if not dialect.breaks and rng.random() < 0.5:
        directory.options["quoted_newlines"] = False
    if rng.random() < 0.1 and not dialect.all_text:
        columns["declared"] = rng.choice(DECLARED)
        directory.options["types"] = {"declared": columns["declared"].declared}
    if layout.size == "large":
        columns["pad"] = Column(lambda rng, _: ("pqr" * 300, "pqr" * 300), True)
    extension = ".tsv" if dialect.delimiter == "\t" else ".csv"
    if dialect.delimiter == "\t":
        directory.options.pop("delimiter")
    directory.notes.append(str(dialect))
    next_id, paths = layout.first_id, layout.paths(rng, [extension])
    for path in paths:
        rows = row_count(rng, layout)
        path, packed = compression.choose(rng, path, layout.size == "large")
        data, file, late = _write(rng, dialect, columns, rows, next_id, path, layout)
        if late is not None:
            directory.refusal = [path.name, f"line {late}", "id"]
        next_id += rows
        path.write_bytes(compression.compress(rng, data, packed))
        directory.files.append(file)
        directory.notes.append(f"{path.name}: {rows} rows, {len(data)} bytes")


def _dialect(rng: random.Random, layout: Layout) -> Dialect:
    dialect = Dialect(delimiter=rng.choice([",", ",", "\t"]))
    if rng.random() < 0.3:
        dialect.delimiter = rng.choice(list(",;|"))
        dialect.quote = rng.choice(['"', "'"])
        dialect.escape = rng.choice([None, "\\"])
        dialect.comment = rng.choice([None, "#"])
        dialect.null = rng.choice([None, "NA", "NULL"])
        dialect.all_text = rng.random() < 0.2
    dialect.breaks = layout.size != "large" or rng.random() < 0.3
    return dialect


def _write(rng, dialect: Dialect, columns: dict[str, Column], rows, next_id, path: Path, layout: Layout):
    """The bytes of a file, and its values."""
    names = ["id", *(name for name in columns if rng.random() >= layout.lacks)]
    rng.shuffle(names)
    end = rng.choice(["\n", "\n", "\r\n", "\r"])
    digits = {name: rng.choice([0, 3, 6, 9]) for name in names}
    nulls = {name: rng.choice([0, 0.1, 0.5]) for name in names}
    found: dict[str, list[Value]] = {name: [] for name in names}
    header = [dialect.field(rng, name, False) for name in names]
    lines = [dialect.delimiter.join(header)]
    has_value: set[str] = set()
    # The types follow from the first 1000 records. A later value of another type is an error with its line.
    is_sampled = rows > SAMPLE and not dialect.all_text and rng.random() < 0.2
    late, late_line = (rng.randrange(SAMPLE, rows) if is_sampled else None), None
    for row in range(rows):
        fields = []
        for name in names:
            if name == "id":
                cell, column = (str(next_id + row), next_id + row), COLUMNS[0]
                if row == late:
                    cell, late_line = (rng.choice(["x", "1.5", "007", "99999999999999999999"]), 0), lines_of(lines, end)
            else:
                column = columns[name]
                cell = _cell(rng, column, digits[name], nulls[name], name in has_value)
                if not dialect.breaks:
                    cell = tuple(_without_breaks(part) for part in cell)
            if cell[1] is not None:
                has_value.add(name)
            text, value = _written(rng, dialect, column, cell)
            fields.append(text)
            found[name].append(value)
        lines.append(dialect.delimiter.join(fields))
        if dialect.comment is not None and rng.random() < 0.05:
            lines.append(dialect.comment + ' a comment, "and more')
        if rng.random() < 0.02:
            lines.append("")
    text = end.join(lines) + (end if rng.random() < 0.8 else "")
    bom = b"\xef\xbb\xbf" if rng.random() < 0.15 else b""
    found |= {name: [value] * rows for name, value in layout.of_file[layout.original(path)].items()}
    return bom + text.encode(), File(path, found, rows), late_line


def lines_of(lines: list[str], end: str) -> int:
    """The number of the line behind records, which may have line breaks within quotes."""
    return len(re.findall("\r\n|\r|\n", end.join(lines) + end)) + 1


def _without_breaks(part: Value) -> Value:
    return part.replace("\n", " ").replace("\r", " ") if isinstance(part, str) else part


def _cell(rng: random.Random, column: Column, digits: int, nulls: float, has_value: bool) -> Cell:
    """A field. The first of a file shows the type of the column."""
    if column.first is not None and not has_value:
        return column.first
    if rng.random() < nulls:
        return "", None
    return column.make(rng, digits)


def _written(rng: random.Random, dialect: Dialect, column: Column, cell: Cell) -> Cell:
    """The field as it is written, and the value that it must be."""
    text, value = cell
    if value is None:
        return dialect.null or "", None
    must_quote = text == "" or text == dialect.null
    if dialect.all_text:
        value = text
    return dialect.field(rng, text, must_quote), value
