"""A file that changed on disk is refused by name, or made again, but never read and never a traceback.

Run: pytest tests/test_damage.py
"""

import os
import shutil
from datetime import timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import make_world

from dataset.records import Event
from encoder.pictures.cache import decoded
from feature_repo.check import check_store
from feature_repo.create import create_store
from feature_repo.event_log import open_event_log
from feature_repo.ingest.clock import ShopClock
from feature_repo.ingest.fold import fold
from feature_repo.ingest.ingestor import Ingestor
from feature_repo.item_matrix import open_item_matrix
from feature_repo.online import OnlineReader
from feature_repo.sources import DATA, LOG
from feature_repo.store import known_until, materialize, open_store
from feature_repo.views import EmbeddingRecord
from moon import journey
from moon.failures import told
from moonstore.engine import Report
from run import generations
from run.artifacts import MADE_BY, MANIFEST, ArtifactError, open_artifact
from run.resume import Checkpoints
from tests import promises
from tests.crash import stages, worlds
from tests.crash.damage import damaged, instead

OTHERS = {  # kinds that no command of their own makes: kind -> where, and the command that makes it again
    "pixels": ("dataset.pixels_16", "moon encoder train"),
    "frame": ("frames/logged", "moon frame"),
    "checkpoint": ("job.partial/one", ""),
}
PLACES = {"two_tower": "two_tower", "ranker": "ranker_full"}


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    """A run folder with an artifact of every kind."""
    folder = tmp_path_factory.mktemp("kinds")
    worlds.trained(folder)
    for make in (stages._retrieval, stages._towers, stages._ranker, stages._relevance):
        make(folder)
    decoded(worlds.dataset_of(folder), 16)
    pq.write_table(requests_of(folder), folder / "rows.parquet")
    stages._frame(folder)
    with Checkpoints(folder / "job", {}, {}).save("one", {"step": 1}) as saved:
        (saved / "weights").write_bytes(b"weights" * 100)
    return folder


def requests_of(folder):
    from conftest import make_requests

    world = make_world(seed=1)
    del folder
    return make_requests(world, seed=11, requests=20)


def opened(folder, kind):
    where, made_by = OTHERS.get(kind, (PLACES.get(kind, kind), None))
    return open_artifact(folder / where, kind, made_by)


@pytest.mark.parametrize("kind", [*MADE_BY, *OTHERS])
def test_every_damage_to_an_artifact_of_every_kind_is_refused_by_name(every_kind, kind):
    artifact = opened(every_kind, kind)
    again = OTHERS.get(kind, ("", MADE_BY.get(kind)))[1]
    files, tried = sorted(path for path in artifact.path.rglob("*") if path.is_file()), 1
    assert len(files) > 1
    for path in files:
        content = path.read_bytes()
        other = next(one for one in files if one != path).read_bytes()
        harms = [*damaged(content, f"{kind} {path.name}"), ("gone", None), ("another file's content", other)]
        for what, harm in harms:
            with instead(path, harm), pytest.raises(ArtifactError) as refused:
                opened(every_kind, kind)
            tried, said = tried + 1, str(refused.value)
            assert str(artifact.path) in said and again in said, f"{path.name}, {what}: {said}"
    with instead(artifact.path / "extra", b"x"), pytest.raises(ArtifactError, match=r"1 unknown \['extra'\]"):
        opened(every_kind, kind)
    assert opened(every_kind, kind).id == artifact.id
    promises.record(promises.DAMAGE, f"artifact {kind}", tried)


def test_an_artifact_in_anothers_place_is_refused(every_kind):
    for kind in MADE_BY:
        for other in MADE_BY:
            if kind != other:
                with pytest.raises(ArtifactError, match=f"expected a {kind} artifact, found a {other} one"):
                    open_artifact(every_kind / PLACES.get(other, other), kind)


@pytest.fixture(scope="module")
def generations_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generations") / "run"
    folder.mkdir()
    worlds.generations(folder)
    for name, content in RECORDS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    return folder


RECORDS = {
    "run.json": '{"data": "marketplace", "size_name": "nano", "seed": 0, "profile": "embedded"}',
    "stages/dataset.json": '{"key": "x", "seconds": 1.0}',
}
OF_A_RUN = {
    "run.json": lambda run: journey.load(run),
    "stages/dataset.json": lambda run: journey._done(journey.load(run), journey.STAGES[0]),
    "generations/current.json": lambda run: generations.serving(run),
    "generations/2/generation.json": lambda run: generations.find(run, 2),
    "generations/last.json": lambda run: generations._highest(run),
}


def refused_or(read, path):
    """What reading says of a damaged file: a message that names it, or what was read."""
    try:
        return read()
    except Exception as error:
        said = told(error)
        assert said is not None, f"a traceback: {type(error).__name__}: {error}"
        assert path.name in said or path.parent.name in said, f"does not name {path}: {said}"
        return "refused"


