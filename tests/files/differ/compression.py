"""Compression of whole files, with several members."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa


def _zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


CODECS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data, 1), ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": _zstd,
}


def choose(rng: random.Random, path: Path, is_large: bool) -> tuple[Path, str]:
    """The path with the extension of a compression, and the extension; "" for none."""
    extension = "" if rng.random() < (0.8 if is_large else 0.5) else rng.choice(list(CODECS))
    return path.with_name(path.name + extension), extension


def compress(rng: random.Random, data: bytes, extension: str) -> bytes:
    """The data as one to four members. They end anywhere, also within a letter, and may be empty."""
    if not extension:
        return data
    cuts = sorted(rng.randint(0, len(data)) for _ in range(rng.choice([0, 0, 1, 3])))
    parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)])]
    return b"".join(CODECS[extension](part) for part in parts)
