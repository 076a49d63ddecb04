"""Bundles that init writes: whole or not at all, what MONAI asks for, the same from each layout, each number once."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out
from monai.bundle.properties import InferProperties, TrainProperties

from monai_vit3d.data import UsageError, datalist
from monai_vit3d.planning import read_dataset
from monai_vit3d.planning.init import plan_bundle
from monai_vit3d.planning.memory import build_segmenter
from monai_vit3d.planning.write_bundle import NETWORK_OPTIONS, write_bundle
from tests.bundles.test_workflow import SECTIONS, config_sets, unknown_properties
from tests.planning.evidence import CT, PET, fingerprint, plan
from tests.planning.toy_data import CHANNELS, CLASSES, TOY_LAYOUTS, write_toy

SCHEMA = Path(__file__).parent.parent / "bundles" / "meta_schema_20240725.json"
FACTS = {"spacing": (1.5, 1.5, 3.0), "shape": (40, 36, 28), "channels": (CT, PET), "classes": [*CLASSES.values()][1:],
         "cases": 6, "pairs": [["left_organ", "right_organ"]]}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six cases of two channels and four classes, as nnU-Net has them."""
    return write_toy(tmp_path_factory.mktemp("toy"), "nnunet_v2", cases=6, testing=1)


@pytest.fixture(scope="module")
def written(data, tmp_path_factory):
    """A bundle and its plan."""
    chosen = plan(**FACTS, subjects=6)
    return write_bundle(
        read_dataset(data), fingerprint(**FACTS), chosen, tmp_path_factory.mktemp("out") / "toy"
    ), chosen


def _parser(bundle, config):
    parser = ConfigParser()
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    parser.read_config(str(bundle / "configs" / f"{config}.yaml"))
    parser["bundle_root"] = str(bundle)
    return parser


def test_it_is_complete(written):
    bundle, _ = written
    names = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    configs = {"evaluate.yaml", "fingerprint.json", "inference.yaml", "logging.conf", "metadata.json", "train.yaml"}
    configs |= {"multi_gpu_evaluate.yaml", "multi_gpu_train.yaml", "split.json"}
    assert names == {f"configs/{name}" for name in configs} | {"docs/README.md", "LICENSE"}
    assert (bundle / "models").is_dir()


def test_monai_verifies_the_metadata(written, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(SCHEMA.read_text())
    verify_metadata(meta_file=str(written[0] / "configs" / "metadata.json"), filepath=str(schema))


@pytest.mark.slow
def test_monai_runs_the_network_as_the_metadata_say(written, monkeypatch):
    monkeypatch.chdir(written[0])
    verify_net_in_out("network_def", meta_file="configs/metadata.json", config_file="configs/train.yaml", device="cpu")


@pytest.mark.parametrize(("kind", "properties"), [("train", TrainProperties), ("inference", InferProperties)])
def test_monai_finds_what_it_asks_for(kind, properties, written):
    for configs in config_sets(written[0]):
        assert unknown_properties(written[0], *configs) == []
    workflow = _parser(written[0], kind)
    ids = [p["id"].replace("::", "#") for p in properties.values() if p["required"]]
    assert [name for name in ids if name not in workflow] == []


@pytest.mark.slow
def test_the_network_is_the_one_whose_memory_was_estimated(written):
    bundle, chosen = written
    network = _parser(bundle, "train").get_parsed_content("network_def")
    planned = build_segmenter(dict(chosen), chosen["window"], len(CHANNELS), len(CLASSES))
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (network, planned)]
    assert shapes[0] == shapes[1]
    assert network(torch.zeros(1, 2, *chosen["window"])).shape == (1, 4, *chosen["window"])


@pytest.mark.slow
def test_the_second_channel_reaches_the_network(written):
    bundle, chosen = written
    network = _parser(bundle, "train").get_parsed_content("network_def").eval()
    image = torch.randn(1, 2, *chosen["window"], generator=torch.Generator().manual_seed(0))
    other = image.clone()
    other[:, 1] += 1
    assert not torch.allclose(network(image), network(other))


