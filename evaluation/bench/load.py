"""The service of a run under load, as processes of their own: who waits for whom, and what a second process adds.

Measured on a copy of the run's store, so that the run is not changed. The clients share the machine with the service.
"""

from __future__ import annotations

import base64
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dataset.tables import Dataset
from evaluation.bench.lines import Line, line, line_below, ratio, worst
from evaluation.bench.local_redis import free_port
from evaluation.bench.serving import copy_run
from run.artifacts import open_artifact

SECONDS, ROUNDS = 4.0, 6
START_GOAL_S, ALIVE_GOAL_MS, MORE_GOAL = 5.0, 50.0, 1.5
SEARCHING, ASKING, EVENTS = 8, 4, 1000
PATIENCE_S = 120.0
# Asks whether the service is alive, in a process of its own: a thread beside the clients' would wait for them. Prints
# how much longer than 10 ms each sleep took, which is the floor on this machine, and how long each answer took.
LOOK = """
import http.client, sys, time
link = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=100)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    began = time.perf_counter()
    time.sleep(0.01)
    woke = time.perf_counter()
    link.request("GET", "/healthz")
    assert link.getresponse().read() == b'{"status":"alive"}'
    print(woke - began - 0.01, time.perf_counter() - woke)
"""


def bench_load(run: Path, workers: Sequence[int] = (1, 2)) -> Iterator[Line]:
    """Measure a finished run, on SQLite, served by each of these numbers of processes.

    Raises:
        RuntimeError: the service does not start, or refuses a request.
    """
    with tempfile.TemporaryDirectory(prefix="moon_bench_") as name:
        pictures = _pictures(run)
        for number in workers:
            # A copy each: the events that are posted change what the users' answers cost.
            copied = copy_run(run, Path(name) / f"run{number}")
            with _served(copied, number) as (port, took):
                of = f"{number} process" if number == 1 else f"{number} processes"
                yield line_below(f"{of}: from the start to the first answer, s", [took], START_GOAL_S)
                yield from _rates(port, of)
                yield from _alive(port, of, pictures)


def _rates(port: int, of: str) -> Iterator[Line]:
    def ask(client: _Client, turn: int) -> None:
        client.ask("GET", f"/recommend?user_id={turn % 50}&k=20")

    one, many = [], []
    for _ in range(ROUNDS):
        one.append(_rate(port, 1, ask))
        many.append(_rate(port, ASKING, ask))
    yield line(f"{of}: /recommend, answers per second of one client", one)
    yield line(f"{of}: of {ASKING} clients", many)
    yield ratio(f"{of}: {ASKING} clients, times one", many, one, MORE_GOAL)


def _alive(port: int, of: str, pictures: Sequence[bytes]) -> Iterator[Line]:
    """The slowest /healthz while clients search with pictures and one posts events, each as fast as it can."""

    def search(client: _Client, turn: int) -> None:
        image = base64.b64encode(pictures[turn % len(pictures)]).decode()
        client.ask("POST", "/search", {"text": "red", "image_base64": image, "user_id": turn % 50})

    def post(client: _Client, turn: int) -> None:
        first = turn * EVENTS
        events = [
            {"event_id": 2**61 + first + n, "user_id": n % 50, "item_id": 1, "type": "click"}
            for n in range(EVENTS)
        ]
        client.ask("POST", "/events", events)

    program = [sys.executable, "-c", LOOK, str(port), str(SECONDS)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as looking:
        _drive(port, [*[search] * SEARCHING, post], SECONDS)
        assert looking.stdout is not None
        waited = [[float(second) * 1e3 for second in row.split()] for row in looking.stdout]
    floor, answers = zip(*waited, strict=True)
    what = f"{of}: while {SEARCHING} search and one posts events, slowest"
    yield worst(f"{what} /healthz, ms", answers, ALIVE_GOAL_MS)
    yield line(f"{what} wake-up of a process that sleeps (floor), ms", [max(floor)])


def _rate(port: int, clients: int, ask: Callable[[_Client, int], None]) -> float:
    return sum(_drive(port, [ask] * clients, SECONDS / 4)) / (SECONDS / 4)


def _drive(port: int, asks: Sequence[Callable[[_Client, int], None]], seconds: float) -> list[int]:
    """Each client asks again and again for a while; returns how often each was answered."""
    until, answered = time.monotonic() + seconds, [0] * len(asks)

    def client(place: int) -> None:
        link = _Client(port)
        while time.monotonic() < until:
            asks[place](link, answered[place])
            answered[place] += 1

    threads = [threading.Thread(target=client, args=(place,)) for place in range(len(asks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answered


class _Client:
    def __init__(self, port: int) -> None:
        self._link = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)

    def ask(self, method: str, path: str, content: object = None) -> None:
        body = None if content is None else json.dumps(content)
        self._link.request(method, path, body, {"Content-Type": "application/json"})
        response = self._link.getresponse()
        said = response.read()
        if response.status != 200:
            raise RuntimeError(f"{method} {path}: expected 200, found {response.status}: {said[:200]!r}")


@contextmanager
def _served(run: Path, workers: int) -> Iterator[tuple[int, float]]:
    """The port of a service of its own, and how many seconds it took to answer."""
    port = free_port()
    options = ["--run", str(run), "--port", str(port), "--workers", str(workers), "--drain", "0"]
    began = time.monotonic()
    with tempfile.TemporaryFile() as said:
        service = subprocess.Popen(
            [sys.executable, "-m", "moon", "serve", *options], stdout=said, stderr=said
        )
        try:
            _await_answer(service, port)
            yield port, time.monotonic() - began
        finally:
            service.terminate()
            service.wait(PATIENCE_S)


def _await_answer(service: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and service.poll() is None:
        try:
            return _Client(port).ask("GET", "/readyz")
        except OSError:
            time.sleep(0.01)
    raise RuntimeError(f"the service did not start within {PATIENCE_S:g} s, or ended: {service.poll()}")


def _pictures(run: Path) -> list[bytes]:
    dataset = Dataset.open(open_artifact(run / "dataset", "dataset"))
    names = [name for name in dataset.items["image_id"].to_pylist() if name][:50]
    return [content for name in names if (content := dataset.image_bytes(name)) is not None]
