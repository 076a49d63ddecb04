"""Bundles of the hub, from a cache that is made here as the hub's client lays it out: pinned, or not run."""

import hashlib
import json
import re
import shutil
import subprocess

import pytest

from monai_vit3d import cli
from monai_vit3d.bundle.content import content_files, content_sha256
from monai_vit3d.bundle.hub_bundle import fetch_bundle
from monai_vit3d.bundle.info import describe_bundle
from monai_vit3d.bundle.shipped import find_bundle
from monai_vit3d.data import BundleError
from tests.hub_cache import COMMIT, cached_file, use_offline
from tests.pipeline.tiny import predict, write_bundle, write_images

OTHER = "f" * 64


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "author" / "tiny")


@pytest.fixture
def hub(bundle, tmp_path, monkeypatch):
    """A cache with the bundle's folder, as links to blobs, and its zip, and no network; the repository's folder."""
    cache = tmp_path / "hub"
    shutil.make_archive(str(tmp_path / "tiny"), "zip", bundle.parent, bundle.name)
    files = {path.relative_to(bundle).as_posix(): path for path in bundle.rglob("*") if path.is_file()}
    for name, path in {**files, ".gitattributes": tmp_path / "tiny.zip"}.items():
        link = cached_file(cache, "lab/tiny", name)
        blob = cache / "models--lab--tiny" / "blobs" / hashlib.sha256(name.encode()).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(blob)
    shutil.copy(tmp_path / "tiny.zip", cached_file(cache, "lab/zips", "bundles/tiny.zip"))
    use_offline(monkeypatch, cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache / "models--lab--tiny"


def digest_of(folder):
    """What the documents say: sha256sum of what sha256sum prints."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    printed = subprocess.run(["sha256sum", *files], cwd=folder, capture_output=True, check=True).stdout
    return hashlib.sha256(printed).hexdigest()


def test_the_contents_digest_is_that_of_sha256sums_lines(bundle):
    assert content_sha256(content_files(bundle)) == digest_of(bundle)
    (bundle / ".hidden").write_text("not of it")
    assert content_sha256(content_files(bundle)) != digest_of(bundle)
    (bundle / ".hidden").unlink()
    assert describe_bundle(bundle)["content"] == f"SHA-256 {digest_of(bundle)}"


@pytest.mark.parametrize("pins", ["@{commit}", "@{sha256}", "@{commit}@{sha256}", "@{sha256}@{commit}"])
def test_a_pinned_folder_is_the_authors(hub, bundle, pins):
    found = find_bundle("hf:lab/tiny" + pins.format(commit=COMMIT, sha256=digest_of(bundle)))
    assert (found.name, digest_of(found)) == ("tiny", digest_of(bundle))
    assert not any(path.is_symlink() for path in found.rglob("*"))


@pytest.mark.slow
def test_predict_runs_it_and_run_json_has_its_name(hub, bundle, tmp_path, capsys):
    write_images(tmp_path / "in", 1, (24, 20, 18))
    name = f"hf:lab/tiny@{COMMIT}"
    assert predict(tmp_path / "in", to=tmp_path / "out", bundle=name) == 0
    assert predict(tmp_path / "in", to=tmp_path / "expected", bundle=bundle) == 0
    labels = "case00_seg.nii.gz"
    assert (tmp_path / "out" / labels).read_bytes() == (tmp_path / "expected" / labels).read_bytes()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["bundle_path"] == name
    capsys.readouterr()
    assert cli.main(["info", name]) == 0
    assert f"SHA-256 {digest_of(bundle)}" in capsys.readouterr().out


def test_a_pinned_zip(hub, tmp_path):
    sha256 = hashlib.sha256((tmp_path / "tiny.zip").read_bytes()).hexdigest()
    assert describe_bundle(f"hf:lab/zips/bundles/tiny.zip@{sha256}")["name"] == "tiny"
    with pytest.raises(BundleError, match=f"SHA-256 {sha256}; expected the pinned {OTHER}"):
        describe_bundle(f"hf:lab/zips/bundles/tiny.zip@{COMMIT}@{OTHER}")


def test_what_was_changed_is_refused(hub, bundle):
    name = f"hf:lab/tiny@{COMMIT}@{digest_of(bundle)}"
    fetch_bundle(name)
    path = hub / "snapshots" / COMMIT / "configs" / "inference.yaml"
    path.resolve().write_text(f"{path.read_text()}\n# changed\n")
    with pytest.raises(BundleError, match="It was changed or damaged: do not run it"):
        fetch_bundle(name)


def test_a_link_out_of_the_cache_is_refused(hub, tmp_path):
    (tmp_path / "secret").write_text("of another folder")
    (hub / "snapshots" / COMMIT / "docs").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match=r"docs is a link to .*secret, no file of the cache"):
        fetch_bundle(f"hf:lab/tiny@{COMMIT}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:lab/tiny", "not pinned, so that it might be another tomorrow; expected hf:OWNER/NAME@COMMIT"),
        ("hf:lab/tiny@main", "main is no pin, as branches and tags move"),
        (f"hf:lab/tiny@{COMMIT[:10]}", f"{COMMIT[:10]} is no pin"),
        (f"hf:tiny@{COMMIT}", "no name of a bundle on the hub; expected hf:OWNER/NAME@COMMIT"),
        (f"hf:lab/tiny/configs@{COMMIT}", "no name of a bundle on the hub"),
        (f"hf:lab/tiny@{OTHER}", "expected the pinned f"),
        (f"hf:lab/other@{COMMIT}", "neither in the hub's cache nor could it be fetched"),
    ],
)
def test_what_is_not_to_be_had_is_said_on_one_line(hub, tmp_path, capsys, name, said):
    assert cli.main(["predict", str(tmp_path), "-o", str(tmp_path / "out"), "--bundle", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vit3d: {name}: ")
    assert re.search(re.escape(said), line)
