#!/usr/bin/env bash
# Serves mutated Parquet, Arrow, CSV and JSON files with a real server, and checks that it survives them within a bound
# of memory. A failure keeps the file, and prints the command that repeats it. Build first:
# cargo build --release --workspace
#
# usage: scripts/fuzz-files.sh [SECONDS] [--seed S] [--case S] [--file FILE] [--formats parquet,arrow,csv,json,packed]
# THALLUS_BIN is the directory of thallus and thallus-server, by default release in the target directory.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/files/environment.sh
exec "$python" tests/files/mutations.py --programs "$THALLUS_BIN" --work "$target/fuzz-files" "$@"
