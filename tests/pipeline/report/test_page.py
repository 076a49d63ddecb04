"""The page of a run, read by html.parser and by Chromium: whole, in order, and safe from what files are called."""

import base64
import hashlib
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from monai_vit3d.pipeline.report import page as report_page
from monai_vit3d.pipeline.report.page import write_report
from monai_vit3d.visualize.colours import label_colour
from monai_vit3d.visualize.overlay import write_png
from tests.helpers import HANG

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = '<img src=x onerror="document.title=1">"\'{{ 7 * 7 }}'
STATS = [
    {"label": 1, "name": "liver", "voxels": 1234567, "volume_ml": 1234.5678, "mean": -12.3456},
    {"label": 2, "name": "cyst", "voxels": 0, "volume_ml": 0.0, "mean": None},
]
VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """Elements with their attributes, the text of each, and whether every tag is closed."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag, kind=None):
        return [e for e in self.elements if e[0] == tag and (kind is None or kind in e[1].get("class", "").split())]

    def text(self, tag, kind=None):
        return [" ".join(e[2].split()) for e in self.all(tag, kind)]


def browse(folder, *more):
    """Chromium's output, by a profile in the folder."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/profile"]
    return subprocess.run([CHROMIUM, *options, *more], capture_output=True, text=True, timeout=HANG, check=True).stdout


def done(output, name, **more):
    write_png(Image.new("RGB", (30, 20), (200, 10, 10)), output / "qc" / f"{name}.png")
    return {"name": name, "status": "done", "picture": f"qc/{name}.png", "warnings": [], "seconds": 2.04, **more}


@pytest.fixture
def page(tmp_path):
    """Writer of a page, given records."""

    def write(records, **run):
        write_report(records, run, tmp_path)
        page = Page(tmp_path / "report.html")
        assert not page.open
        return page

    return write


def test_a_run(page, tmp_path):
    records = [
        done(tmp_path, "sub-01/t1", stats=STATS, warnings=["odd spacing"]),
        {"name": "b", "input": "in/b.nii", "status": "failed", "error": "b.nii: 4D image", "seconds": 0.1},
        done(tmp_path, "c", prediction={"benign": 0.2, "malign": 0.8}, seconds=3725),
        {"name": "d", "status": "skipped", "error": "done before"},
        done(tmp_path, "e", status="skipped", stats=STATS[:1]),
    ]
    run = {
        "bundle": "/x/liver",
        "versions": {"torch": "2.10"},
        "weights_sha256": "ab" * 32,
        "device": "cpu",
        "seconds": 75,
    }
    found = page(iter(records), **run, started="2026-01-02", shard="1/2")
    assert found.text("h1") == ["liver"]
    assert found.text("dd") == ["sha256 abababababab…", "cpu", "2026-01-02", "1 min 15 s", "1/2", "torch 2.10"]
    (counts,) = found.all("ul", "counts")
    assert counts[2].split("\n")[1:-1] == ["2 done", "1 failed", "2 skipped", "1 with warnings"]
    assert found.text("h2") == ["Failed", "Results", "Not run"]
    assert found.text("h3") == ["sub-01/t1", "c", "e"]
    (failures,) = found.all("table", "failures")
    assert failures[2].split() == ["FileError", "in/b.niib.nii:", "4D", "image"]  # cells, with nothing between
    assert found.text("ul", "warnings") == ["odd spacing"]
    assert found.text("span", "tag") == ["1 warning", "from an earlier run"]
    assert found.text("ul", "others") == ["d skipped: done before"]
    assert {"2.0 s", "1 h 02 min"} <= set(found.text("span", "soft"))
    assert any("research only" in text.lower() for text in found.text("p"))
    assert any("patient's right is on the left" in text for text in found.text("p"))


def test_an_argument_that_an_error_names_is_told_as_a_flag(page):
    """As run.json, the page serves Python and the command."""
    failed = {"name": "b", "status": "failed", "error": "b.nii: 4D image (4, 4, 4, 9). Pick one with volume=N."}
    hint = "Arguments are named as in Python: volume=N is --volume N on the command line."
    assert hint in page([failed]).text("p")
    assert hint not in page([{**failed, "error": "b.nii: empty"}]).text("p")


@pytest.mark.parametrize("files", ["m/model.pt", None, [3], [{"file": "m/fold_0.pt"}, {"file": "m/fold_2.pt", "x": 1}]])
def test_the_page_names_the_weights_that_ran(page, files):
    named = ["fold_0.pt, fold_2.pt, "] if isinstance(files, list) and files[0] != 3 else [""]
    assert page([], weights=files, weights_sha256="ab" * 32).text("dd") == [f"{named[0]}sha256 abababababab…"]


def test_label_rows(page, tmp_path):
    found = page([done(tmp_path, "a", stats=STATS)])
    assert found.text("td") == ["liver", "1,235", "1,234,567", "-12.35", "cyst", "0", "0", "–"]  # noqa: RUF001
    colours = [e[1]["style"] for e in found.all("i", "swatch")]
    assert colours == ["background: rgb({}, {}, {})".format(*label_colour(label)) for label in (1, 2)]


