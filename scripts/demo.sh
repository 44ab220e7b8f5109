#!/usr/bin/env bash
# The demonstration: installs missing packages, builds, generates TPC-H tables (or takes your directory of files),
# starts a server, runs queries over shared memory, prints results and transfer reports, and stops the server.
#
#   scripts/demo.sh                  TPC-H at scale factor 1 (SCALE=0.1 for less)
#   scripts/demo.sh DIR              every file and sub-directory of DIR is a table
#   scripts/demo.sh DIR 'SELECT ..'  runs only this query
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
target=${CARGO_TARGET_DIR:-target}
echo "demo: building (the first build of DataFusion takes about half an hour on two cores)" >&2
cargo build --release --workspace --quiet
PATH="$target/release:$PATH"

work=$(mktemp -d)
server=
stop() {
    [ -z "$server" ] || { kill -TERM "$server" 2>/dev/null && wait "$server" 2>/dev/null; } || true
    rm -rf "$work"
}
trap stop EXIT

if [ $# -ge 1 ]; then
    data=$1
else
    scale=${SCALE:-1}
    data=$target/demo/tpch-$scale
    echo "demo: TPC-H tables at scale factor $scale in $data" >&2
    thallus-tpch-data --scale "$scale" --out "$data"
fi

thallus-server --listen 127.0.0.1:0 --data "$data" 2> "$work/log" &
server=$!
for _ in $(seq 300); do
    address=$(sed -n 's/.*listening.*address=\([0-9.:]*\).*/\1/p' "$work/log")
    [ -n "$address" ] && break
    kill -0 "$server" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
    sleep 0.1
done
[ -n "${address:-}" ] || { echo "demo: the server did not start listening" >&2; cat "$work/log" >&2; exit 1; }
url=thallus://$address
thallus ping "$url"

run() {
    printf '\n\033[1m%s\033[0m\n' "$1"
    thallus query --stats --max-rows 10 --quiet "$url" "$1"
}

if [ $# -ge 2 ]; then
    run "$2"
elif [ $# -eq 1 ]; then
    tables="SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    thallus query "$url" "$tables" --format csv --quiet |
        tail -n +2 | while read -r table; do run "SELECT * FROM \"$table\""; done
else
    run "$(cat tests/tpch/q01.sql)"
    run "$(cat tests/tpch/q05.sql)"
    # A large result, first by one-sided reads and then, for comparison, inline over TCP.
    large='SELECT l_orderkey, l_partkey, l_suppkey, l_quantity, l_extendedprice, l_discount, l_shipdate, l_comment'
    large+=' FROM lineitem'
    run "$large"
    printf '\n\033[1mthe same, inline over TCP\033[0m\n'
    thallus query "$url" "$large" --lend-from never --stats --max-rows 0 --quiet
fi
