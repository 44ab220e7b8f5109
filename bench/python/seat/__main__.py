"""The benchmark: starts everything, checks values, measures, and writes the page. bench/seat.sh calls it."""

import argparse
import pathlib
import sys
import tempfile

from . import report
from .cases import CASES
from .contenders import CONTENDERS
from .measure import Failed, Run
from .servers import ServerError, Setup


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/seat.sh", description="Times as a user of Python sees them.")
    parser.add_argument("--programs", required=True, metavar="DIR", help="thallus and thallus-server")
    parser.add_argument("--data", required=True, type=pathlib.Path, metavar="DIR", help="TPC-H as Parquet")
    parser.add_argument("--scale", required=True, help="its scale, for the page")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR", help="for README.md and summary.csv")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cases", default=",".join(case.name for case in CASES), metavar="NAMES")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), metavar="NAMES")
    options = parser.parse_args()
    options.cases, options.contenders = options.cases.split(","), options.contenders.split(",")
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    unknown = set(options.cases) - {case.name for case in CASES} | set(options.contenders) - set(CONTENDERS)
    if unknown or report.BASE not in options.contenders:
        parser.error(f"unknown names: {', '.join(unknown)}" if unknown else f"{report.BASE} is always a contender")
    return options


def main() -> int:
    options = arguments()
    cases = [case for case in CASES if case.name in options.cases]
    names = [name for name in CONTENDERS if name in options.contenders]
    about = report.machine()
    # Uploads go to the disk of the tables: the directory for temporary files may be in memory.
    with tempfile.TemporaryDirectory(dir=options.data.parent, prefix="seat-") as work:
        setup = Setup(options.programs, str(options.data), work)
        try:
            with Run(setup, names, cases) as run:
                run.check()
                run.measure(options.rounds)
        except (Failed, ServerError) as error:
            print(f"seat: {error}", file=sys.stderr)
            return 1
    report.write(run, about, options.scale, options.out)
    print(f"seat: {options.out / 'README.md'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
