"""``moon features list``: what the store has, and what of it is read."""

from __future__ import annotations

from pathlib import Path

from feature_repo.extras import read_extras
from feature_repo.store import open_store

OFF = "off"


def listed(store_dir: Path) -> str:
    """Every feature as a line: view, feature, type, the services that read it or "off"; own columns by their name.

    Raises:
        StoreError: there is no store.
    """
    store = open_store(store_dir)
    readers: dict[tuple[str, str], list[str]] = {}
    for service in store.list_feature_services():
        for projection in service.feature_view_projections:
            for feature in projection.features:
                readers.setdefault((projection.name, feature.name), []).append(str(service.name))
    own = {(one.view, one.field): one.column for one in read_extras(store_dir)}
    rows = [("view", "feature", "type", "read by")]
    views = [*store.list_feature_views(), *store.list_on_demand_feature_views()]
    for view in sorted(views, key=lambda one: (one.name in {name for name, _ in own}, str(one.name))):
        for feature in view.features:
            key = (str(view.name), feature.name)
            said = ", ".join(sorted(readers.get(key, []))) or OFF
            column = f"   column {own[key]!r} of your tables" if key in own else ""
            rows.append((str(view.name), feature.name, str(feature.dtype), said + column))
    widths = [max(len(row[place]) for row in rows) for place in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]
    if any(one not in readers for one in own):
        lines.append(
            '\nSwitch a column on under its table in moon.toml: features = ["..."]; then run moon demo again.'
        )
    return "\n".join(lines)
