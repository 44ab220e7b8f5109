#!/usr/bin/env bash
# All tests, set-up included: then the simulation (scripts/simulate.sh), and what needs an RDMA device, in a guest (scripts/soft-roce.sh).
# Arguments go to cargo test, as in: scripts/test.sh --test faults
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
# --workspace, so that features are the same as in every other build here and DataFusion is compiled once.
cargo test --release --workspace "$@"
# The rest takes none of those arguments.
if [ "$#" -eq 0 ]; then
    scripts/simulate.sh test
    scripts/soft-roce.sh
fi
