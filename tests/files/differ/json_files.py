"""Generates directories of JSON."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from . import compression
from .directory import Directory, File
from .kinds import WORDS, integer
from .layout import Layout, column_names, row_count
from .values import Value, of_bool, of_float

LAYOUTS = ["lines", "lines", "concatenated", "pretty", "array", "pretty array"]


@dataclass
class Node:
    """A kind of value."""

    kind: str
    #: The kinds of the fields of objects; of the elements of arrays by the name "item".
    children: dict[str, Node] = field(default_factory=dict)
    #: The digits of the longest integer.
    bits: int = 63


def make_node(rng: random.Random, depth: int = 0) -> Node:
    """A kind of value, at most three levels deep."""
    choice = rng.random()
    if depth >= 3 or choice < 0.7:
        kind = rng.choice(["integer", "integer", "float", "bool", "text", "text", "null"])
        return Node(kind, bits=rng.choice([8, 53, 63, 63, 64, 120]))
    if choice < 0.85:
        return Node("array", {"item": make_node(rng, depth + 1)})
    names = rng.sample(["a", "b", "c", "A", "x y", "ü", 'q"', ""], rng.randint(1, 4))
    return Node("object", {name: make_node(rng, depth + 1) for name in names})


class Writer:
    """Writes the values of one file."""

    def __init__(self, rng: random.Random, is_spaced: bool) -> None:
        self.rng = rng
        self.is_spaced = is_spaced
        #: Kinds of which the file has a value. The first of an object has all fields, that of a number a fraction.
        self.seen: set[int] = set()
        #: Whether the file's numbers of a kind are all integers.
        self.whole: dict[int, bool] = {}

    def value(self, node: Node, nulls: float) -> tuple[str, Value]:
        """A value as text, and as it must be read."""
        if node.kind == "null" or (self.rng.random() < nulls and node.kind != "object"):
            return "null", None
        is_first = id(node) not in self.seen
        self.seen.add(id(node))
        if node.kind == "object":
            return self.object(node, nulls, is_first)
        if node.kind == "array":
            count = self.rng.choice([0, 1, 2, 5])
            items = [self.value(node.children["item"], nulls) for _ in range(count)]
            return f"[{self.gap()}{self.comma().join(text for text, _ in items)}{self.gap()}]", [v for _, v in items]
        return getattr(self, f"_{node.kind}")(node, is_first)

    def object(self, node: Node, nulls: float, is_complete: bool) -> tuple[str, Value]:
        """An object. A field that is missing is NULL."""
        if not is_complete and self.rng.random() < nulls:
            return "null", None
        names = [name for name in node.children if is_complete or self.rng.random() < 0.8]
        self.rng.shuffle(names)
        fields = {name: self.value(node.children[name], nulls) for name in names}
        return self.braces({name: text for name, (text, _) in fields.items()}), {
            name: value for name, (_, value) in fields.items() if value is not None
        }

    def braces(self, fields: dict[str, str]) -> str:
        """An object of texts."""
        pairs = [f"{self.string(name)}{self.gap()}:{self.gap()}{text}" for name, text in fields.items()]
        return f"{{{self.gap()}{self.comma().join(pairs)}{self.gap()}}}"

    def gap(self) -> str:
        """Space between tokens."""
        return self.rng.choice(["", " ", "\n", "\r\n", "\t"]) if self.is_spaced else self.rng.choice(["", "", " "])

    def comma(self) -> str:
        """A comma with space."""
        return f"{self.gap()},{self.gap()}"

    def string(self, text: str) -> str:
        """A string, some letters of it escaped."""
        return '"' + "".join(self.letter(letter) for letter in text) + '"'

    def letter(self, letter: str) -> str:
        """A letter of a string."""
        short = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f"}
        if letter in short and self.rng.random() < 0.7:
            return short[letter]
        if letter in short or ord(letter) < 32 or self.rng.random() < 0.1:
            code = letter.encode("utf-16-be")
            return "".join(f"\\u{code[at]:02x}{code[at + 1]:02X}" for at in range(0, len(code), 2))
        return "\\/" if letter == "/" else letter

    def _integer(self, node: Node, _is_first: bool) -> tuple[str, Value]:
        low = 0 if node.bits == 64 else -(1 << node.bits)
        value = integer(self.rng, low, (1 << node.bits) - 1)
        return str(value), value

    def _float(self, node: Node, _is_first: bool) -> tuple[str, Value]:
        is_whole = self.whole.setdefault(id(node), self.rng.random() < 0.2)
        if is_whole:
            text = str(self.rng.randint(-(1 << 53), 1 << 53) or 1)
        elif _is_first:
            text = "0.5"
        else:
            text = self.rng.choice(
                ["1e2", "-1.5E+3", "1.0", "-0.0", "1e-7", "7", "1e300", repr(self.rng.uniform(-9, 9)), "0.1e1"]
            )
        return text, of_float(float(text))

    def _bool(self, _node: Node, _is_first: bool) -> tuple[str, Value]:
        value = self.rng.random() < 0.5
        return ("true" if value else "false"), of_bool(value)

    def _text(self, _node: Node, _is_first: bool) -> tuple[str, Value]:
        value = self.rng.choice([*WORDS, "\x01", "\\u0041", "a/b", "\x7f", "2024-01-01", "[1]", "\u2028"])
        return self.string(value), value


def fill(directory: Directory, layout: Layout, rng: random.Random) -> None:
    """Writes the files of a directory whose format is json."""
    columns = {name: make_node(rng) for name in column_names(rng, layout.width)}
    if layout.size == "large":
        columns["pad"] = Node("pad")
    next_id = layout.first_id
    for path in layout.paths(rng, [".json", ".ndjson", ".jsonl"]):
        # A file without objects has no columns; the first has some.
        rows = row_count(rng, layout) or (0 if directory.files else 1)
        path, packed = compression.choose(rng, path, layout.size == "large")
        form = rng.choice(LAYOUTS) if layout.size != "large" or rng.random() < 0.3 else "lines"
        data, found = _write(rng, form, columns, rows, next_id, layout)
        next_id += rows
        if rows:
            found |= {name: [value] * rows for name, value in layout.of_file[layout.original(path)].items()}
        path.write_bytes(compression.compress(rng, data, packed))
        directory.files.append(File(path, found, rows))
        directory.notes.append(f"{path.name}: {rows} rows, {form}, {len(data)} bytes")


def _write(rng: random.Random, form: str, columns: dict[str, Node], rows: int, next_id: int, layout: Layout):
    """The bytes of a file, and its values."""
    writer = Writer(rng, form.startswith("pretty"))
    names = [name for name in columns if rng.random() >= layout.lacks]
    nulls = {name: rng.choice([0, 0.1, 0.5]) for name in names}
    found: dict[str, list[Any]] = {"id": []}
    texts = []
    for row in range(rows):
        fields = {"id": (str(next_id + row), next_id + row)}
        for name in names:
            # A key may be missing, which is as if it were null.
            if rng.random() < 0.9:
                fields[name] = _pad(rng) if columns[name].kind == "pad" else writer.value(columns[name], nulls[name])
        keys = list(fields)
        rng.shuffle(keys)
        texts.append(writer.braces({key: fields[key][0] for key in keys}))
        for key in keys:
            found.setdefault(key, [None] * row)
        for key, values in found.items():
            values.append(fields[key][1] if key in fields else None)
    if rows == 0:
        return rng.choice(["[]", "[ ]", " [\n]\n"]).encode(), {}
    between, around = {"lines": ("\n", ("", "\n")), "concatenated": ("", ("", "")), "pretty": ("\n\n", ("\n", ""))}.get(
        form, (",\n", ("[\n", "]"))
    )
    return (around[0] + between.join(texts) + around[1]).encode(), found


def _pad(rng: random.Random) -> tuple[str, str]:
    text = rng.choice("pqr") * 800
    return f'"{text}"', text
