"""A disk that is full or may not be written: what is said, what is kept, and what goes on.

Run: pytest tests/test_disk.py
"""

import errno
import multiprocessing
import subprocess

import pytest
from fake_shop import recommender
from fastapi.testclient import TestClient
from test_ingest import END, SECOND, Clock, online, some_events

from feature_repo.create import create_store
from feature_repo.ingest.ingestor import Ingestor
from feature_repo.ingest.journal import Journal
from feature_repo.ingest.new_items import new_items
from moon.failures import told
from moonstore.disk import DiskError, disk_reason
from moonstore.files import write_json
from run.artifacts import open_artifact, write_artifact
from serving.app import create_app
from serving.intake import Intake
from serving.settings import Settings
from tests import promises
from tests.crash import watched
from tests.crash.watched import GO, TAKES_SPACE

ITEM = {"item_id": 10**15, "title": "a new one"}


def told_again(events):
    return [one.model_dump(mode="json", exclude_none=True) for one in events]


class Service:
    """A service over a store, and what it answers."""

    def __init__(self, folder):
        self.store = folder / "store"
        self._clock = Clock()
        app = create_app(Settings(run=folder), recommender(), Intake(self.store, self._clock))
        self._client = TestClient(app, raise_server_exceptions=False)

    def post(self, events):
        answer = self._client.post("/events", json=told_again(events))
        return answer.status_code, answer.json()

    def item(self):
        return self._client.post("/items", json=ITEM).status_code

    def still_answers(self):
        return self._client.get("/recommend?user_id=4&k=4").json()["order"] == "ranker"

    def writes(self):
        ready = self._client.get("/readyz")
        assert ready.status_code == 200, ready.json()  # answers need no disk
        assert ready.json()["status"] == ("degraded" if ready.json()["writes"]["problem"] else "ready")
        return tuple(ready.json()["writes"].values())

    def metrics(self):
        return self._client.get("/metrics").text

    def kept(self):
        return sorted(Journal(self.store).table().column("event_id").to_pylist())


