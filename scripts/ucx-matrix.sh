#!/usr/bin/env bash
# Runs the tests of UCX under several versions of UCX, and between two versions; then measures the bandwidth of each.
# The versions are the system's and those of PyPI's package libucx-cu12. --long: all supported versions, otherwise some.
# usage: scripts/ucx-matrix.sh [--long]
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh

versions=(1.16.0.post2 1.19.0 1.22.0)
if [ "${1:-}" = --long ]; then
    versions=(1.14.1.post2 1.15.0.post2 1.16.0.post2 1.17.0.post1 1.18.1 1.19.0 1.20.1 1.21.0 1.22.0)
fi
mapfile -t libraries < <(scripts/ucx-versions.sh "${versions[@]}")
[ "${#libraries[@]}" -eq "${#versions[@]}" ] || exit 1
versions=(system "${versions[@]}")
libraries=(system "${libraries[@]}")

# All with the features of every other build, so that nothing is compiled again.
messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
cargo test --release --workspace --no-run --message-format=json >"$messages"
program() { # PACKAGE TARGET KIND: prints the path of the executable
    python3 - "$messages" "$@" <<'PYTHON'
import json, sys
path, package, target, kind = sys.argv[1:]
for line in open(path):
    message = json.loads(line)
    if (message.get("executable") and f"/{package}#" in message["package_id"] and message["target"]["name"] == target
            and kind in message["target"]["kind"]):
        print(message["executable"])
PYTHON
}

# The tests of server and client choose the fabric by it.
export THALLUS_TEST_FABRIC=ucx THALLUS_TEST_SERVER_FABRIC=ucx

failed=0
run() { # WHAT DIRECTORY PROGRAM ARGUMENTS...
    local what=$1 directory=$2 log
    shift 2
    [ -x "$1" ] || { echo "ucx-matrix: the program for $what is missing" >&2; exit 1; }
    log=$(mktemp)
    if (cd "$directory" && timeout 300 "$@" >"$log" 2>&1) && grep -q 'test result: ok. [1-9]' "$log"; then
        printf '%-66s %s\n' "$what" "$(grep -o '[0-9]* passed' "$log" | tail -n 1)"
    else
        printf '%-66s FAILED\n' "$what"
        tail -n 60 "$log"
        failed=1
    fi
    rm -f "$log"
}
use() { # LIBRARY: used by all programs from here on
    if [ "$1" = system ]; then unset THALLUS_UCX_LIBRARY; else export THALLUS_UCX_LIBRARY=$1; fi
}

# Emulation serves tests only. In some versions, and between some, it does not work with protocols other than the
# default.
shared_memory=(--skip tcp --skip emulat)
for index in "${!versions[@]}"; do
    version=${versions[index]}
    use "${libraries[index]}"
    for test in conformance conformance_tcp gone idle options processes; do
        run "UCX $version: fabric-ucx, $test" fabric-ucx "$(program fabric-ucx $test test)"
    done
    run "UCX $version: fabric-ucx, unit tests" fabric-ucx "$(program fabric-ucx thallus_fabric_ucx lib)"
    for protocols in y n; do
        for test in conformance processes; do
            UCX_PROTO_ENABLE=$protocols run "UCX $version, UCX_PROTO_ENABLE=$protocols: fabric-ucx, $test" \
                fabric-ucx "$(program fabric-ucx $test test)" "${shared_memory[@]}"
        done
    done
    for test in ucx faults survivor mapped; do
        run "UCX $version: server and client, $test" tests "$(program tests $test test)"
    done
    [ "${1:-}" != --long ] || run "UCX $version: 220 kills" tests "$(program tests kills test)" --ignored
done

# Between versions: each with its neighbours, or all with all in the long mode.
pairs=()
for server in "${!versions[@]}"; do
    for client in "${!versions[@]}"; do
        distance=$(((client - server + ${#versions[@]}) % ${#versions[@]}))
        [ "$distance" -ne 0 ] || continue
        if [ "${1:-}" = --long ] || [ "$distance" -eq 1 ] || [ "$distance" -eq $((${#versions[@]} - 1)) ]; then
            pairs+=("$server $client")
        fi
    done
done
for pair in "${pairs[@]}"; do
    read -r server client <<<"$pair"
    use "${libraries[client]}"
    what="UCX ${versions[server]} at the lender, ${versions[client]} at the borrower"
    THALLUS_TEST_SERVER_UCX=${libraries[server]} run "$what: processes" fabric-ucx \
        "$(program fabric-ucx processes test)" "${shared_memory[@]}"
    THALLUS_TEST_SERVER_UCX=${libraries[server]} run "$what: results" tests "$(program tests ucx test)"
done

echo
echo "bandwidth of reads through shared memory, in turn:"
for round in 1 2 3; do
    for index in "${!versions[@]}"; do
        use "${libraries[index]}"
        rate=$("$(program fabric-ucx bandwidth example)" | awk '$1 == 8388608 { print $2, $3 }')
        printf 'round %s, UCX %-14s %s\n' "$round" "${versions[index]}" "$rate"
    done
done
exit "$failed"
