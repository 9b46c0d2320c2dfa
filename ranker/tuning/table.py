"""What a study found, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ranker.tuning.study import Study, Tried


def markdown(study: Study, importances: Mapping[str, float], shipped: int = 0) -> str:
    """A summary, the trials from best to worst, and what each setting matters.

    Args:
        study: with a completed trial.
        importances: of its settings.
        shipped: how many trials, the first ones, tried what is shipped; marked with a star.
    """
    tried, names = study.tried, list(study.space)
    counts = {state: sum(one.state == state for one in tried) for state in ("complete", "pruned", "failed")}
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    lines = [
        f"{len(tried)} trials ({said}), {sum(one.cpu_seconds for one in tried):,.0f} CPU-s; best: trial "
        f"{study.best.number}. * shipped. The loss is of validation requests; nothing of the test part was read.",
        "",
        f"| trial | loss | state | epochs | CPU-s | {' | '.join(names)} |",
        "|---|" + "---|" * (len(names) + 4),
    ]
    for one in sorted(tried, key=_order):
        star = "*" if one.number < shipped else ""
        cells = [f"{one.number}{star}", "–" if not one.losses else f"{one.loss:.4f}", one.state]
        cells += [str(len(one.losses)), f"{one.cpu_seconds:.0f}"]
        cells += [f"{one.values[name]:.3g}" if name in one.values else "–" for name in names]
        lines.append(f"| {' | '.join(cells)} |")
    if importances:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in importances.items())
        lines += [
            "",
            f"What a setting explains of the trials' differences (fANOVA): {shares}.",
        ]
    return "\n".join(lines) + "\n"


def to_json(study: Study, importances: Mapping[str, float]) -> str:
    """Every trial, the number of the best one, and the importances."""
    content: dict[str, Any] = {
        "best": study.best.number,
        "importances": importances,
        "trials": [asdict(one) for one in study.tried],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _order(one: Tried) -> tuple[bool, float]:
    return one.state != "complete", one.loss
