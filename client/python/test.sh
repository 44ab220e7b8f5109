#!/usr/bin/env bash
# Tests of the Python package: builds the wheel, installs it in an environment of its own with the libraries that it is
# tested with, and runs the tests against a real server. Build first: cargo build --release --workspace
#
#   client/python/test.sh [ARGUMENTS OF PYTEST]
#
# THALLUS_SERVER is the server's program and THALLUS_DRIVER the driver's shared library, by default of the target
# directory. THALLUS_EXIT_RUNS is the number of interpreters that end with open results.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-$PWD/target}
export THALLUS_SERVER=${THALLUS_SERVER:-$target/release/thallus-server}
export THALLUS_DRIVER=${THALLUS_DRIVER:-$target/release/libadbc_driver_thallus.so}
for file in "$THALLUS_SERVER" "$THALLUS_DRIVER"; do
    [ -f "$file" ] || { echo "test.sh: $file is missing: cargo build --release --workspace" >&2 && exit 1; }
done

THALLUS_WHEEL=$(client/python/build.sh)
export THALLUS_WHEEL
venv=$target/python/test-venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    adbc-driver-manager pyarrow pandas polars duckdb 'ibis-framework[duckdb]' pytest mypy auditwheel
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "$THALLUS_WHEEL"
# Not in client/python, where Python would find the sources instead of the wheel.
cd client/python/tests
export PYTHONDONTWRITEBYTECODE=1
exec "$venv/bin/python" -m pytest -p no:cacheprovider "$@"
