"""The numbers of a run side by side: ours, our controls, the plain methods, and, where it is known, the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evaluation.metrics import Measurement
from evaluation.report import Comparison, Control, Judged

BASELINES = ("popularity", "repeats", "item_knn", "tf_idf", "colour", "mix", "logistic", "boosting")
CONTROLS = ("id_only", "plain_content", "shuffled", "logistic", "boosting")
# A ranker's name among click predictions -> among lists.
RANKERS = {
    "full": "moon", "plain_content": "ranker_plain_content", "id_only": "ranker_id_only",
    "shuffled": "ranker_shuffled", "logistic": "logistic", "boosting": "boosting",
}  # fmt: skip
JUDGED = {
    "clicks": "clicks_per_slate", "purchases": "purchases_per_slate", "revenue": "revenue_per_slate",
    "served over it": "lift_of_served", "clicks, history allowed": "clicks_per_slate_with_history",
    "untouched items, by item": "untouched_by_item", "by place": "untouched_by_place",
}  # fmt: skip
SEARCHES = (
    "one_word/precision@5",
    "title/first",
    "photo/first",
    "judged_text/ndcg@10",
    "judged_picture/ndcg@10",
)
ESTIMATED = {"truth": "truth", "IPS": "ips", "SNIPS": "snips"}
BOUNDS = ("observer", "oracle")
LAST = ("shop", *BOUNDS)


def judged(measured: Sequence[Measurement]) -> list[Judged]:
    """What every method would bring by the truth, by clicks; then the shop's policy and the bounds."""
    return _methods(measured, "truth", JUDGED)


def estimated(measured: Sequence[Measurement]) -> list[Judged]:
    """What the log's random slates say of every method, beside the truth on the same requests."""
    return _methods(measured, "off_policy", ESTIMATED)


def _methods(measured: Sequence[Measurement], prefix: str, columns: Mapping[str, str]) -> list[Judged]:
    """A row per method, by the first column; the last ones are the policy of the shop and the bounds."""
    by_name = {one.name: one for one in measured}
    first = next(iter(columns.values()))
    ordered = sorted(
        (one.value, one.name.split("/")[1])
        for one in measured
        if one.name.startswith(f"{prefix}/") and one.name.endswith(f"/{first}")
    )
    found = []
    for _, method in ordered:
        keys = {label: f"{prefix}/{method}/{what}" for label, what in columns.items()}
        values = {label: by_name[key] for label, key in keys.items() if key in by_name}
        found.append(Judged(method, values, method in BOUNDS))
    return sorted(found, key=lambda one: LAST.index(one.method) if one.method in LAST else -1)


def headline(measured: Sequence[Measurement]) -> list[Comparison]:
    """Our numbers beside the baselines and plain controls that were measured on the same rows."""
    by_name = {one.name: one for one in measured}
    found = []
    for metric in ("recall@10", "recall@20", "ndcg@20", "cold/recall@20"):
        ours = by_name.get(f"retrieval/moon/{metric}")
        if ours is not None:
            others = {
                b: by_name[f"retrieval/{b}/{metric}"].value
                for b in BASELINES
                if f"retrieval/{b}/{metric}" in by_name
            }
            found.append(Comparison(ours.name, ours.value, others, ours.n, ours.split))
    for metric in ("auc", "gauc"):
        ours = by_name.get(f"ctr/full/{metric}")
        if ours is not None:
            others = {
                c: by_name[f"ctr/{c}/{metric}"].value for c in CONTROLS if f"ctr/{c}/{metric}" in by_name
            }
            found.append(Comparison(ours.name, ours.value, others, ours.n, ours.split, start=0.5))
    directions = ("image_to_item", "text_to_item", "item_to_item", "image_to_text")
    for what in (*(f"{one}/recall@10" for one in directions), "facets/accuracy", "taste/content/linear"):
        ours = by_name.get(f"encoder/moon/{what}")
        if ours is not None:
            others = {
                b: by_name[f"encoder/{b}/{what}"].value
                for b in ("random", "colour", "tf_idf", "tf_idf_svd", "colour_tf_idf_svd")
                if f"encoder/{b}/{what}" in by_name
            }
            found.append(Comparison(ours.name, ours.value, others, ours.n, ours.split))
    return found


def controls(measured: Sequence[Measurement]) -> list[Control]:
    """The ranker with vectors, without, and with those of other items, beside the plain controls."""
    values = {one.name: one.value for one in measured}
    found = []
    for control, ranker in RANKERS.items():
        names = {
            "AUC": f"ctr/{control}/auc",
            "GAUC": f"ctr/{control}/gauc",
            "normalised entropy": f"ctr/{control}/ne",
            "AUC, cold items": f"ctr/{control}/cold/auc",
            "recall@20": f"retrieval/{ranker}/recall@20",
            "recall@20, cold items": f"retrieval/{ranker}/cold/recall@20",
        }
        found.append(
            Control(control, {label: (values[key], None) for label, key in names.items() if key in values})
        )
    return found
