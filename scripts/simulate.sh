#!/usr/bin/env bash
# Runs the real server and client in one process, under faults, from seeds:
#   scripts/simulate.sh 10000             so many seeds, with figures of what happened
#   scripts/simulate.sh --seed 42         one seed again, with its whole trace
#   scripts/simulate.sh 1000 --bug NAME   with a bug planted
#   scripts/simulate.sh bugs              every bug of the list planted in turn: in how many seeds each is found
#   scripts/simulate.sh test              what CI runs: its tests, in cargo's words
set -euo pipefail
cd "$(dirname "$0")/.."
# turmoil needs it: without it two runs of a seed differ. Hence a workspace and a target directory of its own.
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
