"""The hippocampus bundle, by the commands that its users run, on phantoms; its weights on the Decathlon's cases."""

import json
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from torch.nn.functional import interpolate

from monai_vit3d.weights import save_backbone
from tests.bundles import helpers
from tests.bundles.helpers import command, torchrun
from tests.helpers import HIPPOCAMPUS

CONFIGS = HIPPOCAMPUS / "configs"
NETWORK = {"network_def#backbone#embed_dim": 48, "network_def#backbone#depth": 3, "network_def#feature_size": 4}
FLOAT32 = {"amp": False}  # convolutions in bfloat16 are slow on CPUs; the network's sizes come with the weights
SMALL = {**NETWORK, **FLOAT32}


run = partial(helpers.run, bundle=HIPPOCAMPUS)


@pytest.fixture(scope="module")
def trained(phantom_task, tmp_path_factory):
    """Two epochs of train.yaml on eight phantoms, with a small network, in the precision that the recipe chooses."""
    data, split = phantom_task
    out = tmp_path_factory.mktemp("trained")
    options = {"epochs": 2, "val_interval": 1, "output_dir": out, "ckpt_path": out / "model.pt", **NETWORK}
    run(command("run", config_file="configs/train.yaml", dataset_dir=data, split_file=split, **options), fresh=True)
    return out


@pytest.mark.slow
def test_train_writes_what_a_run_needs(trained):
    assert {"last.pt", "model.pt"} <= {p.name for p in trained.iterdir()}
    assert any(p.name.startswith("events.out.tfevents") for p in trained.iterdir())
    last = torch.load(trained / "last.pt", weights_only=True)
    assert (last["epoch"], last["iteration"]) == (2, 8)
    assert set(last) >= {"network", "optimizer", "lr_scheduler", "average"}


@pytest.mark.slow
def test_strong_augmentation_goes_on_from_the_trained_network(trained, phantom_task, tmp_path):
    data, split = phantom_task
    options = {"pretrained": trained / "model.pt", "dataset_dir": data, "split_file": split, "output_dir": tmp_path}
    both = "['configs/train.yaml','configs/strong_augmentation.yaml']"
    # without a learning rate the end is the start
    run(command("run", config_file=both, epochs=1, learning_rate=0, **options, **SMALL))
    start, end = (torch.load(folder / "model.pt", weights_only=True) for folder in (trained, tmp_path))
    assert all(torch.equal(end[key], start[key]) for key in start)


@pytest.mark.slow
def test_strong_augmentation_interpolates_labels_as_the_image(phantom_task):
    data, split = phantom_task
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("train.yaml", "strong_augmentation.yaml")])
    parser["dataset_dir"], parser["split_file"], parser["bundle_root"] = str(data), str(split), str(HIPPOCAMPUS)
    parser["train#dataset"]["data"] = "$[]"  # its cases are read here
    loading = Compose(parser.get_parsed_content("train#loading"))
    random = Compose(parser.get_parsed_content("train#random_transforms")).set_random_state(0)
    case = loading({key: str(data / f"{key}sTr" / "phantom_00.nii.gz") for key in ("image", "label")})
    drawn = [random(case) for _ in range(8)]
    for one in drawn:
        assert one["image"].shape[1:] == one["label"].shape[1:] == (32, 48, 32)
        assert one["label"].shape[0] == 3
        torch.testing.assert_close(one["label"].sum(0), torch.ones(32, 48, 32), rtol=0, atol=1e-4)
    assert any(((one["label"] > 0.1) & (one["label"] < 0.9)).any() for one in drawn)


@pytest.fixture(scope="module")
def inferred(trained, phantom_task, tmp_path_factory):
    """The output folder of inference.yaml on all phantoms."""
    out = tmp_path_factory.mktemp("inferred")
    options = {"dataset_dir": phantom_task[0] / "imagesTr", "output_dir": out, "ckpt_path": trained / "model.pt"}
    run(command("run", config_file="configs/inference.yaml", **options, **FLOAT32))
    return out


@pytest.mark.slow
def test_inference_keeps_the_grid(inferred, phantom_task):
    data, _ = phantom_task
    outputs = sorted(inferred.rglob("*.nii.gz"))
    assert len(outputs) == 12
    for output in outputs:
        source = nib.load(data / "imagesTr" / output.name.replace("_seg", ""))
        labels = nib.load(output)
        assert labels.shape == source.shape
        assert labels.get_data_dtype() == np.uint8
        np.testing.assert_allclose(labels.affine, source.affine, atol=1e-5)
        assert set(np.unique(labels.dataobj)) <= {0, 1, 2}


@pytest.mark.slow
def test_evaluate_scores_the_test_section_by_a_reference(trained, inferred, phantom_task, tmp_path):
    data, split = phantom_task
    both = "['configs/inference.yaml','configs/evaluate.yaml']"
    weights = {"ckpt_path": trained / "model.pt", **FLOAT32}
    run(command("run", config_file=both, dataset_dir=data, split_file=split, output_dir=tmp_path / "s", **weights))
    rows = [line.split(",") for line in (tmp_path / "s" / "val_dice_raw.csv").read_text().splitlines()[1:]]
    assert [Path(row[0]).name for row in rows] == ["phantom_10.nii.gz", "phantom_11.nii.gz"]
    for name, *scores in rows:
        truth = np.asarray(nib.load(data / "labelsTr" / Path(name).name).dataobj)
        found = np.asarray(nib.load(inferred / Path(name).name.replace(".nii", "_seg.nii")).dataobj)
        for label, score in zip((1, 2), scores):
            overlap = (
                2 * ((truth == label) & (found == label)).sum() / ((truth == label).sum() + (found == label).sum())
            )
            assert float(score) == pytest.approx(overlap, abs=1e-4)


