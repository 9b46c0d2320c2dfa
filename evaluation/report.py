"""One self-contained HTML page of a run: numbers against baselines, pictures, plots, provenance, limits."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dataset.contracts import DataError
from dataset.pictures import decoded
from evaluation.metrics import Measurement
from evaluation.plots import Curve, line_plot, reliability_plot
from moonstore.disk import make_folder
from moonstore.files import write_text

PICTURE_PX = 224  # longest side of an embedded picture


@dataclass(frozen=True)
class Tile:
    """One item as a picture with a title.

    Attributes:
        title: what the item is called; a text query is a tile without a picture.
        picture: encoded picture, or None (drawn as an empty frame).
        caption: a short second line, e.g. a score or a price.
        hit: relevant, e.g. taken by the user; drawn highlighted.
    """

    title: str
    picture: bytes | None = None
    caption: str = ""
    hit: bool = False


@dataclass(frozen=True)
class Comparison:
    """One headline number compared with named baselines.

    Attributes:
        metric: the measurement's name.
        value: ours.
        baselines: name -> its value on the same rows; may be empty.
        n: as in Measurement.
        split: as in Measurement.
        higher_is_better: False for losses and errors.
        start: value at which the bars begin, e.g. 0.5 for AUC; shown on the page.
    """

    metric: str
    value: float
    baselines: Mapping[str, float]
    n: int
    split: str = "test"
    higher_is_better: bool = True
    start: float = 0.0

    def bar(self, value: float) -> float:
        """Length of a value's bar in per cent of the longest."""
        longest = max(self.value, self.start, *self.baselines.values()) - self.start
        return 100 * max(value - self.start, 0.0) / longest if longest > 0 else 0.0

    @property
    def best(self) -> str:
        """Name of the strongest baseline."""
        pick = max if self.higher_is_better else min
        return pick(self.baselines, key=lambda name: self.baselines[name])

    @property
    def delta(self) -> float:
        """Ours minus the strongest baseline."""
        return self.value - self.baselines[self.best]

    @property
    def by_log(self) -> bool:
        """Whether it measures lists by what the log shows of them."""
        return self.metric.startswith("retrieval/")

    @property
    def better(self) -> bool:
        """Whether ours beats the strongest baseline."""
        return self.delta > 0 if self.higher_is_better else self.delta < 0


@dataclass(frozen=True)
class Judged:
    """What one method would bring by the truth of a simulated shop.

    Attributes:
        method: e.g. ``served``.
        values: column -> measurement, with its interval.
        bound: it knows what no recommender can, so that it says nothing against ours.
    """

    method: str
    values: Mapping[str, Measurement]
    bound: bool = False

    def verdict(self, column: str) -> str:
        """Whether what is served is ``good`` or ``bad`` beside it; ``plain``: not to be told; "": no such column."""
        one = self.values[column]
        if self.bound or not one.name.endswith("/lift_of_served") or one.low is None or one.high is None:
            return ""
        return "good" if one.low > 0 else "bad" if one.high < 0 else "plain"


@dataclass(frozen=True)
class Neighbours:
    """A query (item, text or picture) and what was found for it, best first."""

    query: Tile
    found: Sequence[Tile]


@dataclass(frozen=True)
class Visit:
    """One user: history (oldest first), recommendations, and the items taken afterwards."""

    user: str
    history: Sequence[Tile]
    recommended: Sequence[Tile]
    taken: Sequence[Tile]


@dataclass(frozen=True)
class Control:
    """One ranker of the controls table: metric -> (mean, deviation over seeds or None)."""

    name: str
    values: Mapping[str, tuple[float, float | None]]


@dataclass(frozen=True)
class Reliability:
    """The reliability diagram of ``metrics.reliability``."""

    mean_probability: Sequence[float]
    mean_label: Sequence[float]
    count: Sequence[int]


@dataclass(frozen=True)
class StoreCheck:
    """The result of ``moon features check``.

    Attributes:
        head: headings of the table; the first column is the view.
        rows: for each view its cells and a list of its problems.
        unanswered: why the store could not be checked; empty if it was.
    """

    head: Sequence[str] = ()
    rows: Sequence[tuple[Sequence[str], Sequence[str]]] = ()
    unanswered: str = ""

    @property
    def problems(self) -> int:
        """Number of problems of all views."""
        return sum(len(problems) for _, problems in self.rows)


