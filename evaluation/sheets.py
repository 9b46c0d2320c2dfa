"""Content of a run's report: pictures, curves and one served answer, collected during measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.shop_ids import ShopId
from dataset.split import Split
from dataset.tables import Dataset
from evaluation.comparisons import BASELINES, controls, estimated, headline, judged
from evaluation.ctr_quality import probabilities
from evaluation.drift import FOLDER, drift, newest
from evaluation.metrics import Measurement, hits, recall_at, reliability
from evaluation.plots import Curve
from evaluation.replay import Impressions
from evaluation.report import (
    Neighbours,
    Plot,
    Reliability,
    ReportContent,
    StoreCheck,
    Tile,
    Visit,
    render_report,
)
from evaluation.retrieval_quality import Relevant
from evaluation.shop_baselines import positive_events
from feature_repo.check import HEAD, cells, check_store
from feature_repo.online import StoreUnavailable
from feature_repo.vectors import Vectors
from run.artifacts import ArtifactError, open_artifact
from serving.catalogue import named
from serving.opening import open_recommender
from serving.recommend import Recommender
from serving.settings import Settings

TILE = ("item_id", "external_id", "title", "image_id")
NOBODY = -1  # an id that no user has
SHEETS, NEIGHBOURS, VISITS, SHOWN = 6, 7, 4, 8
ARTIFACTS = {
    "dataset": "dataset", "split": "split", "encoder": "encoder", "embedding": "embedding", "index": "index",
    "cooccurrence": "cooccurrence", "two_tower": "two_tower", "ranker_full": "ranker",
}  # fmt: skip
LIMITS = {
    "marketplace": (
        "The shop is simulated: its users, pictures and clicks follow rules we wrote. It shows that the parts "
        "work together and find planted tastes, not what they are worth in a real shop."
    ),
    "users": (
        "Users that no model has learned from are asked for what they liked last: others may have acted later, and "
        "one item stands for all that they would take next."
    ),
    "last": (
        "Everybody is asked for what they liked last, as in published tables of sequential recommenders: the models "
        "have learned from what others did later, so the figures are higher than a cut in time would give."
    ),
    "given": (
        "Train, validation and test are those of the source, so AUC, GAUC and log loss may stand beside figures that "
        "were published on it, if those were searched for with the same effort."
    ),
    "time": "One cut in time, one seed: differences smaller than a few thousandths may be chance.",
}


@dataclass
class Evidence:
    """Input of a run's measurements, and the pictures and curves that they collect for the report.

    Attributes:
        folder: folder of the run.
        dataset, split: those of the run.
        vectors: vectors of its embedding.
        timings_s: stage -> duration in seconds.
        seed: for random choices of the measurements.
        visits, plots, reliability: for the report.
    """

    folder: Path
    dataset: Dataset
    split: Split
    vectors: Vectors
    timings_s: Mapping[str, float]
    seed: int = 0
    visits: list[Visit] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    reliability: Reliability | None = None

    @cached_property
    def days(self) -> Path | None:
        """Where the ranker was trained day after day on this split; None: it was not."""
        made = newest(self.folder / FOLDER)
        own = made is not None and made.parents.get("split") == self.split.artifact.id
        return self.folder / FOLDER if own else None

    def tiles(self, item_ids: Sequence[int], hit: Sequence[int] = ()) -> list[Tile]:
        """Picture and title, or else the shop's id, of these items, in order; those in ``hit`` are highlighted."""
        found = self.dataset.items.filter(pc.is_in(self.dataset.items["item_id"], pa.array(list(item_ids))))
        row = {one["item_id"]: one for one in found.select(TILE).to_pylist()}
        return [
            Tile(
                title=named(row[item_id]["title"], row[item_id]["external_id"]),
                picture=self.dataset.image_bytes(row[item_id]["image_id"]),
                hit=item_id in hit,
            )
            for item_id in item_ids
        ]

    def retrieval(self, requests: pa.Table, relevant: Relevant, named: Mapping[str, np.ndarray]) -> None:
        """Collect recall curves, and a few users with their history, recommendations and the items they took."""
        depths = [1, 2, 5, 10, 20, 30, 50]
        count = np.diff(relevant.offsets)
        curves = []
        for name in ("moon", "candidates", *BASELINES):
            if name in named:
                hit = hits(named[name], relevant.offsets, relevant.item_id)[count > 0]
                recall = [float(recall_at(hit, count[count > 0], k).mean()) for k in depths]
                curves.append(Curve(name, depths, recall))
        self.plots.append(Plot("Recall of what users took next", "list length k", "recall@k", curves, True))
        shown = hits(named["moon"][:, :SHOWN], relevant.offsets, relevant.item_id).any(axis=1)
        rng = np.random.default_rng(0)
        hit_rows, missed = (
            rng.permutation(np.flatnonzero((shown == was) & (count > 0))) for was in (True, False)
        )
        for row in [*hit_rows[: VISITS - 1], *missed[:1]]:
            self.visits.append(self._visit(requests, int(row), relevant, named["moon"][row]))

    def _visit(self, requests: pa.Table, row: int, relevant: Relevant, ranked: np.ndarray) -> Visit:
        user, time = requests["user_id"][row].as_py(), requests["time"][row]
        events = positive_events(self.split.log.filter(pc.equal(self.split.log["user_id"], user)))
        before = events.filter(pc.less(events["available_time"], time)).sort_by("available_time")
        taken = relevant.item_id[relevant.offsets[row] : relevant.offsets[row + 1]].tolist()
        listed = [int(item) for item in ranked[:SHOWN] if item >= 0]
        known = self.dataset.users.filter(pc.equal(self.dataset.users["user_id"], user))
        return Visit(
            user=known["external_id"][0].as_py(),
            history=self.tiles(before["item_id"].to_pylist()[-SHOWN:]),
            recommended=self.tiles(listed, hit=taken),
            taken=self.tiles(taken[:SHOWN]),
        )

    def clicks(self, scored: Impressions) -> None:
        """Collect the calibration of the full ranker."""
        mean_probability, mean_label, count = reliability(scored.label, probabilities(scored.logits["full"]))
        self.reliability = Reliability(mean_probability.tolist(), mean_label.tolist(), count.tolist())

    def neighbours(self) -> list[Neighbours]:
        """A few pictured items and their nearest neighbours by MOON vector."""
        pictured = self.dataset.items.filter(self.dataset.items["image_id"].is_valid())["item_id"].to_numpy()
        chosen = np.random.default_rng(1).permutation(pictured)[:SHEETS]
        sheets = []
        for item_id in chosen.tolist():
            vector, _ = self.vectors.gather(np.array([item_id]))
            score = self.vectors.matrix @ vector[0]
            order = [row for row in np.argsort(-score)[: NEIGHBOURS + 1] if self.vectors.ids[row] != item_id]
            found = self.tiles([int(self.vectors.ids[row]) for row in order[:NEIGHBOURS]])
            captioned = [
                Tile(tile.title, tile.picture, f"cosine {score[row]:.2f}")
                for tile, row in zip(found, order, strict=False)
            ]
            sheets.append(Neighbours(self.tiles([item_id])[0], captioned))
        return sheets

    def training_curves(self) -> list[Plot]:
        """Training loss of each stage of the encoder."""
        curves = open_artifact(self.folder / "encoder", "encoder").config["losses"]
        return [
            Plot(f"Encoder loss, {stage}", "step", "loss", [Curve(stage, curve["step"], curve["loss"])])
            for stage, curve in curves.items()
        ]

    def served_example(self) -> dict[str, Any]:
        """One user answered by the service's own code: history, recommendations, milliseconds per stage.

        Where no user was tested it is somebody unknown, ``user_id`` null.
        """
        profile = open_profile(self.folder)
        recommender = open_recommender(Settings(run=self.folder, profile=profile), self.folder)
        user_id = next(iter(recommender.example_users), None)
        answer = recommender.recommend(NOBODY if user_id is None else user_id, 5)
        return {
            "user_id": user_id,
            "history": [] if user_id is None else _titles(recommender, user_id)[:5],
            "recommended": [hit.card.name for hit in answer.hits],
            "timings_ms": {stage: round(value, 2) for stage, value in answer.timings_ms.items()},
            "order": answer.order,
            "fallbacks": list(answer.fallbacks),
        }


