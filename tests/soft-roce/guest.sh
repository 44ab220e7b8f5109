# What the guest of scripts/soft-roce.sh does: makes two RDMA devices, and runs the steps below, or those that /host/steps
# names. The exit status is the verdict.
passed=0 failed=0

# Runs a step, if it is wanted: NAME SECONDS COMMAND ..., where the command sees to it that it takes no longer than $limit.
step() {
    name=$1 limit=$2
    shift 2
    if [ -s /host/steps ] && ! grep -qx "$name" /host/steps; then return; fi
    start=$(cut -d. -f1 /proc/uptime)
    "$@" >/tmp/output 2>&1
    status=$?
    took=$(($(cut -d. -f1 /proc/uptime) - start))
    if [ "$status" = 0 ]; then
        passed=$((passed + 1))
        echo "soft-roce: $name ... ok ($took s)"
        grep -E '^(test result:|measured:)' /tmp/output | sed 's/^/    /'
    else
        failed=$((failed + 1))
        cat /tmp/output
        echo "soft-roce: $name ... FAILED with status $status after $took s (124 or 143: it took longer than $limit s)"
        echo "soft-roce: to run it again: scripts/soft-roce.sh $name"
    fi
}

# Tests of one program, one at a time: they count what the whole guest has. PROGRAM ARGUMENT ...
tests() {
    program=$1
    shift
    timeout "$limit" "/host/release/deps/$program" --test-threads=1 "$@" >/tmp/tests 2>&1
    status=$?
    cat /tmp/tests
    # What runs no test shows nothing.
    ! grep -q '^running 0 tests' /tmp/tests && return "$status"
}

# Without the right to lock memory, and with the usual limit.
unprivileged() {
    timeout "$limit" su -p -s /bin/sh nobody -c "ulimit -l 64; $*"
}

# One-sided reads by fabric-verbs, and by perftest between the same devices.
throughput() {
    for size in 65536 262144; do
        timeout "$limit" ib_read_bw -F -n 128 -s $size -d rxa -x 1 >/dev/null 2>&1 &
        sleep 1
        theirs=$(timeout "$limit" ib_read_bw -F -n 128 -s $size -d rxb -x 1 10.2.0.1 | awk -v size=$size '$1 == size { print $4 * 1.048576 }')
        wait
        ours=$(timeout "$limit" /host/release/read_bandwidth rxa rxb | awk -v size=$size '$1 == size { print $2 }')
        awk -v size=$size -v ours="$ours" -v theirs="$theirs" 'BEGIN {
            if (ours <= 0 || theirs <= 0) exit 1
            printf "measured: reads of %d bytes, under emulation: fabric-verbs at %.2f of ib_read_bw\n", size, ours / theirs
            printf "measured: (%.1f and %.1f MB/s, which say nothing of a card)\n", ours, theirs
        }' || return 1
    done
}

# Two cards with a cable between them: packets from one to the other cross a pair of interfaces.
ip=/usr/bin/ip # not busybox's
for setting in all default; do
    conf=/proc/sys/net/ipv4/conf/$setting
    echo 1 >$conf/accept_local
    echo 0 >$conf/rp_filter
    echo 1 >$conf/arp_ignore
    echo 2 >$conf/arp_announce
done
# An RDMA MTU of 4096 and its headers.
$ip link add va mtu 4200 type veth peer name vb mtu 4200
for end in a:1 b:2; do
    $ip addr add "10.2.0.${end#*:}/24" dev "v${end%:*}"
    # UCX 1.13 wants an IPv6 address on Soft-RoCE.
    $ip -6 addr add "fd00:2::${end#*:}/64" dev "v${end%:*}" nodad
done
for end in a b; do
    $ip link set "v$end" up
    rdma link add "rx$end" type rxe netdev "v$end" || exit 2
done
waited=0
until [ "$(cat /sys/class/infiniband/rx?/ports/1/gids/2 | grep -c '^fd00')" = 2 ]; do
    usleep 100000
    waited=$((waited + 1))
    [ $waited -lt 100 ] || { echo "soft-roce: the devices did not come up: $(rdma link)"; exit 2; }
done

export LD_LIBRARY_PATH=/host/lib TMPDIR=/tmp RUST_BACKTRACE=1 THALLUS_TPCH_DATA=/host/tpch
cd /tmp

# UCX over verbs. rxe takes a retry count of 7 for "for ever". Without its registration cache, what is registered is what is
# lent, and can be counted.
export UCX_TLS=rc,self UCX_NET_DEVICES=rxa:1 UCX_IB_GID_INDEX=2 UCX_RC_VERBS_RETRY_COUNT=6
export THALLUS_TEST_FABRIC=ucx
step ucx-conformance 180 tests thallus-fabric-ucx.conformance
step ucx-processes 60 tests thallus-fabric-ucx.processes default_transports
export UCX_IB_REG_METHODS=direct
step ucx-queries 180 tests thallus-tests.soft_roce --ignored --skip memory_that_must_not_be_locked
step ucx-memlock 60 unprivileged /host/release/deps/thallus-tests.soft_roce --ignored memory_that_must_not_be_locked
unset UCX_IB_REG_METHODS
step ucx-tpch 180 tests thallus-tests.tpch

# Verbs: the same, and between the two devices.
export THALLUS_TEST_FABRIC=verbs THALLUS_VERBS_DEVICE=rxa
step verbs-conformance 180 tests thallus-fabric-verbs.conformance --ignored
step verbs-queries 180 tests thallus-tests.soft_roce --ignored --skip memory_that_must_not_be_locked
step verbs-memlock 60 unprivileged /host/release/deps/thallus-tests.soft_roce --ignored memory_that_must_not_be_locked
step verbs-tpch 180 tests thallus-tests.tpch
step throughput 120 throughput

echo "soft-roce: $passed steps passed, $failed failed, $(cut -d. -f1 /proc/uptime) s in the guest"
[ $failed = 0 ] && [ $passed -gt 0 ]
