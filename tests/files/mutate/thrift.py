"""Thrift's compact protocol, as a tree whose values can be changed and written again.

The tree keeps what a writer could never say: a count that is not that of the items, a length that is not that of the
bytes. https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

import copy

from . import values

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)


class Value:
    """One value. `value` is an int, bytes, a list of Value (LIST), or a list of (id, Value) (STRUCT)."""

    def __init__(self, kind, value, element=None):
        self.kind, self.value, self.element = kind, value, element
        # Written instead of the real length or count.
        self.declared = None
        # Written instead of the value.
        self.raw = None
        # The kind in the head of a field, instead of the real one; its bytes stay those of the real one.
        self.said = None
        # The byte after the fields of a struct. A reader that looks only at its low four bits sees the end.
        self.end = 0

    def field(self, number):
        """The value of a field of a struct, or None."""
        return next((value for identifier, value in self.value if identifier == number), None)

    def set(self, number, value):
        """Sets a field of a struct."""
        fields = [(i, v) for i, v in self.value if i != number] + [(number, value)]
        self.value = sorted(fields, key=lambda pair: pair[0])

    def clone(self):
        return copy.deepcopy(self)


def varint(value):
    """`value`, of 64 bits at most, as a varint."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def zigzag(value):
    return varint((value << 1) ^ (value >> 63) if -(1 << 63) <= value < 1 << 63 else value << 1)


class Reader:
    def __init__(self, data, at=0):
        self.data, self.at = data, at

    def byte(self):
        byte = self.data[self.at]
        self.at += 1
        return byte

    def varint(self):
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def zigzag(self):
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def struct(self):
        fields, number = [], 0
        while True:
            head = self.byte()
            if head == 0:
                return Value(STRUCT, fields)
            kind = head & 15
            number = number + (head >> 4) if head >> 4 else self.zigzag()
            fields.append((number, self.value(kind)))

    def value(self, kind, in_list=False):
        if kind in (TRUE, FALSE):
            return Value(TRUE, self.byte() if in_list else kind)
        if kind == BYTE:
            return Value(kind, self.byte())
        if kind in (I16, I32, I64):
            return Value(kind, self.zigzag())
        if kind == DOUBLE:
            return Value(kind, self.take(8))
        if kind == BINARY:
            return Value(kind, self.take(self.varint()))
        if kind in (LIST, SET):
            head = self.byte()
            count = head >> 4 if head >> 4 < 15 else self.varint()
            return Value(kind, [self.value(head & 15, True) for _ in range(count)], head & 15)
        if kind == STRUCT:
            return self.struct()
        raise ValueError(f"thrift type {kind}")

    def take(self, count):
        if self.at + count > len(self.data):
            raise ValueError("truncated")
        self.at += count
        return self.data[self.at - count:self.at]


def parse(data, at=0):
    """The struct at `at`, and the place after it."""
    reader = Reader(data, at)
    return reader.struct(), reader.at


def write(value, in_list=False):
    """The bytes of a value."""
    if value.raw is not None:
        return value.raw
    if value.kind == TRUE:
        return bytes([value.value & 255]) if in_list else b""
    if value.kind == BYTE:
        return bytes([value.value & 255])
    if value.kind in (I16, I32, I64):
        return zigzag(value.value)
    if value.kind == DOUBLE:
        return value.value
    if value.kind == BINARY:
        return varint(len(value.value) if value.declared is None else value.declared) + value.value
    if value.kind in (LIST, SET):
        count = len(value.value) if value.declared is None else value.declared
        head = bytes([count << 4 | value.element]) if 0 <= count < 15 else bytes([0xF0 | value.element]) + varint(count)
        return head + b"".join(write(item, True) for item in value.value)
    out, last = bytearray(), 0
    for number, item in value.value:
        kind = item.kind if item.said is None else item.said
        if kind == TRUE and item.said is None:
            kind = FALSE if item.value == FALSE else TRUE
        if 0 < number - last < 16:
            out.append((number - last) << 4 | kind)
        else:
            out += bytes([kind]) + zigzag(number)
        last = number
        out += write(item)
    return bytes(out) + bytes([value.end])


def walk(value, path=""):
    """All values within `value`, with their paths of field numbers and indices."""
    yield path, value
    if value.kind == STRUCT:
        for number, item in value.value:
            yield from walk(item, f"{path}.{number}")
    elif value.kind in (LIST, SET):
        for index, item in enumerate(value.value):
            yield from walk(item, f"{path}[{index}]")


def change(rng, value, hints=()):
    """Changes one value; returns a description."""
    before = value.value
    if rng.random() < 0.08:
        return change_kind(rng, value)
    if value.kind in (I16, I32, I64):
        value.value = values.integer(rng, value.value, hints)
        return f"{before} -> {value.value}"
    if value.kind in (TRUE, BYTE):
        value.value = rng.choice([TRUE, FALSE, 0, 255])
        return f"{before} -> {value.value}"
    if value.kind == DOUBLE:
        value.value = rng.randbytes(8)
        return "a random double"
    if value.kind == BINARY:
        if rng.random() < 0.2:
            value.declared = values.integer(rng, len(before))
            return f"length {len(before)} -> {value.declared}"
        value.value = values.text(rng, before)
        return f"{before[:20]!r} -> {len(value.value)} bytes {value.value[:20]!r}"
    if value.kind in (LIST, SET):
        return change_list(rng, value)
    return change_struct(rng, value)


