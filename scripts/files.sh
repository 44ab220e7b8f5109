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
target=${CARGO_TARGET_DIR:-target}
export THALLUS_BIN=${THALLUS_BIN:-$target/release}
for program in thallus thallus-server; do
    if [ ! -x "$THALLUS_BIN/$program" ]; then
        echo "files: $THALLUS_BIN/$program is missing; cargo build --release --workspace builds it" >&2
        exit 1
    fi
done
environment=$target/files-python
wanted=tests/files/requirements.txt
# The copy of the list is the last that is written: an environment that is not complete has none.
if ! cmp -s "$wanted" "$environment/requirements.txt"; then
    rm -rf "$environment"
    python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$environment/requirements.txt"
fi
exec "$environment/bin/python" tests/files/differential.py --keep "$target/files" "$@"