@pytest.mark.parametrize("name", OF_A_RUN)
def test_a_damaged_record_of_a_run_is_refused_by_name(generations_run, name):
    path, read = generations_run / name, lambda: OF_A_RUN[name](generations_run)
    content = path.read_bytes()
    harms = [one for what, one in damaged(content, name) if what.startswith("cut")]
    for harm in (*harms, b"[]", b"null", b"{}", b'{"a": 1}', b"\xff\xfe"):
        with instead(path, harm):
            assert refused_or(read, path) == "refused", harm
    every = list(damaged(content, name))
    for _, harm in every:
        with instead(path, harm):
            refused_or(read, path)
    promises.record(promises.DAMAGE, name, len(every))


def test_a_damaged_record_of_what_serves_is_written_anew(generations_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(generations_run, run)
    (run / "generations" / "current.json").write_text("{")
    with pytest.raises(
        ArtifactError, match="current.json: damaged.*Remove it and run 'moon embeddings activate'"
    ):
        generations.serving(run)
    (run / "generations" / "current.json").unlink()
    (run / "generations" / "last.json").unlink()
    generations.point(run, 2)
    assert generations.serving(run).generation == 2 and generations._highest(run) == 2


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A loaded store, a journal with events, a clock, a baseline of the check."""
    world = make_world(seed=1)
    store = tmp_path_factory.mktemp("store") / "store"
    create_store(store, world.dataset, world.split)
    materialize(store, known_until(store))
    check_store(store)
    ShopClock(store, world.end)
    return store


def user(store):
    world = make_world(seed=1)
    read = OnlineReader(store, 5).read
    return read(int(world.user_ids[0]), world.item_ids, known_until(store) + timedelta(days=1))


def frames(store):
    stages.FrameSource(store, lambda: [requests_of(store)], 5, {}).rows_of(np.arange(3))
    return stages.shards.training_frame(store, requests_of(store), 5)


def received(store):
    Ingestor(store).ingest([Event(event_id=10**15, user_id=1, item_id=1, type="click")])


OF_A_STORE = {
    "feature_store.yaml": [open_store],
    f"{DATA}/embedding.json": [EmbeddingRecord.load, open_store],
    f"{DATA}/registry.db": [open_store, user],
    f"{DATA}/online.db": [user, lambda store: materialize(store, known_until(store))],
    f"{DATA}/item_profile.parquet": [lambda store: materialize(store, known_until(store)), frames],
    f"{DATA}/user_events.parquet": [frames, open_event_log],
    f"{DATA}/{LOG}": [known_until, received, fold],
    f"{DATA}/clock.json": [lambda store: ShopClock(store, known_until(store))()],
    f"{DATA}/materialization/item_profile.json": [lambda store: Report.load(store, "item_profile")],
    f"{DATA}/checks/item_profile.json": [check_store],
}


@pytest.mark.parametrize("name", OF_A_STORE)
def test_a_damaged_file_of_a_store_is_refused_by_name(store, name, tmp_path):
    """Cut off or gone it is refused; a flipped bit may be one of a value that no reader can tell from another."""
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    path = copy / name
    if path.is_dir():
        path = max(path.iterdir())  # its last month
    content, tried = path.read_bytes(), 0
    for read in OF_A_STORE[name]:
        for what, harm in damaged(content, name):
            with instead(path, harm):
                found, tried = refused_or(lambda read=read: read(copy), path), tried + 1
            if what.startswith("cut after") and not (path.suffix == ".db" and not harm):
                assert found == "refused" or path.suffix in (".yaml", ".db"), f"{read}: {what}: {found}"
            if name.endswith("online.db"):
                for rest in path.parent.glob("online.db-*"):
                    rest.unlink()
    promises.record(promises.DAMAGE, name, tried)


def test_what_is_said_of_a_damaged_store_mends_it(store, tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    before = user(store)
    for rest in (copy / DATA).glob("online.db-*"):  # of the process that has the original open
        rest.unlink()
    online, registry = copy / DATA / "online.db", copy / DATA / "registry.db"
    online.write_bytes(online.read_bytes()[:5000])
    with pytest.raises(ConnectionError, match="online.db: damaged.*Remove it and materialize again"):
        user(copy)
    online.unlink()
    registry.write_bytes(b"x" + registry.read_bytes())
    with pytest.raises(RuntimeError, match="registry.db: damaged.*Remove it and run 'moon materialize'"):
        open_store(copy)
    registry.unlink()
    materialize(copy, known_until(copy))
    after = user(copy)
    assert after.candidates.equals(before.candidates) and after.requests.equals(before.requests)


def test_a_snapshot_of_items_that_cannot_be_opened_is_made_again(every_kind, tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(every_kind / "store", copy)
    embedding = EmbeddingRecord.load(copy).embeddings[0]
    before = open_item_matrix(open_store(copy), embedding)
    (folder,) = (copy / DATA / "item_matrix").glob("v*")
    for name in os.listdir(folder):
        for content in (b"", (folder / name).read_bytes()[:7]):
            with instead(folder / name, content):
                again = open_item_matrix(open_store(copy), embedding)
            assert again.items.equals(before.items) and np.array_equal(
                again.vectors.matrix, before.vectors.matrix
            )


def test_the_list_of_kinds_is_complete(every_kind):
    """A kind that nobody damages would not be found missing: every manifest of a run is of a kind above."""
    import json

    found = {json.loads(path.read_text())["kind"] for path in every_kind.rglob(MANIFEST)}
    assert found == {*MADE_BY, *OTHERS}
