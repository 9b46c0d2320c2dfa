"""Train the ranker day after day: measured on each day before it learns from it, beside plain controls.

``<run>/daily`` holds ``ranker`` (of the last day), ``first`` (of the first day, never trained again), what was
measured on each day in ``days``, ``table.md`` and the page ``drift.html``.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dataset.contracts import DataError
from dataset.days import Day, days_of
from dataset.log import microseconds
from dataset.requests import liked_us
from dataset.split import Split
from dataset.tables import Dataset
from evaluation.content import PlainContent
from evaluation.ctr_quality import ctr_quality, probabilities
from evaluation.measurements import read_measurements, write_measurements
from evaluation.metrics import Measurement
from evaluation.plain_controls import Examples, features_of
from evaluation.plain_features import PlainFeatures
from evaluation.plots import Curve
from evaluation.report import Plot, render_page
from feature_repo.embeddings import as_stored
from feature_repo.frames.logged import logged_frame
from feature_repo.vectors import Vectors
from moonstore.disk import make_folder
from moonstore.files import write_text
from moonstore.freshness import US
from ranker.daily import Terms, continues, held_out, replayed, train_day
from ranker.recipes import Recipe
from ranker.score import CONFIG, CtrConfig, Ranker
from ranker.train import LEARNING_RATES
from retrieval.examples import MatchedFrames, chunks, matched
from retrieval.retriever import Retriever, open_retrieval
from run.artifacts import Artifact, ArtifactError, discard, open_artifact
from run.sizes import Size

FOLDER, MADE_BY = "daily", "moon ranker --daily"
FIRST, LAST = "first", "ranker"  # the rankers of the first day and of the last one
METRICS = {"auc": "AUC", "gauc": "GAUC", "ne": "NE", "calibration": "calibration"}
# Passes over a day, and the rates of dense weights and tables (docs/log/ranker.md#day-after-day).
EPOCHS, RATES = 2, LEARNING_RATES["pointwise"][0]
WAYS = {"daily": "daily", "first": "first day only", "logistic": "logistic"}


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


def daily(
    folder: Path,
    dataset: Dataset,
    split: Split,
    size: Size,
    recipe: Recipe,
    seed: int,
    wait: timedelta = timedelta(0),
    forget: int | None = None,
) -> str:
    """Train the ranker of a run day after day on its logged requests; the table of what was measured on each day.

    The days are those after ``fit_until``: what retrieval and encoder learned from is over by then.

    Args:
        folder, dataset, split, size: of the run.
        recipe: of the ranker.
        seed: of everything random.
        wait: how long after a request its labels are final.
        forget: days without occurring after which an id loses its row; None: it keeps it.

    Raises:
        DataError: the log does not say what was not liked, or the run's split is not by time.
    """
    if not split.shows or split.by != "time":
        raise DataError(
            f"{folder}: expected impressions or ratings that are split by time, to be asked day after day; found a "
            f"split by {split.by} of {'such' if split.shows else 'what was taken only'}. Run 'moon split --by time'."
        )
    retriever = Retriever.open(open_retrieval(folder, fitted=True))
    embedding, vectors = retriever.artifacts["embedding"], as_stored(retriever.vectors, folder / "store")
    terms = Terms(recipe, size, vectors, embedding.parents.get("encoder"), seed, EPOCHS, *RATES, forget)
    out = folder / FOLDER
    train_daily(out, _log_of(folder, dataset, split, size, retriever), terms, {"embedding": embedding}, wait)
    return _told(out)


def _log_of(folder: Path, dataset: Dataset, split: Split, size: Size, retriever: Retriever) -> Log:
    examples = Examples.of(split.ranking)
    plain = PlainFeatures(
        dataset, PlainContent.of(dataset.items, dataset.images), split.log, split.fit_log, split.repeats
    )
    return Log(
        requests=matched(logged_frame(folder, split, size), retriever, size.behaviours),
        time_us=examples.asked.time_us,
        user_id=examples.asked.user_id,
        item_id=examples.item_id,
        offsets=examples.offsets,
        label=examples.label,
        liked_us=liked_us(split.log, split.ranking),
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
    make_folder(folder / "days")
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
) -> tuple[MatchedFrames, MatchedFrames, MatchedFrames | None]:
    """The requests of the last of some days; what is trained on at its end; and by what training stops.

    At ``first`` held-out users say when to stop; later there are requests of earlier days among what is trained on,
    with features as of their own time and the likes that are known by now.
    """
    day = days[-1]

    def known(requests: np.ndarray) -> MatchedFrames:
        return log.requests.only(requests, log.known_at(requests, day.end_us))

    if first:
        out = held_out(log.user_id[day.learned], terms.seed)
        valid = known(day.learned[out]) if out.any() else None
        return known(day.learned), known(day.learned[~out]), valid
    since = 0 if terms.forget is None else day.number - terms.forget
    past = [one.learned for one in days[:-1] if one.number >= since]
    earlier, count = np.concatenate([np.empty(0, np.int64), *past]), np.diff(log.offsets)
    today, seed = int(count[day.learned].sum()), (terms.seed, day.number)
    again = earlier[replayed(count[earlier], today, terms.size.ranker_slots, seed)]
    return known(day.learned), known(np.sort(np.append(again, day.learned))), None


def _go_on(folder: Path, log: Log, terms: Terms, identities: Mapping[str, str]) -> Artifact | None:
    """The ranker to go on from; None: begin, after what is there was removed."""
    found = next((one for name in (LAST, FIRST) if (one := _open(folder / name)) is not None), None)
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


def _open(path: Path) -> Artifact | None:
    """The ranker there, if it is whole and of a day."""
    try:
        found = open_artifact(path, "ranker", MADE_BY)
    except ArtifactError:
        return None
    return found if "days" in found.config else None


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
    chances = {"daily": own, "first": own if same else _scored(first, terms.vectors, asked, day)}
    if (chance := _logistic(log, days)) is not None:
        chances["logistic"] = chance
    found = [
        one for name, chance in chances.items()
        for one in ctr_quality(label, chance, user, split=day.date, prefix=name)
    ]  # fmt: skip
    write_measurements(folder / "days" / f"{day.date}.json", found)


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


def _told(folder: Path) -> str:
    """Write the table and the page of all days; the table, as the command prints it."""
    rows = [
        (date, name, {label: found.get(f"{way}/{metric}") for metric, label in METRICS.items()})
        for date, found in _measured(folder).items()
        for way, name in WAYS.items()
        if f"{way}/logloss" in found
    ]
    lines = [f"| day | ranker | {' | '.join(METRICS.values())} |", "|---|---|" + "--:|" * len(METRICS)]
    for date, name, cells in rows:
        figures = (f"{one.value:.4f}" if one else "" for one in cells.values())
        lines.append(f"| {date} | {name} | {' | '.join(figures)} |")
    table = "\n".join(lines) + "\n"
    write_text(folder / "table.md", table)
    shown = {
        "plots": drift(folder),
        "rows": rows,
        "labels": list(METRICS.values()),
        "first": _first_date(folder),
    }
    page = render_page(folder / "drift.html", "daily_template.html", **shown)
    return f"{table}table: {folder / 'table.md'}\ndrift: {page}, and in report.html after 'moon evaluate'"


def drift(folder: Path) -> list[Plot]:
    """The figures of each day as curves; none: nothing was trained day after day there."""
    measured, first = _measured(folder), _first_date(folder)
    plots = []
    for metric, label in METRICS.items():
        if some := list(_curves(measured, first, metric)):
            plots.append(Plot(label, f"day, from {first}", label, some, markers=True))
    return plots


def _measured(folder: Path) -> dict[str, dict[str, Measurement]]:
    """What was measured on each day, by date."""
    return {path.stem: read_measurements(path) for path in sorted((folder / "days").glob("*.json"))}


def _first_date(folder: Path) -> str:
    """The day that the ranker began with; nothing: there is none."""
    made = _open(folder / FIRST)
    return "" if made is None else min(made.config["days"])


def _curves(measured: Mapping[str, Mapping[str, Measurement]], first: str, metric: str) -> Iterator[Curve]:
    """A metric of each ranker over the days, numbered from 1 as in the log."""
    for way, name in WAYS.items():
        name_of = f"{way}/{metric}"
        found = {
            int((np.datetime64(date) - np.datetime64(first)).astype(int)) + 1: one[name_of].value
            for date, one in measured.items()
            if name_of in one
        }
        if found:
            yield Curve(name, list(found), list(found.values()))