def _titles(recommender: Recommender, user_id: ShopId) -> list[str]:
    """Titles of the user's history; empty if the store does not answer, which the answer's fallbacks report."""
    try:
        return [card.name for card in recommender.history(user_id)]
    except StoreUnavailable:
        return []


def open_profile(folder: Path) -> str:
    """The online store the run was loaded into."""
    import json

    return str(json.loads((folder / "run.json").read_text())["profile"])


def write_report(
    out: Path,
    evidence: Evidence,
    measured: Sequence[Measurement],
    example: Mapping[str, Any],
    missing: Mapping[str, str],
) -> Path:
    """Render everything that was measured and collected as one page, and say what is ``missing`` (table -> why)."""
    dataset, split = evidence.dataset, evidence.split
    config = dataset.artifact.config
    events = dataset.events["event_time"]
    name = str(config["name"])
    facts: dict[str, str | int | float] = {
        "split by": f"{split.by}{', with repeats' if split.repeats else ''}: {split.artifact.config.get('why', '')}",
        **import_facts(config),
        **(
            {"first event": str(pc.min(events))[:19], "last event": str(pc.max(events))[:19]}
            if len(events)
            else {}
        ),
        **{f"{stage}, s": round(seconds) for stage, seconds in evidence.timings_s.items()},
    }
    limits = [LIMITS[key] for key in (name, split.by) if key in LIMITS]
    limits += [f"Not measured: {table}: {why}." for table, why in missing.items()]
    content = ReportContent(
        title=f"Moon on {name}",
        summary="Items encoded by MOON, features and vectors served by Feast, candidates ranked by TorchRec.",
        measurements=measured,
        judged=judged(measured),
        estimated=estimated(measured),
        headline=headline(measured),
        neighbours=evidence.neighbours(),
        visits=evidence.visits,
        controls=controls(measured),
        reliability=evidence.reliability,
        plots=[*evidence.plots, *days_of_ranker(evidence), *evidence.training_curves()],
        stages=example["timings_ms"],
        store=store_check(evidence.folder / "store"),
        dataset=facts,
        quarantine=_quarantine(dataset),
        artifacts=_artifact_ids(evidence.folder),
        limits=limits,
    )
    return render_report(out, content)


