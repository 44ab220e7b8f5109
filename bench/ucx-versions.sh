#!/usr/bin/env bash
# Measures the throughput of lent and mapped results of 1 GiB under every version of UCX, in turn: the medians of some
# rounds, each beside that of the system's UCX.
# usage: bench/ucx-versions.sh [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")"
../scripts/setup.sh
cargo build --release --locked
versions=(1.14.1.post2 1.15.0.post2 1.16.0.post2 1.17.0.post1 1.18.1 1.19.0 1.20.1 1.21.0 1.22.0)
mapfile -t libraries < <(../scripts/ucx-versions.sh "${versions[@]}")
exec python3 - "${CARGO_TARGET_DIR:-target}/release/thallus-bench" "${1:-7}" system "${libraries[@]}" <<'PYTHON'
import json, os, re, statistics, subprocess, sys

program, rounds, libraries = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
ROWS = 16 << 20  # of eight columns of eight bytes: 1 GiB
QUERY = f"num8 rows={ROWS}"


def start(arguments, library):
    environment = dict(os.environ)
    environment.pop("THALLUS_UCX_LIBRARY", None)
    environment["THALLUS_BENCH_FABRIC"] = "ucx"
    if library != "system":
        environment["THALLUS_UCX_LIBRARY"] = library
    return subprocess.Popen(
        [program, *arguments], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def gigabytes_a_second(library, contender):
    server = start(["serve", "thallus"], library)
    port = server.stdout.readline().split()[1]
    client = start(["client", contender, port], library)
    request = {"query": QUERY, "bytes": ROWS * 64, "read_every_byte": False, "streams": 1, "iterations": 4}
    client.stdin.write(json.dumps(request) + "\n")
    client.stdin.flush()
    answer = json.loads(client.stdout.readline())
    for process in (client, server):
        process.stdin.close()
        process.wait()
    if answer.get("error"):
        raise SystemExit(f"{library}: {answer['error']}")
    assert answer["rows"] == ROWS and answer["report"]["bytes_inline"] == 0, answer
    # The first iteration fills pools.
    return ROWS * 64 / statistics.median(answer["seconds"][1:]) / 1e9


def name(library):
    found = re.search(r"libucx-cu12-([0-9.]*[0-9])", library)
    return found.group(1) if found else library


for contender in ("lent", "mapped"):
    rates = {library: [] for library in libraries}
    for _ in range(rounds):
        for library in libraries:
            rates[library].append(gigabytes_a_second(library, contender))
    print(f"{contender}, 1 GiB, {rounds} rounds in turn")
    for library in libraries:
        beside = [mine / systems for mine, systems in zip(rates[library], rates["system"])]
        rate, ratio = statistics.median(rates[library]), statistics.median(beside)
        print(f"  UCX {name(library):10} {rate:6.1f} GB/s, {ratio:.2f} of the system's")
PYTHON
