#!/usr/bin/env bash
# Compares the fabrics of one host, shm and the shared memory of UCX, in turn: a lent and a mapped result of 1 GiB, 64
# streams of 16 MiB, a result of one row, and a connect. Medians of some rounds, and of the ratio in each round. Then
# idle connections over shm, and the memory of a server before and after a load (two minutes).
# usage: bench/one-host.sh [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")"
../scripts/setup.sh
cargo build --release --locked
exec python3 - "${CARGO_TARGET_DIR:-target}/release/thallus-bench" "${1:-7}" <<'PYTHON'
import json, os, statistics, subprocess, sys

program, rounds = sys.argv[1], int(sys.argv[2])
CASES = (  # name, contender, rows, streams, iterations
    ("1 GiB, lent", "lent", 16 << 20, 1, 4),
    ("1 GiB, mapped", "mapped", 16 << 20, 1, 4),
    ("64 streams of 16 MiB, lent", "lent", 256 << 10, 64, 6),
    ("1 row", "thallus", 1, 1, 2000),
)


def seconds(fabric, contender, rows, streams, iterations):
    environment = dict(os.environ, THALLUS_BENCH_FABRIC=fabric)
    start = lambda *arguments: subprocess.Popen(
        [program, *arguments], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    server = start("serve", "thallus")
    client = start("client", contender, server.stdout.readline().split()[1])
    order = {"query": f"num8 rows={rows}", "bytes": rows * 64, "read_every_byte": False, "streams": streams,
             "iterations": iterations}
    client.stdin.write(json.dumps(order) + "\n")
    client.stdin.flush()
    answer = json.loads(client.stdout.readline())
    for process in (client, server):
        process.stdin.close()
        process.wait()
    if answer.get("error"):
        raise SystemExit(f"{fabric}: {answer['error']}")
    # The first iterations fill pools.
    return statistics.median(answer["seconds"][max(1, iterations // 10):])


def one_host(fabric, *arguments):
    environment = dict(os.environ, THALLUS_BENCH_FABRIC=fabric)
    command = [os.path.join(os.path.dirname(program), "one-host"), *arguments]
    return subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, check=True).stdout.strip()


def connect(fabric):
    return float(one_host(fabric, "connects", "100").split("median=")[1].split()[0]) / 1e6


def compare(name, measure):
    times = {"shm": [], "ucx": []}
    for _ in range(rounds):
        for fabric in times:
            times[fabric].append(measure(fabric))
    ratio = statistics.median(ucx / shm for shm, ucx in zip(times["shm"], times["ucx"]))
    medians = ", ".join(f"{fabric} {statistics.median(of) * 1e3:.3f} ms" for fabric, of in times.items())
    print(f"{name:28} {medians}; shm is {ratio:.2f} times as fast", flush=True)


for name, *case in CASES:
    compare(name, lambda fabric: seconds(fabric, *case))
compare("connect", connect)
print(one_host("shm", "idle", "1000"), flush=True)
print(one_host("shm", "memory"))
PYTHON
