"""The tasks of the encoder benchmark, modelled on MBE: queries, ground truth, and the result of a random order.

The tasks are those of MBE and MBE2.0 (MOON §2.2, MOON2.0 §3.8): retrieval in five directions, product
classification at several levels, attribute prediction. Every task is a generator of measurements over plain arrays;
a task without data yields nothing.

Shapes: Q queries, N candidates, D vector width, T training items, C classes. Vectors are float32 with unit rows; a
row of zeros means that the encoder cannot encode that content (no picture, no text, a colour histogram of a text).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dataset.days import DAY_US
from dataset.jagged import offsets_of
from encoder.content import Content
from evaluation.classifiers import LinearProbe, class_means, macro_scores, nearest
from evaluation.metrics import Measurement

Encode = Callable[[Sequence[Content]], np.ndarray]  # contents -> float32 (n, D)

DEPTHS = (1, 5, 10)
BLOCK = 1024  # queries scored at a time
FEWEST = 5  # least number of training items of a class


@dataclass(frozen=True)
class Truth:
    """Ground truth of retrieval: query q should find the candidates ``rows[offsets[q]:offsets[q + 1]]``.

    Attributes:
        offsets: int64 (Q + 1).
        rows: int64, rows of the relevant candidates, distinct within a query.
    """

    offsets: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, query: np.ndarray, row: np.ndarray, queries: int) -> Truth:
        """From (query, row) pairs in any order; a repeated pair counts once."""
        pair = np.unique(np.stack([query, row], axis=1).astype(np.int64), axis=0)
        length = np.bincount(pair[:, 0], minlength=queries)
        return cls(offsets_of(length), pair[:, 1])

    @property
    def queries(self) -> int:
        """Number of queries with a relevant candidate."""
        return int((np.diff(self.offsets) > 0).sum())


def own(items: int) -> Truth:
    """Each item should find itself: the ground truth of text<->image and of MBE's text- and image-based retrieval."""
    return Truth(np.arange(items + 1), np.arange(items))


def variants(spu: np.ndarray) -> Truth:
    """Each item should find the other items of its product (colour variants), never itself.

    Args:
        spu: int64 (N), product code of each item.
    """
    order = np.argsort(spu, kind="stable")
    pairs = [
        (one, other)
        for group in np.split(order, np.flatnonzero(np.diff(spu[order])) + 1)
        for one in group
        for other in group
        if one != other
    ]
    query, row = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return Truth.of(query, row, len(spu))


