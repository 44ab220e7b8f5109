#!/usr/bin/env bash
# Tests of databases behind the server, with their real drivers: DuckDB, SQLite, PostgreSQL. Fetches the drivers, starts
# a PostgreSQL server in a temporary directory, and runs the tests.
#
#   scripts/engines.sh [ARGUMENTS OF THE TESTS]       for example: scripts/engines.sh duckdb
#
# The drivers stay in the target directory, in engines/. scripts/engines.sh drivers fetches them only, and prints their
# paths.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
cache=$CARGO_TARGET_DIR/engines
mkdir -p "$cache"

case $(uname -m) in
    x86_64) arch=x64 ;;
    aarch64) arch=arm64 ;;
    *) echo "engines: there are no drivers for $(uname -m)" >&2; exit 1 ;;
esac

# Packages of Debian that the drivers and the tests need.
binaries() { find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1; }
scripts/setup.sh
missing=()
command -v npm >/dev/null || missing+=(npm)
[ -n "$(binaries)" ] || missing+=(postgresql)
if [ "${#missing[@]}" -gt 0 ]; then
    echo "engines: installing ${missing[*]}" >&2
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
fi

# DuckDB's library, from the package for Node.
duckdb_sum=1b9f82478539bb9a1d1df44bd103121a12ae52142c07158dc52b97d2ec1d69ff
duckdb=$cache/duckdb-1.5.6/libduckdb.so
if [ ! -f "$duckdb" ]; then
    package=node-bindings-linux-$arch
    mkdir -p "${duckdb%/*}"
    archive=$cache/$(cd "$cache" && npm pack --silent "@duckdb/$package@1.5.6-r.1")
    if [ "$arch" = x64 ]; then
        echo "$duckdb_sum  $archive" | sha256sum --check --quiet
    fi
    tar -xzf "$archive" -C "${duckdb%/*}" --strip-components=1 package/libduckdb.so
fi

# The drivers of the Arrow project, from their packages for Python.
wheel() {
    local library=$cache/adbc_driver_$1-1.13.0/adbc_driver_$1/libadbc_driver_$1.so
    if [ ! -f "$library" ]; then
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
            --dest "$cache" "adbc-driver-$1==1.13.0"
        python3 -m zipfile -e "$cache/adbc_driver_$1-1.13.0-"*.whl "$cache/adbc_driver_$1-1.13.0"
    fi
    echo "$library"
}
sqlite=$(wheel sqlite)
postgresql=$(wheel postgresql)
export THALLUS_TEST_DUCKDB=$duckdb THALLUS_TEST_SQLITE=$sqlite THALLUS_TEST_POSTGRESQL=$postgresql
if [ "${1:-}" = drivers ]; then
    printf '%s\n' "$duckdb" "$sqlite" "$postgresql"
    exit
fi

bin=$(binaries)

# PostgreSQL refuses to run as root.
as_user=()
data=$(mktemp -d "${TMPDIR:-/tmp}/thallus-postgresql-XXXXXX")
if [ "$(id -u)" -eq 0 ]; then
    as_user=(runuser -u postgres --)
    chown postgres "$data"
fi
stop() {
    "${as_user[@]}" "$bin/pg_ctl" -D "$data/db" -m immediate -w stop >/dev/null 2>&1 || true
    rm -rf "$data"
}
trap stop EXIT
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
(
    cd "$data"
    "${as_user[@]}" "$bin/initdb" -D "$data/db" -A trust -U postgres >/dev/null
    "${as_user[@]}" "$bin/pg_ctl" -D "$data/db" -l "$data/log" -w start \
        -o "-c listen_addresses=127.0.0.1 -p $port -k $data -c fsync=off" >/dev/null
)
export THALLUS_TEST_POSTGRESQL_URI=postgresql://postgres@127.0.0.1:$port

# --workspace, so that the features are the same as in every other build and DataFusion is compiled once.
cargo test --release --workspace --test engines --test adbc -- --include-ignored "$@"
