#!/usr/bin/env bash
# The checks of CI besides the tests: format, lints, documentation, dependencies, builds without native libraries.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
cargo fmt --all --check
scripts/prose.py
scripts/imports.py
cargo fmt --manifest-path bench/Cargo.toml --check
cargo clippy --workspace --all-targets --quiet -- -D warnings
scripts/simulate.sh lint
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
# Without UCX and without the query engine: for machines that have neither.
cargo clippy -p thallus-client -p thallus-adbc -p thallus-cli --no-default-features --all-targets --quiet -- -D warnings
cargo clippy -p thallus-server -p thallus-server-cli --no-default-features --all-targets --quiet -- -D warnings
# protocol, fabrics and client must not depend on the query engine.
for crate in thallus-protocol thallus-fabric thallus-fabric-shm thallus-fabric-sim thallus-fabric-ucx \
    thallus-fabric-verbs thallus-driver thallus-client thallus-adbc thallus-cli; do
    if cargo tree -p "$crate" -e normal --prefix none | grep -q '^datafusion '; then
        echo "lint: $crate depends on DataFusion" >&2
        exit 1
    fi
done
# Users of a library compile no command line.
for crate in thallus-client thallus-adbc thallus-server; do
    if cargo tree -p "$crate" -e normal --no-default-features --prefix none |
        grep -E '^(clap|comfy-table|indicatif|parquet|toml|tracing-subscriber) '; then
        echo "lint: $crate depends on what only its program needs" >&2
        exit 1
    fi
done
arrows=$(cargo tree --workspace --prefix none -e normal,build,dev |
    sed -n 's/^arrow-array \(v[0-9.]*\).*/\1/p' | sort -u)
[ "$(wc -l <<<"$arrows")" -eq 1 ] || { echo "lint: more than one version of arrow:" $arrows >&2; exit 1; }
# cargo-deny takes some minutes to build, so only CI installs it.
[ -z "${CI:-}" ] || command -v cargo-deny >/dev/null || cargo install --quiet --locked cargo-deny
if command -v cargo-deny >/dev/null; then
    cargo deny --log-level error check bans licenses sources
else
    echo "lint: cargo-deny is not installed, licences and sources were not checked" >&2
fi
