"""A run that an earlier release made opens, and says what it said, or is refused with the command that repairs it.

``made_by_0_1_0`` is the store of ``conftest.make_world(seed=1)``, made and materialized by release 0.1.0.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import START

from feature_repo.create import create_store
from feature_repo.online import OnlineReader
from feature_repo.store import RENAMED, YAML, known_until, materialize, open_store

MADE_BY_0_1_0 = Path(__file__).with_name("made_by_0_1_0") / "store"


@pytest.fixture
def old_store(tmp_path):
    return Path(shutil.copytree(MADE_BY_0_1_0, tmp_path / "store"))


def class_paths(store_dir):
    content = yaml.safe_load((store_dir / YAML).read_text())
    parts = [part for part in content.values() if isinstance(part, dict)]
    return {value for part in parts for value in part.values() if isinstance(value, str) and "." in value}


def test_class_paths_that_moved_are_renewed_when_the_store_is_opened(old_store):
    assert class_paths(old_store) & set(RENAMED)
    assert open_store(old_store).config.online_store.type == "moonstore.sqlite_store.SqliteOnlineStore"
    assert not class_paths(old_store) & set(RENAMED)


def test_an_old_store_answers_as_one_made_today(old_store, tiny_world, tmp_path):
    """But for the rate of an item, which is that which its rankers were trained with until the store is made anew."""
    new_store = tmp_path / "new"
    create_store(new_store, tiny_world.dataset, tiny_world.split)
    materialize(new_store, known_until(new_store))
    until = known_until(old_store)
    assert until == known_until(new_store) > START
    for again in (False, True):  # as it was loaded by 0.1.0, then loaded once more by today's code
        if again:
            materialize(old_store, until)
        for user_id in tiny_world.user_ids:
            frames = [
                OnlineReader(store, 5).read(int(user_id), tiny_world.item_ids, until)
                for store in (old_store, new_store)
            ]
            assert frames[0].requests.equals(frames[1].requests)
            old, new = (frame.candidates for frame in frames)
            assert old.drop_columns("rate_all").equals(new.drop_columns("rate_all"))
            positive, shown = (old[name].to_pandas() for name in ("positive_all", "shown_all"))
            rate = ((positive + 1) / (shown + 20)).to_numpy(np.float32)
            np.testing.assert_array_equal(old["rate_all"].to_numpy(), rate)
            assert frames[0].history.item_id.tolist() == frames[1].history.item_id.tolist()
