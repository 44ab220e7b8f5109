#!/usr/bin/env bash
# Differential test of the files that the server reads (tests/files): directories are generated from seeds, a server
# serves them, and results are compared with the values that were written. Build first:
# cargo build --release --workspace
#
#   scripts/files.sh              200 directories
#   scripts/files.sh --long N     N directories
#   scripts/files.sh --seed S     one directory again; it is kept
#
# THALLUS_BIN is the directory of thallus and thallus-server, by default release in the target directory.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/files/environment.sh
exec "$python" tests/files/differential.py --keep "$target/files" "$@"
