#!/usr/bin/env bash
# Checks builds without UCX: they do not depend on the UCX library, and a client built so gets results inline over TCP,
# and through shared memory.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}

needs_none() { # PACKAGE FEATURES
    if cargo tree -p "$1" --no-default-features --features "$2" -e normal,build --prefix none |
        grep -E '^(ucx-sys|thallus-fabric-ucx|ibverbs-sys|thallus-fabric-verbs) '; then
        echo "without-ucx: $1 without its features ucx and verbs still needs their libraries" >&2
        exit 1
    fi
}
needs_none thallus-cli ""
needs_none thallus-server-cli datafusion

# The development profile: its features differ from the workspace's, and the release builds remain as they are.
cargo build --quiet -p thallus-cli --no-default-features
client=$target/debug/thallus
if ldd "$client" | grep -E 'libuc[pst]|libibverbs'; then
    echo "without-ucx: $client is linked with UCX or libibverbs" >&2
    exit 1
fi

cargo build --quiet --release --workspace --all-targets
# With all features too: UCX and libibverbs are loaded at run time.
for program in thallus thallus-server; do
    if readelf -d "$target/release/$program" | grep -E 'NEEDED.*(libuc[pst]|libibverbs)'; then
        echo "without-ucx: $program does not start without UCX or libibverbs" >&2
        exit 1
    fi
done
log=$(mktemp)
"$target/release/thallus-server" --listen 127.0.0.1:0 --fabric shm 2>"$log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -f "$log"' EXIT
for _ in $(seq 100); do
    address=$(sed -n 's/.*listening address=//p' "$log")
    [ -n "$address" ] && break
    sleep 0.1
done
[ -n "$address" ] || { cat "$log" >&2; exit 1; }
sql="SELECT value, value * 2 AS twice FROM generate_series(1, 1000000)"
expected=$(seq 1000000 | awk '{ s += $1 * 3 } END { printf "%.0f", s }')
got=$("$client" query "thallus://$address?fabric=none" "$sql" --format csv |
    awk -F, 'NR > 1 { s += $1 + $2 } END { printf "%.0f", s }')
[ "$got" = "$expected" ] || { echo "without-ucx: got $got, expected $expected" >&2; exit 1; }
"$client" query "thallus://$address?require_fabric=true" "SELECT 1" >/dev/null ||
    { echo "without-ucx: the client has no shared memory" >&2; exit 1; }
"$client" doctor | grep "ucx: DOES NOT WORK.*built without UCX" ||
    { echo "without-ucx: the doctor does not report the missing UCX" >&2; exit 1; }
echo "without UCX: builds, and $got is right"
