"""Train the ranker day after day: measured on each day before it learns from it, beside plain controls.

``<run>/daily`` holds ``ranker`` (of the last day), ``first`` (of the first day, never trained again), what was
predicted on each day in ``days``, ``table.md`` and the page ``drift.html`` (``evaluation.drift``).
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dataset.days import DAY_US, Day, days_of
from dataset.log import distinct, microseconds
from dataset.requests import liked_us
from dataset.split import Split
from dataset.tables import Dataset
from evaluation.content import PlainContent
from evaluation.ctr_quality import probabilities
from evaluation.drift import DAYS, FIRST, FOLDER, LAST, MADE_BY, newest, write_day, write_drift
from evaluation.plain_controls import Examples, features_of
from evaluation.plain_features import PlainFeatures
from feature_repo.embeddings import as_stored
from feature_repo.frames.logged import logged_frame, of_requests
from feature_repo.vectors import Vectors
from moonstore.disk import make_folder
from moonstore.freshness import US
from ranker.daily import Terms, continues, drawn, held_out, replayed, train_day
from ranker.recipes import Recipe
from ranker.regression import READ
from ranker.score import CONFIG, CtrConfig, Ranker
from ranker.train import LEARNING_RATES
from retrieval.examples import MatchedFrames, chunks, matched
from retrieval.retriever import Retriever, open_retrieval
from run.artifacts import Artifact, discard, open_artifact
from run.sizes import Size

LATEST, MOST = 60, 5_000  # days and requests that are gone through unless more are asked for
# Passes over a day, and the rates of dense weights and tables (docs/log/ranker.md#day-after-day).
EPOCHS, RATES = 2, LEARNING_RATES["pointwise"][0]


@dataclass(frozen=True)
class Log:
    """Logged requests with all that is known of them at the end of the log.

    Attributes:
        requests: R requests, in the order of time.
        time_us: int64 (R).
        user_id: int64 (R).
        item_id: int64 (C).
        offsets: int64 (R + 1), of their candidates.
        label: float32 (C), at the end of the log.
        liked_us: int64 (C), when each like became known; later than any moment: there was none.
        plain: float64 (C, F), what the plain control reads.
        end_us: the end of the log.
    """

    requests: MatchedFrames
    time_us: np.ndarray
    user_id: np.ndarray
    item_id: np.ndarray
    offsets: np.ndarray
    label: np.ndarray
    liked_us: np.ndarray
    plain: np.ndarray
    end_us: int

    def candidates(self, requests: np.ndarray) -> np.ndarray:
        """The rows of the candidates of some requests, int64, ascending as the requests are."""
        mine = np.zeros(len(self.time_us), dtype=bool)
        mine[requests] = True
        return np.flatnonzero(np.repeat(mine, np.diff(self.offsets)))

    def known_at(self, requests: np.ndarray, moment_us: int) -> np.ndarray:
        """The labels of the candidates of some requests as they were known before a moment, float32."""
        rows = self.candidates(requests)
        return self.label[rows] * (self.liked_us[rows] < moment_us)


@dataclass(frozen=True)
class Span:
    """How much of a log is gone through, and how.

    Attributes:
        requests: of all days so many at most, drawn evenly; None: MOST of the LATEST days with requests.
        wait: how long after a request its labels are final.
        forget: days without occurring after which an id loses its row; None: it keeps it.
    """

    requests: int | None = None
    wait: timedelta = timedelta(0)
    forget: int | None = None

    def of(self, time_us: np.ndarray, seed: int) -> np.ndarray:
        """Which requests are gone through, int64, ascending.

        Args:
            time_us: int64 (R), when each was made, microseconds since 1970 UTC.
            seed: of the drawing.
        """
        day, most = time_us // DAY_US, self.requests or MOST
        rows = np.arange(len(day))
        if self.requests is None:
            rows = np.flatnonzero(np.isin(day, distinct(day)[-LATEST:]))
        return (
            rows if len(rows) <= most else np.sort(np.random.default_rng((seed, 7)).permutation(rows)[:most])
        )


def daily(
    folder: Path, dataset: Dataset, split: Split, size: Size, recipe: Recipe, seed: int, span: Span
) -> None:
    """Train the ranker of a run day after day on its logged requests, or say why not.

    The days are those after ``fit_until``: what retrieval and encoder learned from is over by then.

    Args:
        folder, dataset, split, size: of the run.
        recipe: of the ranker.
        seed: of everything random.
        span: how much of the log is gone through.
    """
    out = folder / FOLDER
    if why := why_not(split):
        sys.stderr.write(f"  not day after day: {why}\n")
        discard(out)
        return
    examples = Examples.of(split.ranking)
    chosen = span.of(examples.asked.time_us, seed)
    if len(chosen) < (every := len(examples.asked)):
        sys.stderr.write(f"  {len(chosen):,} of {every:,} requests; --requests asks for more\n")
    retriever = Retriever.open(open_retrieval(folder, fitted=True))
    embedding, vectors = retriever.artifacts["embedding"], as_stored(retriever.vectors, folder / "store")
    terms = Terms(recipe, size, vectors, embedding.parents.get("encoder"), seed, EPOCHS, *RATES, span.forget)
    log = _log_of(folder, dataset, split, size, retriever, chosen)
    train_daily(out, log, terms, {"embedding": embedding, "split": split.artifact}, span.wait)
    write_drift(out)


def why_not(split: Split) -> str:
    """Why the log of a run cannot be gone through day after day; empty if it can."""
    if not split.shows:
        return "nothing says what was shown and not liked"
    if split.by != "time":
        return f"the split is by {split.by}, not by time"
    if not split.ranks:
        return "nothing in the log says what users took"
    days = distinct(microseconds(split.ranking["time"]) // DAY_US)
    return "" if len(days) > 1 else "the requests after what retrieval learned from are of one day"


def _log_of(
    folder: Path, dataset: Dataset, split: Split, size: Size, retriever: Retriever, chosen: np.ndarray
) -> Log:
    shown = of_requests(split.ranking, chosen)
    examples = Examples.of(shown)
    plain = PlainFeatures(
        dataset, PlainContent.of(dataset.items, dataset.images), split.log, split.fit_log, split.repeats
    )
    return Log(
        requests=matched(logged_frame(folder, split, size, chosen), retriever, size.behaviours),
        time_us=examples.asked.time_us,
        user_id=examples.asked.user_id,
        item_id=examples.item_id,
        offsets=examples.offsets,
        label=examples.label,
        liked_us=liked_us(split.log, shown),
        plain=features_of(plain, examples, "plain features"),
        end_us=int(microseconds(split.log["available_time"]).max()) + 1,
    )


def train_daily(
    folder: Path, log: Log, terms: Terms, parents: Mapping[str, Artifact], wait: timedelta = timedelta(0)
) -> list[str]:
    """Go through the days of a log: measure each, then train on what can be learned from at its end.

    A day that was finished is not done again: a run that was cut goes on at its batch, and one whose log has grown
    with the new days. Where a finished day is another than it was, or the terms are, everything begins anew.

    Args:
        folder: where everything is written.
        log: the requests.
        terms: how the ranker is trained.
        parents: what it is made from, by role.
        wait: how long after a request its labels are final.

    Returns:
        the dates of the days, in order.
    """
    days = list(days_of(log.time_us, log.end_us, wait // US))
    identities = {day.date: _identity(log, day) for day in days}
    ranker = _go_on(folder, log, terms, identities)
    done = {} if ranker is None else dict(ranker.config["days"])
    make_folder(folder / DAYS)
    for place, day in enumerate(days):
        if day.date <= max(done, default=""):
            continue
        _say_empty(day)
        if ranker is not None and len(day.asked):
            _measure(folder, log, days[: place + 1], ranker, terms)
        if len(day.learned):
            done[day.date] = identities[day.date]
            requests, *lesson = _lesson(log, days[: place + 1], terms, first=ranker is None)
            out = folder / (FIRST if ranker is None else LAST)
            ranker = train_day(requests, day.number, ranker, terms, out, parents, {"days": done}, *lesson)
    return [day.date for day in days]


def _lesson(
    log: Log, days: Sequence[Day], terms: Terms, first: bool
) -> tuple[MatchedFrames, MatchedFrames, MatchedFrames | None, MatchedFrames]:
    """The requests of the last of some days; what is trained on at its end, by what training stops, where it begins.

    At ``first`` held-out users say when to stop; later there are requests of earlier days among what is trained on,
    with features as of their own time and the likes that are known by now. The regression at which it begins is
    fitted to all days, of which READ candidates are drawn.
    """
    day = days[-1]

    def known(requests: np.ndarray) -> MatchedFrames:
        return log.requests.only(requests, log.known_at(requests, day.end_us))

    if first:
        out = held_out(log.user_id[day.learned], terms.seed)
        valid, trained = known(day.learned[out]) if out.any() else None, known(day.learned[~out])
        return known(day.learned), trained, valid, trained
    since = 0 if terms.forget is None else day.number - terms.forget
    past = [one.learned for one in days[:-1] if one.number >= since]
    earlier, count = np.concatenate([np.empty(0, np.int64), *past]), np.diff(log.offsets)
    today, seed = int(count[day.learned].sum()), (terms.seed, day.number)
    again = earlier[replayed(count[earlier], today, terms.size.ranker_slots, seed)]
    before = earlier[drawn(count[earlier], max(READ - today, 0), seed)]
    trained, fitted = (known(np.sort(np.append(rows, day.learned))) for rows in (again, before))
    return known(day.learned), trained, None, fitted


def _go_on(folder: Path, log: Log, terms: Terms, identities: Mapping[str, str]) -> Artifact | None:
    """The ranker to go on from; None: begin, after what is there was removed."""
    found = newest(folder)
    if found is not None:
        done = found.config["days"]
        others = [date for date in identities if date <= max(done) and identities[date] != done.get(date, "")]
        why = continues(found, terms, log.requests) or (
            f"another log on {', '.join(others[:3])}" if others else ""
        )
        if not why:
            return found
        sys.stderr.write(f"  {folder} was trained otherwise ({why}): starting afresh\n")
        discard(folder)
    return None


def _identity(log: Log, day: Day) -> str:
    """Who asked on a day, when, what was shown, and what of the log was liked by its end, as 16 hex digits.

    Nobody asked: nothing. Likes of earlier days count, too: their requests are learned from again.
    """
    rows = log.candidates(day.learned)
    until = np.arange(day.learned.max(initial=-1) + 1)
    parts = (
        log.user_id[day.learned], log.time_us[day.learned], log.item_id[rows], log.known_at(until, day.end_us)
    )  # fmt: skip
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16] if len(rows) else ""


def _say_empty(day: Day) -> None:
    if not len(day.asked):
        sys.stderr.write(f"  {day.date}: no requests, not measured\n")
    if not len(day.learned):
        sys.stderr.write(f"  {day.date}: nothing to learn from at its end, skipped\n")


def _measure(folder: Path, log: Log, days: Sequence[Day], ranker: Artifact, terms: Terms) -> None:
    """Measure the last of some days from its own requests alone, by what was learned on those before."""
    day = days[-1]
    rows = log.candidates(day.asked)
    label, user = log.label[rows], np.repeat(log.user_id, np.diff(log.offsets))[rows]
    asked = log.requests.only(day.asked, label)
    first = open_artifact(folder / FIRST, "ranker", MADE_BY)
    own = _scored(ranker, terms.vectors, asked, day)
    same = first.id == ranker.id  # on the second day
    chances = {LAST: own, FIRST: own if same else _scored(first, terms.vectors, asked, day)}
    if (chance := _logistic(log, days)) is not None:
        chances["logistic"] = chance
    write_day(folder, day.date, label, user, chances)


def _scored(made: Artifact, vectors: Vectors | None, asked: MatchedFrames, day: Day) -> np.ndarray:
    """Click probabilities of a day's candidates, float64 (C)."""
    if vectors is not None:  # those of its own day were fewer, but by the same encoder
        vectors = replace(vectors, id=CtrConfig.read(made.file(CONFIG)).embedding_id or "")
    ranker = Ranker.open(made, vectors)
    return probabilities(
        np.concatenate([ranker.score(frame) for frame in chunks(asked, f"measure {day.date}")])
    )


def _logistic(log: Log, days: Sequence[Day]) -> np.ndarray | None:
    """Those of logistic regression on everything that could be learned from on the days before, float64 (C)."""
    before = [day for day in days[:-1] if len(day.learned)]
    rows = np.concatenate([log.candidates(day.learned) for day in before])
    label = np.concatenate([log.known_at(day.learned, day.end_us) for day in before])
    if len(np.unique(label)) < 2:
        return None
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(log.plain[rows], label)
    chance: np.ndarray = model.predict_proba(log.plain[log.candidates(days[-1].asked)])[:, 1]
    return chance
