#!/usr/bin/env bash
# Downloads UCX libraries from PyPI's packages into a cache.
#   scripts/ucx-versions.sh VERSION...     libucx-cu12 of these versions: prints the path of each libucp.so.0
#   scripts/ucx-versions.sh --with-rdma    nixl-cu12, whose UCX has the module for RDMA devices: prints the directory of
#                                          its libraries
set -euo pipefail
cache=${THALLUS_UCX_CACHE:-$HOME/.cache/thallus/ucx}

fetch() { # PACKAGE VERSION: into $cache/PACKAGE-VERSION
    local directory=$cache/$1-$2 partial
    [ ! -d "$directory" ] || return 0
    command -v pip >/dev/null || {
        echo "ucx-versions: no pip on the PATH (Debian: apt install python3-pip)" >&2
        exit 1
    }
    mkdir -p "$cache"
    partial=$(mktemp -d "$cache/partial.XXXXXX")
    # The packages are unpacked; none of their code is run.
    pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$partial" "$1==$2" >&2
    python3 -m zipfile -e "$partial"/*.whl "$partial/files"
    mv "$partial/files" "$directory"
    rm -rf "$partial"
}

if [ "${1:-}" = --with-rdma ]; then
    fetch nixl-cu12 1.5.1
    echo "$cache/nixl-cu12-1.5.1/nixl_cu12.libs"
    exit 0
fi
for version in "$@"; do
    fetch libucx-cu12 "$version"
    echo "$cache/libucx-cu12-$version/libucx/lib/libucp.so.0"
done
