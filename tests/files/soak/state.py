"""What a server holds: memory, threads, descriptors, shared memory, spilled files. From Linux's /proc (proc(5))."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
#: Ticks of the times in /proc/PID/stat, in a second.
TICKS = os.sysconf("SC_CLK_TCK")
#: Most that a load leaves. Threads for blocking work end some seconds after their last work, and come again.
RSS_MORE, THREADS_MORE, DESCRIPTORS_MORE = 150 * MIB, 2, 2


@dataclass
class State:
    """A server's state at one moment."""

    rss: int
    threads: int
    #: Without memory files: the heap has one for each of its segments.
    descriptors: int
    memory_files: int
    #: Sizes in bytes by name.
    shm: dict[str, int]
    #: Sizes of System V segments that the server or one of its clients created; by id, creator, and number of users.
    segments: dict[str, int]
    spilled: int

    def shown(self) -> str:
        """For people."""
        return (f"RSS {self.rss // MIB} MiB, {self.threads} threads, {self.descriptors} descriptors, "
                f"{self.memory_files} memory files, /dev/shm {sum(self.shm.values())} bytes in {len(self.shm)}, "
                f"System V {sum(self.segments.values())} bytes in {list(self.segments)}, {self.spilled} bytes spilled")

    def growth(self, since: State) -> list[str]:
        """What is more than it was, beyond what may be left."""
        found = []
        for name, now, then, more in [
            ("RSS", self.rss, since.rss, RSS_MORE), ("threads", self.threads, since.threads, THREADS_MORE),
            ("descriptors", self.descriptors, since.descriptors, DESCRIPTORS_MORE),
            ("System V bytes", sum(self.segments.values()), sum(since.segments.values()), 0),
            ("bytes spilled", self.spilled, 0, 0),
        ]:
            if now > then + more:
                found.append(f"{name}: {now}, {then} before the load; {more} more are allowed")
        return found


class Probe:
    """Looks at a server process. `creators` are the clients' numbers."""

    def __init__(self, pid: int, creators: set[int], spill: Path) -> None:
        self.pid, self.creators, self.spill = pid, creators, spill

    def state(self) -> State:
        """The state now."""
        status = dict(line.split(":", 1) for line in self._read("status").splitlines())
        files = self._descriptors()
        memory = sum(target.startswith("/memfd:") for target in files)
        return State(int(status["VmRSS"].split()[0]) * 1024, int(status["Threads"]), len(files) - memory, memory,
                     shm(), self.segments(), spilled(self.spill))

    def segments(self) -> dict[str, int]:
        """System V segments of the server and its clients. One without pages and users was left by a client that was
        killed between shmget(2) and shmat(2), which nothing can prevent."""
        found = {}
        for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
            fields = line.split()
            is_ours = int(fields[4]) == self.pid or int(fields[4]) in self.creators
            is_empty = fields[6] == "0" and fields[14] == "0"
            if is_ours and not is_empty:
                creator = "the server" if int(fields[4]) == self.pid else "a client"
                found[f"{fields[1]} of {creator}, attached {fields[6]} times"] = int(fields[3])
        return found

    def load(self, seconds: float) -> float:
        """Share of one core that the server takes during the next seconds."""
        before = self._cpu()
        time.sleep(seconds)
        return (self._cpu() - before) / seconds

    def until_steady(self, seconds: float) -> State:
        """The state once it does not change and the server does nothing for 15 s, at the latest after `seconds`."""
        until, steady, last = time.monotonic() + seconds, 0, self.state()
        while steady < 15 and time.monotonic() < until:
            busy = self.load(1) > 0.1
            state = self.state()
            same = (state.threads, state.descriptors) == (last.threads, last.descriptors)
            steady, last = (steady + 1 if same and not busy else 0), state
        return last

    def until_back(self, since: State, seconds: float) -> tuple[State, float]:
        """The state once it is as before, or after `seconds`; and the time that it took."""
        started = time.monotonic()
        while True:
            busy = self.load(1) > 0.1
            state, took = self.state(), time.monotonic() - started
            if took > seconds or (not busy and not state.growth(since)):
                return state, took

    def _cpu(self) -> float:
        fields = self._read("stat").rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def _read(self, name: str) -> str:
        return Path(f"/proc/{self.pid}/{name}").read_text()

    def _descriptors(self) -> list[str]:
        folder, found = f"/proc/{self.pid}/fd", []
        for name in os.listdir(folder):
            try:
                found.append(os.readlink(f"{folder}/{name}"))
            except FileNotFoundError:
                # Closed meanwhile.
                pass
        return found


def shm() -> dict[str, int]:
    """Entries of /dev/shm with their sizes."""
    return {entry.name: _size(entry) for entry in os.scandir("/dev/shm")}


def new_shm(before: dict[str, int], killed_over_ucx: int) -> list[str]:
    """Entries of /dev/shm that were not there before. UCX names a segment while it creates it: a client that is killed
    then leaves the name, and `thallus doctor` says so. That many are no fault."""
    new = sorted(shm().keys() - before.keys())
    of_killed = [name for name in new if name.startswith("ucx_shm_posix_")][:killed_over_ucx]
    if of_killed:
        print(f"soak: left by {killed_over_ucx} killed clients in /dev/shm: {of_killed}")
    return [f"/dev/shm/{name}" for name in new if name not in of_killed]


def spilled(folder: Path) -> int:
    """Bytes of the files below a directory."""
    return sum(_size(Path(root) / name) for root, _, names in os.walk(folder) for name in names)


def _size(entry: os.DirEntry | Path) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return 0
