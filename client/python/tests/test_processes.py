"""Forks, and the end of the interpreter."""

import gc
import os
import subprocess
import sys
import textwrap
from typing import Callable

import pyarrow as pa
import pytest
from adbc_driver_manager import AdbcStatusCode
from adbc_driver_thallus import dbapi
from conftest import ROWS, Server

#: Ends of processes to test; the issue asks for 200.
RUNS = int(os.environ.get("THALLUS_EXIT_RUNS", "20"))

pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")


def in_child(work: Callable[[], None]) -> int:
    """Exit code of a forked child that works. It ends without the test runner's own exit."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            print(f"in the child: {error!r}", file=sys.stderr)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("delivery", ["inline", "lent", "mapped"])
def test_a_forked_child_gets_errors_and_the_parent_goes_on(server: Server, delivery: str) -> None:
    with dbapi.connect(server.uri(), delivery=delivery) as connection, connection.cursor() as cursor:
        held = [cursor.execute("SELECT n FROM numbers ORDER BY n").fetch_record_batch()]
        first = [held[0].read_next_batch()]

        def child() -> None:
            with pytest.raises(pa.ArrowInvalid, match="forked"):
                held[0].read_next_batch()
            with pytest.raises(dbapi.Error) as querying:
                connection.cursor().execute("SELECT 1")
            assert querying.value.status_code == AdbcStatusCode.INVALID_STATE
            with pytest.raises(dbapi.Error, match="forked"):
                dbapi.connect(server.uri())
            # Dropped objects and arrays touch neither sockets nor locks.
            held.clear()
            first.clear()
            cursor.close()
            connection.close()
            gc.collect()

        assert in_child(child) == 0
        rows = first[0].num_rows + sum(batch.num_rows for batch in held[0])
        assert rows == ROWS


def test_a_child_of_a_process_that_has_not_connected_may_connect(server: Server) -> None:
    script = f"""
        import os
        from adbc_driver_thallus import dbapi
        child = os.fork()
        with dbapi.connect({server.uri()!r}) as connection, connection.cursor() as cursor:
            assert cursor.execute("SELECT count(*) FROM numbers").fetchone() == ({ROWS},)
        if child:
            assert os.waitpid(child, 0)[1] == 0
    """
    run(script)


def run(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # The driver manager's own objects may complain that they are closed out of order, which is no fault of the driver.
    for trouble in ("panicked", "Fatal", "terminate", "corrupt"):
        assert trouble not in done.stderr, done.stderr


@pytest.mark.parametrize("number", range(RUNS))
def test_the_interpreter_ends_with_everything_open(server: Server, number: int) -> None:
    delivery = ["auto", "inline", "lent", "mapped"][number % 4]
    script = f"""
        import atexit, threading
        import duckdb, polars, pyarrow
        from adbc_driver_thallus import dbapi
        connection = dbapi.connect({server.uri()!r}, delivery={delivery!r})
        cursors = [connection.cursor() for _ in range(3)]
        readers = [cursor.execute("SELECT * FROM numbers").fetch_record_batch() for cursor in cursors]
        batches = [reader.read_next_batch() for reader in readers]
        frame = polars.from_arrow(batches[0])
        relation = duckdb.from_arrow(pyarrow.Table.from_batches(batches[1:2]))
        waiting = connection.cursor()
        thread = threading.Thread(target=lambda: waiting.execute(
            "SELECT sum(a.n * b.n) FROM numbers a, numbers b").fetchone(), daemon=True)
        if {number} % 2:
            thread.start()
        atexit.register(lambda: None)
    """
    run(script)
