"""Arrow Flight's client in C++, by pyarrow. Answers requests from standard input, in the lines of JSON of src/wire.rs.

Usage: flight_client.py PORT [sql]    (sql: GetFlightInfo before DoGet)
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.flight as flight

PORT, TWO_ROUND_TRIPS = int(sys.argv[1]), sys.argv[2:] == ["sql"]


def touch(batch):
    """Reads every byte, at the speed of memory. Bodies are padded to eight bytes."""
    total = 0
    for column in batch.columns:
        for buffer in column.buffers():
            if buffer is not None and buffer.size >= 8:
                total += int(np.frombuffer(buffer, np.uint64, buffer.size // 8).sum())
    return total


def get(client, request):
    command = request["query"].encode()
    ticket = flight.Ticket(command)
    if TWO_ROUND_TRIPS:
        info = client.get_flight_info(flight.FlightDescriptor.for_command(command))
        ticket = info.endpoints[0].ticket
    rows = batches = 0
    for batch in client.do_get(ticket).to_reader():
        rows += batch.num_rows
        batches += 1
        if request["touch"]:
            touch(batch)
    return rows, batches


clients = []
pool = ThreadPoolExecutor(64)
for line in sys.stdin:
    request = json.loads(line)
    try:
        streams = max(request["streams"], 1)
        while len(clients) < streams:
            # Without its own pool, all clients of a process would share one connection.
            options = [("grpc.use_local_subchannel_pool", 1)]
            clients.append(flight.FlightClient(f"grpc://127.0.0.1:{PORT}", generic_options=options))
        while len(clients) > streams:
            clients.pop().close()
        answer = {"seconds": []}
        for _ in range(request["iterations"]):
            started = time.perf_counter()
            if streams == 1:
                outcomes = [get(clients[0], request)]
            else:
                outcomes = list(pool.map(lambda client: get(client, request), clients))
            answer["seconds"].append(time.perf_counter() - started)
            answer["rows"], answer["batches"] = outcomes[0]
    except Exception as error:  # the harness decides what a failure means
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
