"""``moon retrieval`` on a tiny world: each artifact is made of what it should, and of nothing newer.

Run: pytest tests/test_retrieval_build.py
"""

import json
import shutil
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from conftest import DAY, START, write_embedding
from safetensors.numpy import load_file
from test_training_requests import bought

from dataset.contracts import POSITIVE_CODES, behaviour_codes
from dataset.requests import RANKING
from feature_repo.create import create_store
from feature_repo.embeddings import publish_embedding
from feature_repo.frames.join import training_frame
from feature_repo.services import RETRIEVAL
from feature_repo.vectors import Vectors
from ranker.two_tower.train import TwoTower, train_two_tower
from retrieval import build
from retrieval.cooccurrence import Cooccurrence, Counting
from retrieval.counting import fit_counting
from retrieval.examples import answers_of, candidates, match_names, requests_frame
from retrieval.fusion import Weights
from retrieval.index import ItemIndex, category_path
from retrieval.lifts import Lifts
from retrieval.likes import Likes
from retrieval.properties import Properties
from retrieval.requests import Request, Requests, history_of, interests
from retrieval.retriever import ROLES, Retriever, open_retrieval
from retrieval.shown import PLACES, Rates, Shown
from retrieval.taken import Taken
from retrieval.taste import Taste
from retrieval.taste_files import open_taste
from retrieval.trend import fit_half_life
from retrieval.word_vectors import WordVectors
from retrieval.words import Words
from run.artifacts import ArtifactError, open_artifact, write_artifact
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
NANO = size("nano")
FIT, TEST = START + 30 * DAY, START + 45 * DAY


def known_before(log, moment):
    return log.filter(pc.less(log["available_time"], pa.scalar(moment, log["available_time"].type)))


def shown_after(log):
    """RANKING rows: what each user was shown after FIT, as one request of that moment; every third item is liked."""
    rows = log.filter(
        pc.and_(pc.equal(log["type"], "impression"), pc.greater_equal(log["available_time"], FIT))
    )
    _, first, user = np.unique(rows["user_id"].to_numpy(), return_index=True, return_inverse=True)
    request, item = np.unique(np.stack([user, rows["item_id"].to_numpy()]), axis=1)
    start = np.searchsorted(request, request)
    columns = {
        "request_id": request + 1,
        "user_id": rows["user_id"].to_numpy()[first][request],
        "time": rows["event_time"].take(first[request]),
        "query_id": pa.array([7 if one == 0 else None for one in request], pa.int64()),
        "item_id": item,
        "position": pa.array(np.arange(len(item)) - start, pa.int32()),
        "label": pa.array(np.arange(len(item)) % 3 == 0).cast(pa.float32()),
        "part": ["train"] * len(item),
        "event_id": np.arange(len(item)),
    }
    return pa.table(columns).cast(RANKING)


@pytest.fixture(scope="module")
def built(tiny_world, tmp_path_factory):
    """A run folder after ``build_retrieval``, and the split it was made from."""
    run = tmp_path_factory.mktemp("run")
    create_store(run / "store", tiny_world.dataset, tiny_world.split)
    publish_embedding(run / "store", write_embedding(run / "embedding", tiny_world, 8, FIT))
    with write_artifact(run / "split", "split", {}) as folder:
        (folder / "content").write_text("stands in for the tables below")
    log = tiny_world.split.log
    split = SimpleNamespace(
        artifact=open_artifact(run / "split", "split"),
        log=log,
        fit_log=known_before(log, FIT),
        test_log=known_before(log, TEST),
        retrieval=bought(tiny_world),
        ranking=shown_after(log),
        shows=True,
        rated=False,
        repeats=False,
        by="time",
        end=pc.max(log["available_time"]).as_py() + timedelta(seconds=1),
    )
    build.build_retrieval(run, tiny_world.dataset, split, NANO, 5)
    return run, split


def opened(run, name, kind=None):
    return open_artifact(run / name, kind or name)