def test_training_items_are_what_the_files_hold(written, data):
    """The deterministic steps against nibabel and numpy."""
    bundle, chosen = written
    parser = _parser(bundle, "train")
    case = datalist(bundle / "configs" / "split.json", "validation", 0)[0]
    item = parser.get_parsed_content("validate#preprocessing")(case)
    name = case["name"]
    ct, pet = (
        nib.as_closest_canonical(nib.load(data / "imagesTr" / f"{name}_{i:04d}.nii.gz")).get_fdata() for i in (0, 1)
    )
    label = nib.as_closest_canonical(nib.load(data / "labelsTr" / f"{name}.nii.gz")).get_fdata()
    clip = chosen["intensity"][0]
    expected = (ct.clip(clip["low"], clip["high"]) - clip["mean"]) / clip["std"]
    np.testing.assert_allclose(item["image"][0].numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(item["image"][1].numpy(), (pet - pet.mean()) / pet.std(), atol=1e-4)
    np.testing.assert_array_equal(item["label"][0].numpy(), label)


@pytest.mark.slow
def test_random_windows_are_centred_on_each_class_alike(written):
    bundle, _ = written
    parser = _parser(bundle, "train")
    parser["_meta_"]["network_data_format"]["inputs"]["image"]["spatial_shape"] = [8, 8, 4]
    parser.parse(reset=True)
    steps = parser.get_parsed_content("train#preprocessing")
    steps.set_random_state(0)
    case = datalist(bundle / "configs" / "split.json", "training", 0)[0]
    middle = []
    for _ in range(60):
        (window,) = steps(case)
        assert window["image"].shape == (2, 8, 8, 4)
        middle.append(set(np.unique(window["label"].numpy()).astype(int)))
    with_class = [sum(value in values for values in middle) for value in CLASSES]
    assert min(with_class[1:]) >= 8  # a window at random would show the lesions in 2 of 60


def test_each_number_stands_once(written):
    bundle, chosen = written
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    train = yaml.safe_load((bundle / "configs" / "train.yaml").read_text())
    image = metadata["network_data_format"]["inputs"]["image"]
    assert image["spatial_shape"] == chosen["window"]
    assert metadata["plan"]["spacing_mm"] == chosen["spacing_mm"]
    elsewhere = {
        "window",
        "orientation",
        "spacing_mm",
        "intensity",
        "flip_axes",
        "overlap",
        "folds",
        "tta_degrees",
        "tta_scales",
    }
    planning = {"device", "memory_gb", "modality", "preset"}  # what other decisions were made from
    flat = set(chosen) - elsewhere - planning - set(NETWORK_OPTIONS)
    assert {key: train[key] for key in flat} == {key: chosen[key] for key in flat}
    assert train["network_options"] == {key: chosen[key] for key in NETWORK_OPTIONS}
    for config in ("train", "inference", "evaluate"):
        text = (bundle / "configs" / f"{config}.yaml").read_text()
        for numbers in (chosen["window"], chosen["spacing_mm"], chosen["intensity"]):
            assert yaml.safe_dump(numbers, default_flow_style=True).strip() not in text


def test_the_documentation_has_the_zoos_sections_and_every_reason(written):
    bundle, chosen = written
    text = (bundle / "docs" / "README.md").read_text()
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert set(SECTIONS) <= set(titles)
    for line in chosen.lines():
        assert line in text


def test_split_keeps_relative_paths(written, data):
    split = json.loads((written[0] / "configs" / "split.json").read_text())
    assert split["data_root"] == str(data)
    assert len(split["training"]) == 6
    assert {case["fold"] for case in split["training"]} == {0, 1, 2, 3, 4}
    assert all(path.startswith("imagesTr/") for case in split["training"] for path in case["image"])
    assert split["testing"] == []  # those of nnU-Net have no labels


def test_a_folder_that_is_not_empty_is_refused(written, data):
    bundle, chosen = written
    before = sorted(path.name for path in bundle.parent.iterdir())
    with pytest.raises(UsageError, match="a folder that is not empty; a bundle is written into a new folder"):
        write_bundle(read_dataset(data), fingerprint(**FACTS), chosen, bundle)
    assert sorted(path.name for path in bundle.parent.iterdir()) == before


@pytest.mark.slow
def test_an_empty_folder_is_taken(data, tmp_path):
    (tmp_path / "b").mkdir()
    bundle = write_bundle(read_dataset(data), fingerprint(**FACTS), plan(**FACTS, subjects=6), tmp_path / "b")
    assert (bundle / "configs" / "train.yaml").is_file()


@pytest.mark.slow
def test_nothing_is_left_of_a_bundle_that_could_not_be_written(data, tmp_path):
    dataset = replace(read_dataset(data), channel_names=("CT", "half a letter \udcff"))  # no file can hold that
    with pytest.raises(UnicodeEncodeError):
        write_bundle(dataset, fingerprint(**FACTS), plan(**FACTS, subjects=6), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_every_layout_gives_the_same_bundle_but_for_paths(tmp_path):
    contents = {}
    for layout in TOY_LAYOUTS:
        (tmp_path / layout).mkdir()
        root = write_toy(tmp_path / layout, layout, cases=6, testing=1)
        bundle = plan_bundle(root, tmp_path / f"{layout}_bundle" / "toy").bundle
        split = json.loads((bundle / "configs" / "split.json").read_text())
        names = {path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file()}
        texts = {str(n): (bundle / n).read_text() for n in names if n.name not in ("split.json", "README.md")}
        contents[layout] = texts | {"folds": [(case["name"], case["fold"]) for case in split["training"]]}
    first = contents.pop("nnunet_v2")
    for layout, content in contents.items():
        assert content == first, layout
