"""Known limits: things that pyarrow, DataFusion or arrow-rs do not do, each with its reason.

A limit is either a type that is not generated, or a refusal that is allowed in the place of a result. A wrong value is
never a limit, but for the rounding that docs/FILES.md names.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

#: Number of times that each limit was met.
met: Counter[str] = Counter()


@dataclass(frozen=True)
class Refusal:
    """A refusal that is allowed in the place of a result."""

    reason: str
    form: str
    #: Words of the server.
    words: str


REFUSALS = [
    Refusal(
        "DataFusion 55.2 casts the parts of structs within lists of another layout, and within maps, not by name",
        "parquet",
        r"Cannot cast column .* Cannot cast struct field",
    ),
    Refusal(
        "DuckDB 2.0 writes deltas of INT32 that take more than 32 bits, which neither arrow-rs nor pyarrow reads",
        "parquet",
        r"'min_delta' too large|first value too large|Invalid delta bit width 33",
    ),
]


def allows(form: str, error: str | None) -> bool:
    """Whether the refusal is a known limit."""
    for refusal in REFUSALS:
        if refusal.form == form and error is not None and re.search(refusal.words, error, re.DOTALL):
            met[refusal.reason] += 1
            return True
    return False


def of_type(kind: pa.DataType, form: str) -> str | None:
    """The reason why files of the format are not generated with the type, or None."""
    if form == "parquet" and pa.types.is_timestamp(kind) and kind.unit == "s" and kind.tz not in (None, "UTC"):
        return "Parquet has no seconds: pyarrow writes milliseconds, and arrow-rs 59 then takes UTC for the time zone"
    if pa.types.is_timestamp(kind) and kind.tz == "Z":
        return "arrow-rs 59 does not know the time zone Z, and chrono-tz neither: queries of such columns fail"
    if form == "parquet" and pa.types.is_dictionary(kind) and not _is_dictionary_of_bytes_or_words(kind.value_type):
        return "arrow-rs 59 reads no dictionaries of these values from Parquet: error, panic, or an invalid array"
    for child in (kind.field(at) for at in range(kind.num_fields)):
        reason = of_type(child.type, form)
        if reason is not None:
            return reason
    return None


def _is_dictionary_of_bytes_or_words(kind: pa.DataType) -> bool:
    is_other = pa.types.is_boolean(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_float16(kind)
    return not (is_other or pa.types.is_decimal(kind))


def report() -> list[str]:
    """Lines about the limits that were met."""
    return [f"known limit, {count} times: {reason}" for reason, count in sorted(met.items())]
