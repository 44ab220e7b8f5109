#!/usr/bin/env bash
# Measures Thallus as a user of Python and of the command line sees it, beside Flight SQL (Sail), DuckDB's Quack, and
# DataFusion in process, on TPC-H from Parquet. Writes results-seat/: the page README.md, and summary.csv.
#
#   bench/seat.sh [--quick] [--rounds N] [--cases NAMES] [--contenders NAMES] [--out DIR]
#
# --quick: two rounds at scale 0.1. SCALE sets the scale, by default 1. THALLUS_PROGRAMS is a directory with thallus,
# thallus-server, thallus-tpch-data and the driver's shared library, which were built before; by default this builds.
set -euo pipefail
scale=${SCALE:-1}
options=()
script=$(realpath "$0")
cd "$(dirname "$script")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
for argument in "$@"; do
    if [ "$argument" = --help ]; then
        sed -n '2,/^set -/{/^#/{s/^# \{0,1\}//p}}' "$script"
        exit
    fi
    if [ "$argument" = --quick ]; then
        scale=${SCALE:-0.1}
        options+=(--rounds 2 --out "$target/seat/quick")
    else
        options+=("$argument")
    fi
done

programs=${THALLUS_PROGRAMS:-}
if [ -z "$programs" ]; then
    scripts/setup.sh
    cargo build --release --workspace --quiet
    programs=$target/release
fi
wheel=$(THALLUS_DRIVER=$programs/libadbc_driver_thallus.so client/python/build.sh)

venv=$target/seat/venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" --requirement bench/python/seat/requirements.txt
"${pip[@]}" --force-reinstall --no-deps "$wheel"

data=$target/demo/tpch-$scale
"$programs/thallus-tpch-data" --scale "$scale" --out "$data" >&2
export PYTHONPATH=$PWD/bench/python PYTHONDONTWRITEBYTECODE=1
exec "$venv/bin/python" -m seat --programs "$programs" --data "$data" --scale "$scale" \
    --out bench/results-seat "${options[@]}"
