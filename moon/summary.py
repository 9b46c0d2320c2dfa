"""The results of a finished run as plain text: headline metrics, one served example, path of the report."""

from __future__ import annotations

from pathlib import Path

from run.artifacts import read_json

# (row, column) -> metric name; a metric that was not measured for this data leaves its cell empty.
TABLES: dict[str, dict[str, list[str]]] = {
    "retrieval": {
        "columns": ["recall@10", "recall@20", "recall@50", "ndcg@20", "coverage@20"],
        "rows": ["popularity", "item_knn", "tf_idf", "colour", "mix", "candidates", "moon"],
    },
    "ctr": {
        "columns": ["auc", "gauc", "ne", "calibration"],
        "rows": ["id_only", "shuffled", "full", "truth_unplaced", "truth"],
    },
    "relevance": {"columns": ["auc"], "rows": ["cosine", "head"]},
    "encoder": {
        "columns": [
            "image_to_text/recall@1",
            "image_to_text/recall@10",
            "image_to_item/recall@10",
            "text_to_item/recall@10",
            "item_to_item/recall@10",
        ],
        "rows": ["random", "colour", "tf_idf", "moon"],
    },
}


def text(folder: Path) -> str:
    """The closing message of ``moon demo``: metrics, the served example and where the report is."""
    metrics = read_json(folder / "metrics.json", "Run 'moon evaluate'.")
    parts = [table(name, metrics) for name in TABLES]
    example = folder / "example.json"
    if example.exists():
        parts.append(_example(read_json(example, "Run 'moon evaluate'.")))
    parts.append(f"metrics: {folder / 'metrics.json'}\nreport:  {folder / 'report.html'}")
    return "\n\n".join(part for part in parts if part)


def table(name: str, metrics: dict[str, dict]) -> str:
    """One table of TABLES as aligned text; empty when nothing of it was measured."""
    columns, rows = TABLES[name]["columns"], TABLES[name]["rows"]
    values = {
        row: [metrics.get(f"{name}/{row}/{column}", {}).get("value") for column in columns] for row in rows
    }
    values = {row: cells for row, cells in values.items() if any(cell is not None for cell in cells)}
    kept = [i for i in range(len(columns)) if any(cells[i] is not None for cells in values.values())]
    if not kept:
        return ""
    heads = [columns[i].replace("/recall", " recall").replace("_to_", "→") for i in kept]
    first = max(len(name), *(len(row) for row in values))
    lines = [name.ljust(first) + "".join("  " + head.rjust(max(len(head), 7)) for head in heads)]
    for row, cells in values.items():
        shown = ["" if cells[i] is None else f"{cells[i]:.4f}" for i in kept]
        lines.append(
            row.ljust(first)
            + "".join("  " + cell.rjust(max(len(head), 7)) for cell, head in zip(shown, heads, strict=True))
        )
    return "\n".join(lines)


def seeds(measured: dict[str, dict[str, float | int]]) -> str:
    """Mean and deviation over seeds, a line per metric."""
    width = max(len(name) for name in measured)
    return "\n".join(
        f"{name.ljust(width)}  {one['mean']:.4f}"
        + (f" ± {one['sd']:.4f}  ({one['n']} seeds)" if "sd" in one else "")
        for name, one in sorted(measured.items())
    )


def _example(example: dict) -> str:
    stages = ", ".join(
        f"{stage} {milliseconds:.1f} ms" for stage, milliseconds in example["timings_ms"].items()
    )
    lines = [
        f"served example: user {example['user_id']} ({stages})",
        "  history: " + "; ".join(example["history"]),
    ]
    lines += [f"  {place}. {title}" for place, title in enumerate(example["recommended"], start=1)]
    return "\n".join(lines)
