"""The report is one file that needs no other, shows every number, and never trusts the data's text."""

import base64
import io
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import minimal_world as world
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from evaluation.comparisons import controls, estimated, headline, judged
from evaluation.metrics import Measurement
from evaluation.plots import Curve, line_plot
from evaluation.report import (
    Comparison,
    Control,
    Judged,
    Neighbours,
    Plot,
    Reliability,
    ReportContent,
    StoreCheck,
    Tile,
    Visit,
    data_uri,
    number,
    render_report,
)
from evaluation.retrieval_quality import Relevant
from evaluation.sheets import Evidence

EVIL = '<script>alert("x")</script> & "quoted" \'title\''


def picture(kind="PNG", size=(600, 800), mode="RGB"):
    out = io.BytesIO()
    Image.new(mode, size, 120).save(out, kind)
    return out.getvalue()


def content(**changes):
    tile = Tile("Blue mug", picture(), "0.91")
    full = {
        "title": "Moon on a shop",
        "summary": "A run.",
        "measurements": [
            Measurement("retrieval/recall@20", 0.25131, 6000, "test"),
            Measurement("ctr/full/ne", 0.9, 7, "test"),
        ],
        "judged": [Judged("served", {"clicks": Measurement("truth/served/clicks", 1.5, 7, "t", 1.25, 1.75)})],
        "headline": [Comparison("retrieval/recall@20", 0.2513, {"popularity": 0.038, "mix": 0.222}, 6000)],
        "neighbours": [Neighbours(tile, [Tile("Red mug", None, "0.5"), Tile(EVIL, picture())])],
        "visits": [
            Visit("User 7", [tile], [tile, Tile("Jug", picture(), hit=True)], [Tile("Jug", picture())])
        ],
        "controls": [Control("full", {"AUC": (0.7412, 0.0011)}), Control("ID only", {"NE": (0.9, None)})],
        "reliability": Reliability([0.1, 0.3], [0.12, 0.28], [10, 20]),
        "plots": [
            Plot(
                "Recall",
                "k",
                "recall@k",
                [Curve("ours", [1, 10], [0.1, 0.3]), Curve(EVIL, [1, 10], [0, 0.1])],
            )
        ],
        "stages": {"retrieval": 4.5, "ranking": 5.5},
        "store": StoreCheck(
            ("view", "coverage"), [(("item_profile", "0.500"), ()), (("user_profile", "0.000"), (EVIL,))]
        ),
        "dataset": {"items": 12044, "span": "one week"},
        "quarantine": [("images", "broken_jpeg", 3)],
        "artifacts": {"encoder": "0123456789abcdef"},
        "limits": ["One week only."],
    }
    return ReportContent(**{**full, **changes})


@pytest.fixture
def page(tmp_path):
    out = render_report(tmp_path / "run" / "report.html", content())
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    return out.read_text()


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "path", "use", "br", "link", "rect", "clippath", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag, f"</{tag}> closes nothing"


def test_the_page_needs_no_other_file_and_no_network(page):
    assert not re.search(r"https?://|//cdn|@import|url\((?!#)", page)
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not [tag for tag, _ in tags.found if tag in ("script", "link", "iframe", "object", "base")]
    sources = [attrs["src"] for _, attrs in tags.found if "src" in attrs]
    assert len(sources) == 6
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    links = [attrs["href"] for tag, attrs in tags.found if tag == "a"]
    ids = {attrs.get("id") for _, attrs in tags.found}
    assert links and all(link[0] == "#" and link[1:] in ids for link in links)


def test_text_of_the_data_is_escaped_everywhere(page):
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    quiet = ReportContent(
        EVIL, EVIL, limits=[EVIL], dataset={EVIL: EVIL}, stages={EVIL: 1.0}, artifacts={EVIL: EVIL}
    )
    assert "<script" not in _render(quiet)


def _render(one):
    with tempfile.TemporaryDirectory() as folder:
        return render_report(Path(folder) / "r.html", one).read_text()


