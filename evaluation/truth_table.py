"""The first table of a simulated run: what the lists of every method would bring, by the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from dataset.marketplace.policy import SLATE
from evaluation.baselines import Lists
from evaluation.earlier import Moments
from evaluation.metrics import Measurement
from evaluation.observer import Observer
from evaluation.plain import PlainMethods
from evaluation.shop_baselines import requests_of
from evaluation.truth import INTERVAL, SERVED, Judge, Verdict, methods_of, resampled_means
from evaluation.untouched import untouched_measures

SPLIT = "test users, by the truth"


def truth_measures(
    judge: Judge,
    requests: pa.Table,
    named: Mapping[str, np.ndarray],
    plain: Mapping[str, Lists],
    methods: PlainMethods,
    untouched: np.ndarray,
    seed: int,
) -> Iterator[Measurement]:
    """Judge every method on the same requests.

    Args:
        judge: knows the tastes.
        requests: R rows with user_id and time.
        named: name -> int64 item ids (R, at least 10), as the service answers: of the request's history none, unless
            the shop proposes repeats.
        plain: the same of the plain methods, and with the history.
        methods: the plain methods, for their candidates and their log.
        untouched: int64 ids of the candidates that nobody had acted on.
        seed: of the shop's noisy policy and of the bootstrap.

    Yields:
        ``truth/<method>/clicks_per_slate``, ``purchases_per_slate`` and ``revenue_per_slate``, n = requests, and
        ``lift_of_served``: clicks served over the method's, less 1; all with the 95 % interval of a paired bootstrap
        over users. ``observer`` and ``oracle`` are bounds, ``shop`` is the policy that wrote the log. Then
        ``clicks_per_slate_with_history`` of plain methods and bounds that may list items of the history again, and
        what items that nobody had acted on bring (``evaluation.untouched``).
    """
    asked, candidates = Moments.of(requests), methods.candidates
    history = requests_of(methods.log, requests)
    bound = {
        name: Lists.of(scores, candidates, SLATE, history)
        for name, scores in bounds(judge, asked, candidates).items()
    }
    lists = {**methods_of(named), **{name: one.answers(methods.repeats) for name, one in bound.items()}}
    verdicts = {name: judge.judge(asked, ranked) for name, ranked in lists.items()}
    verdicts["shop"] = judge.shop(asked, seed)
    yield from _compared(verdicts, asked.user_id, seed)
    again = {name: judge.judge(asked, one.any).clicks for name, one in {**plain, **bound}.items()}
    clicks = np.stack(list(again.values()), axis=1)
    yield from _measured("clicks_per_slate_with_history", list(again), clicks, asked.user_id, seed)
    yield from untouched_measures(judge, asked, lists, candidates, untouched, SPLIT, seed)


def bounds(judge: Judge, asked: Moments, candidates: np.ndarray) -> dict[str, np.ndarray]:
    """Scores by the ideal observer and by the oracle, float32 (R, N) each."""
    everywhere = np.broadcast_to(candidates, (len(asked), len(candidates)))
    return {
        "observer": Observer(judge).probabilities(asked, candidates),
        "oracle": judge.log_odds(asked, everywhere).astype(np.float32),
    }


def _compared(verdicts: Mapping[str, Verdict], user_id: np.ndarray, seed: int) -> Iterator[Measurement]:
    names = list(verdicts)
    for what in ("clicks", "purchases", "revenue"):
        values = np.stack([getattr(one, what) for one in verdicts.values()], axis=1)
        yield from _measured(f"{what}_per_slate", names, values, user_id, seed)
    if SERVED not in verdicts:
        return
    clicks = np.stack([one.clicks for one in verdicts.values()], axis=1)
    means, ours = resampled_means(clicks, user_id, seed), names.index(SERVED)
    for column, name in enumerate(names):
        if column != ours and (means[:, column] > 0).all():
            low, high = np.percentile(means[:, ours] / means[:, column] - 1, INTERVAL)
            value = clicks[:, ours].mean() / clicks[:, column].mean() - 1
            yield Measurement(f"truth/{name}/lift_of_served", value, len(user_id), SPLIT, low, high)


def _measured(
    what: str, names: Sequence[str], values: np.ndarray, user_id: np.ndarray, seed: int
) -> Iterator[Measurement]:
    """The mean of each column of values (R, M), with the interval of a paired bootstrap over users."""
    low, high = np.percentile(resampled_means(values, user_id, seed), INTERVAL, axis=0)
    for column, name in enumerate(names):
        mean = float(values[:, column].mean())
        yield Measurement(f"truth/{name}/{what}", mean, len(values), SPLIT, low[column], high[column])
