"""A bundle's folder or zip: what opens, and what is refused before anything is written."""

import os
import stat
import struct
import warnings
import zipfile

import pytest

from monai_vit3d.bundle import unpack
from monai_vit3d.bundle.unpack import open_bundle
from monai_vit3d.data.errors import BundleError

CONFIG = "configs/inference.yaml"


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder in which zips are unpacked."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def archive(tmp_path, temporary):
    """Writer of a zip of members, each a name or ZipInfo and its content."""

    def write(*members, compression=zipfile.ZIP_DEFLATED):
        path = tmp_path / "bundle.zip"
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as file:
            warnings.simplefilter("ignore")  # of names that come twice
            for name, content in members:
                file.writestr(name, content)
        return path

    return write


def bundle(folder, config=CONFIG):
    path = folder / config
    path.parent.mkdir(parents=True)
    path.write_text("network: 1\n")
    return folder


def member(name, kind=stat.S_IFREG, **fields):
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    for field, value in fields.items():
        setattr(info, field, value)
    return info


# folders


@pytest.mark.parametrize("config", ["configs/inference.yaml", "configs/inference.yml", "configs/inference.json"])
def test_a_folder_opens_as_it_is(tmp_path, config):
    bundle(tmp_path / "b", config)
    (tmp_path / "alias").symlink_to("b")  # the user's own way to the bundle
    for path in (tmp_path / "b", str(tmp_path / "b"), tmp_path / "alias"):
        with open_bundle(path) as folder:
            assert (folder / config).read_text() == "network: 1\n"
    assert (tmp_path / "b" / config).is_file()


def test_links_within_the_bundle_are_fine(tmp_path):
    folder = bundle(tmp_path / "b")
    (folder / "models").mkdir()
    (folder / "models" / "model.pt").symlink_to("../configs/inference.yaml")
    (folder / "latest").symlink_to("models")
    (folder / "configs" / "here").symlink_to("..")  # a loop of folders
    (folder / "nowhere").symlink_to("models/none")
    with open_bundle(folder) as opened:
        assert opened == folder


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("models", "/etc"),
        ("model.pt", "/etc/passwd"),
        ("docs/deep/model.pt", "../../../secret"),
        ("docs/none", "../../not_there"),
        (".hidden", "/etc/passwd"),
        ("configs/metadata.json", "../../b2/x"),
        ("second", "first/out"),
    ],
)
def test_links_out_of_the_bundle_are_named(tmp_path, link, target):
    folder = bundle(tmp_path / "b")
    (folder / "first").mkdir()
    if link == "second":
        (folder / "first" / "out").symlink_to("../..")
    (folder / link).parent.mkdir(parents=True, exist_ok=True)
    (folder / link).symlink_to(target)
    with pytest.raises(BundleError) as caught, open_bundle(folder):
        pass
    assert str(caught.value).startswith(str(folder))
    assert f"a link to {(folder / link).resolve()}, outside the bundle" in str(caught.value)


def test_a_link_to_itself(tmp_path):
    folder = bundle(tmp_path / "b")
    (folder / "loop").symlink_to("loop")
    with open_bundle(folder) as opened:
        assert opened == folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"none of configs/inference.json, .*; it has nothing\. "),
        (["configs/train.yaml", "configs/a.txt"], "it has a.txt, train.yaml in configs"),
        (["models/model.pt", "x.txt"], "it has models/, x.txt"),
        ([f"configs/{i}" for i in range(12)], r"0, 1, 10, 11, 2, 3, 4, 5 and 4 more in configs"),
        (["configs/inference.yaml/x"], "it has inference.yaml/ in configs"),
    ],
)
def test_no_bundle(tmp_path, files, message):
    for name in files:
        (tmp_path / "b" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / name).touch()
    (tmp_path / "b").mkdir(exist_ok=True)
    with pytest.raises(BundleError, match=message), open_bundle(tmp_path / "b"):
        pass


@pytest.mark.parametrize(
    ("name", "message"), [("none", "no such file or folder"), ("model.pt", "neither a folder nor a .zip")]
)
def test_other_paths(tmp_path, name, message):
    (tmp_path / "model.pt").touch()
    with pytest.raises(BundleError, match=f"{name}: {message}"), open_bundle(tmp_path / name):
        pass


def test_logging_conf_is_not_read(tmp_path, archive):
    """``logging.config.fileConfig`` would evaluate its args."""
    conf = f"[handlers]\nkeys=h\n[handler_h]\nclass=FileHandler\nargs=(open('{tmp_path}/made', 'w'),)\n"
    folder = bundle(tmp_path / "b")
    (folder / "configs" / "logging.conf").write_text(conf)
    before = (folder / "configs" / "logging.conf").stat()
    os.utime(folder / "configs" / "logging.conf", (1, before.st_mtime))
    packed = archive((CONFIG, "network: 1\n"), ("configs/logging.conf", conf))
    for path in (folder, packed):
        with open_bundle(path) as opened:
            assert (opened / "configs" / "logging.conf").stat().st_size == len(conf)
    assert (folder / "configs" / "logging.conf").stat().st_atime == 1
    assert not (tmp_path / "made").exists()


# zips


@pytest.mark.parametrize("top", ["", "spleen_ct_segmentation/", "configs_and_more/"])
def test_a_zip_opens_and_goes(archive, temporary, top):
    path = archive((f"{top}{CONFIG}", "network: 1\n"), (f"{top}models/", ""), (f"{top}models/model.pt", b"\0" * 9))
    with open_bundle(path) as folder:
        assert folder.is_relative_to(temporary)
        assert (folder / CONFIG).read_text() == "network: 1\n"
        assert (folder / "models" / "model.pt").read_bytes() == b"\0" * 9
    assert not list(temporary.iterdir())


