# Program of the guest of scripts/soft-roce.sh: creates two RDMA devices, and runs the steps below, or only those named
# in /host/steps. The exit status is the result.

# Runs a step, unless /host/steps leaves it out: NAME SECONDS COMMAND ... The command must limit its time to $limit.
step() {
    name=$1 limit=$2
    shift 2
    if [ -s /host/steps ] && ! grep -qx "$name" /host/steps; then return; fi
    start=$(cut -d. -f1 /proc/uptime)
    "$@" >"/tmp/$name.log" 2>&1
    status=$?
    took=$(($(cut -d. -f1 /proc/uptime) - start))
    if [ "$status" = 0 ]; then
        echo "soft-roce: $name ... ok ($took s)" | tee -a /tmp/passed
        grep -E '^(test result:|measured:)' "/tmp/$name.log" | sed 's/^/    /'
    else
        cat "/tmp/$name.log"
        echo "soft-roce: $name ... FAILED with status $status after $took s (143: it took longer than $limit s)" |
            tee -a /tmp/failed
        echo "soft-roce: to run it again: scripts/soft-roce.sh $name"
    fi
}

# Runs the tests of one program, one at a time, since they count objects of the whole guest: PROGRAM ARGUMENT ...
tests() {
    program=$1
    shift
    timeout "$limit" "/host/release/deps/$program" --test-threads=1 "$@" >"/tmp/$name.tests" 2>&1
    status=$?
    cat "/tmp/$name.tests"
    # A run without any test shows nothing.
    ! grep -q '^running 0 tests' "/tmp/$name.tests" && return "$status"
}

# Runs a command up to three times. After a NAK, the requester of Linux 6.1's Soft-RoCE sometimes stops retransmitting
# for good, so that nothing reports a killed peer: its counters of sent packets and of retries stand still. A fault of
# ours fails all three.
thrice() {
    "$@" || "$@" || "$@"
}

# Runs a command again if UCX has ended the process: a link that goes down flushes the receives of UCX's auxiliary
# transport (UD), and if UCX polls them before it has closed the connection, it calls ucs_fatal (ud_verbs.c).
again_after_fatal() {
    "$@" && return 0
    ended=$?
    grep -q 'ud_verbs.c.* Fatal: receive completion' "/tmp/$name.tests" || return "$ended"
    "$@"
}

# Runs a test without the right to lock memory, and with a limit of 64 KiB, a common default in the past.
with_little_memory() {
    timeout "$limit" su -p -s /bin/sh nobody -c \
        "ulimit -l 64; /host/release/deps/thallus-tests.soft_roce --ignored memory_that_must_not_be_locked"
}

# Compares the throughput of one-sided reads by fabric-verbs with perftest's, between the same devices.
throughput() {
    for size in 65536 262144; do
        timeout "$limit" ib_read_bw -F -n 128 -s $size -d rxa -x 1 >/dev/null 2>&1 &
        sleep 1
        theirs=$(timeout "$limit" ib_read_bw -F -n 128 -s $size -d rxb -x 1 10.2.0.1 |
            awk -v size=$size '$1 == size { print $4 * 1.048576 }')
        wait
        ours=$(timeout "$limit" /host/release/read_bandwidth rxa rxb | awk -v size=$size '$1 == size { print $2 }')
        awk -v size=$size -v ours="$ours" -v theirs="$theirs" 'BEGIN {
            if (ours <= 0 || theirs <= 0) exit 1
            printf "measured: reads of %d bytes, under emulation: fabric-verbs at %.2f of ib_read_bw\n", \
                size, ours / theirs
            printf "measured: (%.1f and %.1f MB/s, which say nothing of a card)\n", ours, theirs
        }' || return 1
    done
}

# Two devices connected by a link: packets from one to the other cross a pair of interfaces.
ip=/usr/bin/ip # not busybox's
for setting in all default; do
    conf=/proc/sys/net/ipv4/conf/$setting
    echo 1 >$conf/accept_local
    echo 0 >$conf/rp_filter
    echo 1 >$conf/arp_ignore
    echo 2 >$conf/arp_announce
done
# Room for an RDMA MTU of 4096 and its headers.
$ip link add va mtu 4200 type veth peer name vb mtu 4200
for end in a:1 b:2; do
    $ip addr add "10.2.0.${end#*:}/24" dev "v${end%:*}"
    # UCX 1.13 needs an IPv6 address on Soft-RoCE.
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
export THALLUS_VERBS_DEVICE=rxb THALLUS_VERBS_LINK=vb
# UCX over verbs. rxe treats a retry count of 7 as unlimited.
export UCX_TLS=rc,self UCX_NET_DEVICES=rxa:1 UCX_IB_GID_INDEX=2 UCX_RC_VERBS_RETRY_COUNT=6
cd /tmp || exit 2

# Two at a time, since the guest has two processors.
step ucx-conformance 240 tests thallus-fabric-ucx.conformance &
step verbs-conformance 240 tests thallus-fabric-verbs.conformance --ignored &
wait
step ucx-processes 120 thrice tests thallus-fabric-ucx.processes default_transports &
step verbs-processes 60 tests thallus-fabric-verbs.processes --ignored &
wait
# The same under a new UCX.
export THALLUS_UCX_LIBRARY=/host/ucx-new/libucp.so.0
step ucx-new-conformance 240 tests thallus-fabric-ucx.conformance &
step ucx-new-processes 120 thrice tests thallus-fabric-ucx.processes default_transports &
wait
unset THALLUS_UCX_LIBRARY
step verbs-faults 120 tests thallus-fabric-verbs.faults --ignored
# One at a time, since they count registrations. UCX's registration cache would keep memory that is no longer lent.
export UCX_IB_REG_METHODS=direct
for fabric in ucx verbs; do
    export THALLUS_TEST_FABRIC=$fabric
    step $fabric-queries 180 tests thallus-tests.soft_roce --ignored --skip memory_that_must_not_be_locked
    step $fabric-memlock 60 with_little_memory
done
export THALLUS_TEST_FABRIC=ucx THALLUS_UCX_LIBRARY=/host/ucx-new/libucp.so.0
# This UCX has another variable for the cache, and looks for a route to the peer, which two addresses of one host lack.
export UCX_RCACHE_ENABLE=n UCX_IB_ROCE_REACHABILITY_MODE=all
step ucx-new-queries 180 again_after_fatal tests thallus-tests.soft_roce --ignored --skip memory_that_must_not_be_locked
unset UCX_IB_REG_METHODS THALLUS_UCX_LIBRARY UCX_RCACHE_ENABLE UCX_IB_ROCE_REACHABILITY_MODE
step verbs-loopback 120 tests thallus-server.loopback --ignored over_verbs
step throughput 120 throughput
for fabric in ucx verbs; do
    export THALLUS_TEST_FABRIC=$fabric
    step $fabric-tpch 240 tests thallus-tests.tpch &
done
wait

touch /tmp/passed /tmp/failed
passed=$(wc -l </tmp/passed) failed=$(wc -l </tmp/failed)
echo "soft-roce: $passed steps passed, $failed failed, $(cut -d. -f1 /proc/uptime) s in the guest"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