def test_every_measurement_and_fact_is_on_the_page(page):
    for text in (
        "retrieval/recall@20",
        "0.2513",
        "ctr/full/ne",
        "0.9000",
        "12,044",
        "one week",
        "broken_jpeg",
    ):
        assert text in page
    for text in ("0123456789abcdef", "+0.0293 vs mix", "10.0 ms", "One week only.", "± 0.0011", "User 7"):
        assert text in page


def test_a_hit_is_marked_and_a_missing_picture_is_said(page):
    assert page.count('class="tile hit"') == 1
    assert page.count("no picture") == 1


@pytest.mark.parametrize(
    "part",
    ["judged", "headline", "neighbours", "visits", "controls", "stages", "store", "measurements", "limits"],
)
def test_an_empty_section_is_left_out(part):
    name = {"judged": "truth"}.get(part, part)
    assert f'id="{name}"' in _render(content())
    without = _render(content(**{part: {"stages": {}, "store": None}.get(part, ())}))
    assert f'id="{name}"' not in without
    assert f'href="#{name}"' not in without


def test_the_truth_is_the_first_table_with_intervals_and_bounds_last():
    def clicks(method, value):
        return Measurement(f"truth/{method}/clicks_per_slate", value, 7, "t", value - 0.25, value + 0.25)

    estimate = Measurement("off_policy/served/ips", 0.875, 3, "random", 0.0, 2.0)
    found = judged(
        [clicks("oracle", 4.5), clicks("served", 1.5), clicks("shop", 1.0), clicks("mix", 2.0), estimate]
    )
    assert [one.method for one in found] == ["served", "mix", "shop", "oracle"]
    random = estimated([estimate, Measurement("off_policy/served/truth", 1.0, 3, "random", 0.5, 1.5)])
    page = _render(content(judged=found, estimated=random))
    assert page.index('id="truth"') < page.index('id="headline"')
    assert '1.500 <span class="soft">1.250 to 1.750</span>' in page and "0.875" in page
    assert "Recall is of what the shop chose to show" in page
    assert '<span class="badge plain">+0.0293 vs mix</span>' in page  # of the log, where the truth is known
    assert '<span class="badge good">+0.0293 vs mix</span>' in _render(content(judged=()))
    assert "Recall is of what the shop chose to show" not in _render(content(judged=()))


def test_a_verdict_is_given_where_the_interval_of_the_difference_leaves_out_zero():
    intervals = {"chance": (1, 3), "mix": (-0.25, 0.5), "boosting": (-0.5, -0.125), "oracle": (-0.9, -0.8)}
    measured = [Measurement("truth/served/clicks_per_slate", 1.5, 7, "t", 1.25, 1.75)]
    for name, (low, high) in intervals.items():
        measured.append(Measurement(f"truth/{name}/clicks_per_slate", 1.0, 7, "t", 0.5, 1.5))
        measured.append(Measurement(f"truth/{name}/lift_of_served", (low + high) / 2, 7, "t", low, high))
    page = _render(content(judged=judged(measured), headline=(), store=None))
    table = page[page.index('id="truth"') :].split("</section>")[0]
    assert re.findall(r"<td>(\w+)</td>(?:(?!</tr>).)*badge (\w+)\">(.*?)<", table, flags=re.DOTALL) == [
        ("boosting", "bad", "-0.312"), ("chance", "good", "+2.000"), ("mix", "plain", "+0.125"),
    ]  # fmt: skip
    assert "-0.850 <span" in table and "The badge is the share" in table  # the oracle knows what nobody can
    assert "The badge is the share" not in _render(content(headline=()))


def test_ours_is_shown_beside_the_plain_controls():
    names = (
        "ctr/full/auc",
        "ctr/id_only/auc",
        "ctr/logistic/auc",
        "ctr/boosting/auc",
        "retrieval/moon/recall@20",
    )
    measured = [Measurement(name, 0.6, 9, "test") for name in (*names, "retrieval/boosting/recall@20")]
    by_metric = {one.metric: one.baselines for one in headline(measured)}
    assert by_metric == {
        "ctr/full/auc": dict.fromkeys(("id_only", "logistic", "boosting"), 0.6),
        "retrieval/moon/recall@20": {"boosting": 0.6},
    }
    rows = {one.name: one.values for one in controls(measured)}
    assert rows["boosting"] == {"AUC": (0.6, None), "recall@20": (0.6, None)}


