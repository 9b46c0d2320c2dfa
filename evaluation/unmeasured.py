"""What could not be measured on a dataset, and why: a table that is missing is said, never filled in."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow.compute as pc

from dataset.split import Split
from dataset.tables import Dataset
from evaluation.daily import why_not
from evaluation.metrics import Measurement

TABLES = ("retrieval", "ctr", "daily", "relevance", "encoder")  # first parts of the names of measurements
RECORD = "not_measured.json"


def unmeasured(dataset: Dataset, split: Split, measured: Iterable[Measurement]) -> dict[str, str]:
    """The tables of which nothing was measured: table -> why."""
    there = {one.name.partition("/")[0] for one in measured}
    reasons = {
        "retrieval": _retrieval(dataset, split),
        "ctr": _ctr(dataset, split),
        "daily": _daily(dataset, split),
        "relevance": "no queries whose items were judged",
        "encoder": _encoder(dataset),
    }
    return {name: reasons[name] for name in TABLES if name not in there}


def _retrieval(dataset: Dataset, split: Split) -> str:
    if not len(dataset.events):
        return "no events"
    if not pc.any(pc.equal(split.retrieval["part"], "test"), min_count=0).as_py():
        return "nobody liked two items one after the other, so nobody can be asked for the second"
    return "none of the items asked for is among those that may be answered"


def _ctr(dataset: Dataset, split: Split) -> str:
    if not len(dataset.events):
        return "no events"
    if not split.shows:
        return "no impressions and no ratings that say what was not liked"
    return "no test impressions of which some were clicked and some not"


def _daily(dataset: Dataset, split: Split) -> str:
    if not len(dataset.events):
        return "no events"
    return why_not(split) or "not trained on this split; 'moon ranker --daily' does it"


def _encoder(dataset: Dataset) -> str:
    pictured, titled = dataset.items["image_id"].is_valid(), dataset.items["title"].is_valid()
    if not pc.any(pictured).as_py():
        return "no pictures" if pc.any(titled).as_py() else "no pictures and no titles"
    if not pc.any(titled).as_py():
        return "no titles"
    return "fewer than two items with picture and title are left that the encoder has not learned from"
