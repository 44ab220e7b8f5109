"""DB-API 2.0 (PEP 249) for Thallus.

    >>> from adbc_driver_thallus import dbapi
    >>> with dbapi.connect("thallus://localhost") as connection, connection.cursor() as cursor:
    ...     frame = cursor.execute("SELECT * FROM nation").fetch_arrow_table()

Servers have no transactions, so a connection is in autocommit mode.
"""

from typing import Mapping, Optional

import adbc_driver_manager
from adbc_driver_manager.dbapi import (
    BINARY,
    DATETIME,
    NUMBER,
    ROWID,
    STRING,
    Connection,
    Cursor,
    DatabaseError,
    DataError,
    Date,
    DateFromTicks,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Time,
    TimeFromTicks,
    Timestamp,
    TimestampFromTicks,
    Warning,
    apilevel,
    threadsafety,
)

from . import Value
from . import connect as describe

__all__ = [
    "BINARY",
    "DATETIME",
    "NUMBER",
    "ROWID",
    "STRING",
    "Connection",
    "Cursor",
    "DataError",
    "DatabaseError",
    "Date",
    "DateFromTicks",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "Time",
    "TimeFromTicks",
    "Timestamp",
    "TimestampFromTicks",
    "Warning",
    "apilevel",
    "connect",
    "paramstyle",
    "threadsafety",
]

#: Parameters are written as ``?`` or ``$1``.
paramstyle = "qmark"


def connect(
    uri: str,
    db_kwargs: Optional[Mapping[str, str]] = None,
    conn_kwargs: Optional[Mapping[str, str]] = None,
    *,
    autocommit: bool = True,
    **options: Value,
) -> Connection:
    """Connect to a server.

    :param uri: ``thallus://host[:port][?option=value&...]``.
    :param db_kwargs: Options of the database by their full names.
    :param conn_kwargs: Options of the connection by their full names.
    :param autocommit: ``False`` is accepted with a warning: servers have no transactions.
    :param options: This driver's options by their short names, such as ``fabric="none"`` or ``delivery="mapped"``.
    """
    database = describe(uri, db_kwargs, **options)
    try:
        connection = adbc_driver_manager.AdbcConnection(database, **(conn_kwargs or {}))
    except BaseException:
        database.close()
        raise
    try:
        return Connection(database, connection, conn_kwargs, autocommit=autocommit)
    except BaseException:
        connection.close()
        database.close()
        raise