def test_co_occurrence_is_counted_before_the_requests_it_is_used_for(built):
    run, split = built
    for name, log in (("cooccurrence", split.test_log), ("cooccurrence_fit", split.fit_log)):
        artifact = opened(run, name, "cooccurrence")
        positive = np.isin(behaviour_codes(log["type"], log["value"]), POSITIVE_CODES)
        pairs = set(
            zip(*(log[key].to_numpy()[positive].tolist() for key in ("item_id", "user_id")), strict=True)
        )
        counted = Cooccurrence.open(artifact)
        expected = {item: float(sum(one == item for one, _ in pairs)) for item, _ in pairs}
        assert dict(zip(counted.item_ids.tolist(), counted.popularity.tolist(), strict=True)) == expected
        assert artifact.parents == {"split": split.artifact.id}
        assert artifact.config["neighbours"] == 200 and artifact.config["items"] == len(expected)
        counting, reached = fit_counting(split.fit_log, 5)
        half_life, popular = fit_half_life(split.fit_log, 5)
        assert Counting.recorded(artifact.config) == counting
        assert artifact.config["reached"] == {"counting": reached, "trend": popular}
        trend = Likes.of(log).trend(half_life)
        np.testing.assert_allclose(counted.trend, trend, rtol=1e-6)


def test_tastes_are_learned_before_the_requests_they_are_used_for_and_read_of_the_whole_log(
    built, tiny_world
):
    run, split = built
    tastes, queries = open_taste(opened(run, "taste"))
    taste, blind = tastes.plain, tastes.blind
    shown, learned = (Shown.of(log, split.fit_log) for log in (split.log, split.fit_log))
    assert taste.shown.end_us == shown.end_us > learned.end_us and len(taste.shown) == len(shown)
    again = Taste.fit(taste.properties, shown, learned)
    without = Taste.fit(taste.properties.without_content(), shown, learned)
    vectors = Vectors.open(opened(run, "embedding")).gather(taste.properties.item_ids)[0]
    whole = again.with_vectors(again.properties.with_vectors(vectors), learned)
    for kept, made in ((taste, again), (blind, without), (tastes.whole, whole)):
        assert kept.of == made.of
        np.testing.assert_array_equal(kept.lasting, made.lasting)
        np.testing.assert_array_equal(kept.fading, made.fading)
    assert set(taste.of) - set(blind.of) == {"words"}
    np.testing.assert_array_equal(taste.shown.expected, shown.expected)
    assert queries.query_ids.tolist() == sorted(tiny_world.dataset.queries["query_id"].to_pylist())


def test_lifts_are_learned_before_the_requests_they_are_used_for_and_read_by_every_ranker(
    built, tiny_world, tmp_path
):
    run, split = built
    assert not (run / "lifts").exists()  # this log says what was passed over
    folder = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("taste", "store"))
    build.build_lifts(tiny_world.dataset, split, folder / "lifts")
    artifact = opened(folder, "lifts")
    assert artifact.parents == {"split": split.artifact.id}
    kept, items = Lifts.open(artifact), tiny_world.dataset.items
    learned = Lifts.fit(Properties.of(items, lambda image_id: None), split.fit_log)
    later = Lifts.fit(learned.properties, split.log)
    assert kept.of == learned.of and kept.price == learned.price != later.price
    for name in ("strength", "recency"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(learned, name))
    for field, share in kept.shares.items():
        np.testing.assert_array_equal(share, learned.shares[field])
        assert (share != later.shares[field]).any()
    retriever = Retriever.open(open_retrieval(folder, fitted=True))
    item_id = items["item_id"].to_numpy()
    request = Requests.of([Request(1, history_of(item_id[:3]), START)])
    asked = request, item_id, np.array([0, len(item_id)])
    for reading in (retriever, retriever.without_vectors(), retriever.without_content()):
        names = list(reading.similarities.names)
        first = names.index(kept.names[0])
        assert names[first : first + len(kept.of)] == list(kept.names)
        found = reading.similarities.of(*asked)[:, first : first + len(kept.of)]
        np.testing.assert_array_equal(found, kept.columns(*asked))
        assert found.any()