def test_many_labels_unfold(page, tmp_path):
    found = page(
        [done(tmp_path, "a", stats=[{"label": i, "voxels": i, "volume_ml": 0.1, "mean": 0.5} for i in range(1, 100)])]
    )
    assert found.text("summary") == ["87 more labels"]
    assert [text for text in found.text("td") if text.startswith("label")] == [f"label {i}" for i in range(1, 100)]


def test_probabilities_are_bars_and_values_are_not(page, tmp_path):
    found = page(
        [done(tmp_path, "a", prediction={"x": 0.25, "y": 0.75}), done(tmp_path, "b", prediction={"age": 71.5})]
    )
    assert [e[2].split() for e in found.all("div", "bars")] == [["y", "0.750", "x", "0.250"], ["age", "71.50"]]
    bars = [e[1]["style"] for e in found.all("i") if "style" in e[1]]
    assert bars == ["width: 75.0%", "width: 25.0%"]


def test_pictures_of_the_first_page_are_inside_and_later_ones_beside(page, tmp_path, monkeypatch):
    monkeypatch.setattr(report_page, "PER_PAGE", 2)
    page([done(tmp_path, name) for name in ["a", "b", "sub 3/c#1?%"]])
    first, second = Page(tmp_path / "report.html"), Page(tmp_path / "report-2.html")
    for source in [e[1]["src"] for e in first.all("img")]:
        kind, data = source.split(",")
        assert kind == "data:image/png;base64"
        assert np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))[0, 0].tolist() == [200, 10, 10]
    assert [e[1]["src"] for e in second.all("img")] == ["qc/sub%203/c%231%3F%25.png"]
    assert [any("from the folder qc" in text for text in one.text("p")) for one in (first, second)] == [False, True]


def test_many_cases_are_on_pages_that_lead_to_each_other(page, tmp_path, monkeypatch):
    monkeypatch.setattr(report_page, "PER_PAGE", 3)
    failed = {"name": "f", "status": "failed", "error": "gone"}
    cases = [{"name": f"c{i}", "status": "done", "suspicious": [{}] * (i == 6)} for i in range(7)]
    page([*cases, failed], warnings=["odd"])
    found = {name: Page(tmp_path / name) for name in ("report.html", "report-2.html", "report-3.html")}
    assert [one.text("h3") for one in found.values()] == [["c6", "c0", "c1"], ["c2", "c3", "c4"], ["c5"]]
    assert [bool(one.all("table", "failures")) for one in found.values()] == [True, False, False]
    assert found["report-2.html"].text("h2") == ["Results 4 to 6 of 7"]
    for name, one in found.items():
        assert not one.open
        assert set(found) - {e[1]["href"] for e in one.all("a")} == {name}
        assert "7 done" in one.text("li")
    (alone,) = page(cases[:1]).text("h2")
    assert alone == "Results"
    assert sorted(path.name for path in tmp_path.glob("report*")) == ["report.html"]  # no pages of the earlier report


def test_only_pictures_below_the_folder(page, tmp_path):
    out = tmp_path / "out"
    Image.new("RGB", (3, 3)).save(tmp_path / "other.png")
    (out / "qc").mkdir(parents=True)
    (out / "qc" / "text.png").write_text("secret")
    (out / "qc" / "link.png").symlink_to(tmp_path / "other.png")
    pictures = ["../other.png", str(tmp_path / "other.png"), "qc/text.png", "qc/link.png", "qc/none.png", "qc", None]
    write_report([{"name": "a", "status": "done", "picture": picture} for picture in pictures], {}, out)
    found = Page(out / "report.html")
    assert found.all("img") == []
    assert found.text("div", "absent") == ["No picture"] * 7


def test_nothing_is_taken_for_granted(page):
    assert page([]).text("p")[-1] == "No files."
    found = page(
        [{}, {"error": "gone"}, {"status": "pending", "name": "p"}, {"input": ["a.nii", "b.nii"], "seconds": None}]
    )
    assert found.text("h3") == ["case 1", "a.nii, b.nii"]
    assert found.text("table", "failures") == ["FileError case 2gone"]
    assert found.text("ul", "others") == ["p pending"]
    assert {"2 done", "1 failed", "0 skipped", "1 pending", "0 with warnings"} == set(found.text("li")[:5])
    assert page([{"name": "a", "status": "done", "stats": [{}], "prediction": {"x": None, "y": float("nan")}}])


def hostile(output):
    stats = [{"label": 1, "name": HOSTILE, "voxels": 1, "volume_ml": 1.0, "mean": 1.0}]
    return [
        done(output, "a", stats=stats, warnings=[HOSTILE]) | {"name": HOSTILE},
        done(output, "b", prediction={HOSTILE: 1.0}),
        {"name": HOSTILE, "input": HOSTILE, "status": "failed", "error": f"<script>document.title=2</script>{HOSTILE}"},
        {"name": HOSTILE, "status": HOSTILE},
    ]


