"""How a service is put together: what the server is told, which thread does what, the order of start and end.

Nothing here listens for longer than a moment, waits, or loads a model.

Run: pytest tests/test_service_starts_and_ends.py
"""

import asyncio
import gc
import io
import json
import logging
import os
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

import serving.drain
from serving import intake as intake_module
from serving import keys, server
from serving.connections import Connection
from serving.drain import Drain
from serving.intake import Intake
from serving.logs import REQUEST_ID, JsonLines, start_logging
from serving.questions import Refused
from serving.settings import Settings
from serving.work import TRY_AGAIN, Work

RUN = Path("run")
SOON_S = 5


def test_every_default_of_the_settings():
    assert vars(Settings(run=RUN)) == {
        "run": RUN,
        "profile": "embedded",
        "host": "127.0.0.1",
        "port": 8000,
        "clock": "log",
        "per_source": 500,
        "max_body_bytes": 8_388_608,
        "max_image_bytes": 5_242_880,
        "max_image_pixels": 4_000_000,
        "body_deadline_s": 10,
        "workers": 1,
        "metrics": None,
        "most_waiting": 64,
        "most_connections": 512,
        "head_deadline_s": 10,
        "max_head_bytes": 65_536,
        "idle_deadline_s": 30,
        "drain_s": 5,
        "keys": None,
        "hosts": (),
        "requests_per_s": 500.0,
        "burst": 1000,
        "explore": 0.0,
    }


@pytest.mark.parametrize("name", ["burst", "workers", "most_waiting", "most_connections", "requests_per_s"])
def test_a_limit_below_one_is_refused(name):
    assert getattr(Settings(run=RUN, **{name: 1}), name) == 1
    with pytest.raises(ValueError, match=f"^{name} is 0: expected at least 1$"):
        Settings(run=RUN, **{name: 0})


@pytest.mark.parametrize("workers", [1, 3])
def test_what_the_server_is_told(workers):
    settings = Settings(run=RUN, host="10.0.0.5", port=81, workers=workers, idle_deadline_s=7)
    app = object()
    config = server._config(app, settings)
    assert config.app is app and config.factory is (workers == 3) and config.workers == workers
    assert (config.host, config.port) == ("10.0.0.5", 81)
    assert (config.timeout_keep_alive, config.timeout_graceful_shutdown) == (7, 30)
    assert config.access_log is False and config.server_header is False
    assert config.http.func is Connection and config.http.args == (settings,)


def test_a_socket_listens_at_once_and_is_given_to_other_processes():
    with server.listen("127.0.0.1", 0) as listening:
        assert listening.family == socket.AF_INET and listening.get_inheritable()
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        with socket.create_connection(listening.getsockname(), timeout=SOON_S):
            pass


def test_an_address_with_colons_is_one_of_ipv6(monkeypatch):
    """Not every machine has such addresses, so that the socket is only asked for."""
    families = []

    class Taken:
        def __init__(self, family):
            families.append(family)

        def setsockopt(self, *_):
            raise OSError("none here")

        def close(self):
            families.append("closed")

    names = {name: getattr(socket, name) for name in ("AF_INET", "AF_INET6", "SOL_SOCKET", "SO_REUSEADDR")}
    monkeypatch.setattr(server, "socket", SimpleNamespace(socket=Taken, **names))
    for host in ("::1", "localhost"):
        with pytest.raises(server.PortTaken, match=f"^{host}:80: expected a free address, found none here"):
            server.listen(host, 80)
    assert families == [socket.AF_INET6, "closed", socket.AF_INET, "closed"]