def days_of_ranker(evidence: Evidence) -> list[Plot]:
    """The curves of what was trained day after day, where that was done."""
    plots = [] if evidence.days is None else drift(evidence.days)
    return [replace(plot, title=f"Day after day: {plot.title}") for plot in plots]


def import_facts(config: Mapping[str, Any]) -> dict[str, str | int]:
    """What the dataset's manifest counts: rows, what orders equal times, clicks that label an impression or none."""
    facts: dict[str, str | int] = {table: int(rows) for table, rows in config["rows"].items()}
    if "ties" in config:
        facts["order at equal times"] = str(config["ties"])
    return facts | {f"clicks {reason}": int(count) for reason, count in config.get("clicks", {}).items()}


def store_check(store_dir: Path) -> StoreCheck:
    """Check the run's views; the result says so if the online store does not answer."""
    try:
        findings = check_store(store_dir)
    except StoreUnavailable as error:
        return StoreCheck(unanswered=str(error))
    return StoreCheck(HEAD, [(tuple(cells(one)), one.problems) for one in findings])


def _quarantine(dataset: Dataset) -> list[tuple[str, str, int]]:
    if not len(dataset.quarantine):
        return []
    counted = dataset.quarantine.group_by(["table", "rule"]).aggregate([("row", "count")]).to_pylist()
    return [(one["table"], one["rule"], one["row_count"]) for one in counted]


def _artifact_ids(folder: Path) -> dict[str, str]:
    ids = {}
    for name, kind in ARTIFACTS.items():
        try:
            ids[name] = open_artifact(folder / name, kind).id
        except ArtifactError:
            continue
    return ids
