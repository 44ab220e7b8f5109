#!/usr/bin/env bash
# Runs the comparison and writes results/: samples, summary.csv, a plot of each figure, and the page README.md.
# usage: bench/run.sh [--quick] [--figures NAMES] [--contenders NAMES] [--rounds N] [--out DIR]
set -euo pipefail
cd "$(dirname "$0")"
../scripts/setup.sh
cargo build --release --locked
target=${CARGO_TARGET_DIR:-target}

# Flight in C++ comes with pyarrow. Without Python this contender is left out, and the page says so.
python=()
if command -v python3 >/dev/null; then
    venv=$target/pyarrow
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv" || rm -rf "$venv"
    if [ -x "$venv/bin/python" ] && { "$venv/bin/python" -c 'import numpy, pyarrow.flight' 2>/dev/null ||
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'pyarrow>=20' numpy; }; then
        python=(--python "$venv/bin/python")
    fi
fi
[ "${#python[@]}" -gt 0 ] || echo "bench: no Python with pyarrow: Flight in C++ is left out" >&2
exec "$target/release/thallus-bench" run "${python[@]}" "$@"
