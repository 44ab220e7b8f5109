#!/usr/bin/env bash
# The demonstration for Python: installs missing packages, builds the server and the wheel, installs the wheel in an
# environment of its own, generates TPC-H tables, and prints a pandas frame from them.
#
#   client/python/demo.sh            TPC-H at scale factor 1 (SCALE=0.1 for less)
set -euo pipefail
cd "$(dirname "$0")/../.."

scripts/setup.sh
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
echo "demo: building (the first build of DataFusion takes about half an hour on two cores)" >&2
cargo build --release --workspace --quiet
export PATH="$CARGO_TARGET_DIR/release:$PATH"
wheel=$(THALLUS_DRIVER=$CARGO_TARGET_DIR/release/libadbc_driver_thallus.so client/python/build.sh)
venv=$CARGO_TARGET_DIR/python/demo-venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check pandas pyarrow
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --force-reinstall "$wheel"
scale=${SCALE:-1}
data=$CARGO_TARGET_DIR/demo/tpch-$scale
thallus-tpch-data --scale "$scale" --out "$data"
# Not in client/python, where Python would find the sources instead of the wheel.
cp client/python/demo.py "$CARGO_TARGET_DIR/python/demo.py"
exec "$venv/bin/python" "$CARGO_TARGET_DIR/python/demo.py" thallus-server "$data"