@pytest.fixture
def quiet_start(monkeypatch):
    """What a start does, in order, with everything heavy replaced."""
    did = []
    listening = SimpleNamespace(__enter__=None)

    class Socket:
        def __enter__(self):
            return listening

        def __exit__(self, *_):
            did.append("closed")

    class Server:
        def __init__(self, config):
            self.config = config

        def run(self, sockets):
            did.append(("run", self.config, sockets == [listening]))

    class Several(Server):
        def __init__(self, config, sockets):
            super().__init__(config)
            self.sockets = sockets

        def run(self):
            did.append(("several", self.config, self.sockets == [listening]))
            did.append(("folder", self.config[0].args[0].metrics.is_dir()))

    for name, fake in {
        "require_keys": lambda settings: did.append("keys"),
        "start_logging": lambda: did.append("log"),
        "listen": lambda *where: did.append(where) or Socket(),
        "application": lambda settings: did.append("loaded") or settings,
        "_config": lambda *what: what,
        "Multiprocess": Several,
        "uvicorn": SimpleNamespace(Server=Server),
    }.items():
        monkeypatch.setattr(server, name, fake)
    return did


def test_one_process_takes_the_port_before_it_loads(quiet_start, caplog):
    settings = Settings(run=RUN, port=81)
    with caplog.at_level(logging.INFO, "uvicorn.error"):
        server.serve(settings)
    assert quiet_start == [
        "keys", "log", ("127.0.0.1", 81), "loaded", ("run", (settings, settings), True), "closed",
    ]  # fmt: skip
    said, loudly = caplog.messages
    assert said == "serving on http://127.0.0.1:81 (CTRL+C to quit)"
    assert loudly.startswith("NO API KEYS: every program on this machine") and "127.0.0.1:81" in loudly


def test_several_processes_load_themselves_and_share_a_folder_for_their_metrics(quiet_start, caplog):
    with caplog.at_level(logging.INFO, "uvicorn.error"):
        server.serve(Settings(run=RUN, workers=2, host="::1"))
    *first, (kind, (load, shared), same), folder, closed = quiet_start
    assert first == ["keys", "log", ("::1", 8000)] and (kind, same, closed) == ("several", True, "closed")
    assert isinstance(load, partial) and load.func is server._worker and load.args == (shared,)
    assert folder == ("folder", True) and shared.metrics.name.startswith("moon_metrics_")
    assert not shared.metrics.exists() and shared.workers == 2
    assert caplog.messages[0] == "serving on http://[::1]:8000 (CTRL+C to quit)"


def test_a_service_with_keys_does_not_warn_of_none(tmp_path, caplog):
    keys.warn_of_no_keys(Settings(run=tmp_path))
    assert [one.levelname for one in caplog.records] == ["WARNING"]
    caplog.clear()
    keys.create_key(tmp_path / keys.KEYS_FILE, "shop", ("read",))
    keys.warn_of_no_keys(Settings(run=tmp_path))
    assert not caplog.records


def test_a_worker_that_cannot_load_ends_for_good(monkeypatch, caplog):
    did = []
    monkeypatch.setattr(server, "start_logging", lambda: did.append("log"))
    monkeypatch.setattr(server, "application", lambda settings: did.append(settings) or "app")
    assert server._worker("settings") == "app" and did == ["log", "settings"]
    monkeypatch.setattr(server, "application", lambda settings: 1 / 0)
    with pytest.raises(SystemExit) as ended, caplog.at_level(logging.ERROR, "uvicorn.error"):
        server._worker("settings")
    assert ended.value.code == 3 and "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_an_application_is_made_with_one_thread_per_library_and_collects_garbage_afterwards(
    monkeypatch, fails
):
    import faiss
    import torch

    import serving.app

    told, frozen = [], []

    def create(settings):
        told.append((settings, gc.isenabled()))
        if fails:
            raise ValueError("nothing is active")
        return "app"

    monkeypatch.setattr(serving.app, "create_app", create)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: told.append(("torch", n)))
    monkeypatch.setattr(faiss, "omp_set_num_threads", lambda n: told.append(("faiss", n)))
    monkeypatch.setattr(server.gc, "freeze", lambda: frozen.append(gc.isenabled()))
    if fails:
        with pytest.raises(ValueError, match="nothing is active"):
            server.application("settings")
    else:
        assert server.application("settings") == "app"
    assert told == [("torch", 1), ("faiss", 1), ("settings", False)]
    assert frozen == [False] and gc.isenabled()