@pytest.mark.slow
def test_two_processes_train_and_evaluate(phantom_task, tmp_path):
    data, split = phantom_task
    common = {"dataset_dir": data, "split_file": split, "ckpt_path": tmp_path / "model.pt", **FLOAT32}
    both = "['configs/train.yaml','configs/multi_gpu_train.yaml']"
    run(
        torchrun("run", config_file=both, epochs=2, val_interval=1, output_dir=tmp_path, **{**SMALL, **common}),
        fresh=True,
    )
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert (last["epoch"], last["iteration"]) == (2, 4)  # 8 cases, 2 processes, batches of 2
    assert not any(key.startswith("module.") for key in last["network"])
    three = "['configs/inference.yaml','configs/evaluate.yaml','configs/multi_gpu_evaluate.yaml']"
    run(torchrun("run", config_file=three, output_dir=tmp_path / "scores", **common))
    assert len((tmp_path / "scores" / "val_dice_raw.csv").read_text().splitlines()) == 3


@pytest.mark.slow
def test_training_starts_from_an_encoder_of_another_window(phantom_task, tmp_path):
    data, split = phantom_task
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "train.yaml"))
    for key, value in {**SMALL, "window": [16, 48, 24]}.items():
        parser[key] = value
    encoder = parser.get_parsed_content("network_def#backbone")
    save_backbone(encoder, tmp_path / "encoder.safetensors")
    # without a learning rate the end is the start
    options = {"epochs": 1, "learning_rate": 0, "pretrained": tmp_path / "encoder.safetensors", "output_dir": tmp_path}
    options |= {"dataset_dir": data, "split_file": split, **SMALL}
    helpers.run_here(HIPPOCAMPUS, "train", **options)
    trained = torch.load(tmp_path / "last.pt", weights_only=True)["network"]
    wanted = encoder.state_dict()
    volume = wanted["pos_embed"].reshape(1, 2, 6, 3, 48).permute(0, 4, 1, 2, 3)
    wanted["pos_embed"] = interpolate(volume, size=[4, 6, 4], mode="trilinear").flatten(2).transpose(1, 2)
    for key, value in wanted.items():
        assert torch.equal(trained[f"backbone.{key}"], value), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ckpt_path": "/nowhere/model.pt"}, "/nowhere/model.pt: no such file"),
        ({"dataset_dir": "/nowhere"}, "/nowhere: no such folder"),
        ({"network_def#feature_size": 8}, "weights of another architecture"),
    ],
)
def test_what_is_missing_is_said(options, message, phantom_task, tmp_path):
    options = {"output_dir": tmp_path, "dataset_dir": phantom_task[0], **options}
    assert message in helpers.failure_here(HIPPOCAMPUS, "inference", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_verbs(tmp_path):
    schema = json.loads((Path(__file__).parent / "meta_schema_20240725.json").read_text())
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    meta, config = "configs/metadata.json", "configs/inference.yaml"
    run(command("verify_metadata", meta_file=meta, filepath=tmp_path / "schema.json"))
    run(command("verify_net_in_out", "network_def", meta_file=meta, config_file=config))
    files = {"meta_file": meta, "config_file": config, "ckpt_file": "models/model.pt"}
    run(command("ckpt_export", "network_def", filepath=tmp_path / "model.ts", **files))
    run(command("onnx_export", "network_def", filepath=tmp_path / "model.onnx", **files))
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.yaml"))
    parser["bundle_root"] = str(HIPPOCAMPUS)
    network = parser.get_parsed_content("network").eval()
    volume = torch.randn(1, 1, *parser["window"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(volume)
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(volume), expected, rtol=1e-4, atol=1e-4)
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: volume.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-3)


def test_configs_agree_and_have_what_monai_asks_for():
    from monai.bundle.properties import InferProperties, TrainProperties

    train, infer = ConfigParser(), ConfigParser()
    train.read_config(str(CONFIGS / "train.yaml"))
    infer.read_config(str(CONFIGS / "inference.yaml"))
    assert train["window"] == infer["window"]
    assert set(infer["network_def"]) == {
        "_target_",
        "path",
        "decoder",
        "num_classes",
        "tokens",
    }  # the weights say the rest
    assert train["network_def"]["num_classes"] == infer["network_def"]["num_classes"]
    for parser, properties in ((train, TrainProperties), (infer, InferProperties)):
        missing = [name for name, p in properties.items() if p["required"] and p["id"].replace("::", "#") not in parser]
        assert missing == []
    shape = json.loads((CONFIGS / "metadata.json").read_text())["network_data_format"]["inputs"]["image"]
    assert shape["spatial_shape"] == train["window"]


def test_split_sections_share_no_case():
    split = json.loads((CONFIGS / "split.json").read_text())
    assert {k: len(v) for k, v in split.items()} == {"training": 150, "validation": 20, "test": 30}
    assert len(set().union(*split.values())) == 200


@pytest.mark.slow
@pytest.mark.data
def test_shipped_weights_reach_their_scores(decathlon_hippocampus, tmp_path):
    both = "['configs/inference.yaml','configs/evaluate.yaml']"
    run(command("run", config_file=both, dataset_dir=decathlon_hippocampus, output_dir=tmp_path))
    published = json.loads((CONFIGS / "metadata.json").read_text())["eval_metrics"]["mean_dice_test"]
    dice = dict(line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines())["val_dice"]
    assert float(dice) == pytest.approx(published, abs=2e-3)
