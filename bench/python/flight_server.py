"""Arrow Flight in C++, by pyarrow: the tables of a directory of Arrow IPC files, mapped into memory.

Prints `ready PORT` on standard output, ends with its standard input. Usage: flight_server.py DIRECTORY
"""

import os
import sys
import threading

import pyarrow as pa
import pyarrow.flight as flight


class Tables:
    def __init__(self, directory):
        self.directory = directory
        self.held = {}

    def get(self, name):
        if name not in self.held:
            file = pa.ipc.open_file(pa.memory_map(os.path.join(self.directory, name + ".arrow")))
            batches = [file.get_batch(i) for i in range(file.num_record_batches)]
            self.held[name] = (file.schema, batches)
        return self.held[name]


def parse(command):
    name, *words = command.decode().split()
    options = dict(word.split("=") for word in words)
    if set(options) - {"rows", "batch"}:
        raise NotImplementedError("only held results: " + command.decode())
    return name, int(options["rows"]), int(options.get("batch", 1 << 62))


def run(batches, rows, most):
    number = within = 0
    while rows > 0:
        held = batches[number % len(batches)]
        count = min(held.num_rows - within, most, rows)
        yield held if count == held.num_rows else held.slice(within, count)
        rows -= count
        within += count
        if within == held.num_rows:
            number, within = number + 1, 0


class Server(flight.FlightServerBase):
    def __init__(self, directory):
        super().__init__("grpc://127.0.0.1:0")
        self.tables = Tables(directory)

    def get_flight_info(self, context, descriptor):
        schema, _ = self.tables.get(parse(descriptor.command)[0])
        endpoint = flight.FlightEndpoint(flight.Ticket(descriptor.command), [])
        return flight.FlightInfo(schema, descriptor, [endpoint], -1, -1)

    def do_get(self, context, ticket):
        name, rows, most = parse(ticket.ticket)
        schema, batches = self.tables.get(name)
        # A reader in C++ over the batches: Python only selects the next one.
        return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(schema, run(batches, rows, most)))


server = Server(sys.argv[1])
print("ready", server.port, flush=True)
threading.Thread(target=server.serve, daemon=True).start()
sys.stdin.read()
os._exit(0)
