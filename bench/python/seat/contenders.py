"""The contenders: their clients, their servers, and the cases that make sense for them."""

import dataclasses
from typing import Callable

from . import clients, servers

SMALL, LARGE = ("one", "nation", "key"), ("strings", "lineitem")


@dataclasses.dataclass(frozen=True)
class Contender:
    """One column of the tables of results."""

    title: str
    #: The name of its server in `servers.START`. Contenders may share one.
    server: str
    cases: tuple[str, ...]
    #: Makes the client, from the setup of the run and the server's address.
    client: Callable[[servers.Setup, str], clients.Client]


CONTENDERS = {
    "thallus": Contender(
        "Thallus",
        "thallus",
        (*SMALL, "prepared", *LARGE, "upload"),
        lambda setup, address: clients.Thallus(address),
    ),
    "pool": Contender(
        "Thallus, `pool=2GiB`",
        "thallus",
        LARGE,
        lambda setup, address: clients.Thallus(address, pool="2GiB"),
    ),
    "mapped": Contender(
        "Thallus, mapped",
        "thallus",
        LARGE,
        lambda setup, address: clients.Thallus(address, delivery="mapped"),
    ),
    "inline": Contender(
        "Thallus, inline",
        "thallus",
        (*LARGE, "upload"),
        lambda setup, address: clients.Thallus(address, delivery="inline"),
    ),
    "command": Contender(
        "`thallus query`",
        "thallus",
        (*SMALL, *LARGE),
        lambda setup, address: clients.CommandLine(address, setup.program("thallus")),
    ),
    "flight": Contender(
        "Flight SQL (Sail)",
        "sail",
        (*SMALL, *LARGE),
        lambda setup, address: clients.FlightSql(address, setup.data),
    ),
    "quack": Contender(
        "DuckDB's Quack",
        "quack",
        (*SMALL, *LARGE, "upload"),
        lambda setup, address: clients.Quack(address, servers.TOKEN),
    ),
    "datafusion": Contender(
        "DataFusion in process",
        "none",
        (*SMALL, "prepared", *LARGE, "upload"),
        lambda setup, address: clients.InProcess(setup.data),
    ),
}
