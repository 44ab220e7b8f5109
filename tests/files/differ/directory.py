"""A generated directory: its files, and the table that a server must make of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .values import Value


@dataclass
class File:
    """A written file and its rows."""

    path: Path
    #: Values by column. A column that the file lacks is missing here.
    columns: dict[str, list[Value]]
    rows: int
    #: The reason why the file cannot be read, or None.
    broken: str | None = None


@dataclass
class Directory:
    """A directory and the table that it is."""

    seed: int
    #: Name of the table.
    name: str
    path: Path
    #: parquet, arrow, csv or json
    form: str
    files: list[File] = field(default_factory=list)
    #: Options of the table in the server's configuration; empty for a table of a data directory.
    options: dict[str, Any] = field(default_factory=dict)
    #: Words of the refusal of the whole table, or None.
    refusal: list[str] | None = None
    #: The generated files and their options, for the report of a failure.
    notes: list[str] = field(default_factory=list)

    def good(self) -> list[File]:
        """The files that can be read."""
        return [file for file in self.files if file.broken is None]

    def broken(self) -> list[File]:
        """The files that cannot be read."""
        return [file for file in self.files if file.broken is not None]

    def table(self) -> dict[str, list[Value]]:
        """The columns of the table. A column that a file lacks is NULL there."""
        names = dict.fromkeys(name for file in self.good() for name in file.columns)
        table: dict[str, list[Value]] = {name: [] for name in names}
        for file in self.good():
            for name in names:
                table[name].extend(file.columns.get(name, [None] * file.rows))
        return table
