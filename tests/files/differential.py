#!/usr/bin/env python3
"""Differential test of the files that thallus-server reads.

Directories of files are generated from seeds, a server serves them, and the results of queries are compared with the
values that were written. The rules of the comparison are those of docs/FILES.md. scripts/files.sh runs this.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from differ import arrow_files, csv_files, duckdb_files, json_files, layout, limits, plant
from differ.checks import Checker
from differ.directory import Directory
from differ.server import Server, StartError

#: Directories that one server serves.
PER_SERVER = 25
#: Writers of directories, by format.
FORMS = {
    "parquet": arrow_files.fill, "arrow": arrow_files.fill, "csv": csv_files.fill, "json": json_files.fill,
    "duckdb": duckdb_files.fill,
}
TABLE_NAMES = ["t", "T", "two words", "dot.ted", "ü", "select", "a=b", "100%", "it's"]


def generate(seed: int, root: Path, forms: list[str]) -> Directory:
    """Writes the directory of a seed below `root`."""
    rng = random.Random(seed)
    form = rng.choice(forms)
    folder = f"{rng.choice(TABLE_NAMES)} {seed}"
    path = root / "data" / folder
    path.mkdir(parents=True)
    directory = Directory(seed, folder.lower(), path, form)
    shape = layout.plan(rng, path)
    directory.notes.append(f"{form}, {shape.size}, partitions {shape.partitions}")
    FORMS[form](directory, shape, rng)
    if shape.types():
        directory.options["types"] = directory.options.get("types", {}) | shape.types()
    plant.plant(directory, rng)
    return directory


def write_config(root: Path, directories: list[Directory]) -> Path:
    """The configuration of a server for directories. Those with options are tables of the configuration."""
    # A server without any table does not start.
    (root / "data" / "anchor.csv").write_text("id\n1\n")
    lines = [f"data = [{json.dumps(str(root / 'data'))}]", "[engine]", "partitions = 3"]
    for directory in directories:
        if directory.options:
            lines.append(f"[tables.{json.dumps(directory.name)}]")
            for key, value in {"path": str(directory.path), **directory.options}.items():
                lines.append(f"{key} = {_toml(value)}")
    config = root / "server.toml"
    config.write_text("\n".join(lines) + "\n")
    return config


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


def run(seeds: list[int], forms: list[str], root: Path, binaries: Path) -> tuple[dict[int, list[str]], int]:
    """The failures of the directories of some seeds, and the number of queries."""
    directories = [generate(seed, root, forms) for seed in seeds]
    # A directory of the configuration lies elsewhere, so that it is one table and not two.
    for directory in directories:
        if directory.options:
            move(directory, root)
    failures: dict[int, list[str]] = {}
    while True:
        try:
            server = Server(binaries, write_config(root, directories), root / "server.log")
            break
        except StartError as error:
            # One table of the configuration that cannot be opened is an error of the server.
            guilty = [directory for directory in directories if f"`{directory.name}`" in str(error)]
            if not guilty:
                return {seed: [f"the server did not start: {error}"] for seed in seeds}, 0
            failures[guilty[0].seed] = describe(guilty[0], [str(error)])
            directories.remove(guilty[0])
    try:
        checkers = [Checker(server, directory) for directory in directories]
        with ThreadPoolExecutor(2) as pool:
            for checker, found in zip(checkers, pool.map(Checker.run, checkers)):
                if found:
                    failures[checker.directory.seed] = describe(checker.directory, found)
        return failures, sum(checker.queries for checker in checkers)
    finally:
        server.stop()


def move(directory: Directory, root: Path) -> None:
    """Moves a directory out of the data directory."""
    target = root / "tables" / directory.path.name
    target.parent.mkdir(exist_ok=True)
    directory.path.rename(target)
    for file in directory.files:
        file.path = target / file.path.relative_to(directory.path)
    directory.path = target


def describe(directory: Directory, found: list[str]) -> list[str]:
    """The report of a failure."""
    return [f"{directory.path}", *(f"  {note}" for note in directory.notes), *found]


def main() -> int:
    """Runs the test. The exit code is 1 if a directory differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", type=int, default=200, metavar="N", help="number of directories (default: 200)")
    parser.add_argument("--first", type=int, default=0, metavar="S", help="first seed (default: 0)")
    parser.add_argument("--seed", type=int, metavar="S", help="run one directory again, and keep it")
    parser.add_argument(
        "--formats", default=",".join(FORMS), help=f"formats to generate (default: {','.join(FORMS)})"
    )
    parser.add_argument("--keep", type=Path, help="directory for failed directories (default: a temporary one)")
    options = parser.parse_args()
    binaries = Path(os.environ.get("THALLUS_BIN") or Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "release")
    forms = options.formats.split(",")
    again = "" if forms == list(FORMS) else f" --formats {options.formats}"
    seeds = [options.seed] if options.seed is not None else list(range(options.first, options.first + options.long))
    keep = (options.keep or Path(tempfile.mkdtemp(prefix="thallus-files-"))).absolute()
    started, failed, queries = time.monotonic(), 0, 0
    for at in range(0, len(seeds), PER_SERVER):
        chunk = seeds[at : at + PER_SERVER]
        root = keep / f"seeds-{chunk[0]}"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        failures, count = run(chunk, forms, root, binaries)
        queries += count
        failed += len(failures)
        for seed, report in failures.items():
            print(f"\nseed {seed} differs. To repeat it: scripts/files.sh --seed {seed}{again}", *report, sep="\n")
        if not failures and options.seed is None:
            shutil.rmtree(root)
        sys.stdout.flush()
    seconds = time.monotonic() - started
    print(*(f"files: {line}" for line in limits.report()), sep="\n")
    print(f"files: {len(seeds)} directories, {queries} queries, {seconds:.0f} s, {failed} directories differ")
    if failed or options.seed is not None:
        print(f"files: the directories are in {keep}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
