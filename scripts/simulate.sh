#!/usr/bin/env bash
# Runs the real server and client in one process, under faults, from seeds:
#   scripts/simulate.sh 10000             runs 10000 seeds, and prints the number of occurrences of each event
#   scripts/simulate.sh --seed 42         runs one seed, and prints its whole trace
#   scripts/simulate.sh 1000 --bug NAME   runs 1000 seeds with a planted bug
#   scripts/simulate.sh bugs              plants each bug of the list in turn, and prints the seeds needed to find it
#   scripts/simulate.sh test              runs the tests, as CI does
set -euo pipefail
cd "$(dirname "$0")/.."
# turmoil needs this option: without it two runs of a seed differ. Hence the separate workspace and target directory.
export RUSTFLAGS="${RUSTFLAGS:-} --cfg tokio_unstable"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}/simulation"
cd tests/simulation
case "${1:-}" in
test)
    shift
    exec cargo test --release --locked "$@"
    ;;
bugs)
    exec cargo test --release --locked --test swarm -- --nocapture every_planted_bug_is_found
    ;;
lint)
    cargo fmt --check
    cargo clippy --release --locked --all-targets --quiet -- -D warnings
    ;;
*) exec cargo run --release --locked --quiet -- --table "$@" ;;
esac
