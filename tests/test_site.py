"""The documentation site: it builds without a warning, its links lead somewhere, and all that is public is in it."""

import importlib
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

import monai_vit3d
from monai_vit3d.cli.command import VERBS
from tests.helpers import HANG, ROOT

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What an HTML file links to, and what can be linked to in it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids = set(), set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.links |= {value for key in ("href", "src") if (value := attributes.get(key))}
        self.ids |= {attributes["id"]} if attributes.get("id") else set()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for module in ("sphinx", "furo", "myst_nb"):
        pytest.importorskip(module, reason="needs this package's docs extra (`make docs` installs it)")
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "docs/site/build.py", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")  # warnings go there
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def pages(site):
    return {name: Page(path) for name, path in site.items() if name.endswith(".html")}


def test_internal_links_lead_somewhere(site, pages):
    root = site["index.html"].parent
    dead = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (site[name].parent / unquote(parts.path)).resolve() if parts.path else site[name]
            path = target.relative_to(root).as_posix() if target.is_relative_to(root) else ""
            fragment = unquote(parts.fragment)
            if path not in site or (fragment and path in pages and fragment not in pages[path].ids):
                dead.append((name, link))
    assert dead == []


def test_every_document_and_notebook_is_a_page(pages):
    documents = [*ROOT.glob("docs/*.md"), *ROOT.glob("tutorials/*.ipynb"), *ROOT.glob("bundles/*/docs/README.md")]
    assert {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in documents} <= set(pages)


def test_every_public_name_is_documented(pages):
    for room in sorted(path.parent.name for path in (ROOT / "monai_vit3d").glob("*/__init__.py")):
        names = getattr(importlib.import_module(f"monai_vit3d.{room}"), "__all__", ())
        page = pages[f"reference/monai_vit3d.{room}.html"].ids if names else set()
        assert {f"monai_vit3d.{room}.{name}" for name in names} <= page
    index = pages["reference/index.html"]
    documented = {target.rpartition(".")[2] for target in index.links | index.ids}
    assert set(monai_vit3d.__all__) - {"__version__"} <= documented


def test_every_verb_is_documented(pages):
    verbs = {verb.__name__.rpartition(".")[2] for verb in VERBS}
    assert {f"vit3d-{verb}" for verb in verbs} <= pages["reference/cli.html"].ids


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def browse(folder, html, width=600):
    """Open a page in Chromium.

    Returns:
        what the page is then, and what Chromium complains of: errors and warnings of scripts, styles and pictures.
    """
    page = folder / "opened.html"
    page.write_text(html, "utf-8")
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    words += [f"--user-data-dir={folder}/.profile", f"--window-size={width},1500", page.as_uri()]
    done = subprocess.run([CHROMIUM, *words], capture_output=True, text=True, timeout=HANG, check=True)
    page.unlink()
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_an_error_in_a_page_is_noticed(tmp_path):
    _, (complaint,) = browse(tmp_path, "<!DOCTYPE html><script>nothing.of_that_name</script>")
    assert "nothing is not defined" in complaint


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("name", ["index", "docs/explanation", "docs/files", "reference/cli", "tutorials/index"])
def test_pages_open_in_a_browser(site, name):
    """No error, all pictures are there, and neither the page nor a block of code is wider than a narrow window."""
    path = site[f"{name}.html"]
    cut = "[...document.querySelectorAll('pre')].filter(p => p.scrollWidth > p.clientWidth).length"
    seen = f"document.documentElement.scrollWidth, innerWidth, {cut}, ...[...document.images].map(i => i.naturalWidth)"
    script = f"<script>onload = () => {{ document.title = [{seen}].join() }}</script></body>"
    dom, complaints = browse(path.parent, path.read_text("utf-8").replace("</body>", script))
    assert complaints == []
    wide, window, cut_off, *pictures = map(int, re.findall(r"<title>(.*?)</title>", dom)[0].split(","))
    assert wide <= window
    assert cut_off == 0
    assert all(pictures)
    assert len(pictures) >= {"docs/explanation": 1, "tutorials/index": 9}.get(name, 0)