def change_kind(rng, value):
    """The same bytes with another kind, or the same number with bits that a reader of fewer bits drops."""
    if value.kind in (I16, I32, I64) and rng.random() < 0.5:
        bits = 16 if value.kind == I16 else 32
        value.value += rng.choice([-1, 1, 3]) << bits
        return f"{value.value}, which is the same in {bits} bits"
    if value.kind == STRUCT and rng.random() < 0.5:
        value.end = rng.randrange(1, 16) << 4
        return f"a struct ends with the byte {value.end}"
    likely = {I16: [I32, I64], I32: [I16, I64], I64: [I16, I32], LIST: [SET], SET: [LIST]}
    kinds = likely.get(value.kind, []) if rng.random() < 0.7 else []
    value.said = rng.choice(kinds or [TRUE, BYTE, I32, DOUBLE, BINARY, LIST, SET, MAP, STRUCT])
    return f"kind {value.kind} is said to be {value.said}"


def booleans(rng):
    """A value of an unknown field, with booleans as elements: a reader takes a byte for each, or none."""
    kind = rng.choice([LIST, SET, MAP])
    unknown, count = Value(kind, []), rng.randrange(1, 9)
    element = rng.choice([TRUE, FALSE])
    head = varint(count) + bytes([element << 4 | rng.choice([TRUE, FALSE, I32])])
    unknown.raw = head if kind == MAP else bytes([count << 4 | element])
    unknown.raw += rng.choice([b"", b"\1" * count])
    return unknown


def hide(rng, tree, number):
    """Changes a struct so that its field has the same value only for a reader that ignores kinds and high bits."""
    index = next(index for index, (identifier, _) in enumerate(tree.value) if identifier == number)
    item = tree.value[index][1]
    kind = rng.randrange(5)
    if kind == 0:
        other = number + rng.choice([-65536, 65536, 3 * 65536])
        tree.value[index] = (other, item)
        return f"field {number} has number {other}"
    if kind == 1:
        tree.value.insert(rng.randrange(index + 1), (64, booleans(rng)))
        return f"field {number} is after booleans"
    if kind == 2:
        before = rng.randrange(index + 1)
        return f"field {tree.value[before][0]}: {change_kind(rng, tree.value[before][1])}"
    if kind == 3:
        tree.end = rng.randrange(1, 16) << 4
        return f"the struct ends with the byte {tree.end}"
    return f"field {number}: {change_kind(rng, item)}"


def change_list(rng, value):
    kind = rng.randrange(6)
    if kind == 0:
        value.declared = values.integer(rng, len(value.value)) & ((1 << 64) - 1)
        return f"count {len(value.value)} -> {value.declared}"
    if kind == 1 or not value.value:
        value.value = []
        return "items removed"
    if kind == 2:
        del value.value[rng.randrange(len(value.value))]
        return "one item removed"
    if kind == 3:
        item = rng.choice(value.value)
        times = rng.choice([1, 2, 100])
        value.value = value.value + [item.clone() for _ in range(times)]
        return f"an item added {times} times"
    if kind == 4:
        rng.shuffle(value.value)
        return "items shuffled"
    value.element = rng.choice([BYTE, I32, I64, BINARY, LIST, STRUCT, 0, 13, 15])
    return f"items of type {value.element}"


def change_struct(rng, value):
    if not value.value:
        value.value = [(rng.randrange(1, 20), Value(I32, 1))]
        return "a field added"
    index = rng.randrange(len(value.value))
    number, item = value.value[index]
    kind = rng.randrange(5)
    if kind < 2:
        del value.value[index]
        return f"field {number} removed"
    if kind == 2:
        value.value = value.value[:index] + [(number, item.clone())] + value.value[index:]
        return f"field {number} twice"
    if kind == 3:
        other = rng.choice([rng.randrange(1, 30), 32767, -5, number + 65536, number - 65536])
        value.value[index] = (other, item)
        return f"field {number} has number {other}"
    if rng.random() < 0.5:
        value.value[index] = (number, Value(BINARY, rng.randbytes(9)))
        return f"field {number} has another type"
    if rng.random() < 0.3:
        value.value = value.value[:index] + [(64, booleans(rng))] + value.value[index:]
        return f"unknown booleans before field {number}"
    if rng.random() < 0.1:
        # Booleans as keys and values of a map take no bytes: a reader that skips each is busy for a minute.
        unknown = Value(MAP, b"")
        unknown.raw = varint((1 << 31) - 1) + b"\x11"
        value.value = value.value + [(90, unknown)]
        return "an unknown map of 2^31 booleans"
    # A reader that skips an unknown field by recursion needs a stack as deep.
    levels = values.size(rng, [10, 100, 20_000], [1_000_000])
    unknown = Value(STRUCT, [])
    unknown.raw = rng.choice([b"\x1c" * levels + b"\0" * (levels + 1), b"\x19\x19" + b"\x19" * levels])
    value.value = value.value + [(90, unknown)]
    return f"an unknown field {levels} deep"
