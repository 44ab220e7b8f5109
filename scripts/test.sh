#!/usr/bin/env bash
# Runs all tests, after installing missing packages: the workspace's, the simulation (scripts/simulate.sh), and the
# tests that need an RDMA device (scripts/soft-roce.sh). Arguments go to cargo test, which then runs alone:
# scripts/test.sh --test faults
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
# --workspace, so that the features are the same as in every other build and DataFusion is compiled once.
cargo test --release --workspace "$@"
# The other scripts take none of these arguments.
if [ "$#" -eq 0 ]; then
    scripts/simulate.sh test
    scripts/soft-roce.sh
fi
