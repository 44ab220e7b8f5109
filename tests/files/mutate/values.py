"""Hostile values, and mutations of bytes whose format does not matter."""

import struct

LIMITS = [0, 1, -1, -2, 2, 7, 8, 16, 31, 32, 63, 64, 127, 128, 255, 256, 1000, 32767, 65535, 65536,
          1 << 20, 1 << 24, (1 << 28) + 1, 1 << 30, (1 << 31) - 1, (1 << 31) - 8, 1 << 31, -(1 << 31), (1 << 32) - 1,
          1 << 32, 1 << 40, 1 << 46, 1 << 60, (1 << 62) - 1, (1 << 63) - 1, (1 << 63) - 64, -(1 << 63)]


def integer(rng, value, hints=()):
    """A value near `value`, near one of `hints` (such as the length of the file), or at a limit of a type."""
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(LIMITS)
    base = rng.choice(list(hints) + [value, value, value])
    if kind < 0.85:
        return base + rng.choice([-1, 1, -2, 2, 4, -4, 8, -8, 0])
    if kind < 0.95:
        return base * rng.choice([2, 3, -1, 10, 1000, 1_000_000])
    return rng.getrandbits(rng.choice([3, 8, 16, 31, 32, 48, 63]))


def wrapped(value, bits, signed=True):
    """`value` as an integer of `bits` bits."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value


def size(rng, common, rare):
    """One of the sizes `common`, and rarely, since it takes long, one of `rare`."""
    return rng.choice(rare if rng.random() < 0.1 else common)


INVALID_TEXT = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\x80", b"a\x00b", b"\xef\xbb\xbf"]


def text(rng, value):
    """Other bytes instead of a text."""
    kind = rng.randrange(7)
    if kind == 0:
        return b""
    if kind == 1:
        return value + rng.choice(INVALID_TEXT)
    if kind == 2:
        return rng.choice(INVALID_TEXT) * rng.choice([1, 2, 100])
    if kind == 3:
        return value * rng.choice([2, 1000, 50_000])
    if kind == 4:
        return value[:rng.randrange(len(value) + 1)]
    if kind == 5:
        return rng.randbytes(rng.choice([1, 3, 4, 8, 12, 16, 33]))
    return flip(rng, value)


def flip(rng, data, count=None):
    """Some bits of `data` changed."""
    data = bytearray(data)
    for _ in range(count or rng.choice([1, 1, 2, 4, 16])):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def overwrite(rng, data, hints=()):
    """One integer, of 1, 2, 4 or 8 bytes, written over a place of `data`."""
    size = rng.choice([1, 2, 4, 4, 8])
    if len(data) < size:
        return data + b"\0"
    # Values of columns and of lengths are aligned as a rule.
    at = rng.randrange(len(data) - size + 1)
    at -= at % size if rng.random() < 0.7 else 0
    old = int.from_bytes(data[at:at + size], "little", signed=True)
    new = wrapped(integer(rng, old, hints), size * 8)
    return data[:at] + new.to_bytes(size, "little", signed=True) + data[at + size:]


def cut(rng, data):
    """`data` truncated: often near its ends."""
    if not data:
        return data
    near = rng.choice([1, 4, 8, 12, 100, len(data)])
    count = rng.randrange(min(near, len(data))) + 1
    return data[:-count] if rng.random() < 0.8 else data[count:]


def doubled(rng, data):
    """A piece of `data` repeated."""
    if not data:
        return data
    start = rng.randrange(len(data))
    end = start + rng.randrange(min(len(data) - start, rng.choice([4, 64, 4096]))) + 1
    times = rng.choice([1, 1, 2, 50])
    return data[:end] + data[start:end] * times + data[end:]


def removed(rng, data):
    """A piece of `data` removed."""
    if not data:
        return data
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice([1, 2, 4, 8, 100]):]


def spliced(rng, data, other):
    """The start of `data` and the end of `other`, or a piece of `other` within `data`."""
    at = rng.randrange(len(data) + 1)
    start = rng.randrange(len(other) + 1)
    if rng.random() < 0.5:
        return data[:at] + other[start:]
    piece = other[start:start + rng.choice([4, 16, 256, 4096])]
    return data[:at] + piece + data[at + (len(piece) if rng.random() < 0.5 else 0):]


def raw(rng, data, other):
    """One of the mutations that need no format."""
    kind = rng.randrange(8)
    if kind < 2:
        return "flipped bits", flip(rng, data)
    if kind < 4:
        return "integer overwritten", overwrite(rng, data, [len(data)])
    if kind == 4:
        return "truncated", cut(rng, data)
    if kind == 5:
        return "piece doubled", doubled(rng, data)
    if kind == 6:
        return "piece removed", removed(rng, data)
    return "spliced", spliced(rng, data, other)


def u32(value):
    """Four little-endian bytes of `value`, which may be out of range."""
    return struct.pack("<I", value & 0xFFFFFFFF)
