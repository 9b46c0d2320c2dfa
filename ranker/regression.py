"""The regression that a click model begins at: what it reads of the training requests, and how it is fitted.

It is of requests without a search: weights that hold among items that answer a search are wrong between items at all
(docs/log/ranker.md#a-regression-of-requests-without-a-search).

Legend: C candidates, F numbers of a candidate, G numbers of a request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold

from feature_repo.frame import StoredRequests
from ranker.epoch import windows_of
from ranker.inputs.columns import request_time_us
from ranker.inputs.frame_encoder import FrameEncoder
from ranker.linear import LinearPath
from ranker.places import level

READ, AT_ONCE = 50_000, 512  # candidates that the regression is fitted to at most, requests read at once
FOLDS = 5  # of the users: by their loss under the others' weights, the shrinkage is chosen
FARTHEST = 100.0  # of the log-odds of two kinds of requests from each other
SHRINKAGES = [0.001, 0.01, 0.1, 1.0]  # C of scikit-learn: the smaller, the nearer are the weights to zero


@dataclass(frozen=True)
class Examples:
    """C candidates of requests.

    Attributes:
        numbers: float32 (C, F + G), of candidate and request.
        liked: bool (C), the label.
        user_id: int64 (C).
        searched: bool (C), whether the request searched for something.
    """

    numbers: np.ndarray
    liked: np.ndarray
    user_id: np.ndarray
    searched: np.ndarray


def examples_of(train: StoredRequests, encoder: FrameEncoder, seed: int) -> Examples:
    """Candidates of requests in random order, READ of them or all.

    Args:
        train: the requests.
        encoder: reads their numbers.
        seed: of the order.
    """
    parts, found = [], 0
    for rows in _shuffled(train, seed):
        parts.append(_read(train, encoder, rows))
        found += len(parts[-1][0])
        if found >= READ:
            break
    return Examples(*(np.concatenate(part)[:READ] for part in zip(*parts, strict=True)))


def _shuffled(train: StoredRequests, seed: int) -> Iterator[np.ndarray]:
    """The rows of all requests in random order, AT_ONCE at a time, those of a window together."""
    draw = np.random.default_rng(seed)
    for window in windows_of(np.arange(len(train)), train.windows, draw):
        order = draw.permutation(window)
        for start in range(0, len(order), AT_ONCE):
            yield order[start : start + AT_ONCE]


def _read(train: StoredRequests, encoder: FrameEncoder, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """The arrays of ``Examples`` of some requests."""
    frame = train.select(rows)
    requests, candidates, time_us = frame.requests, frame.candidates, request_time_us(frame.requests)
    many = np.diff(frame.offsets)
    of_request = np.repeat(encoder.numbers("request", requests, time_us), many, axis=0)
    of_candidate = encoder.numbers("candidate", candidates, np.repeat(time_us, many))
    return (
        np.concatenate([of_candidate, of_request], axis=1),
        candidates["label"].to_numpy() > 0,
        np.repeat(requests["user_id"].to_numpy(), many),
        np.repeat(encoder.queries(requests, None)[1], many),
    )


def begin(line: LinearPath, examples: Examples) -> None:
    """Give a linear path the weights of a regression of the labels on the numbers, of requests without a search.

    Searches have them, too, with what makes their mean chance their rate: searchers click more, or less.
    Its shrinkage is the strongest of SHRINKAGES that predicts held-out users as well as the best one. Where there
    are no numbers, or fewer users with positives or negatives than folds, the rate of all labels is all it says.

    Args:
        line: changed in place.
        examples: what it is fitted to, and the rate of the labels found by.
    """
    liked, plain = examples.liked, ~examples.searched
    rate = np.log((liked.sum() + 1) / ((~liked).sum() + 1))
    numbers, liked, user_id = examples.numbers[plain], liked[plain], examples.user_id[plain]
    users = min(len(np.unique(user_id[liked])), len(np.unique(user_id[~liked])))
    with torch.no_grad():
        if not numbers.shape[1] or users < FOLDS:
            line.bias.fill_(float(rate))
            return
        regression = LogisticRegression(max_iter=300)
        search = GridSearchCV(
            regression,
            {"C": SHRINKAGES},
            scoring=_score,
            cv=StratifiedGroupKFold(FOLDS),
            refit=_most_shrunk,
        )
        found = search.fit(numbers, liked, groups=user_id).best_estimator_
        weights = torch.from_numpy(found.coef_[0]).to(line.bias)
        line.candidate.copy_(weights[: len(line.candidate)])
        line.request.copy_(weights[len(line.candidate) :])
        line.bias.fill_(float(found.intercept_[0]))
        if not plain.all():
            log_odds, clicked = found.decision_function(examples.numbers[~plain]), examples.liked[~plain]
            clicks = (clicked.sum() + 1) / (len(clicked) + 2) * len(clicked)
            line.searched.fill_(level(log_odds, clicks, -FARTHEST, FARTHEST))


def _score(regression: LogisticRegression, numbers: np.ndarray, liked: np.ndarray) -> float:
    """Minus its mean loss, of labels that may all be equal."""
    return -float(log_loss(liked, regression.predict_proba(numbers), labels=[False, True]))


def _most_shrunk(found: Mapping[str, np.ndarray]) -> int:
    """The first shrinkage that is behind the best by no more than a standard error of what they differ by over folds.

    Breiman et al., Classification and Regression Trees, 1984, section 3.4.3: of few positives the best is chance.
    """
    scores = np.stack([found[f"split{fold}_test_score"] for fold in range(FOLDS)])
    behind = scores[:, [scores.mean(axis=0).argmax()]] - scores
    return int(np.argmax(behind.mean(axis=0) <= behind.std(axis=0, ddof=1) / np.sqrt(FOLDS)))
