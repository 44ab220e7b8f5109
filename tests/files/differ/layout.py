"""The shape of a directory: names, numbers and sizes of its files, and the directories of partitions."""

from __future__ import annotations

import random
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .values import Value, of_bool

COLUMN_NAMES = [
    "a", "b", "c", "A", "Ab", "with space", 'quo"te', "dot.ted", "größe", "select", "1st", "x" * 70, "_under", "-",
    "comma,name", "a'b", "日本", "semi;colon",
]
FILE_STEMS = ["part-0", "a b", "ü", "UPPER", "0", "x.y", "per%20cent", "plus+", "hash#1", "q?", "b=c", "(1)", "a&b"]
#: Name of the type in the configuration, texts of directories and their values.
PARTITION_TYPES: dict[str, list[tuple[str, Value]]] = {
    "text": [
        ("a", "a"), ("007", "007"), ("x%2Fy", "x/y"), ("a b", "a b"), ("%C3%BC", "ü"), ("100%", "100%"), ("", ""),
    ],
    "bigint": [("1", 1), ("-5", -5), ("007", 7), ("9223372036854775807", (1 << 63) - 1)],
    "date": [("2024-02-29", ("date", 1_709_164_800_000)), ("1969-12-31", ("date", -86_400_000))],
    "boolean": [("true", of_bool(True)), ("false", of_bool(False))],
    "decimal(10, 2)": [("1.50", 1.5), ("-3", -3)],
    "double": [("0.5", 0.5), ("-2", -2.0)],
}
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass
class Layout:
    """The shape of a directory."""

    root: Path
    files: int
    width: int
    #: small, medium, large or wide.
    size: str
    #: Share of the columns that a file lacks.
    lacks: float
    first_id: int
    #: Partition columns and the types that the configuration gives them.
    partitions: dict[str, str] = field(default_factory=dict)
    #: Values of the partition columns of each file.
    of_file: dict[Path, dict[str, Value]] = field(default_factory=dict)

    def paths(self, rng: random.Random, extensions: list[str]) -> list[Path]:
        """Paths of the files, whose directories exist then."""
        stems = rng.sample(FILE_STEMS, self.files)
        paths = []
        for stem in stems:
            folder, found = self.root, {}
            for name, kind in self.partitions.items():
                text, value = rng.choice([*PARTITION_TYPES[kind], (NULL_PARTITION, None)])
                folder, found[name] = folder / f"{urllib.parse.quote(name)}={text}", value
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / (stem + rng.choice(extensions))
            self.of_file[path] = found
            paths.append(path)
        return paths

    def original(self, path: Path) -> Path:
        """The path without the extension of a compression."""
        return path if path in self.of_file else path.with_suffix("")

    def types(self) -> dict[str, Any]:
        """The partition columns that the configuration declares: all but text."""
        return {name: kind for name, kind in self.partitions.items() if kind != "text"}


def plan(rng: random.Random, root: Path) -> Layout:
    """A shape."""
    size = rng.choices(["small", "medium", "large", "wide"], [55, 30, 5, 10])[0]
    files = rng.choice([1, 2, 2, 3, 4, 5]) if size != "large" else rng.choice([1, 2])
    width = {"small": rng.randint(0, 9), "medium": rng.randint(1, 6), "large": rng.randint(1, 3), "wide": 15}[size]
    layout = Layout(root, files, width, size, rng.choice([0, 0.2, 0.4]), rng.choice([0, 0, 1, -1000, 10**6]))
    if rng.random() < 0.25:
        names = rng.sample(["year", "p q", "zone", "_h"], rng.randint(1, 2))
        typed = rng.random() < 0.5
        layout.partitions = {name: rng.choice(list(PARTITION_TYPES)) if typed else "text" for name in names}
    return layout


def column_names(rng: random.Random, width: int) -> list[str]:
    """Names of columns beside `id`."""
    return rng.sample(COLUMN_NAMES, width)


def row_count(rng: random.Random, layout: Layout) -> int:
    """Number of rows of a file."""
    if layout.size == "large":
        return rng.randint(15_000, 25_000)
    if layout.size == "medium":
        return rng.choice([500, 1000, 1001, 2500])
    return rng.choice([0, 1, 2, 8, 50, 200])
