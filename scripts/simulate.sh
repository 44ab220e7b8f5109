#!/usr/bin/env bash
# Runs the real server and client in one process, under faults, from seeds:
#   scripts/simulate.sh 10000             runs 10000 seeds, and prints the number of occurrences of each event
#   scripts/simulate.sh --seed 42         runs one seed, and prints its whole trace
#   scripts/simulate.sh 1000 --bug NAME   runs 1000 seeds with a planted bug
#   scripts/simulate.sh bugs              plants each bug of the list in turn, and prints the seeds needed to find it
#   scripts/simulate.sh test              runs the tests, as CI does
set -euo pipefail
cd "$(dirname "$0")/.."
repository=$PWD
# turmoil needs this option: without it two runs of a seed differ. Hence the separate workspace and target directory.
export RUSTFLAGS="${RUSTFLAGS:-} --cfg tokio_unstable"
CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}")/simulation
export CARGO_TARGET_DIR
# The sources have no bugs on purpose: what needs some is built from a copy that has them.
with_bugs() { # COMMAND [ARGUMENT ...]
    "$repository/scripts/plant-bugs.sh" "$CARGO_TARGET_DIR/planted"
    cd "$CARGO_TARGET_DIR/planted/tests/simulation"
    cargo "$1" --release --locked --features planted-bugs "${@:2}"
}
cd tests/simulation
case "${1:-}" in
test)
    shift
    cargo test --release --locked "$@"
    # The rest takes none of those arguments.
    [ "$#" -gt 0 ] || with_bugs test --test planted --test model planted
    ;;
bugs)
    with_bugs test --test planted -- --nocapture
    ;;
lint)
    cargo fmt --check
    rustfmt --edition 2024 --check bugs/planted.rs
    cargo clippy --release --locked --all-targets --quiet -- -D warnings
    with_bugs clippy --all-targets --quiet -- -D warnings
    ;;
*)
    case " $* " in
    *" --bug "* | *" --bug="*) with_bugs run --quiet -- --table "$@" ;;
    *) exec cargo run --release --locked --quiet -- --table "$@" ;;
    esac
    ;;
esac