@dataclass(frozen=True)
class Plot:
    """A named set of curves, e.g. recall over k, or a training loss over steps."""

    title: str
    xlabel: str
    ylabel: str
    curves: Sequence[Curve]
    markers: bool = False
    steps: bool = False

    def draw(self) -> Markup:
        """The ``<svg>`` of ``plots.line_plot``: ours, with the names of curves escaped by matplotlib."""
        return Markup(line_plot(self.curves, self.xlabel, self.ylabel, self.markers, self.steps))  # noqa: S704


@dataclass(frozen=True)
class ReportContent:
    """Everything the page shows, as plain data. Empty sections are left out.

    Attributes:
        title: name of the run.
        summary: one or two sentences under the title.
        measurements: every measurement of the run; all are listed.
        judged: every method by the truth, where it is known; the first table.
        estimated: what random slates of the log say of them.
        headline: our numbers beside named baselines.
        neighbours: query -> nearest neighbours, by picture.
        visits: history, recommendations and what was then taken, per user.
        controls: the full ranker and its controls side by side.
        reliability: calibration of the full ranker.
        plots: recall curves, training curves.
        stages: name -> milliseconds of one served example, in order.
        store: coverage, parity, freshness, nulls and drift of every view.
        dataset: facts, e.g. items, users, events, span.
        quarantine: (table, rule, number of quarantined rows).
        artifacts: role -> artifact id.
        limits: limitations of these numbers.
    """

    title: str
    summary: str
    measurements: Sequence[Measurement] = ()
    judged: Sequence[Judged] = ()
    estimated: Sequence[Judged] = ()
    headline: Sequence[Comparison] = ()
    neighbours: Sequence[Neighbours] = ()
    visits: Sequence[Visit] = ()
    controls: Sequence[Control] = ()
    reliability: Reliability | None = None
    plots: Sequence[Plot] = ()
    stages: Mapping[str, float] = field(default_factory=dict)
    store: StoreCheck | None = None
    dataset: Mapping[str, str | int | float] = field(default_factory=dict)
    quarantine: Sequence[tuple[str, str, int]] = ()
    artifacts: Mapping[str, str] = field(default_factory=dict)
    limits: Sequence[str] = ()


def render_report(out: Path, content: ReportContent) -> Path:
    """Write the page to ``out`` (temporary file, then rename) and return the path.

    The page is self-contained: pictures are data URIs of at most 224 px and plots inline SVG. Text from the data is
    escaped.
    """
    plots = [(plot.title, plot.draw()) for plot in content.plots if plot.curves]
    if content.reliability is not None:
        one = content.reliability
        svg = reliability_plot(
            np.asarray(one.mean_probability), np.asarray(one.mean_label), np.asarray(one.count)
        )
        plots.append(("Calibration of the ranker", Markup(svg)))  # noqa: S704
    return render_page(
        out,
        "template.html",
        content=content,
        plots=plots,
        control_metrics=list(dict.fromkeys(name for one in content.controls for name in one.values)),
        total_ms=sum(content.stages.values()),
        judges=any(one.verdict(column) for one in content.judged for column in one.values),
    )


def render_page(out: Path, template: str, **shown: object) -> Path:
    """Fill a template of this folder and write it to ``out`` (temporary file, then rename); returns the path.

    Args:
        out: path of the page.
        template: a file that extends ``page.html`` and takes tiles from ``tiles.html``.
        shown: the template's variables; an undefined one is an error.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["data_uri"] = data_uri
    page = environment.get_template(template).render(**shown)
    make_folder(out.parent)
    write_text(out, page)
    return out


def number(value: str | int | float) -> str:
    """Format a number: 12,044 for counts, four decimals for rates, fewer from ten on; text is unchanged."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or float(value).is_integer() and abs(value) >= 1000:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def data_uri(picture: bytes, px: int = PICTURE_PX) -> str:
    """The picture, its longest side shrunk to ``px`` and embedded; "" when it cannot be decoded."""
    try:
        image = decoded(picture, 2 * px)
    except DataError:
        return ""
    image.thumbnail((px, px))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