def test_hostile_names_are_text(page, tmp_path):
    found = page(hostile(tmp_path), bundle=HOSTILE, device=HOSTILE, versions={HOSTILE: HOSTILE})
    assert found.all("script") == []
    assert [sorted(e[1]) for e in found.all("img")] == [["alt", "loading", "src"]] * 2
    assert not any(key.startswith("on") for e in found.elements for key in e[1])
    assert found.text("h3")[0] == HOSTILE
    assert found.text("table", "failures")[0].endswith(f"<script>document.title=2</script>{HOSTILE}")
    (policy,) = [e[1]["content"] for e in found.all("meta") if e[1].get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'"


def many(output):
    records = [{"name": f"case {i}", "status": "done", "warnings": ["odd"] * (i > 4)} for i in range(6)]
    return [*records, done(output, "e") | {"name": f"{HOSTILE} 3"}]


def test_the_filters_script_is_the_only_one_that_the_policy_allows(page, tmp_path):
    found = page(many(tmp_path))
    (script,) = found.all("script")
    assert script[1] == {}
    (policy,) = [e[1]["content"] for e in found.all("meta") if e[1].get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(script[2].encode()).digest()).decode()
    assert policy.endswith(f"; script-src 'sha256-{digest}'")
    assert [e[1]["value"] for e in found.all("option")] == ["result", "warned"]
    assert all("hidden" in e[1] for e in found.all("form"))  # without scripts there is nothing that does not work


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize(
    ("name", "kind", "left"),
    [("CASE 3", "result", ["case 3"]), ("", "warned", ["case 5"]), ("3", "result", ["case 3", f"{HOSTILE} 3"])],
)
def test_the_filter_hides_the_others(page, tmp_path, monkeypatch, name, kind, left):
    read = report_page._read
    choice = f'form.name.value = "{name}"; form.kind.value = "{kind}"; form.oninput();'
    monkeypatch.setattr(report_page, "_read", lambda file: read(file) + (choice if file == "filter.js" else ""))
    page(many(tmp_path))
    dom = tmp_path / "dom.html"
    dom.write_text(browse(tmp_path, "--dump-dom", (tmp_path / "report.html").as_uri()), encoding="utf-8")
    found = Page(dom)
    shown = [e[2].split("\n")[2] for e in found.all("section") if "hidden" not in e[1]]
    assert shown == left
    assert found.text("output") == [f"{len(left)} of 7 on this page"]
    assert found.text("title") == ["unnamed bundle: report"]
    assert "hidden" not in found.all("form")[0][1]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_picture_that_was_clicked_fills_the_window(page, tmp_path):
    page([done(tmp_path, "a")])
    html = (tmp_path / "report.html").read_text()
    (tmp_path / "clicked.html").write_text(html.replace('<input type="checkbox"', '<input checked type="checkbox"'))
    shot = tmp_path / "shot.png"
    reds = []
    for name in ("report.html", "clicked.html"):
        browse(tmp_path, f"--screenshot={shot}", "--window-size=600,800", (tmp_path / name).as_uri())
        pixels = np.asarray(Image.open(shot).convert("RGB"))
        reds.append((pixels == (200, 10, 10)).all(axis=2).sum())
    assert reds == [30 * 20, 600 * 400]  # as large as the window's width allows


def test_nothing_from_the_network(page, tmp_path):
    page([done(tmp_path, "a", stats=STATS)])
    assert not re.search(r"https?:|//|url\(|@import", (tmp_path / "report.html").read_text().split("data:image")[0])


def test_a_name_that_is_no_unicode(page):
    found = page([{"name": "M\udcfcller", "status": "done"}, {"name": "Grüße/脳", "status": "done"}])
    assert found.text("h3") == [r"M\udcfcller", "Grüße/脳"]


def test_written_whole(page, tmp_path):
    page([])
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_in_a_browser(page, tmp_path, monkeypatch):
    """No script of a file name runs; pictures show, inside or beside; nothing is wider than a phone."""
    monkeypatch.setattr(report_page, "PER_PAGE", 1)
    page(hostile(tmp_path), bundle=HOSTILE)
    address = (tmp_path / "report.html").as_uri()
    dom = tmp_path / "dom.html"
    dom.write_text(browse(tmp_path, "--dump-dom", address), encoding="utf-8")
    assert Page(dom).text("title") == [f"{HOSTILE}: report"]
    assert "onerror" not in {key for e in Page(dom).elements for key in e[1]}
    shot = tmp_path / "shot.png"
    for one in (address, (tmp_path / "report-2.html").as_uri()):
        browse(tmp_path, f"--screenshot={shot}", "--window-size=600,1800", one)
        pixels = np.asarray(Image.open(shot).convert("RGB"))
        red = (pixels == (200, 10, 10)).all(axis=2)
        assert red.sum() == 30 * 20  # its picture, one pixel a pixel
    frame = f"<iframe src='{address}' width=400 height=1800 style='border:0'></iframe>"
    (tmp_path / "frame.html").write_text(f"<body style='margin:0;background:#0f0'>{frame}")
    browse(tmp_path, f"--screenshot={shot}", "--window-size=600,1800", (tmp_path / "frame.html").as_uri())
    edge = np.asarray(Image.open(shot).convert("RGB"))[:, 388:400]
    assert (edge == edge[0, 0]).all()  # the page's margin: nothing reaches into it
