#!/usr/bin/env bash
# The soak: a real server with ordinary and hostile queries, cancelled and killed clients, strangers and changing files
# for an hour. Every answer is checked, and afterwards memory, threads, descriptors and shared memory are where they
# were. It builds the programs first, unless THALLUS_BIN is the directory of thallus and thallus-server.
#
#   scripts/soak.sh [MINUTES] [--seed S]     60 minutes, a random seed
#   scripts/soak.sh --seed S --only WHAT     one action of a seed again, as a failure prints it
#
# The figures of every minute, the server's log and its data are in soak/ in the target directory.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${THALLUS_BIN:-}" ] || cargo build --release --workspace --bins
. tests/files/environment.sh
exec "$python" tests/files/endurance.py --programs "$THALLUS_BIN" --work "$target/soak" "$@"
