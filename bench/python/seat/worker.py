"""The process of one contender's client. Answers requests from standard input, in lines of JSON.

Usage: python -m seat.worker CONTENDER ADDRESS PROGRAMS DATA WORK
"""

import json
import sys
import time
from typing import Any, Callable, Optional

import pyarrow as pa
import pyarrow.parquet as pq

from .cases import CASES, Case, fingerprint
from .clients import Client
from .contenders import CONTENDERS
from .servers import Setup


class Worker:
    def __init__(self, client: Client, data: str):
        self.client, self.data = client, data
        self.cases = {case.name: case for case in CASES}
        self.prepared: dict[str, Callable[[], pa.Table]] = {}
        self.rows: Optional[pa.Table] = None

    def run(self, case: Case, sql: str) -> float:
        """Seconds of one execution. Nothing that follows the last row counts."""
        if case.kind == "upload":
            return self.upload()
        execute = self.prepare(sql) if case.kind == "prepared" else lambda: self.client.query(sql)
        started = time.perf_counter()
        table = execute()
        seconds = time.perf_counter() - started
        del table
        return seconds

    def prepare(self, sql: str) -> Callable[[], pa.Table]:
        if sql not in self.prepared:
            self.prepared[sql] = self.client.prepare(sql)
        return self.prepared[sql]

    def upload(self, drop: bool = True) -> float:
        if self.rows is None:
            self.rows = pq.read_table(f"{self.data}/lineitem.parquet")
        started = time.perf_counter()
        self.client.upload(self.rows)
        seconds = time.perf_counter() - started
        if drop:
            self.client.drop()
        return seconds

    def check(self, case: Case, sql: str) -> dict[str, Any]:
        """The fingerprint of a result, and its bytes."""
        if case.kind == "prepared":
            table = self.prepare(sql)()
        elif case.kind == "upload":
            self.upload(drop=False)
            table = self.client.table(sql)
            self.client.drop()
        else:
            table = self.client.table(sql)
        return {"fingerprint": fingerprint(table), "bytes": table.nbytes}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        case = self.cases[request["case"]]
        if "check" in request:
            return self.check(case, request["check"])
        return {"seconds": [self.run(case, sql) for sql in request["texts"]]}


def main() -> None:
    name, address, programs, data, work = sys.argv[1:]
    worker = Worker(CONTENDERS[name].client(Setup(programs, data, work), address), data)
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:  # the harness decides how a failure ends
            answer = {"error": f"{type(error).__name__}: {error}"}
        print("answer " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
