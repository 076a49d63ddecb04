"""MedMNIST's 3D sets and one's own, against the package medmnist; what damaged and absent files say."""

import functools
import hashlib
import http.server
import json
import re
import subprocess
import sys
import threading
import zipfile

import medmnist
import monai.data
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureTyped, RandFlipd, ScaleIntensityd

from monai_vit3d.data import DatasetError, MedMNIST3DDataset, class_names, medmnist3d_info, resolve_task
from monai_vit3d.data.medmnist3d import OFFICIAL_2D, OFFICIAL_3D, SIZES
from tests.helpers import BUNDLES

COUNTS = {"train": 9, "val": 4, "test": 5}
NOWHERE = "http://127.0.0.1:9/organmnist3d.npz"  # the port of "discard": nothing listens


def arrays(size, classes, channels=(), seed=0):
    rng = np.random.default_rng(seed)
    held = {}
    for section, count in COUNTS.items():
        held[f"{section}_images"] = rng.integers(0, 256, (count, size, size, size, *channels), dtype=np.uint8)
        held[f"{section}_labels"] = rng.integers(0, classes, (count, 1), dtype=np.uint8)
    return held


def make_official(monkeypatch, name, path, size):
    """From now on the file is what medmnist takes for the official one."""
    key = "MD5" if size == 28 else f"MD5_{size}"
    monkeypatch.setitem(medmnist.INFO[name], key, hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setitem(medmnist.INFO[name], "n_samples", COUNTS)


@pytest.fixture
def organs(tmp_path, monkeypatch):
    """A small file that passes for organmnist3d of size 28; ``(folder, what is in it)``."""
    held = arrays(28, 11)
    np.savez_compressed(tmp_path / "organmnist3d.npz", **held)
    make_official(monkeypatch, "organmnist3d", tmp_path / "organmnist3d.npz", 28)
    return tmp_path, held


@pytest.fixture
def own(tmp_path):
    """Writer of a set of one's own: ``own(arrays, size=..., **changes of its entry)`` gives the dataset's arguments."""

    def write(held, size=6, save=np.savez, **changes):
        entry = {"task": "multi-class", "label": {"0": "a", "1": "b", "2": "c"}, "n_channels": 1, "n_samples": COUNTS}
        (tmp_path / "info.json").write_text(json.dumps({"mine": {**entry, **changes}}))
        save(tmp_path / f"mine_{size}.npz", **held)
        return {"dataset_name": "mine", "root_dir": tmp_path, "size": size, "info_file": tmp_path / "info.json"}

    return write


def test_the_room_stays_light():
    heavy = "{'medmnist', 'pandas', 'sklearn', 'monai', 'torch', 'numpy'}"
    code = f"import sys, monai_vit3d.data; sys.exit(str({heavy} & set(sys.modules) or ''))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).stderr.strip() == b""


# what is known of a set


def test_names_are_the_packages():
    solid = {name for name, entry in medmnist.INFO.items() if entry["python_class"].endswith("3D")}
    assert set(OFFICIAL_3D) == solid
    assert set(OFFICIAL_2D) == set(medmnist.INFO) - solid
    assert tuple(medmnist.OrganMNIST3D.available_sizes) == SIZES


@pytest.mark.parametrize("name", OFFICIAL_3D)
def test_official_info_is_the_packages(name):
    info = medmnist3d_info(name)
    assert info == medmnist.INFO[name]
    assert [info["label"][str(i)] for i in range(len(info["label"]))] == class_names(info)
    info["label"]["0"] = "changed"
    assert medmnist.INFO[name]["label"]["0"] != "changed"


def test_every_task_of_the_package_is_understood():
    found = {entry["task"]: resolve_task(entry["task"]) for entry in medmnist.INFO.values()}
    assert found == {
        "multi-class": "multi-class",
        "binary-class": "multi-class",
        "multi-label, binary-class": "multi-label",
        "ordinal-regression": "ordinal",
    }


def test_class_ten_comes_after_nine():
    label = {str(i): f"n{i}" for i in (10, 1, 0, 9, 8, 7, 6, 5, 4, 3, 2)}
    assert class_names({"label": label}) == [f"n{i}" for i in range(11)]
    with pytest.raises(DatasetError, match="numbers 1, 2; expected 0 to 1"):
        class_names({"label": {"1": "a", "2": "b"}})


def test_ones_own_entry_of_an_official_name_needs_no_package(tmp_path, monkeypatch):
    own = {"task": "binary-class", "label": {"0": "x", "1": "y"}, "voxels_from": "here"}
    (tmp_path / "info.json").write_text(json.dumps({"organmnist3d": own, "mine": own}))
    for folder in ("", "absent"):  # a file that is not there describes nothing, and is not needed
        found = medmnist3d_info("nodulemnist3d", tmp_path / folder / "info.json")
        assert found == medmnist.INFO["nodulemnist3d"]
    monkeypatch.setitem(sys.modules, "medmnist", None)
    for name in ("organmnist3d", "mine"):
        assert medmnist3d_info(name, tmp_path / "info.json") == own


def test_the_bundles_entry_is_the_packages_and_more():
    official = medmnist.INFO["adrenalmnist3d"]
    entry = medmnist3d_info("adrenalmnist3d", BUNDLES / "medmnist3d_classification" / "configs" / "datasets.json")
    same = ("task", "label", "n_channels", "n_samples", "url", "MD5", "url_64", "MD5_64", "license")
    assert {key: entry[key] for key in same} == {key: official[key] for key in same}


@pytest.mark.parametrize("name", ["pathmnist", "organamnist"])
def test_2d_sets_are_refused(name):
    with pytest.raises(DatasetError, match=f"'{name}' holds 2D images; expected a 3D set: organmnist3d, "):
        medmnist3d_info(name)


def test_unknown_name_lists_the_known(tmp_path):
    (tmp_path / "info.json").write_text(json.dumps({"mine": {}, "yours": {}}))
    with pytest.raises(DatasetError, match=r"'theirs'.*organmnist3d, .*synapsemnist3d; .*info.json has mine, yours"):
        medmnist3d_info("theirs", tmp_path / "info.json")
    with pytest.raises(DatasetError, match=r"'theirs'.*info_file"):
        medmnist3d_info("theirs")


def test_without_the_package(monkeypatch, own):
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(DatasetError, match="its 'medmnist' extra"):
        medmnist3d_info("organmnist3d")
    assert len(MedMNIST3DDataset(section="val", **own(arrays(6, 3)))) == COUNTS["val"]


LABEL = {"0": "a", "1": "b"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "info.json: not JSON"),
        ("[]", "info.json: JSON of a list"),
        (json.dumps({"mine": {"label": LABEL}}), "'mine': expected an entry with \"task\""),
        (json.dumps({"mine": {"task": "binary-class", "label": ["a", "b"]}}), "'mine': expected an entry with"),
        (json.dumps({"mine": {"task": "guess", "label": LABEL}}), "'mine': task='guess'"),
        (json.dumps({"mine": {"task": ["regression"], "label": LABEL}}), "'mine': "),
        (json.dumps({"mine": {"task": "ordinal", "label": {"0": "a"}}}), "'mine': 1 names .* needs 2 or more"),
        (json.dumps({"mine": {"task": "ordinal", "label": {"0": "a", "2": "b"}}}), "'mine': .*numbers 0, 2"),
        (json.dumps({"mine": {"task": "ordinal", "label": LABEL, "n_samples": 3}}), "'mine': .*n_samples"),
    ],
)
def test_bad_entries_are_named(tmp_path, text, message):
    (tmp_path / "info.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        medmnist3d_info("mine", tmp_path / "info.json")


def test_absent_info_file(tmp_path):
    with pytest.raises(DatasetError, match=r"info.json: no such file"):
        medmnist3d_info("mine", tmp_path / "info.json")


# what a section holds


@pytest.mark.parametrize(
    ("name", "size", "section", "split"),
    [("organmnist3d", 28, "training", "train"), ("nodulemnist3d", 64, "validation", "val")],
)
def test_same_as_the_package(tmp_path, monkeypatch, name, size, section, split):
    path = tmp_path / (f"{name}.npz" if size == 28 else f"{name}_{size}.npz")
    np.savez_compressed(path, **arrays(size, 2))
    make_official(monkeypatch, name, path, size)
    ours = MedMNIST3DDataset(name, section, tmp_path, size, download=False)
    theirs = getattr(medmnist, medmnist.INFO[name]["python_class"])(split=split, root=tmp_path, size=size)
    assert len(ours) == len(theirs) == COUNTS[split]
    for i, (image, label) in enumerate(theirs):
        assert ours[i]["image"].dtype == np.uint8
        np.testing.assert_array_equal(ours[i]["image"] / 255, image)
        assert type(ours[i]["label"]) is int
        assert [ours[i]["label"]] == label.tolist()
        assert ours[i]["name"] == f"{name}_{split}_{i:04d}"
    assert (ours.task, ours.info, ours.class_names) == ("multi-class", medmnist.INFO[name], class_names(ours.info))


def test_sections_and_words(organs):
    folder, held = organs
    for word, section in [("train", "train"), ("val", "val"), ("validation", "val"), ("test", "test")]:
        data = MedMNIST3DDataset("organmnist3d", word, folder).data
        np.testing.assert_array_equal(np.stack([d["image"][0] for d in data]), held[f"{section}_images"])
    with pytest.raises(DatasetError, match=r"no section 'dev'; it has train, .*test"):
        MedMNIST3DDataset("organmnist3d", "dev", folder)
    with pytest.raises(DatasetError, match="no size 48; it has 28, 64"):
        MedMNIST3DDataset("organmnist3d", "train", folder, size=48)


def test_images_are_views_of_one_array(organs):
    data = MedMNIST3DDataset("organmnist3d", "train", organs[0]).data
    starts = [d["image"].__array_interface__["data"][0] for d in data]
    assert set(np.diff(starts)) == {28**3}
    assert not any(d["image"].flags.owndata for d in data)


def test_with_monai(organs):
    """Dictionary transforms on the fly, and cached; the array underneath stays as it is."""
    folder, held = organs
    steps = [EnsureTyped("image", dtype=torch.float32), ScaleIntensityd("image"), RandFlipd("image", prob=1.0)]
    live = MedMNIST3DDataset("organmnist3d", "test", folder, transform=steps)
    cached = monai.data.CacheDataset(
        MedMNIST3DDataset("organmnist3d", "test", folder).data, Compose(steps), progress=False
    )
    for dataset in (live, cached):
        batch = next(iter(monai.data.DataLoader(dataset, batch_size=5)))
        assert batch["image"].shape == (5, 1, 28, 28, 28)
        low, high = (f(held["test_images"], axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
        expected = np.flip((held["test_images"] - low.astype(np.float32)) / (high - low), (1, 2, 3))
        np.testing.assert_allclose(batch["image"][:, 0].numpy(), expected, atol=1e-6)
        assert batch["label"].tolist() == held["test_labels"][:, 0].tolist()
        assert batch["label"].dtype == torch.int64
    np.testing.assert_array_equal(np.stack([d["image"][0] for d in live.data]), held["test_images"])


def test_channels_come_first(own):
    held = arrays(6, 3, channels=(2,))
    data = MedMNIST3DDataset(section="val", **own(held, n_channels=2)).data
    assert data[0]["image"].shape == (2, 6, 6, 6)
    np.testing.assert_array_equal(data[3]["image"][1], held["val_images"][3, ..., 1])
    assert np.shares_memory(data[0]["image"], data[0]["image"].base)


@pytest.mark.parametrize(
    ("task", "label", "values"),
    [
        ("multi-label, binary-class", {"0": "a", "1": "b"}, [[0, 1], [1, 1], [1, 0], [0, 0]]),
        ("regression", {"0": "age"}, [[0.5], [-3.0], [80.25], [7.0]]),
        ("regression", {}, [[0.5, 2.0, 3.0]] * 4),
    ],
)
def test_vector_labels(own, task, label, values):
    held = {**arrays(6, 3), "val_labels": np.array(values)}
    dataset = MedMNIST3DDataset(section="val", **own(held, task=task, label=label))
    assert [d["label"].tolist() for d in dataset.data] == values
    assert {d["label"].dtype for d in dataset.data} == {np.dtype(np.float32)}
    assert dataset.task == resolve_task(task)


def test_own_dtype_is_kept_and_n_samples_need_not_be_told(own):
    held = {**arrays(6, 3), "val_images": np.full((4, 6, 6, 6), -1000, np.int16)}
    data = MedMNIST3DDataset(section="val", **own(held, n_samples={})).data
    assert data[0]["image"].dtype == np.int16


# files that cannot be used


@pytest.mark.parametrize(
    ("change", "entry", "message"),
    [
        ({"val_images": np.zeros((4, 6, 6, 5), np.uint8)}, {}, r"images uint8 \(4, 6, 6, 5\).*\(N, 6, 6, 6\)"),
        ({"val_images": np.zeros((4, 6, 6, 6), complex)}, {}, "images complex128"),
        ({"val_images": np.array(3)}, {}, r"images int64 \(\)"),
        ({}, {"n_channels": 2}, r"\(4, 6, 6, 6\); expected .*\(N, 6, 6, 6, 2\)"),
        ({}, {"n_samples": {"val": 7}}, "4 samples; expected 7"),
        ({"val_images": np.zeros((0, 6, 6, 6), np.uint8)}, {"n_samples": {}}, "no sample"),
        ({"val_labels": np.zeros((3, 1), np.uint8)}, {}, "4 images and 3 labels"),
        ({"val_labels": np.zeros(4, np.uint8)}, {}, r"labels uint8 \(4,\); expected numbers \(N, 1\)"),
        ({"val_labels": np.zeros((4, 2), np.uint8)}, {}, r"labels uint8 \(4, 2\); expected numbers \(N, 1\)"),
        ({"val_labels": np.array([["a"]] * 4)}, {}, "labels <U1"),
        ({"val_labels": np.array([[0], [1], [3], [2]])}, {}, "label 3; expected 0 to 2"),
        ({"val_labels": np.array([[0], [1], [-1], [2]])}, {}, "label -1; expected 0 to 2"),
        ({"val_labels": np.array([[0], [1], [0.5], [2]])}, {"task": "ordinal"}, "label 0.5; expected 0 to 2"),
        ({"val_labels": np.full((4, 3), 2)}, {"task": "multi-label"}, "label 2; expected 0 to 1"),
        ({"val_labels": np.ones((4, 2))}, {"task": "multi-label"}, r"labels float64 \(4, 2\); expected .* \(N, 3\)"),
        ({"val_labels": np.full((4, 3), np.nan)}, {"task": "regression"}, "label nan; expected finite values"),
    ],
)
def test_what_the_entry_does_not_say_is_refused(own, change, entry, message):
    with pytest.raises(DatasetError, match=rf"mine_6.npz: val: .*{message}"):
        MedMNIST3DDataset(section="val", **own({**arrays(6, 3), **change}, **entry))


def flip_a_byte(path):
    """In the middle of the stored validation images, where only a checksum can tell."""
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as held:
        raw[held.getinfo("val_images.npy").header_offset + 500] ^= 1
    path.write_bytes(raw)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip_a_byte, truncate])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_file_without_md5(own, damage, save):
    arguments = own(arrays(6, 3), save=save)
    assert MedMNIST3DDataset(section="val", **arguments)
    path = arguments["root_dir"] / "mine_6.npz"
    damage(path)
    with pytest.raises(DatasetError, match=rf"{re.escape(str(path))}: damaged.*again"):
        MedMNIST3DDataset(section="val", **arguments)


def test_other_sections_stay_on_disk(own):
    arguments = own(arrays(6, 3))
    flip_a_byte(arguments["root_dir"] / "mine_6.npz")
    assert len(MedMNIST3DDataset(section="train", **arguments)) == COUNTS["train"]


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_are_never_loaded(own):
    held = {**arrays(6, 3), "val_labels": np.array([[Trap()]] * 4)}
    with pytest.raises(DatasetError, match=r"mine_6.npz: .*allow_pickle=False.*plain arrays"):
        MedMNIST3DDataset(section="val", **own(held))


@pytest.mark.parametrize("key", ["val_images", "val_labels"])
def test_missing_array_is_named(own, key):
    held = arrays(6, 3)
    del held[key]
    with pytest.raises(DatasetError, match=rf"mine_6.npz: .*KeyError.*{key}"):
        MedMNIST3DDataset(section="val", **own(held))


def test_another_format(own):
    arguments = own(arrays(6, 3))
    with (arguments["root_dir"] / "mine_6.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DatasetError, match=r"mine_6.npz: damaged or another format"):
        MedMNIST3DDataset(section="val", **arguments)


def test_another_md5_is_refused(organs, own):
    path = organs[0] / "organmnist3d.npz"
    np.savez(path, **organs[1])
    found, needed = hashlib.md5(path.read_bytes()).hexdigest(), medmnist.INFO["organmnist3d"]["MD5"]
    with pytest.raises(DatasetError, match=f"MD5 is {found}; expected {needed}.*Fetch it again"):
        MedMNIST3DDataset("organmnist3d", "val", organs[0])
    assert hashlib.md5(path.read_bytes()).hexdigest() == found
    with pytest.raises(DatasetError, match="expected f00"):
        MedMNIST3DDataset(section="val", **own(arrays(6, 3), MD5_6="f00"))
    assert MedMNIST3DDataset(section="val", **own(arrays(6, 3), MD5="of size 28"))


# files that are not there


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves the folder ``served``, which holds an organmnist3d.npz; medmnist's url and MD5 are that file's."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    np.savez(folder / "organmnist3d.npz", **arrays(28, 11))
    make_official(monkeypatch, "organmnist3d", folder / "organmnist3d.npz", 28)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as web:
        monkeypatch.setitem(
            medmnist.INFO["organmnist3d"], "url", f"http://127.0.0.1:{web.server_port}/organmnist3d.npz"
        )
        threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
        yield folder / "organmnist3d.npz"
        web.shutdown()


def test_download(tmp_path, server):
    root = tmp_path / "new" / "folder"
    assert len(MedMNIST3DDataset("organmnist3d", "val", root)) == COUNTS["val"]
    assert [p.name for p in root.iterdir()] == ["organmnist3d.npz"]
    assert (root / "organmnist3d.npz").read_bytes() == server.read_bytes()
    server.unlink()
    assert MedMNIST3DDataset("organmnist3d", "val", root), "a file that is there is not fetched again"


def test_damaged_download_leaves_nothing(tmp_path, server):
    server.write_bytes(server.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"the download failed .*corrupted"):
        MedMNIST3DDataset("organmnist3d", "val", tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_no_network_says_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(medmnist.INFO["organmnist3d"], "url", NOWHERE)
    wanted, md5 = tmp_path / "organmnist3d.npz", medmnist.INFO["organmnist3d"]["MD5"]
    said = f"{wanted}: the download failed .*Download {NOWHERE} .MD5 {md5}. and put it at {wanted}[.]$"
    with pytest.raises(DatasetError, match=said):
        MedMNIST3DDataset("organmnist3d", "val", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_download_says_where_to_put_it(tmp_path, own):
    info = medmnist.INFO["organmnist3d"]
    said = f"organmnist3d_64.npz: no such file.*{re.escape(info['url_64'])} .MD5 {info['MD5_64']}. and put it at"
    with pytest.raises(DatasetError, match=said):
        MedMNIST3DDataset("organmnist3d", "val", tmp_path / "new", size=64, download=False)
    assert not (tmp_path / "new").exists()
    arguments = own({}, url="http://a.b/mine.npz")
    with pytest.raises(
        DatasetError, match=r"mine.npz: no such file. Download http://a.b/mine.npz and put it at .*mine.npz"
    ):
        MedMNIST3DDataset(section="val", **{**arguments, "size": 28})