def test_tastes_are_told_how_many_numbers_of_a_vector_stand_apart(built, tiny_world, tmp_path, monkeypatch):
    run, split = built
    embedding = opened(run, "embedding")
    width, told = embedding.config["width"], []
    monkeypatch.setattr(Taste, "with_vectors", lambda self, items, learned, apart: told.append(apart) or self)
    for longest in (width, width - 3):
        config = {**embedding.config, "widths": [longest // 2, longest]}
        build.build_taste(
            tiny_world.dataset, split, replace(embedding, config=config), tmp_path / str(longest)
        )
    assert told == [0, 3], "those after the longest prefix that is a vector, too"


def test_what_the_id_only_control_reads_does_not_change_with_what_items_say(
    built, tiny_world, tmp_path, monkeypatch
):
    run, split = built
    items, log = tiny_world.dataset.items, split.log
    other = shutil.copytree(run, tmp_path / "run")
    title = pa.array([f"x{n % 3} thing" for n in range(len(items))], items["title"].type)
    items = items.set_column(items.column_names.index("title"), items.schema.field("title"), title)
    dataset = SimpleNamespace(
        items=items, queries=tiny_world.dataset.queries, image_bytes=tiny_world.dataset.image_bytes
    )
    for name in ("taste", "words"):
        shutil.rmtree(other / name)
    build.build_taste(dataset, split, opened(run, "embedding"), other / "taste")
    Words.of(items).save(other / "words", {"split": split.artifact})
    impressions = log.filter(pc.equal(log["type"], "impression"))
    user, candidates = impressions["user_id"].to_numpy()[-1], np.sort(items["item_id"].to_numpy())
    asked = Requests.of([Request(int(user), history_of([]), split.end, text="x1")])
    before, after = (
        Retriever.open(
            {role: one for role, one in open_retrieval(place).items() if role in ROLES[:4] or role == "taste"}
        )
        for place in (run, other)
    )
    offsets, found = np.array([0, len(candidates)]), {}
    for name, pair in {
        "full": (before, after),
        "blind": (before.without_content(), after.without_content()),
    }.items():
        found[name] = [one.similarities.of(asked, candidates, offsets) for one in pair]
    assert not np.array_equal(*found["full"]), "the ranker reads what items say"
    np.testing.assert_array_equal(*found["blind"])
    names = before.without_content().similarities.names
    assert found["blind"][0][:, names.index("match_taste")].any(), "a taste is known"
    assert not [name for name in names if "words" in name or "looks" in name]


def test_the_ranker_reads_the_scores_of_what_learned_from_behaviour_and_without_content_not_the_towers(built):
    retriever = Retriever.open(open_retrieval(built[0]))
    for one, scores in (
        (retriever, ["match_cooccurrence", "match_two_tower", "match_popular"]),
        (retriever.without_content(), ["match_cooccurrence", "match_popular"]),
    ):
        assert list(match_names(one)) == [*scores, *one.similarities.names]
        placed = [name for name in one.similarities.names if "two_tower" in name]
        assert ("match_two_tower_bias" in placed, len(placed)) == (
            (True, 6) if "match_two_tower" in scores else (False, 0)
        )


def test_the_index_holds_the_embeddings_vectors_under_the_items_categories(built, tiny_world):
    run, _ = built
    embedding, index = opened(run, "embedding"), ItemIndex.open(opened(run, "index"))
    vectors = Vectors.open(embedding)
    assert index.artifact.parents == {"embedding": embedding.id}
    np.testing.assert_array_equal(index.gather(vectors.ids)[0], vectors.matrix)
    paths = dict(zip(index.ids.tolist(), index.paths, strict=True))
    items = tiny_world.dataset.items
    assert paths == {
        item: category_path(parts)
        for item, parts in zip(items["item_id"].to_pylist(), items["category"].to_pylist(), strict=True)
    }


@pytest.mark.parametrize("end", ["", "_fit"])
def test_the_towers_learn_what_was_taken_before_the_requests_they_answer_and_place_every_item_as_served(
    built, tiny_world, tmp_path, end
):
    run, split = built
    towers, made = opened(run, f"two_tower{end}", "two_tower"), opened(run, "word_vectors")
    content = WordVectors.open(made).vectors(Words.open(opened(run, "words")))
    catalogue = build.catalogue_frame(run, split, tiny_world.item_ids, NANO).take(0, 1).candidates
    log = split.fit_log if end else split.test_log
    again = train_two_tower(
        training_frame(run / "store", build.taken_next(log), NANO.history, RETRIEVAL),
        content,
        catalogue,
        NANO,
        tmp_path / "again",
        {"split": split.artifact, "word_vectors": made},
        seed=5,
    )
    assert again.id == towers.id, "the same job, made again"
    assert towers.parents == {"split": split.artifact.id, "word_vectors": made.id}
    assert towers.config["seed"] == 5 and towers.config["content_id"] == made.id
    index = ItemIndex.open(opened(run, f"two_tower_index{end}", "index"))
    assert index.artifact.parents == {"two_tower": towers.id}
    expected = TwoTower.open(towers, content).item_vectors(catalogue)
    np.testing.assert_array_equal(index.gather(tiny_world.item_ids)[0], expected)
    assert dict(zip(index.ids.tolist(), index.paths, strict=True)) == dict(
        zip(*(getattr(ItemIndex.open(opened(run, "index")), name) for name in ("ids", "paths")), strict=True)
    )
    stored = load_file(towers.file("items.safetensors"))
    assert stored["item_id"].tolist() == tiny_world.item_ids.tolist()


NAMES = ["similar", "profile", "cooccurrence", "words", "two_tower", "taste", "popular"]


def weighed(run, split):
    """The fusion of a run, and the lists of its most popular items for the requests it learned from."""
    fusion, weights = opened(run, "fusion"), Weights.open(opened(run, "fusion"))
    assert list(weights.of_source) == NAMES
    retriever = Retriever.open(open_retrieval(run, fitted=True))
    assert retriever.weights.of_source == weights.of_source
    return fusion.config["measure"], fusion.config["reached"], retriever


def test_the_sources_are_weighed_by_what_was_taken_after_what_they_learned_from(built, tmp_path):
    whole, split = built
    run = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(run / "fusion")
    build.weigh_sources(run, SimpleNamespace(**vars(split) | {"shows": False}), NANO, 5)
    measure, reached, retriever = weighed(run, split)
    assert measure == "ndcg" and max(reached.values()) > 0
    asked = split.retrieval.filter(pc.equal(split.retrieval["part"], "train"))
    found = answers_of(requests_frame(run, asked, NANO), retriever.popular, retriever)
    wanted = asked["relevant"].to_pylist()
    gain = [
        1 / np.log2(2 + ids.tolist().index(item))
        for (ids, _), items in zip(found, wanted, strict=True) for item in items if item in ids
    ]  # fmt: skip
    assert reached["popular"] == pytest.approx(sum(gain) / sum(map(len, wanted)))


def test_split_by_last_those_sources_are_weighed_that_answer_tests_by_what_validates(built, tmp_path):
    whole, split = built
    run = shutil.copytree(whole, tmp_path / "run")
    asked = split.retrieval.filter(pc.equal(split.retrieval["part"], "test")).combine_chunks()
    wanted = [items[0] for items in asked["relevant"].to_pylist()]
    columns = {
        "request_id": pa.array(range(len(asked))),
        "user_id": asked["user_id"],
        "time": asked["time"],
        "query_id": pa.nulls(len(asked), pa.int64()),
        "item_id": pa.array(wanted),
        "position": pa.nulls(len(asked), pa.int32()),
        "label": pa.array(np.ones(len(asked), np.float32)),
        "event_id": pa.nulls(len(asked), pa.int64()),
    }
    valid = pa.table({**columns, "part": ["valid"] * len(asked)}).select(RANKING.names).cast(RANKING)
    others = pa.table({**columns, "part": ["train"] * len(asked)}).select(RANKING.names).cast(RANKING)
    changes = {"shows": False, "by": "last", "ranking": pa.concat_tables([others, valid])}
    build.weigh_sources(run, SimpleNamespace(**vars(split) | changes), NANO, 5)
    reached = opened(run, "fusion").config["reached"]
    served = Retriever.open(open_retrieval(run))
    found = answers_of(requests_frame(run, asked, NANO), served.popular, served)
    gain = [
        1 / np.log2(2 + ids.tolist().index(item))
        for (ids, _), item in zip(found, wanted, strict=True) if item in ids
    ]  # fmt: skip
    assert reached["popular"] == pytest.approx(sum(gain) / len(wanted)) and gain


def test_where_the_log_says_what_was_shown_the_sources_are_weighed_by_what_was_made_of_it(built):
    run, split = built
    measure, reached, retriever = weighed(run, split)
    assert measure == "likes over expected"
    rows = split.ranking.filter(pc.equal(split.ranking["part"], "train")).to_pylist()
    asked: dict[int, list[dict]] = {}
    for row in rows:
        if row["query_id"] is None:
            asked.setdefault(row["request_id"], []).append(row)
    frames = training_frame(run / "store", pa.Table.from_pylist(
        [{name: shown[0][name] for name in build.REQUEST} for shown in asked.values()],
        schema=split.ranking.select(build.REQUEST).schema), NANO.history, RETRIEVAL)  # fmt: skip
    log = [row for row in split.fit_log.to_pylist() if row["type"] in ("impression", "rating")]
    rates = Rates.of(split.fit_log)
    gained = expected = 0.0
    for (ids, _), shown in zip(answers_of(frames, retriever.popular, retriever), asked.values(), strict=True):
        for row in shown:
            place = ids.tolist().index(row["item_id"]) if row["item_id"] in ids else 500
            gained += row["label"] / np.log2(2 + place)
            cell = min(row["position"] + 1, PLACES) if row["position"] is not None else 0
            expected += rates.places[cell] / np.log2(2 + place)
    assert log and gained
    assert reached["popular"] == pytest.approx(gained / expected, rel=1e-4)


def test_the_catalogue_is_one_request_of_nobody_one_second_after_the_log(built, tiny_world):
    run, split = built
    ids = tiny_world.item_ids[::-1].copy()
    frames = build.catalogue_frame(run, split, ids, NANO)
    frame = frames.take(0, 1)
    assert len(frames) == 1 and frames.history == NANO.history
    assert frame.candidates["item_id"].to_pylist() == ids.tolist()
    request = frame.requests.to_pylist()[0]
    end = pc.max(split.log["available_time"]).as_py()
    assert (request["user_id"], request["query_id"]) == (-1, None)
    assert request["time"] == end + timedelta(seconds=1)
    assert not request["user_found"] and not len(frame.history.item_id)
    seen_us = dict(
        zip(
            tiny_world.item_ids.tolist(),
            tiny_world.dataset.items["first_seen"].cast(pa.int64()).to_pylist(),
            strict=True,
        )
    )
    assert frame.candidates["first_seen_us"].to_pylist() == [seen_us[one] for one in ids.tolist()]


def test_without_an_embedding_nothing_is_built(built, tiny_world, tmp_path):
    _, split = built
    with pytest.raises(ArtifactError, match="Run 'moon embed'"):
        build.build_retrieval(tmp_path, tiny_world.dataset, split, NANO, 5)
    assert not list(tmp_path.iterdir())


def test_where_repeats_are_asked_for_what_users_took_is_proposed_weighed_and_read(built, tmp_path):
    whole, split = built
    run = shutil.copytree(whole, tmp_path / "run")
    asked = split.retrieval.filter(pc.equal(split.retrieval["part"], "test")).combine_chunks()
    stored = requests_frame(run, asked, NANO)
    known = [set(stored.take(row, row + 1).history.item_id.tolist()) for row in range(len(asked))]
    without = Retriever.open(open_retrieval(run))
    assert not without.repeats and "match_repeats" not in match_names(without)
    assert not any(
        set(ids.tolist()) & seen for (ids, _), seen in zip(candidates(stored, without), known, strict=True)
    )
    Taken.of(split.log, 5).save(run / "taken", {}, {})
    build.weigh_sources(run, split, NANO, 5)
    retriever = Retriever.open(open_retrieval(run))
    assert retriever.repeats and "match_repeats" in match_names(retriever.without_content())
    assert "repeats" in retriever.weights.of_source
    found = [set(ids.tolist()) for ids, _ in candidates(stored, retriever)]
    there = set(retriever.index.ids.tolist())
    liked = [set(interests(stored.take(row, row + 1).history).item_id.tolist()) for row in range(len(asked))]
    assert any(liked) and all(one & there <= proposed for one, proposed in zip(liked, found, strict=True))


def test_a_retriever_opens_all_of_it_and_refuses_what_was_not_made_from_one_another(
    built, tiny_world, tmp_path
):
    run, _ = built
    artifacts = open_retrieval(run)
    roles = [role for role in ROLES if role != "lifts"]  # they are where taste is not
    assert {role: one.path.name for role, one in artifacts.items()} == {role: role for role in roles}
    learned = {role: f"{role}_fit" for role in ("cooccurrence", "two_tower", "two_tower_index")}
    fitted = {role: one.path.name for role, one in open_retrieval(run, fitted=True).items()}
    assert fitted == {role: learned.get(role, role) for role in roles}
    retriever = Retriever.open(artifacts | {"ranker": artifacts["index"]})
    assert set(retriever.artifacts) == set(artifacts), "what it does not read is not its own"
    names = [*NAMES, "query"]
    assert [source.name for source in retriever.sources] == names
    assert [source.name for source in retriever.recommending] == names[:-1]
    some = tiny_world.item_ids[3:9]
    only = Retriever.open(artifacts, only=some)
    assert sorted(only.index.ids) == sorted(only.parts.tower_index.ids) == some.tolist()
    assert len(only.vectors.ids) == len(tiny_world.item_ids), "history items need not be answerable"
    assert len(only.parts.places.index) == len(tiny_world.item_ids), "likewise in the towers' space"
    other = tmp_path / "run"
    shutil.copytree(run, other)
    index = ItemIndex.open(artifacts["two_tower_index"])
    shutil.rmtree(other / "two_tower_index")
    index.save(other / "two_tower_index", {"two_tower": artifacts["index"]})
    with pytest.raises(ArtifactError, match="two_tower_index"):
        Retriever.open(open_retrieval(other))
    shutil.rmtree(other / "two_tower_index")
    shutil.rmtree(other / "two_tower")
    assert [source.name for source in Retriever.open(open_retrieval(other)).personal] == [*names[:4], "taste"]
    assert any(name == "match_taste" for name in retriever.similarities.names)
    shutil.rmtree(
        other / "taste"
    )  # a run of a release that had none, or of a log that says only what was taken
    assert not any("taste" in name for name in Retriever.open(open_retrieval(other)).similarities.names)
    assert [source.name for source in Retriever.open(open_retrieval(other)).personal] == names[:4]
    shutil.rmtree(other / "words")  # a run of a release that had none
    assert [source.name for source in Retriever.open(open_retrieval(other)).personal] == names[:3]
    write_embedding(tmp_path / "strange", tiny_world, 8, FIT, seed=1)
    mixed = artifacts | {"embedding": open_artifact(tmp_path / "strange", "embedding")}
    with pytest.raises(ArtifactError, match="index: made from embedding"):
        Retriever.open(mixed)
    with pytest.raises(ArtifactError, match="two_tower: made from word_vectors"):
        Retriever.open(artifacts | {"word_vectors": artifacts["words"]})


def test_a_retriever_with_other_vectors_of_the_embedding_answers_with_the_same_items(built):
    run, _ = built
    retriever = Retriever.open(open_retrieval(run))
    more = Vectors(
        np.append(retriever.vectors.ids, 2**50),
        np.concatenate([retriever.vectors.matrix, retriever.vectors.matrix[:1]]),
        retriever.vectors.queries,
        retriever.vectors.id,
    )
    other = retriever.with_vectors(more)
    assert other.vectors is more and other.index is retriever.index
    assert other.parts is retriever.parts
    assert other.artifacts == retriever.artifacts
    config = json.loads((run / "two_tower" / "config.json").read_text())
    assert config["id_width"] == NANO.id_width
