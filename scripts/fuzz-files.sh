#!/usr/bin/env bash
# Serves mutated Parquet, Arrow, CSV and JSON files with a real server, and checks that it survives them.
# A failure keeps the file, and prints the command that repeats it.
# usage: scripts/fuzz-files.sh [SECONDS] [--seed S] [--case S] [--file FILE] [--formats parquet,arrow,csv,json,packed]
# THALLUS_PROGRAMS is a directory with thallus and thallus-server, instead of a build.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
programs=${THALLUS_PROGRAMS:-$target/release}
[ -n "${THALLUS_PROGRAMS:-}" ] || cargo build --release --workspace --quiet
environment=$target/files-python
[ -x "$environment/bin/python" ] || python3 -m venv "$environment"
"$environment/bin/pip" install --quiet --disable-pip-version-check -r tests/files/requirements.txt
exec "$environment/bin/python" tests/files/mutations.py --programs "$programs" --work "$target/fuzz-files" "$@"
