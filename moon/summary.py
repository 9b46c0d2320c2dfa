"""The results of a finished run as plain text: headline metrics, one served example, path of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from run.artifacts import read_json

if TYPE_CHECKING:
    from evaluation.ablation import Worth

# (row, column) -> metric name; a metric that was not measured for this data leaves its cell empty.
TABLES: dict[str, dict[str, list[str]]] = {
    "truth": {
        "columns": ["clicks_per_slate", "revenue_per_slate", "lift_of_served"],
        "rows": [
            *("popularity", "repeats", "item_knn", "colour", "tf_idf", "mix", "logistic", "boosting"),
            *(
                "source_popular",
                "source_similar",
                "source_profile",
                "source_cooccurrence",
                "source_words",
                "source_two_tower",
                "source_taste",
                "source_repeats",
            ),
            *("candidates", "served_id_only", "served_shuffled", "served_plain_content", "served"),
            *("shop", "observer", "oracle"),
        ],
    },
    "off_policy": {
        "columns": ["truth", "ips", "snips"],
        "rows": ["popularity", "tf_idf", "logistic", "boosting", "candidates", "served"],
    },
    "retrieval": {
        "columns": ["recall@10", "recall@20", "recall@50", "ndcg@20", "coverage@20"],
        "rows": [
            *(
                "popularity",
                "repeats",
                "item_knn",
                "tf_idf",
                "colour",
                "mix",
                "logistic",
                "boosting",
                "candidates",
                "moon",
            )
        ],
    },
    "candidates": {
        "columns": ["recall@50", "recall@200", "recall@500", "unique@50", "unique@200", "unique@500"],
        "rows": [
            *("popular", "similar", "profile", "cooccurrence", "words", "two_tower", "taste", "repeats"),
            *("union", "fused"),
        ],
    },
    "ctr": {
        "columns": ["auc", "gauc", "ne", "calibration", "ece"],
        "rows": [
            *("logistic", "boosting", "id_only", "shuffled", "plain_content", "full"),
            *("observer", "truth_unplaced", "truth"),
        ],
    },
    "daily": {"columns": ["auc", "gauc", "ne", "calibration"], "rows": ["first", "logistic", "ranker"]},
    "relevance": {"columns": ["auc"], "rows": ["cosine", "head"]},
    "search": {
        "columns": [
            *("one_word/precision@5", "title/first", "values/first", "photo/first", "photo_smaller/first"),
            *("judged_text/ndcg@10", "judged_picture/ndcg@10"),
        ],
        "rows": ["colour", "vectors", "tf_idf", "bm25", "moon"],
    },
    "encoder": {
        "columns": [
            "image_to_text/recall@1",
            "image_to_text/recall@10",
            "image_to_item/recall@10",
            "text_to_item/recall@10",
            "item_to_item/recall@10",
            "facets/accuracy",
            "taste/content/linear",
            "anisotropy",
            "effective_rank",
        ],
        "rows": ["random", "colour", "tf_idf", "tf_idf_svd", "colour_tf_idf_svd", "moon"],
    },
}

NOTES = {  # above a table, in a run whose truth is known
    "truth": "by the truth: what a slate of ten would bring, whatever the log showed, with 95 % intervals over users",
    "off_policy": "clicks per slate at the log's random slates, and what the log alone says of it",
    "daily": "day after day, each predicted before it was learned from",
    "candidates": "by the log: the share of what was taken next that a source finds, and that only it finds",
    "retrieval": "by the log: of what the shop chose to show, which rewards lists like the shop's",
}


def text(folder: Path) -> str:
    """The closing message of ``moon demo``: metrics, the served example and where the report is."""
    metrics = read_json(folder / "metrics.json", "Run 'moon evaluate'.")
    parts = [table(name, metrics) for name in TABLES]
    if parts[0]:
        notes = (NOTES.get(name, "") for name in TABLES)
        parts = [
            f"{note}\n{part}" if note and part else part for note, part in zip(notes, parts, strict=True)
        ]
    missing = folder / "not_measured.json"  # an evaluation of release 0.1.0 has none
    if missing.exists():
        told = read_json(missing, "Run 'moon evaluate'.")
        parts += [f"{name}: not measured: {why}" for name, why in told.items()]
    example = folder / "example.json"
    if example.exists():
        parts.append(_example(read_json(example, "Run 'moon evaluate'.")))
    parts.append(f"metrics: {folder / 'metrics.json'}\nreport:  {folder / 'report.html'}")
    return "\n\n".join(part for part in parts if part)


def days(folder: Path) -> str:
    """What a ranker that was trained day after day predicted, day by day; empty where that was not done."""
    place = folder / "daily"
    if not (place / "table.md").exists():
        return ""
    said = f"table: {place / 'table.md'}\ndrift: {place / 'drift.html'}, and in report.html after 'moon evaluate'"
    return f"{(place / 'table.md').read_text()}{said}"


def table(name: str, metrics: dict[str, dict]) -> str:
    """One table of TABLES as aligned text; empty when nothing of it was measured."""
    columns, rows = TABLES[name]["columns"], TABLES[name]["rows"]
    cells = {row: [_cell(metrics.get(f"{name}/{row}/{column}")) for column in columns] for row in rows}
    cells = {row: shown for row, shown in cells.items() if any(shown)}
    kept = [i for i in range(len(columns)) if any(shown[i] for shown in cells.values())]
    if not kept:
        return ""
    heads = [columns[i].replace("/recall", " recall").replace("_to_", "→") for i in kept]
    widths = [
        max(len(head), 7, *(len(shown[i]) for shown in cells.values()))
        for i, head in zip(kept, heads, strict=True)
    ]
    first = max(len(name), *(len(row) for row in cells))
    lines = {name: heads} | {row: [shown[i] for i in kept] for row, shown in cells.items()}
    return "\n".join(
        row.ljust(first)
        + "".join("  " + cell.rjust(width) for cell, width in zip(shown, widths, strict=True))
        for row, shown in lines.items()
    )


def _cell(measured: dict[str, float] | None) -> str:
    """A number, with its interval if it has one; empty if it was not measured."""
    if measured is None:
        return ""
    if "low" not in measured:
        return f"{measured['value']:.4f}"
    return f"{measured['value']:.3f} [{measured['low']:.3f}, {measured['high']:.3f}]"


def seeds(measured: dict[str, dict[str, float | int]]) -> str:
    """Mean and deviation over seeds, a line per metric."""
    width = max(len(name) for name in measured)
    return "\n".join(
        f"{name.ljust(width)}  {one['mean']:.4f}"
        + (f" ± {one['sd']:.4f}  ({one['n']} seeds)" if "sd" in one else "")
        for name, one in sorted(measured.items())
    )


def worth(measured: Mapping[str, Sequence[Worth]]) -> str:
    """What each feature adds to each metric, a line each."""
    width = max(len(name) for name in measured)
    return "\n".join(
        f"{name.ljust(width)}  {one.metric} {one.with_all:.4f} with all, {one.without:.4f} without: "
        f"{one.with_all - one.without:+.4f} ± {one.deviation:.4f}  ({one.seeds} seeds)"
        for name, every in measured.items()
        for one in every
    )


def _example(example: dict) -> str:
    stages = ", ".join(
        f"{stage} {milliseconds:.1f} ms" for stage, milliseconds in example["timings_ms"].items()
    )
    user = example["user_id"]
    lines = [
        f"served example: {'an unknown user' if user is None else f'user {user}'} ({stages})",
        "  history: " + ("; ".join(example["history"]) or "none"),
    ]
    lines += [f"  {place}. {title}" for place, title in enumerate(example["recommended"], start=1)]
    return "\n".join(lines)
