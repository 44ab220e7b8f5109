"""Mutations of CSV and JSON, plain and compressed."""

import bz2
import gzip
import lzma

import pyarrow as pa

from . import values

PACKINGS = {
    "gz": lambda data: gzip.compress(data, 6, mtime=0),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}

CSV_TOKENS = [b'"', b'""', b",", b",,", b"\n", b"\r", b"\r\n", b"\n\n", b"\0", b"\xff", b"\xc3\x28", b"\xef\xbb\xbf",
              b"NaN", b"-inf", b"1e400", b"99999999999999999999999999999999999999999", b"0x10", b"-", b"+1", b"007",
              b"2024-13-45", b"9999999-01-01", b"true", b"NULL", b"\\", b"'", b"\t", b";", b"1.5e-999",
              b"2024-01-01T00:00:00.999999999999Z", b"\xe2\x80\xa8", b"\x1a", b"-9223372036854775809"]
JSON_TOKENS = [b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\\u0000", b"\\ud800", b"\\uD83D\\uDE00", b"null",
               b"true", b"1e400", b"-0", b"1E-400", b"99999999999999999999999999999999999999999", b"\xff", b"\0",
               b"\xed\xa0\x80", b"//", b"NaN", b"Infinity", b"\n", b"{}", b"[]", b'{"a":', b'"a":1,', b'"i":{"x":1}',
               b"1" * 400, b"0." + b"1" * 400, b"-", b"01", b".5", b'""']


def _tokens(rng, data, tokens):
    what = []
    for _ in range(rng.choice([1, 1, 2, 5])):
        token = rng.choice(tokens)
        at = rng.randrange(len(data) + 1)
        data = data[:at] + token * rng.choice([1, 1, 1, 2, 1000]) + data[at + rng.choice([0, 0, 1, 3]):]
        what.append(f"{token[:12]!r} at {at}")
    return ", ".join(what), data


def csv(rng, data, other):
    """A mutated CSV text."""
    kind = rng.randrange(16)
    if kind < 4:
        return values.raw(rng, data, other)
    if kind < 11:
        return _tokens(rng, data, CSV_TOKENS)
    lines = data.split(b"\n")
    if kind == 11:
        count = values.size(rng, [100, 300], [1_000, 5_000])
        header = b",".join(b"c%d" % i for i in range(count))
        rows = rng.choice([0, 1, 20])
        return f"{count} columns", b"\n".join([header] + [b",".join([b"1"] * count)] * rows)
    if kind == 12:
        size = values.size(rng, [1 << 12, 1 << 16], [1 << 20, 32 << 20])
        at = rng.randrange(len(lines))
        lines[at] = rng.choice([b"x", b'"', b",", b"1", b"\xc3\xa9", b'"a",']) * size
        return f"a line of {size} tokens", b"\n".join(lines)
    if kind == 13:
        rng.shuffle(lines)
        return "lines shuffled", b"\n".join(lines)
    if kind == 14:
        times = values.size(rng, [10, 100], [1000])
        return f"{times} times", data * times
    # Samples of types are the first lines; a later one contradicts.
    late = rng.choice(CSV_TOKENS)
    row = b",".join(late if rng.random() < 0.3 else cell for cell in lines[-2].split(b","))
    return f"a late {late!r}", data + lines[-2].join([b""]) + (lines[-2] + b"\n") * 1500 + row + b"\n"


def json(rng, data, other):
    """A mutated JSON text."""
    kind = rng.randrange(16)
    if kind < 4:
        return values.raw(rng, data, other)
    if kind < 11:
        return _tokens(rng, data, JSON_TOKENS)
    if kind == 11:
        depth = values.size(rng, [90, 99, 100, 101, 1000], [1_000_000])
        opened, closed = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'[{"b":', b"}]")])
        inner = opened * depth + b"1" + (closed * depth if rng.random() < 0.7 else b"")
        return f"{depth} levels", data + b'{"deep":' + inner + b"}\n"
    if kind == 12:
        count = values.size(rng, [100, 300], [1_000, 5_000])
        same = rng.random() < 0.2
        pairs = b",".join(b'"k%d":%d' % (0 if same else i, i) for i in range(count))
        return f"{count} keys", data + b"{" + pairs + b"}\n"
    if kind == 13:
        # Every object has a key of its own: columns grow with rows.
        count = values.size(rng, [50], [1_000])
        return f"{count} objects with other keys", b"".join(b'{"k%d":[{"x":%d}]}\n' % (i, i) for i in range(count))
    if kind == 14:
        size = values.size(rng, [1 << 12, 1 << 16], [1 << 20, 32 << 20])
        piece = rng.choice([b"x", b"\\u00e9", b"\\n", b"9", b" "])
        text = piece * size if piece in (b"9", b" ") else b'"' + piece * size + b'"'
        return f"a value of {size} pieces", data + b'{"long":' + text + b"}\n"
    times = values.size(rng, [10, 100], [1000])
    return f"{times} times", data * times


BOMBS = {
    "csv": [b"\0", b"1\n", b"x", b",", b'"', b"a,b\n", b"\n", b'""', b"\r"],
    "json": [b"\0", b"[", b" ", b'{"a":1}\n', b"{}\n", b'{"a":', b"1", b"\n", b'{"a":[1,2,3]}'],
}


def packed(rng, data, name, packing):
    """The compressed text, mutated before compression, after it, or replaced by a bomb."""
    pack = PACKINGS[packing]
    other = csv if name == "csv" else json
    kind = rng.randrange(10)
    if kind < 3:
        what, data = other(rng, data, data)
        return f"{what}; compressed", pack(data)
    if kind < 8:
        what, data = values.raw(rng, pack(data), pack(data[::-1]))
        return f"compressed; {what}", data
    if kind == 8:
        times = rng.choice([2, 1000])
        return f"{times} members", pack(data[:rng.randrange(len(data))]) * times
    size = values.size(rng, [1 << 16, 1 << 20, 1 << 20, 4 << 20], [16 << 20, 64 << 20, 256 << 20])
    piece = rng.choice(BOMBS[name])
    prefix = rng.choice([b"", data, b"a\n" if name == "csv" else b"[", b'"' if name == "csv" else b'{"a":"'])
    tail = rng.choice([b"", b"\n", b'"\n'])
    return f"a bomb of {size} bytes of {piece!r}", pack(prefix + piece * (size // len(piece)) + tail)
