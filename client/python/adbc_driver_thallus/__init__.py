"""ADBC driver for Thallus: SQL results as Arrow, from a server's memory into this process's.

Use :mod:`adbc_driver_thallus.dbapi` for DB-API 2.0. This module has the interface below it.
"""

import enum
import importlib.metadata
import pathlib
import sys
from typing import Mapping, Optional, Union

import adbc_driver_manager

__all__ = ["ENTRYPOINT", "ConnectionOptions", "DatabaseOptions", "StatementOptions", "connect", "driver_path"]

__version__ = importlib.metadata.version(__name__)

#: The driver's initialization function.
ENTRYPOINT = "AdbcDriverThallusInit"

Value = Union[str, int, float, bool]


class StatementOptions(enum.Enum):
    """Options of queries: of one statement, of a connection's statements, or of all."""

    #: How batches travel: ``auto``, ``inline``, ``lent``, or ``mapped`` (on one host, if the server allows it).
    DELIVERY = "adbc.thallus.delivery"
    #: Target number of rows in a batch.
    BATCH_ROWS = "adbc.thallus.batch_rows"
    #: Longest duration, with a unit: ``30s``.
    DEADLINE = "adbc.thallus.deadline"
    #: Number of connections over which a result travels.
    PARTITIONS = "adbc.thallus.partitions"
    #: ``true``: batches of partitions come as they arrive, although the result has an order.
    UNORDERED = "adbc.thallus.unordered"


#: A connection has the options of its statements.
ConnectionOptions = StatementOptions


class DatabaseOptions(enum.Enum):
    """Options of connecting, which the URI may have instead: ``thallus://host?fabric=none``."""

    FABRIC = "adbc.thallus.fabric"
    REQUIRE_FABRIC = "adbc.thallus.require_fabric"
    WINDOW = "adbc.thallus.window"
    LEND_FROM = "adbc.thallus.lend_from"
    MAX_BATCH = "adbc.thallus.max_batch"
    POOL = "adbc.thallus.pool"
    CONNECT_TIMEOUT = "adbc.thallus.connect_timeout"
    READ_TIMEOUT = "adbc.thallus.read_timeout"
    IDLE_TIMEOUT = "adbc.thallus.idle_timeout"
    KEEPALIVE = "adbc.thallus.keepalive"
    COPY_THREADS = "adbc.thallus.copy_threads"


def driver_path() -> str:
    """The path of the driver's shared library."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    path = pathlib.Path(__file__).resolve().parent / f"libadbc_driver_thallus.{suffix}"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: build the wheel with client/python/build.sh, and install it")
    return str(path)


def connect(
    uri: str, db_kwargs: Optional[Mapping[str, str]] = None, **options: Value
) -> adbc_driver_manager.AdbcDatabase:
    """Describe a server to ADBC's driver manager.

    :param uri: ``thallus://host[:port][?option=value&...]``.
    :param db_kwargs: Options by their full names.
    :param options: This driver's options by their short names: ``fabric="none"`` is ``adbc.thallus.fabric``.
    """
    arguments = {"driver": driver_path(), "entrypoint": ENTRYPOINT, "uri": uri}
    return adbc_driver_manager.AdbcDatabase(**arguments, **full_names(options), **(db_kwargs or {}))


def full_names(options: Mapping[str, Value]) -> dict[str, str]:
    """Options of this driver by their full names, with values as text."""
    return {f"adbc.thallus.{name}": text(value) for name, value in options.items()}


def text(value: Value) -> str:
    """The value of an option as ADBC writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