@pytest.mark.watched
@pytest.mark.parametrize(
    "where", ["", "online.db", "/events/"], ids=["everything", "online store", "journal"]
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
def test_a_service_whose_disk_takes_nothing_answers_says_why_and_loses_nothing(
    tiny_world, tmp_path, number, where
):
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    events, full = some_events(tiny_world, 12), multiprocessing.RawValue("i", 0)
    reason = {errno.ENOSPC: "the disk is full", errno.EROFS: "the disk is read-only"}.get(
        number, "writing is not permitted"
    )

    def life():
        service = Service(tmp_path)
        assert service.post(events[:4]) == (200, {"accepted": 4, "duplicates": 0})
        full.value = number
        for again in (1, 2):
            status, answer = service.post(events[4:8])
            assert status == 503 and "what was sent cannot be kept: " in answer["error"], answer
            assert reason in answer["error"] or where == "online.db", answer
            assert "does not answer" not in answer["error"] and str(tmp_path) not in answer["error"]
            assert service.still_answers()
            failed, problem = service.writes()
            assert failed == again and "cannot be written" in problem
        if not where:
            assert service.item() == 503 and service.writes()[0] == 3
        assert service.kept() == [one.event_id for one in events[: 8 if where == "online.db" else 4]]
        assert f"moon_writes_failed_total {service.writes()[0]}.0" in service.metrics()
        full.value = 0
        known = 8 if where == "online.db" else 4
        assert service.post(events) == (200, {"accepted": 12 - known, "duplicates": known})
        assert service.item() == 202 and service.writes()[1] == "" and len(new_items(service.store)) == 1
        assert service.kept() == [one.event_id for one in events]
        for user in tiny_world.user_ids.tolist():
            mine = [one.item_id for one in events if one.user_id == user and one.type != "impression"]
            assert sorted(online(service.store, user, END + SECOND)[1]) == sorted(mine)
        assert [one.name for one in tmp_path.rglob("*.tmp")] == []

    def decide(operation):
        refused = full.value and where in f"/{operation.path}" and operation.call in TAKES_SPACE
        return full.value if refused else GO

    assert watched.run(life, tmp_path, decide).error == ""
    promises.record(promises.FAULTS, f"the service, {where} {reason}", 3)


@pytest.mark.tmpfs
def test_on_a_small_disk_that_fills_up_nothing_that_was_kept_is_lost(tiny_world, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
    try:
        create_store(disk / "store", tiny_world.dataset, tiny_world.split)
        service, events = Service(disk), some_events(tiny_world, 60)
        assert service.post(events[:4])[0] == 200
        with pytest.raises(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(b"x" * 4096) == 4096:
                pass
            filler.write(b"x")
        status, answer = service.post(events)
        assert status == 503 and "the disk is full" in answer["error"]
        failed, problem = service.writes()
        assert failed == 1 and "the disk is full" in problem and service.still_answers()
        with pytest.raises(DiskError, match=f"{disk}/metrics.json: cannot be written: the disk is full"):
            write_json(disk / "metrics.json", list(range(2000)))
        (disk / "filler").unlink()
        known = len(service.kept())
        assert service.post(events) == (200, {"accepted": 60 - known, "duplicates": known})
        assert service.kept() == [one.event_id for one in events]
        assert {one.name for one in disk.iterdir()} == {"store"}
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # the service still has files open


def refusing(path, call, number=errno.ENOSPC):
    """What ``call`` says when the disk takes no more bytes below ``path``; it runs in a process of its own."""
    said = multiprocessing.Array("c", 5000)

    def life():
        try:
            call()
        except Exception as error:
            said.value = (told(error) or "a traceback").encode()

    ended = watched.run(life, path, lambda one: number if one.call in ("write", "pwrite64") else GO)
    assert ended.error == ""
    return said.value.decode()


@pytest.mark.watched
def test_a_failed_write_keeps_the_old_record_and_leaves_no_rest(tmp_path):
    def artifact():
        with write_artifact(tmp_path / "a", "thing", {"n": 2}) as folder:
            (folder / "x").write_text("two")

    with write_artifact(tmp_path / "a", "thing", {"n": 1}) as folder:
        (folder / "x").write_text("one")
    write_json(tmp_path / "record.json", 1)
    for call, name in ((artifact, "a"), (lambda: write_json(tmp_path / "record.json", 2), "record.json")):
        assert refusing(tmp_path, call) == (
            f"DiskError: {tmp_path / name}: cannot be written: the disk is full. Whatever was there before is as it "
            f"was. Free some space or make the folder writable, and run the same command again."
        )
    assert open_artifact(tmp_path / "a", "thing", "test").config == {"n": 1}
    assert (tmp_path / "record.json").read_text() == "1\n"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "record.json"]


@pytest.mark.watched
def test_an_event_of_a_line_that_was_half_written_is_not_found_later(tiny_world, tmp_path):
    """The disk takes the first half of a batch: whoever was refused finds none of it kept."""
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    events = some_events(tiny_world, 6)

    def life():
        ingestor = Ingestor(tmp_path / "store", Clock())
        with pytest.raises(DiskError):
            ingestor.ingest(events)
        assert Journal(tmp_path / "store").table().num_rows == 0
        assert ingestor.ingest(events).accepted == 6

    syncs = []

    def decide(operation):
        if operation.path.endswith(".jsonl") and operation.call == "fsync":
            syncs.append(operation)
            return errno.ENOSPC if len(syncs) == 1 else GO
        return GO

    assert watched.run(life, tmp_path, decide).error == ""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "x"), "the disk is full"),
        (PermissionError(errno.EACCES, "x"), "writing is not permitted"),
        (RuntimeError("Error in faiss: could not open a: No space left on device"), "the disk is full"),
        (Exception("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OSError("500 requested and 12 written"), "the disk is full"),
        (ValueError("the disk of the shop"), None),
        (FileNotFoundError(errno.ENOENT, "x"), None),
        (KeyError("x"), None),
    ],
)
def test_a_disk_that_takes_nothing_is_recognised_whoever_says_so(error, reason):
    assert disk_reason(error) == reason
