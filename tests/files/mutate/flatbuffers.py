"""The places of scalars, lengths and offsets in the flat buffers of Arrow IPC.

A small description of the tables in Arrow's `format/*.fbs` is enough to find them. Mutations write over a place, so
that nothing moves. https://flatbuffers.dev/internals/
"""

import struct

KEY_VALUE = {0: ("key", "string"), 1: ("value", "string")}
INT = {0: ("bitWidth", "i"), 1: ("is_signed", "B")}
DICTIONARY = {0: ("id", "q"), 1: ("indexType", INT), 2: ("isOrdered", "B"), 3: ("dictionaryKind", "h")}
TYPES = {
    2: INT,
    3: {0: ("precision", "h")},
    7: {0: ("precision", "i"), 1: ("scale", "i"), 2: ("bitWidth", "i")},
    8: {0: ("unit", "h")},
    9: {0: ("unit", "h"), 1: ("bitWidth", "i")},
    10: {0: ("unit", "h"), 1: ("timezone", "string")},
    11: {0: ("unit", "h")},
    14: {0: ("mode", "h"), 1: ("typeIds", ["i"])},
    15: {0: ("byteWidth", "i")},
    16: {0: ("listSize", "i")},
    17: {0: ("keysSorted", "B")},
    18: {0: ("unit", "h")},
}
FIELD = {
    0: ("name", "string"), 1: ("nullable", "B"), 2: ("type_type", "B"), 3: ("type", ("union", 2, TYPES)),
    4: ("dictionary", DICTIONARY), 6: ("metadata", [KEY_VALUE]),
}
FIELD[5] = ("children", [FIELD])
SCHEMA = {0: ("endianness", "h"), 1: ("fields", [FIELD]), 2: ("metadata", [KEY_VALUE]), 3: ("features", ["q"])}
RECORD_BATCH = {
    0: ("length", "q"), 1: ("nodes", ["qq"]), 2: ("buffers", ["qq"]),
    3: ("compression", {0: ("codec", "b"), 1: ("method", "b")}), 4: ("variadicBufferCounts", ["q"]),
}
DICTIONARY_BATCH = {0: ("id", "q"), 1: ("data", RECORD_BATCH), 2: ("isDelta", "B")}
MESSAGE = {
    0: ("version", "h"), 1: ("header_type", "B"),
    2: ("header", ("union", 1, {1: SCHEMA, 2: DICTIONARY_BATCH, 3: RECORD_BATCH})),
    3: ("bodyLength", "q"), 4: ("metadata", [KEY_VALUE]),
}
# A block is an i64, an i32, four bytes of padding, and an i64.
FOOTER = {
    0: ("version", "h"), 1: ("schema", SCHEMA), 2: ("dictionaries", ["qiiq"]), 3: ("recordBatches", ["qiiq"]),
    4: ("metadata", [KEY_VALUE]),
}


class Place:
    """An integer in a flat buffer: its place, its format as of `struct`, and its path."""

    def __init__(self, at, form, path):
        self.at, self.form, self.path = at, form, path

    def get(self, data):
        return struct.unpack_from("<" + self.form, data, self.at)[0]

    def put(self, data, value):
        """Writes `value`, wrapped to the size of the place."""
        bits = struct.calcsize(self.form) * 8
        value &= (1 << bits) - 1
        if self.form.islower() and value >> (bits - 1):
            value -= 1 << bits
        struct.pack_into("<" + self.form, data, self.at, value)


def places(data, start, tables):
    """All places of the flat buffer at `start` of `data`, whose root is the table `tables`."""
    found = [Place(start, "I", "root")]
    _table(data, start + _u32(data, start), tables, "", found)
    return found


def _u32(data, at):
    return struct.unpack_from("<I", data, at)[0]


def _table(data, at, fields, path, found):
    found.append(Place(at, "i", f"{path}/vtable"))
    vtable = at - struct.unpack_from("<i", data, at)[0]
    size = struct.unpack_from("<H", data, vtable)[0]
    found.append(Place(vtable, "H", f"{path}/vtable size"))
    found.append(Place(vtable + 2, "H", f"{path}/table size"))
    slots = {}
    for number in range((size - 4) // 2):
        slot = vtable + 4 + 2 * number
        found.append(Place(slot, "H", f"{path}/slot {number}"))
        offset = struct.unpack_from("<H", data, slot)[0]
        if offset:
            slots[number] = at + offset
    for number, place in slots.items():
        if number in fields:
            name, kind = fields[number]
            if isinstance(kind, tuple):
                _, tag, options = kind
                kind = options.get(data[slots[tag]], {}) if tag in slots else {}
            _value(data, place, kind, f"{path}/{name}", found)


def _value(data, at, kind, path, found):
    if isinstance(kind, str) and kind != "string":
        _scalars(at, kind, path, found)
        return
    found.append(Place(at, "I", f"{path} offset"))
    target = at + _u32(data, at)
    if kind == "string":
        found.append(Place(target, "I", f"{path} length"))
    elif isinstance(kind, dict):
        _table(data, target, kind, path, found)
    else:
        found.append(Place(target, "I", f"{path} count"))
        count, element = _u32(data, target), kind[0]
        size = struct.calcsize("<" + element) if isinstance(element, str) else 4
        for index in range(count):
            _value(data, target + 4 + size * index, element, f"{path}[{index}]", found)


def _scalars(at, form, path, found):
    for index, char in enumerate(form):
        found.append(Place(at, char, path if len(form) == 1 else f"{path}.{index}"))
        at += struct.calcsize("<" + char)
