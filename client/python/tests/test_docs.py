"""Every line of Python in docs/clients.md, against a server with tables as the text names them."""

import pathlib
import re
from typing import Any, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from adbc_driver_thallus import dbapi
from conftest import Server, accepts_uploads

# Warnings of other libraries about each other.
pytestmark = pytest.mark.filterwarnings("ignore")

DOCUMENT = pathlib.Path(__file__).resolve().parents[3] / "docs" / "clients.md"


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("docs")
    data = directory / "data"
    data.mkdir()
    names, regions = [f"NATION {i}" for i in range(25)], [i % 5 for i in range(25)]
    nation = {"n_nationkey": list(range(25)), "n_name": names, "n_regionkey": regions}
    pq.write_table(pa.table(nation), data / "nation.parquet")
    lineitem = {"l_orderkey": list(range(1000)), "l_shipmode": [["AIR", "RAIL"][i % 2] for i in range(1000)]}
    pq.write_table(pa.table(lineitem), data / "lineitem.parquet")
    database = ["--database", str(directory / "database")] if accepts_uploads() else []
    server = Server(directory, "--data", str(data), *database)
    yield server
    server.stop()


def blocks() -> list[str]:
    found = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(found) >= 6
    return found


def needs_uploads(block: str) -> bool:
    return "adbc_ingest" in block or "to_sql" in block


@pytest.mark.parametrize("number", range(len(blocks())))
def test_block(documented: Server, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    block = blocks()[number].replace("thallus://localhost", documented.uri())
    if needs_uploads(block) and not accepts_uploads():
        block = "\n".join(line for line in block.splitlines() if not needs_uploads(line))
    with dbapi.connect(documented.uri()) as connection, connection.cursor() as cursor:
        names: dict[str, Any] = {"connection": connection, "cursor": cursor}
        exec(compile(block, f"{DOCUMENT}, block {number}", "exec"), names)
