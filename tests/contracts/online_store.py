"""What every online store keeps. A new one inherits it by its class and a fixture with its configuration:

class TestSqlite(OnlineStoreContract):
    store = SqliteOnlineStore

    @pytest.fixture
    def online(self, tmp_path):
        return SqliteOnlineStoreConfig(path=str(tmp_path / "online.db"))
"""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from store_world import SCHEMA, START, WIDTH, open_store, source_rows, stamps, stored
from test_read_matrix import assert_same

from moonstore.batch import sift
from moonstore.encode import encode
from moonstore.errors import FutureRowError
from moonstore.matrix import by_feast, matrix_reader

FEATURES = list(SCHEMA)
IDS = np.array([-(2**63), -1, 0, 1, 7, 2**40, 2**63 - 1])
NOBODY = np.array([5, -7, 2**50])


def rows_of(ids, seed=0, hour=1, **changed):
    """One row of every feature for each id."""
    table = source_rows(np.random.default_rng(seed), len(ids), entities=len(ids), hours=1)
    changed = {"item_id": pa.array(ids, pa.int64()), "event_timestamp": stamps([hour] * len(ids)), **changed}
    for name, values in changed.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table


def view_of(store):
    return store.get_feature_view("item")


def engine_of(store):
    return store._get_provider().online_store


def batch_of(store, table):
    sifted = sift(view_of(store), table, datetime.now(UTC))
    assert sifted.refused.num_rows == 0
    return sifted.batch


def write(store, table):
    return engine_of(store).write_columns(store.config, view_of(store), batch_of(store, table))


def push(store, table):
    store.write_to_online_store("item", df=table.to_pandas())


def read(store, ids):
    return matrix_reader(store, [(view_of(store), FEATURES)])(np.asarray(ids, np.int64))[0]


def expected(table, ids):
    """What Feast's client says of ``ids``, from rows of which each id has one."""
    row = {item: at for at, item in enumerate(table.column("item_id").to_pylist())}
    columns = {name: table.column(name).to_pylist() for name in FEATURES}
    return {"item_id": list(ids)} | {
        name: [columns[name][row[one]] if one in row else None for one in ids] for name in FEATURES
    }