def test_the_log_of_a_process_is_lines_of_json_on_stderr_from_info_on(monkeypatch):
    root, moon, out = logging.Logger("root"), logging.Logger("moon", logging.CRITICAL), io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr("serving.logs.logging.getLogger", lambda name=None: moon if name else root)
    start_logging()
    (handler,) = root.handlers
    assert handler.stream is out and isinstance(handler.formatter, JsonLines) and not moon.handlers
    assert moon.level == logging.INFO


def test_a_line_with_a_traceback_and_words_of_any_language():
    try:
        raise ValueError("größe")
    except ValueError:
        record = logging.LogRecord(
            "moon.x", logging.ERROR, "f.py", 1, "%d für %s", (2, "alle"), sys.exc_info()
        )
    record.created = 0.0009
    REQUEST_ID.set("")
    text = JsonLines().format(record)
    line = json.loads(text)
    traceback = line.pop("traceback")
    assert traceback.startswith("Traceback") and traceback.endswith("ValueError: größe")
    assert line == {
        "time": "1970-01-01T00:00:00.000+00:00",
        "level": "error",
        "logger": "moon.x",
        "message": "2 für alle",
        "request_id": "",
    }
    assert "für" in text


class Signals:
    """The signal module with a handler that the server set."""

    SIGTERM = signal.SIGTERM

    def __init__(self, handler):
        self.handler, self.history = handler, []

    def getsignal(self, number):
        assert number == signal.SIGTERM
        return self.handler

    def signal(self, number, handler):
        assert number == signal.SIGTERM
        self.handler = handler


class Loop:
    """Keeps what it is to call."""

    def __init__(self):
        self.asked = []

    def call_soon_threadsafe(self, call, *args):
        call(*args)

    def call_later(self, *what):
        self.asked.append(what)


@pytest.mark.parametrize("end", [lambda number, frame: None, signal.SIG_DFL])
def test_a_first_sigterm_begins_the_grace_and_a_second_ends_it(monkeypatch, end):
    signals, loop, drain = Signals(end), Loop(), Drain(12)
    monkeypatch.setattr(serving.drain, "signal", signals)
    monkeypatch.setattr(serving.drain, "asyncio", SimpleNamespace(get_running_loop=lambda: loop))
    assert drain.began is False
    with pytest.raises(ZeroDivisionError), drain.on_signal():
        assert drain.began is False and signals.handler is not end
        signals.handler(signal.SIGTERM, None)
        assert drain.began is True
        signals.handler(signal.SIGTERM, None)
        raise ZeroDivisionError
    assert signals.handler is end, "given back, whatever happened"
    given = [(12, end, signal.SIGTERM, None), (0.0, end, signal.SIGTERM, None)]
    assert loop.asked == (given if callable(end) else [])


def test_a_service_in_a_thread_leaves_the_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def other():
        with Drain(1).on_signal():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    thread.join(SOON_S)
    assert seen == [before]


def bounded(main):
    return asyncio.run(asyncio.wait_for(main, SOON_S))


def test_what_finds_the_queue_full_is_counted_every_time_and_told_when_to_come_back():
    opened = threading.Event()

    async def main():
        work = Work("some", 1)
        assert (work.name, work.inside, work.refused) == ("some", 0, 0)
        under_way = asyncio.create_task(work.run(opened.wait, SOON_S))
        await asyncio.sleep(0)
        for times in (1, 2, 3):
            with pytest.raises(Refused) as refused:
                await work.run(print)
            assert (work.refused, work.inside) == (times, 1)
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
        assert refused.value.reason == "1 requests are under way, at most 1 may be; try again later"
        opened.set()
        assert await under_way is True
        while work.inside:
            await asyncio.sleep(0)
        assert await work.run(lambda *args, **named: (args, named), 1, b=2) == ((1,), {"b": 2})
        work.close()
        with pytest.raises(RuntimeError):
            await work.run(print)

    assert TRY_AGAIN == {"Retry-After": "1"}
    try:
        bounded(main())
    finally:
        opened.set()


