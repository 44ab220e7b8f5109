#!/usr/bin/env bash
# Runs the tests that need an RDMA device on Soft-RoCE, Linux's verbs provider in software, in a QEMU guest with a stock
# Debian kernel. Needs no RDMA card, no KVM and no root, and installs only the packages of a build.
#
#   scripts/soft-roce.sh             all steps
#   scripts/soft-roce.sh STEP ...    some steps (tests/soft-roce/guest.sh has the list)
#
# The guest is built once and kept in ${XDG_CACHE_HOME:-~/.cache}/thallus/soft-roce. Its processor is emulated, so the
# tests show whether functions work, and nothing about speed.
set -euo pipefail
cd "$(dirname "$0")/.."
began=$SECONDS
cache=${XDG_CACHE_HOME:-$HOME/.cache}/thallus/soft-roce
limit=${SOFT_ROCE_TIMEOUT:-900}

if [ "${THALLUS_SKIP_SOFT_ROCE:-}" = 1 ]; then
    echo "soft-roce: SKIPPED because THALLUS_SKIP_SOFT_ROCE=1: nothing was tested over RDMA" >&2
    exit 0
fi
scripts/setup.sh

# The guest depends on these scripts and on the host's C library.
key=$(cat tests/soft-roce/{image.sh,init} <(ldd --version | head -1) | sha256sum | cut -c1-16)
image=$cache/$key
if [ ! -d "$image" ]; then
    echo "soft-roce: building the guest from Debian packages, once" >&2
    mkdir -p "$cache"
    rm -rf "$image.partial"
    tests/soft-roce/image.sh "$image.partial" || {
        echo "soft-roce: the guest cannot be built on this host, for the reason above." \
            "THALLUS_SKIP_SOFT_ROCE=1 leaves these tests out." >&2
        exit 1
    }
    mv "$image.partial" "$image"
fi

echo "soft-roce: building the tests" >&2
cargo build --release --workspace --bins --example read_bandwidth --quiet
tests=(--test conformance --test faults --test loopback --test processes --test soft_roce --test tpch)
fields='"package_id":"[^"]*#\([a-z-]*\)@[^"]*".*"name":"\([^"]*\)".*"executable":"\([^"]*\)"'
executables=$(cargo test --release --workspace "${tests[@]}" --no-run --quiet --message-format=json |
    sed -n "/\"test\":true/s/.*$fields.*/\1 \2 \3/p")
target=${CARGO_TARGET_DIR:-target}/release

# The guest mounts this directory as /host. The programs lie as in target/, where the tests look for them.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
host=$work/host
mkdir -p "$host/release/deps" "$host/lib"
cp tests/soft-roce/guest.sh "$host/"
[ $# -eq 0 ] || printf '%s\n' "$@" >"$host/steps"
for program in thallus thallus-server; do
    strip -o "$host/release/$program" "$target/$program"
done
strip -o "$host/release/read_bandwidth" "$target/examples/read_bandwidth"
while read -r package name executable; do
    case $package/$name in
    thallus-fabric-ucx/conformance | thallus-fabric-ucx/processes | thallus-fabric-verbs/* | thallus-server/loopback | \
        thallus-tests/soft_roce | thallus-tests/tpch)
        strip -o "$host/release/deps/$package.$name" "$executable"
        ;;
    esac
done <<<"$executables"
# A new UCX with its InfiniBand module, which libucx-cu12 lacks: the UCX of PyPI's nixl-cu12. It uses the guest's own
# libibverbs, which supports Soft-RoCE.
wheel=$(scripts/ucx-versions.sh --with-rdma)
new=$host/ucx-new
mkdir -p "$new/ucx"
for library in "$wheel"/libuc[mpst]-*; do
    strip -o "$new/$(basename "$library")" "$library"
done
strip -o "$new/ucx/libuct_ib.so.0.0.0" "$wheel/ucx/libuct_ib.so.0.0.0"
ln -s "$(basename "$new"/libucp-*)" "$new/libucp.so.0"
for verbs in "$wheel"/libibverbs-*; do
    ln -s /usr/lib/x86_64-linux-gnu/libibverbs.so.1 "$new/$(basename "$verbs")"
done
"$target/thallus-tpch-data" --scale 0.01 --out "$host/tpch" >/dev/null
# Some tests run as another user.
chmod -R a+rX "$work"
# Libraries that the guest's own programs lack.
ldd "$host"/release/thallus* "$host"/release/deps/* "$new"/libuc* "$new"/ucx/* |
    awk -v new="$new" '$2 == "=>" && $3 ~ /^\// && index($3, new) == 0 { print $3 }' | sort -u |
    while read -r library; do install -m 755 "$(readlink -f "$library")" "$host/lib/$(basename "$library")"; done

qemu=qemu-system-x86_64
options=()
if [ -d "$image/qemu" ]; then
    libs=$image/qemu/usr/lib/x86_64-linux-gnu
    qemu=$image/qemu/usr/bin/$qemu
    options+=(-L "$image/qemu/usr/share/qemu" -L "$image/qemu/usr/share/seabios")
fi
echo "soft-roce: booting the guest ($((SECONDS - began)) s so far)" >&2
status=0
LD_LIBRARY_PATH=${libs:-} timeout -k 5 "$limit" "$qemu" "${options[@]}" \
    -accel tcg,thread=multi -machine pc -cpu max -smp 2 -m "${SOFT_ROCE_MEMORY:-3072}" \
    -nodefaults -no-user-config -display none -monitor none -serial stdio -no-reboot \
    -device isa-debug-exit,iobase=0xf4,iosize=4 \
    -virtfs "local,path=$host,mount_tag=host,security_model=none,readonly=on,multidevs=remap" \
    -kernel "$image/vmlinux" -initrd "$image/initrd.gz" \
    -append "console=ttyS0 panic=-1 quiet loglevel=4 mitigations=off no_timer_check" </dev/null || status=$?
# The status of isa-debug-exit is (status << 1) | 1. Any other status means that the guest reported none: 124 and 137
# are those of the timeout.
case $status in
1) echo "soft-roce: passed, in $((SECONDS - began)) s" >&2 && exit 0 ;;
124 | 137) echo "soft-roce: FAILED: the guest ran for longer than $limit s (SOFT_ROCE_TIMEOUT)" >&2 ;;
*) echo "soft-roce: FAILED (QEMU ended with $status)" >&2 ;;
esac
exit 1
