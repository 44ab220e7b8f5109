#!/usr/bin/env bash
# Builds the guest of scripts/soft-roce.sh from Debian packages: tests/soft-roce/image.sh DIR
# Installs nothing on the host and needs no root: packages are downloaded and unpacked. In DIR there are then
#   vmlinux     a stock Debian kernel, unpacked from its bzImage (which the guest would need 5 s to do)
#   initrd.gz   busybox, the modules of Soft-RoCE, the userspace of verbs and UCX, and `init` as process 1
#   qemu/       QEMU, where the host has none
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$1
libs=usr/lib/x86_64-linux-gnu

packages=(busybox-static cpio iproute2 libbpf1 libcap2 libelf1 libmnl0 libnuma1 libpci3
    ibverbs-providers ibverbs-utils libibmad5 libibumad3 libibverbs1 libnl-3-200 libnl-route-3-200 librdmacm1 perftest
    libucx0 ucx-utils)
programs=(bin/ip usr/bin/rdma usr/bin/ibv_devinfo usr/bin/ib_read_bw usr/bin/ucx_info)
plugins=(libibverbs/librxe-rdmav34.so ucx/libuct_ib.so.0 ucx/libuct_rdmacm.so.0 ucx/libuct_cma.so.0)
# In the order in which they are loaded. Without crc32_generic a device cannot be added ("No such file or directory").
modules=(crypto/crc32_generic fs/configfs/configfs net/ipv4/udp_tunnel net/ipv6/ip6_udp_tunnel
    drivers/infiniband/core/{ib_core,ib_cm,iw_cm,rdma_cm,ib_uverbs,rdma_ucm} drivers/infiniband/sw/rxe/rdma_rxe
    drivers/net/veth
    drivers/virtio/{virtio_ring,virtio,virtio_pci_modern_dev,virtio_pci_legacy_dev,virtio_pci}
    fs/netfs/netfs fs/fscache/fscache net/9p/{9pnet,9pnet_virtio} fs/9p/9p)

fail() {
    echo "soft-roce: $*" >&2
    exit 1
}
download() { # PACKAGE ...: unpacked by the caller
    apt-get -qq -o APT::Sandbox::User=root download "$@" ||
        fail "apt-get cannot download $*: run 'apt-get update' as root, and see that the network is there"
}
unpack() { # DIRECTORY PACKAGE ...
    local to=$1 package
    shift
    for package; do dpkg -x "${package}"_*.deb "$to"; done
}

command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
    fail "the guest is made of Debian packages, and this system has no apt: run on Debian 12 (a container will do)"
[ "$(uname -m)" = x86_64 ] || fail "the guest is x86-64, and this machine is $(uname -m)"
command -v xz >/dev/null || fail "xz is missing: install xz-utils"
[ "$(id -u)" -ne 0 ] || apt-get -qq update >&2 || echo "soft-roce: apt-get update failed; trying what is known" >&2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$dir" "$work"/{debs,user,kernel}
cd "$work/debs"

# `apt-get install qemu-system-x86` may remove a QEMU package that the host has from elsewhere; unpacking cannot.
if ! command -v qemu-system-x86_64 >/dev/null; then
    mapfile -t needed < <(apt-get install -s --no-install-recommends qemu-system-x86 | awk '/^Inst/ { print $2 }')
    [ "${#needed[@]}" -gt 0 ] || fail "apt-get knows no package qemu-system-x86"
    download "${needed[@]}"
    unpack "$dir/qemu" "${needed[@]}"
fi
download "${packages[@]}"
unpack "$work/user" "${packages[@]}"

# Not the cloud flavour, which has no rdma_rxe.
kernel=$(apt-cache search --names-only '^linux-image-[0-9.]+-[0-9]+-amd64$' | awk '{ print $1 }' | sort -V | tail -1)
[ -n "$kernel" ] || fail "apt-get knows no kernel like linux-image-6.1.0-1-amd64: this was made for Debian 12"
version=${kernel#linux-image-}
download "$kernel"
paths=("./boot/vmlinuz-$version")
for module in "${modules[@]}"; do paths+=("./lib/modules/$version/kernel/$module.ko"); done
dpkg --fsys-tarfile "$kernel"_*.deb | tar -x -C "$work/kernel" "${paths[@]}"
# Linux x86 boot protocol: the payload begins after the sectors of the set-up code, whose number is at 0x1f1.
image=$work/kernel/boot/vmlinuz-$version
number() { od -An -t "$2" -j "$1" -N "${2#u}" "$image" | tr -d ' '; }
offset=$((($(number $((0x1f1)) u1) + 1) * 512 + $(number $((0x248)) u4)))
dd if="$image" iflag=skip_bytes,count_bytes skip="$offset" count="$(number $((0x24c)) u4)" bs=1M status=none |
    xz -dc --single-stream >"$dir/vmlinux" || fail "the kernel in $kernel is not packed as expected"

root=$work/root
mkdir -p "$root"/{bin,dev,etc/libibverbs.d,host,lib/modules,lib64,proc,root,run,sys,tmp,usr/bin,"$libs"}
for module in "${modules[@]}"; do
    cp "$work/kernel/lib/modules/$version/kernel/$module.ko" "$root/lib/modules/"
    basename "$module"
done >"$root/lib/modules/order"
cp "$work/user/bin/busybox" "$root/bin/"
for applet in $("$work/user/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done

export LD_LIBRARY_PATH=$work/user/$libs:$work/user/lib/x86_64-linux-gnu
binaries=()
for program in "${programs[@]}"; do
    cp "$work/user/$program" "$root/usr/bin/"
    binaries+=("$work/user/$program")
done
for plugin in "${plugins[@]}"; do
    install -D "$work/user/$libs/$plugin" "$root/$libs/$plugin"
    binaries+=("$work/user/$libs/$plugin")
done
for plugin in "$root/$libs"/ucx/*.so.0; do ln -s "$(basename "$plugin")" "${plugin%.0}"; done
echo "driver rxe" >"$root/etc/libibverbs.d/rxe.driver"
ldd "${binaries[@]}" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
    while read -r library; do cp -L "$library" "$root/$libs/"; done
unset LD_LIBRARY_PATH
# Loaded by pthread_exit, which ldd does not see.
for library in libgcc_s.so.1 libstdc++.so.6; do cp -L "/$libs/$library" "$root/$libs/"; done
cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"
ln -s "../$libs" "$root/lib/x86_64-linux-gnu"

printf '%s\n' 'root:x:0:0::/root:/bin/sh' 'nobody:x:65534:65534::/tmp:/bin/sh' >"$root/etc/passwd"
echo '127.0.0.1 localhost' >"$root/etc/hosts"
echo 'hosts: files' >"$root/etc/nsswitch.conf"
install -m 755 "$here/init" "$root/init"
(cd "$root" && find . | LC_ALL=C sort | "$work/user/bin/cpio" --quiet -o -H newc -R 0:0) | gzip -1 >"$dir/initrd.gz"