class OnlineStoreContract:
    store = None

    @pytest.fixture
    def online(self):
        raise NotImplementedError

    @pytest.fixture
    def made(self, online, tmp_path):
        made = open_store(tmp_path, online, created=True)
        assert type(engine_of(made)) is self.store
        return made

    def test_what_was_written_is_read_to_the_bit(self, made):
        table = rows_of(IDS)
        assert write(made, table) == len(IDS)
        asked = [*IDS.tolist(), *NOBODY.tolist()]
        assert stored(made, asked) == expected(table, asked)
        found = read(made, asked)
        hour = int((START + timedelta(hours=1)).timestamp() * 1e6)
        assert found.event_us.tolist() == [hour] * len(IDS) + [0] * len(NOBODY)
        vectors = np.array(table.column("vector").to_pylist(), np.float32)
        np.testing.assert_array_equal(np.stack(list(found["vector"][: len(IDS)])), vectors)

    def test_columns_are_what_feasts_reader_reads(self, made):
        write(made, rows_of(IDS))
        asked = np.array([*IDS, *NOBODY, 7, 7])
        assert_same(read(made, asked), by_feast(made, view_of(made), asked, FEATURES))

    def test_rows_pushed_are_rows_loaded(self, made, online, tmp_path):
        table = rows_of(IDS)
        push(made, table)
        other = open_store(tmp_path, online, created=True)
        write(other, table)
        assert stored(other, IDS.tolist()) == stored(made, IDS.tolist())

    def test_a_batch_is_its_rows_one_by_one(self, made, online, tmp_path):
        table = rows_of(IDS)
        write(made, table)
        other = open_store(tmp_path, online, created=True)
        for row in range(len(IDS)):
            assert write(other, table.slice(row, 1)) == 1
        asked = np.array([*IDS, *NOBODY])
        together = read(made, asked)
        assert_same(read(other, asked), together)
        for place in range(len(asked)):
            alone = read(made, asked[[place]])
            assert alone.found[0] == together.found[place]
            for name in FEATURES:
                valid = together.columns[name].valid[place]
                assert alone.columns[name].valid[0] == valid, name
                assert not valid or np.array_equal(alone[name][0], together[name][place]), name

    def test_the_order_of_ids_and_rows_changes_nothing_and_repeats_are_answered_each(
        self, made, online, tmp_path
    ):
        table, draw = rows_of(IDS), np.random.default_rng(1)
        write(made, table)
        other = open_store(tmp_path, online, created=True)
        write(other, table.take(draw.permutation(len(IDS))))
        asked = draw.choice([*IDS, *NOBODY], 30)
        assert_same(read(other, asked), read(made, asked))
        assert stored(made, asked.tolist()) == expected(table, asked.tolist())

    def test_no_ids_no_rows_and_an_empty_store_are_answered(self, made):
        assert write(made, rows_of(IDS).slice(0, 0)) == 0
        found = read(made, IDS)
        assert not found.found.any() and not found.event_us.any()
        none = read(made, [])
        assert len(none) == len(none["price"]) == len(none["vector"]) == 0

    def test_an_unknown_id_is_not_found_and_has_no_values(self, made):
        write(made, rows_of(IDS))
        found = read(made, [7, *NOBODY])
        assert found.found.tolist() == [True, False, False, False]
        for name in FEATURES:
            assert not found.columns[name].valid[1:].any(), name
            assert not any(np.any(value) for value in found[name][1:]), name
        assert stored(made, NOBODY.tolist())["title"] == [None] * len(NOBODY)

    def test_a_null_is_there_but_not_valid(self, made):
        price = pa.array([None, float("nan"), 2.0], pa.float32())
        lists = pa.array([None, [], [1]], pa.list_(pa.int64()))
        write(made, rows_of([1, 2, 3], price=price, recent=lists))
        found = read(made, [1, 2, 3])
        assert found.found.all()
        assert found.columns["price"].valid.tolist() == [False, False, True]
        assert found.columns["recent"].valid.tolist() == [False, True, True]

    @pytest.mark.parametrize("way", [write, push])
    @pytest.mark.parametrize("created", [False, True])
    def test_the_newest_row_stays_whatever_comes_after_it(self, online, tmp_path, way, created):
        made = open_store(tmp_path, online, created=created)

        def put(number, hour, made_at):
            row = rows_of([7], hour=hour, number=pa.array([number]), created=stamps([made_at]))
            way(made, row if created else row.drop_columns(["created"]))
            return stored(made, [7])["number"][0]

        assert put(1, hour=5, made_at=5) == 1
        assert put(2, hour=4, made_at=9) == 1  # older, though made later
        assert put(3, hour=5, made_at=6) == 3  # a correction
        assert put(4, hour=5, made_at=5) == (3 if created else 4)  # an older correction, where that is known
        assert put(5, hour=6, made_at=1) == 5

    @pytest.mark.parametrize("way", [write, push])
    def test_of_rows_in_one_batch_the_newest_stays(self, made, way):
        hours = stamps([20, 19, 20])
        row = rows_of([7, 7, 7], number=pa.array([1, 2, 3]), event_timestamp=hours, created=stamps([1, 1, 1]))
        way(made, row)
        assert stored(made, [7])["number"] == [3]

    def test_writing_again_changes_nothing(self, made):
        table = rows_of(IDS)
        write(made, table)
        before = stored(made, IDS.tolist())
        write(made, table)
        assert write(made, rows_of(IDS, seed=9, hour=0)) == 0  # all of them older
        assert stored(made, IDS.tolist()) == before

    def test_a_row_of_the_future_is_refused_and_none_is_written(self, made):
        with pytest.raises(FutureRowError, match="expected event times by now, found 1 of 2 in the future"):
            push(made, rows_of([1, 2], event_timestamp=stamps([1, 24 * 365 * 100])))
        assert not read(made, [1, 2]).found.any()

    def test_a_row_past_its_time_to_live_is_not_found(self, online, tmp_path):
        made = open_store(tmp_path, online, created=True, ttl=timedelta(days=1))
        now = datetime.now(UTC)
        ages = [timedelta(days=19), timedelta(hours=1)]
        write(
            made,
            rows_of([1, 2], event_timestamp=pa.array([now - age for age in ages], pa.timestamp("us", "UTC"))),
        )
        found = read(made, [1, 2])
        assert found.found.tolist() == [False, True] and found["title"][0] == ""
        assert not found["vector"][0].any()
        assert stored(made, [1, 2])["title"] == [None, found["title"][1]]

    def test_what_was_written_is_there_when_opened_again(self, made, online, tmp_path):
        write(made, rows_of(IDS))
        again = open_store(tmp_path, online, created=True, project=made.project)
        assert_same(read(again, IDS), read(made, IDS))

    def test_projects_do_not_see_each_other_and_a_dropped_view_takes_nothing_with_it(
        self, made, online, tmp_path
    ):
        other = open_store(tmp_path, online, created=True)
        write(made, rows_of(IDS))
        assert not read(other, IDS).found.any()
        write(other, rows_of(IDS, seed=2))
        before = stored(made, IDS.tolist())
        project = other.project
        other.apply([], objects_to_delete=other.list_feature_views(), partial=False)
        assert stored(made, IDS.tolist()) == before
        again = open_store(tmp_path, online, created=True, project=project)
        assert not read(again, IDS).found.any()
        assert write(again, rows_of(IDS, hour=0)) == len(IDS)  # nothing newer is left of it

    def test_only_rows_whose_guard_is_still_what_was_read_are_set(self, made):
        guard = {"number": pa.array([10, 20], pa.int64())}
        write(made, rows_of([1, 2], **guard))
        told = encode(pa.array([10, 99], pa.int64()), "int64")  # of item 2 somebody wrote something else
        batch = batch_of(made, rows_of([1, 2, 3], hour=2, number=pa.array([11, 21, 31], pa.int64())))
        before = [told[0], told[1], b""]
        done = engine_of(made).compare_and_set(made.config, view_of(made), batch, "number", before)
        assert done.tolist() == [True, False, True]
        assert stored(made, [1, 2, 3])["number"] == [11, 20, 31]
        again = engine_of(made).compare_and_set(made.config, view_of(made), batch, "number", before)
        assert not again.any()

    def test_of_many_ids_each_has_its_own_row(self, made):
        ids = np.arange(0, 1800, 6)
        vectors = np.random.default_rng(3).normal(size=(len(ids), WIDTH)).astype(np.float32)
        write(made, rows_of(ids, vector=pa.array(vectors.tolist(), pa.list_(pa.float32()))))
        found = read(made, np.arange(1800))
        np.testing.assert_array_equal(np.flatnonzero(found.found), ids)
        np.testing.assert_array_equal(np.stack(list(found["vector"][ids])), vectors)