def together(user: np.ndarray, time_us: np.ndarray, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of codes bought on one trip, and by how many users. A trip is a user's purchases of one UTC day.

    Args:
        user, time_us, code: int64, one entry per purchase; ``code`` is the item or product bought.

    Returns:
        (distinct pairs, int64 (P, 2), smaller code first; number of users, int64 (P)).
    """
    bought = np.unique(np.stack([user, time_us // DAY_US, code], axis=1).astype(np.int64), axis=0)
    found = [np.empty((0, 3), dtype=np.int64)]
    lag = 1
    while True:
        first, second = bought[:-lag], bought[lag:]
        same = (first[:, :2] == second[:, :2]).all(axis=1)
        if not same.any():
            break
        found.append(np.stack([first[same, 2], second[same, 2], first[same, 0]], axis=1))
        lag += 1
    by_user = np.unique(np.concatenate(found), axis=0)
    pairs, users = np.unique(by_user[:, :2], axis=0, return_counts=True)
    return pairs, users


def recall(
    name: str,
    query_QD: np.ndarray,
    candidate_ND: np.ndarray,
    truth: Truth,
    among_themselves: bool,
    split: str,
    prefix: str = "encoder",
) -> Iterator[Measurement]:
    """Mean over queries of |relevant among the top k| / |relevant|, for k = 1, 5, 10.

    Rows of zeros are neither queries nor relevant, but stay candidates with score 0. With ties the value is the
    expectation over all orders of the tied candidates, so that constant vectors score like a random order and not 1.
    With several relevant candidates recall@1 cannot be 1.

    Args:
        name: task and ground truth, the middle part of the measurement's name.
        query_QD: queries.
        candidate_ND: candidates, all of them for every query.
        truth: rows of the candidates each query should find.
        among_themselves: queries and candidates are the same items, and a query's own row is not a candidate.
        split: description of the queries and candidates.
        prefix: first part of the names.

    Yields:
        ``prefix/name/recall@k`` and ``prefix/chance/name/recall@k`` (a random order), n = queries.
    """
    seen = np.any(candidate_ND != 0, axis=1)
    total, queries = np.zeros(len(DEPTHS)), 0
    for start in range(0, len(query_QD), BLOCK):
        score = query_QD[start : start + BLOCK] @ candidate_ND.T
        for row, q in enumerate(range(start, start + len(score))):
            relevant = truth.rows[truth.offsets[q] : truth.offsets[q + 1]]
            relevant = relevant[seen[relevant]]
            if len(relevant) == 0 or not query_QD[q].any():
                continue
            if among_themselves:
                score[row, q] = -np.inf
            hit = score[row, relevant, None]
            above, tied = (score[row] > hit).sum(axis=1), (score[row] == hit).sum(axis=1)
            found = np.clip((np.array(DEPTHS)[:, None] - above) / tied, 0, 1)
            total += found.mean(axis=1)
            queries += 1
    if queries == 0:
        return
    for k, value in zip(DEPTHS, total / queries, strict=True):
        chance = min(1.0, k / (len(candidate_ND) - among_themselves))
        yield Measurement(f"{prefix}/{name}/recall@{k}", float(value), queries, split)
        yield Measurement(f"{prefix}/chance/{name}/recall@{k}", chance, queries, split)


def pool_retrieval(
    views: Mapping[str, np.ndarray], same_product: Truth, bought: Truth, split: str, prefix: str = "encoder"
) -> Iterator[Measurement]:
    """Retrieval within the pool; "item" is the complete item: picture and all of its text.

    ``image_to_item``: query with the picture; find the item itself (``own``) or the other items of its product
    (``variants``). ``text_to_item``: query with the text (title, category, attributes, description);
    ``title_to_item``: with the title only, as a shopper would type it; both with the same two ground truths. In
    ``image_to_item/own`` the query is part of the item, so that an encoder that uses only pictures always finds it.
    ``item_to_item``: query with the complete item; find the other items of its product (``variants``), or the items
    bought together with it (``bought_together``), measured separately. ``image_to_image/variants``: pictures on both
    sides. ``image_to_text``, ``text_to_image``: find the item's own text by its picture, and the reverse.

    Args:
        views: "item", "image", "text", "title" -> float32 (N, D), rows in one order.
        same_product: the other items of each item's product.
        bought: the items bought together with each item.
        split: description of the pool.
        prefix: first part of the names.
    """
    itself = own(len(views["item"]))
    for source, target, truth_name, truth in (
        ("image", "item", "own", itself),
        ("text", "item", "own", itself),
        ("title", "item", "own", itself),
        ("image", "text", "own", itself),
        ("text", "image", "own", itself),
        ("image", "item", "variants", same_product),
        ("text", "item", "variants", same_product),
        ("title", "item", "variants", same_product),
        ("item", "item", "variants", same_product),
        ("item", "item", "bought_together", bought),
        ("image", "image", "variants", same_product),
    ):
        name = f"{source}_to_{target}/{truth_name}"
        yield from recall(name, views[source], views[target], truth, truth is not itself, split, prefix)


def query_retrieval(
    kind: Sequence[str],
    query_QD: np.ndarray,
    candidate_ND: np.ndarray,
    truth: Truth,
    split: str,
    prefix: str = "encoder",
) -> Iterator[Measurement]:
    """Real searches: find the items that judges or buyers called relevant, measured for each kind of query.

    Args:
        kind: modalities of each query, e.g. "image"; the task is then ``query_to_item/image``.
        query_QD: queries.
        candidate_ND: complete items.
        truth: the relevant candidates of each query.
        split: description of the queries and candidates.
        prefix: first part of the names.
    """
    for one in sorted(set(kind)):
        asked = np.array([other == one for other in kind])
        query = np.where(asked[:, None], query_QD, 0)
        yield from recall(f"query_to_item/{one}", query, candidate_ND, truth, False, split, prefix)


@dataclass(frozen=True)
class Labels:
    """The labels of one classification task: the category at some level, or an attribute.

    Attributes:
        name: name of the task, e.g. ``category_2`` or ``attribute_colour``.
        classes: names of the classes, ascending.
        train: int64 (T), the class of each training item, -1: unknown or too rare.
        test: int64 (N), the class of each pool item, -1 likewise.
    """

    name: str
    classes: list[str]
    train: np.ndarray
    test: np.ndarray


def labels(name: str, train: Sequence[str | None], test: Sequence[str | None]) -> Labels | None:
    """Labels with the classes of at least ``FEWEST`` training items; None when fewer than two remain.

    All classifiers get the same items. Items that an encoder cannot encode (TF-IDF of a title of unknown words) are
    left out for this encoder, as n shows.
    """
    known, count = np.unique([answer for answer in train if answer is not None], return_counts=True)
    classes = [str(answer) for answer in known[count >= FEWEST]]
    place = {answer: row for row, answer in enumerate(classes)}
    train_code, test_code = (
        np.array([place.get(answer, -1) if answer is not None else -1 for answer in side], dtype=np.int64)
        for side in (train, test)
    )
    if len(classes) < 2 or not (test_code >= 0).any():
        return None
    return Labels(name, classes, train_code, test_code)


def classification(
    question: Labels,
    train_TD: np.ndarray,
    test_ND: np.ndarray,
    class_CD: np.ndarray | None,
    split: str,
    prefix: str = "encoder",
) -> Iterator[Measurement]:
    """Predict labels from frozen vectors of picture and title (the rest of the text contains the answer).

    ``zero_shot``: the class whose name has the nearest vector, without training. ``nearest_mean``: the class with the
    nearest mean of training items. ``probe``: multinomial logistic regression on the training items.

    Args:
        question: labels of the training and the pool items.
        train_TD: training items.
        test_ND: pool items.
        class_CD: vectors of the classes' names; None: no zero-shot measurement. There is none either if the encoder
            cannot encode one of the names.
        split: description of the pool.
        prefix: first part of the names.

    Yields:
        ``prefix/<question>/<way>/accuracy``, for the probe also macro_precision, macro_recall and macro_f1, and
        the same under ``prefix/chance``: 1 / C for zero-shot, always predicting the most frequent training class for
        the others. n = pool items with a label.
    """
    learn = (question.train >= 0) & train_TD.any(axis=1)
    asked = (question.test >= 0) & test_ND.any(axis=1)
    if not asked.any():
        return
    truth, vectors, n = question.test[asked], test_ND[asked], int(asked.sum())
    classes = len(question.classes)

    def measured(way: str, scores: Mapping[str, float], chance: Mapping[str, float]) -> Iterator[Measurement]:
        for metric, value in scores.items():
            name = f"{question.name}/{way}/{metric}"
            yield Measurement(f"{prefix}/{name}", value, n, split)
            yield Measurement(f"{prefix}/chance/{name}", chance[metric], n, split)

    if class_CD is not None and class_CD.any(axis=1).all():
        hit = float(np.mean(nearest(vectors, class_CD) == truth))
        yield from measured("zero_shot", {"accuracy": hit}, {"accuracy": 1 / classes})
    seen = question.train[learn]
    if len(np.unique(seen)) < classes:
        return
    commonest = macro_scores(truth, np.full(n, np.bincount(seen).argmax()))
    guess = nearest(vectors, class_means(train_TD[learn], seen, classes))
    yield from measured("nearest_mean", {"accuracy": float(np.mean(guess == truth))}, commonest)
    probe = LinearProbe.fit(train_TD[learn], seen, classes)
    yield from measured("probe", macro_scores(truth, probe.predict(vectors)), commonest)