def test_work_is_done_in_a_thread_of_its_name_with_the_id_of_its_request():
    async def main():
        work = Work("answering", 2)
        REQUEST_ID.set("r7")
        seen = await work.run(lambda: (threading.current_thread().name, REQUEST_ID.get()))
        with pytest.raises(ZeroDivisionError):
            await work.run(lambda: 1 / 0)
        work.close()
        return seen

    name, request = bounded(main())
    assert name.startswith("answering") and request == "r7"


@pytest.fixture
def intake(tmp_path, monkeypatch):
    """An intake of which the store is replaced; ``did`` keeps what the store was asked."""
    did = []

    class Ingestor:
        def __init__(self, *args):
            did.append(("opened", *args))

        def ingest(self, events, source):
            did.append((events, source))
            return "ingested"

    monkeypatch.setattr(intake_module, "Ingestor", Ingestor)
    for name in ("keep_item", "change_state", "kept_item", "state_of"):
        monkeypatch.setattr(
            intake_module, name, lambda *args, name=name: did.append((name, *args)) or name.upper()
        )
    now = lambda: "now"  # noqa: E731
    one = Intake(tmp_path, now)
    assert did.pop() == ("opened", tmp_path, now)
    yield one, did
    one.work.close()


def test_everything_that_arrives_goes_to_the_store_in_order(intake, tmp_path):
    one, did = intake

    async def main():
        return [
            await one.take(["event"]),
            await one.kept(7),
            await one.keep("item"),
            await one.set_state(8, "inactive"),
        ]

    assert bounded(main()) == ["ingested", ("KEPT_ITEM", "STATE_OF"), None, None]
    assert did == [
        (["event"], "HTTP"),
        ("kept_item", tmp_path, 7),
        ("state_of", tmp_path, 7),
        ("keep_item", tmp_path, "item", "now"),
        ("change_state", tmp_path, 8, "inactive", "now"),
    ]
    assert (one.failed, one.problem, one.work.name, one.work._most) == (0, "", "intake", 16)


def test_what_cannot_be_kept_is_counted_and_refused_with_why(intake, monkeypatch):
    from feature_repo.online import StoreUnavailable
    from moonstore.errors import StoreError

    one, _ = intake

    def failing(error):
        def call(*_):
            raise error

        monkeypatch.setattr(intake_module, "keep_item", call)
        try:
            bounded(one.keep("item"))
        except (Refused, StoreUnavailable) as caught:
            return caught

    refused = failing(OSError(20, "Not a directory", "/where/it/is"))
    assert (refused.status, refused.headers) == (503, {"Retry-After": "1"})
    assert refused.reason == "what was sent cannot be kept: Not a directory; send it again later"
    assert one.failed == 1 and one.problem == "[Errno 20] Not a directory: '/where/it/is'"
    for error, why in (
        (StoreError("no such view"), "no such view"),
        (OSError(5, "Input/output error"), "the disk reports an error"),
    ):
        assert failing(error).reason == f"what was sent cannot be kept: {why}; send it again later"
    away = StoreUnavailable("no answer")
    assert failing(away) is away, "the journal has it: it is said elsewhere"
    assert (one.failed, one.problem) == (4, "no answer")
    bounded(one.set_state(7, "active"))
    assert (one.failed, one.problem) == (4, "")


def test_whether_something_can_be_written_is_found_out_by_writing_a_block(intake, tmp_path, monkeypatch):
    one, _ = intake
    assert one.unwritable() == "nothing can be written to events: No such file or directory"
    (tmp_path / "data" / "events").mkdir(parents=True)
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda number: sizes.append(os.fstat(number).st_size))
    assert one.unwritable() == "" and sizes == [4096]
    assert not list((tmp_path / "data" / "events").iterdir())

    def full(_):
        raise OSError("odd")

    monkeypatch.setattr(os, "fsync", full)
    assert one.unwritable() == "nothing can be written to events: odd"
