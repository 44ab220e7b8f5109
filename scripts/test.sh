#!/usr/bin/env bash
# All tests, set-up included. Arguments go to cargo test, as in: scripts/test.sh --test faults
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
# --workspace, so that features are the same as in every other build here and DataFusion is compiled once.
cargo test --release --workspace "$@"
# A workspace of its own, which knows none of those arguments.
[ "$#" -gt 0 ] || scripts/simulate.sh test
