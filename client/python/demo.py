"""Starts a server over a directory of tables, and prints a pandas frame and the time of a large result."""

import re
import subprocess
import sys
import time

from adbc_driver_thallus import dbapi

SHIPPED = """
    SELECT l_returnflag, l_linestatus, count(*) AS lines, sum(l_quantity) AS quantity, avg(l_discount) AS discount
    FROM lineitem WHERE l_shipdate <= $1 GROUP BY 1, 2 ORDER BY 1, 2
"""


def main(program: str, data: str) -> None:
    command = [program, "--listen", "127.0.0.1:0", "--data", data]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            for line in server.stderr:
                if found := re.search(r"listening.*address=(\S+)", line):
                    break
            else:
                raise SystemExit(f"{program} did not start listening")
            show(f"thallus://{found.group(1)}")
        finally:
            server.terminate()


def show(url: str) -> None:
    with dbapi.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(SHIPPED, ["1998-09-02"])
        print(cursor.fetch_df())
        began = time.perf_counter()
        cursor.execute("SELECT * FROM lineitem")
        table = cursor.fetch_arrow_table()
        took = time.perf_counter() - began
        print(f"lineitem: {table.num_rows:,} rows, {table.nbytes / 2**20:,.0f} MiB in {took:.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
