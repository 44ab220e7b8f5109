"""DuckDB's Quack, as a server of the Parquet files. Ends with its standard input.

Usage: python -m seat.quack_server ADDRESS DATA FILE

FILE is the database for uploads, which thus last as those of Thallus do.
"""

import sys

import duckdb
from duckdb_extensions import import_extension

from .cases import TABLES
from .servers import TOKEN

address, data, file = sys.argv[1:]
connection = duckdb.connect(file)
import_extension("quack")
connection.execute("LOAD quack")
connection.execute("SET preserve_insertion_order = false")
connection.execute("SET parquet_metadata_cache = true")
for table in TABLES:
    connection.execute(f"CREATE VIEW {table} AS FROM '{data}/{table}.parquet'")
connection.execute(f"CALL quack_serve('{address}', token = '{TOKEN}')")
print("listening", flush=True)
sys.stdin.read()