def test_a_macs_zip_opens(archive):
    path = archive((f"b/{CONFIG}", "x"), ("__MACOSX/b/._x", "x"))
    with open_bundle(path) as folder:
        assert folder.name == "b"


def test_a_zip_goes_after_an_error_too(archive, temporary):
    with pytest.raises(ZeroDivisionError), open_bundle(archive((CONFIG, "x"))):
        raise ZeroDivisionError
    assert not list(temporary.iterdir())


def test_a_zip_without_a_config(archive, temporary):
    with (
        pytest.raises(BundleError, match=r"bundle.zip: none of .* it has a, b\. "),
        open_bundle(archive(("a", ""), ("b", ""))),
    ):
        pass
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("evil", "message"),
    [
        (member("/etc/x"), "'/etc/x' is an absolute path"),
        (member("C:/x"), "'C:/x' is an absolute path"),
        (member("c:x"), "an absolute path"),
        (member("../x"), "a path with '..'"),
        (member("b/../../x"), "a path with '..'"),
        (member("b/.."), "a path with '..'"),
        (member("b//x"), "empty parts"),
        (member("./x"), "'.'"),
        (member("..\\x"), "a backslash"),
        (member("b\\x"), "a backslash"),
        (member("b/\nx"), "control character"),
        (member("link", stat.S_IFLNK), "'link' is a symbolic link"),
        (member("device", stat.S_IFCHR), "a device"),
        (member("disk", stat.S_IFBLK), "a device"),
        (member("pipe", stat.S_IFIFO), "a device, pipe"),
        (member("socket", stat.S_IFSOCK), "socket"),
        (member(CONFIG), "comes twice"),
        (member(CONFIG.upper()), f"comes twice .as '{CONFIG}'"),
        (member("CONFIGS/inference.yaml/"), "comes twice"),
    ],
)
def test_odd_members_are_refused_before_anything_is_written(archive, temporary, monkeypatch, evil, message):
    path = archive((CONFIG, "network: 1\n"), (evil, "/etc/passwd"))
    monkeypatch.setattr(zipfile.ZipFile, "extractall", lambda *_: pytest.fail("extracted"))
    with pytest.raises(BundleError, match=f"bundle.zip: .*{message}"), open_bundle(path):
        pass
    assert not list(temporary.iterdir())


def patched(path, offset, value):
    """The zip with two bytes at ``offset`` of the second central header changed."""
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02") + offset
    data[place : place + len(value)] = value
    path.write_bytes(data)
    return path


def test_encrypted(archive):
    path = patched(archive((CONFIG, "x"), ("models/model.pt", "y")), 8, struct.pack("<H", 1))
    with pytest.raises(BundleError, match=r"'models/model.pt' is encrypted"), open_bundle(path):
        pass


def test_unknown_compression(archive):
    path = patched(archive((CONFIG, "x"), ("models/model.pt", "y")), 10, struct.pack("<H", 77))
    with pytest.raises(BundleError, match=r"bundle.zip: cannot be unpacked"), open_bundle(path):
        pass


def test_a_name_behind_a_null_byte(archive):
    path = archive((CONFIG, "x"), ("model.txt", "y"))
    path.write_bytes(path.read_bytes().replace(b"model.txt", b"mod\0l.txt"))
    with pytest.raises(BundleError, match="control character"), open_bundle(path):
        pass


def test_zeros_inflate_beyond_measure(archive, monkeypatch):
    monkeypatch.setattr(unpack, "RATIO_FROM_BYTES", 10**6)
    for size in (999_999, 1_000_001):
        path = archive((CONFIG, "x"), ("models/model.pt", b"\0" * size))
        if size < 10**6:
            with open_bundle(path) as folder:
                assert (folder / "models" / "model.pt").stat().st_size == size
            continue
        message = r"model.pt' is 1000001 bytes out of \d+, more than 200 times"
        with pytest.raises(BundleError, match=message), open_bundle(path):
            pass


def test_the_limits_are_those_documented():
    assert (unpack.MAX_UNPACKED_BYTES, unpack.RATIO, unpack.RATIO_FROM_BYTES) == (8 * 2**30, 200, 100 * 10**6)


def test_the_sum_of_members_counts(archive, monkeypatch):
    monkeypatch.setattr(unpack, "MAX_UNPACKED_BYTES", 1000)
    path = archive((CONFIG, "x" * 100), *((f"models/{i}", "y" * 300) for i in range(3)))
    with open_bundle(path):
        pass
    path = archive((CONFIG, "x" * 101), *((f"models/{i}", "y" * 300) for i in range(3)))
    with pytest.raises(BundleError, match=r"4 members of 0.0 GiB; at most 100000"), open_bundle(path):
        pass


def test_a_member_larger_than_it_says_is_cut_off(archive, tmp_path):
    path = patched(archive((CONFIG, "x"), ("models/model.pt", b"\0" * 10**6)), 24, struct.pack("<I", 10))
    with pytest.raises(BundleError, match="cannot be unpacked"), open_bundle(path):
        pass


@pytest.mark.parametrize("damage", ["not a zip", "cut", "flipped", "file as folder"])
def test_damaged_zips(archive, temporary, damage):
    members = [(CONFIG, "x"), ("models/model.pt", os.urandom(5000))]
    path = archive(*members, *([("models/model.pt/x", "y")] if damage == "file as folder" else []))
    data = bytearray(path.read_bytes())
    if damage == "not a zip":
        data = bytearray(b"network: 1\n")
    elif damage == "cut":
        del data[3000:]
    elif damage == "flipped":
        data[2000] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"bundle.zip: cannot be unpacked \(.*Fetch it again"), open_bundle(path):
        pass
    assert not list(temporary.iterdir())
