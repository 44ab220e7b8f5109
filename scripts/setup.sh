#!/usr/bin/env bash
# Installs the packages that a build needs and that are missing on this machine.
set -euo pipefail

command -v cargo >/dev/null || {
    echo "setup: no cargo on the PATH: install Rust 1.95 or newer (https://rustup.rs), then run this again" >&2
    exit 1
}

missing=()
command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v c++ >/dev/null || missing+=(g++)
command -v make >/dev/null || missing+=(make)
command -v pkg-config >/dev/null || missing+=(pkg-config)
# UCX is loaded at run time: its headers are not needed.
ldconfig -p 2>/dev/null | grep -q 'libucp\.so\.0' || missing+=(libucx0)
# bindgen loads libclang at build time.
ldconfig -p 2>/dev/null | grep -q 'libclang-[0-9.]*\.so' ||
    ls /usr/lib/llvm-*/lib/libclang.so* >/dev/null 2>&1 || missing+=(libclang-dev)
# ibverbs-sys generates its bindings from its own headers, which its cmake build collects. It links with libibverbs.
command -v cmake >/dev/null || missing+=(cmake)
command -v python3 >/dev/null || missing+=(python3-minimal)
# scripts/ucx-versions.sh downloads versions of UCX with it, for tests.
command -v pip >/dev/null || missing+=(python3-pip)
# The tests of files have a Python environment of their own.
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
pkg-config --exists libnl-3.0 libnl-route-3.0 2>/dev/null || missing+=(libnl-3-dev libnl-route-3-dev)
pkg-config --exists libibverbs 2>/dev/null || missing+=(libibverbs-dev)

if [ "${#missing[@]}" -gt 0 ]; then
    command -v apt-get >/dev/null || {
        echo "setup: please install the equivalents of these Debian packages: ${missing[*]}" >&2
        exit 1
    }
    echo "setup: installing ${missing[*]}" >&2
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
fi