def test_the_store_has_a_row_per_view_with_its_problems_or_says_why_not():
    page = _render(content())
    section = page[page.index('<section id="store">') :].split("</section>")[0]
    assert '<td>item_profile</td><td class="num">0.500</td>' in section and "1 problem<" in section
    assert '<span class="badge bad">user_profile</span> &lt;script&gt;' in section
    sound = _render(content(store=StoreCheck(("view",), [(("item_profile",), ())])))
    assert '<span class="badge good">no problems</span>' in sound
    silent = _render(content(store=StoreCheck(unanswered="refused")))
    assert "Not examined: refused." in silent and "item_profile" not in silent


def test_the_smallest_report_has_no_sections():
    page = _render(ReportContent("Title", "Summary"))
    assert "Title" in page and "<section" not in page and "<svg" not in page


def test_pictures_are_shrunk_and_broken_ones_become_empty_frames():
    uri = data_uri(picture("PNG", (600, 800), "P"))
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert image.size == (168, 224)
    assert data_uri(b"not a picture") == ""
    assert data_uri(picture("JPEG")[:200]) == ""
    page = _render(content(neighbours=[Neighbours(Tile("Q", b"junk"), [])], visits=()))
    assert 'src="' not in page and "no picture" in page


def test_a_comparison_names_the_strongest_baseline_in_both_directions():
    higher = Comparison("auc", 0.7, {"a": 0.6, "b": 0.65}, 9, start=0.5)
    assert (higher.best, higher.better) == ("b", True)
    assert higher.bar(0.6) == pytest.approx(50)
    assert higher.bar(0.4) == 0
    lower = Comparison("ne", 0.9, {"a": 0.8, "b": 0.95}, 9, higher_is_better=False)
    assert (lower.best, lower.better, lower.delta) == ("a", False, pytest.approx(0.1))
    assert Comparison("alone", 0.5, {}, 9).bar(0.5) == 100


def test_a_tie_with_the_strongest_baseline_is_neither_good_nor_bad():
    page = _render(content(headline=[Comparison("x", 0.5, {"same": 0.5}, 9)], store=None))
    assert 'class="badge plain">+0.0000 vs same' in page


def test_a_comparison_without_baselines_has_no_badge():
    assert 'class="badge' not in _render(content(headline=[Comparison("x", 0.5, {}, 9)], store=None))


def test_numbers_read_well():
    assert [number(value) for value in (12044, 0.22213, "text", 5000.0, 123.456, 0)] == [
        "12,044",
        "0.2221",
        "text",
        "5,000",
        "123.5",
        "0",
    ]


def test_plots_take_the_colour_of_the_page_and_repeat_exactly():
    curves = [Curve("ours", [1, 2], [3, 4])]
    svg = line_plot(curves, "k", "recall")
    assert svg == line_plot(curves, "k", "recall")
    assert "currentColor" in svg and "#010203" not in svg
    assert svg.startswith("<svg") and "xmlns" not in svg.split(">")[0] and "viewBox" in svg


def test_users_and_items_without_a_title_have_the_shops_ids():
    tables = world.tables_of(world.events_of(("click",)), text=False, pictures=False)
    named = pa.array([f"visitor {one}" for one in tables.users["user_id"].to_pylist()])
    place = tables.users.column_names.index("external_id")
    users = tables.users.set_column(place, tables.users.field(place), named)
    dataset = SimpleNamespace(items=tables.items, users=users, image_bytes=lambda _: None)
    evidence = Evidence(Path(), dataset, SimpleNamespace(log=tables.events), None, {})
    requests = (
        tables.events.select(["user_id", "event_time"]).rename_columns(["user_id", "time"]).slice(300, 1)
    )
    relevant = Relevant(np.array([0, 1]), np.array([7]))
    evidence.retrieval(requests, relevant, {"moon": np.arange(7, 57)[None]})
    (visit,) = evidence.visits
    assert visit.user == f"visitor {requests['user_id'][0].as_py()}"
    assert [tile.title for tile in visit.recommended[:2]] == ["item sku-7", "item sku-8"]
    assert visit.history and all(tile.title.startswith("item sku-") for tile in visit.history)
