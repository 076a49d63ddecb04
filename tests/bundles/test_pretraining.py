"""The pretraining bundles, on phantoms and balls: what a run writes, that it resumes, and that its encoder is taken."""

import json
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.bundle.properties import InferProperties, TrainProperties
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_vit3d.layers import set_spacing
from monai_vit3d.weights import backbone_from, save_backbone
from tests.bundles import helpers
from tests.bundles.balls import QUICK, load, of
from tests.bundles.helpers import command, failure_here, run, run_here, torchrun
from tests.helpers import BUNDLES
from tests.weights.convert import published_forwards as forwards
from tests.weights.convert.test_published import primus_state

SCHEMA = Path(__file__).parent / "meta_schema_20240725.json"
SEGMENTATION, CLASSIFICATION = BUNDLES / "hippocampus_segmentation", BUNDLES / "medmnist3d_classification"
DOWNSTREAM = {SEGMENTATION: {}, CLASSIFICATION: {"dataset_name": "hippovolume3d"}}  # volumes of whole patches
TINY = {"embed_dim": 48, "num_heads": 3, "monitor_interval": 1, "batch_size": 4}
TASKS = {
    "ijepa_pretraining": {"predictor_dim": 24, "predictor_depth": 1},
    "mae_pretraining": {"decoder_dim": 24, "decoder_depth": 1},
}
PLAIN = {"_target_": "monai_vit3d.inferers.AutocastInferer"}
ENCODERS = {"ijepa_pretraining": "target_encoder.", "mae_pretraining": "backbone."}


@pytest.fixture(scope="module", params=sorted(TASKS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def bundle(name):
    return BUNDLES / name


@pytest.fixture(scope="module")
def tiny(name):
    """The options of a small network."""
    return {**TINY, **TASKS[name]}


def small_on_balls(balls, name):
    """The options that train a small network on the balls, 64 patches each."""
    data = {"datasets_file": balls / "sets.json", "dataset_name": "balls", "dataset_dir": balls, "patch_size": 4}
    return {**data, "depth": 2, **TINY, **TASKS[name]}


@pytest.fixture
def on_balls(balls, name):
    return small_on_balls(balls, name)


@pytest.fixture(scope="module")
def trained(bundle, tiny, phantom_task, tmp_path_factory):
    """The output folder of two epochs of train.yaml on eight phantoms."""
    data, split = phantom_task
    out = tmp_path_factory.mktemp("pretrained")
    options = {"dataset_dir": data, "split_file": split, "epochs": 2, "depth": 3, "output_dir": out, **tiny}
    run(command("run", config_file="configs/train.yaml", **options), bundle)
    return out


def parsed(bundle, *configs, **options):
    return helpers.workflow(bundle, *configs, **options).parser


def scalars(folder):
    """What TensorBoard shows, by name: values in the order of their steps."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_same(first, second, **tolerances):
    torch.testing.assert_close(first, second, **{"rtol": 0, "atol": 0, **tolerances})


@pytest.mark.slow
def test_train_writes_what_a_run_needs(name, trained):
    files = {path.name for path in trained.iterdir()}
    assert {file for file in files if "tfevents" not in file and not file.startswith(".")} == {
        "encoder.safetensors",
        "last.pt",
        "previous.pt",
        "model.pt",
    }
    last = load(trained / "last.pt")
    assert (last["epoch"], last["iteration"]) == (2, 4)
    assert [row["epoch"] for row in last["monitor"]["history"]] == [1, 2]
    prefix = ENCODERS[name]
    trained_encoder = {k.removeprefix(prefix): v for k, v in last["network"].items() if k.startswith(prefix)}
    assert_same(load_file(trained / "encoder.safetensors"), trained_encoder)
    assert_same(load(trained / "model.pt"), trained_encoder)


@pytest.mark.slow
def test_it_goes_on_from_an_encoder_of_another_architecture(bundle, tiny, phantom_task, tmp_path):
    """Without learning, what is written computes what the file's own forward pass does."""
    data, split = phantom_task
    state = primus_state(width=48, patch=(8, 8, 8), registers=2)
    torch.save({"network_weights": state}, tmp_path / "primus.pt")
    options = {"dataset_dir": data, "split_file": split, "output_dir": tmp_path, "pretrained": tmp_path / "primus.pt"}
    options |= {"encoder_options": {"num_heads": 4}, "epochs": 1, "learning_rate": 0, **tiny}
    run_here(bundle, "train", **options)
    encoder = backbone_from(tmp_path / "encoder.safetensors").network
    image = torch.randn(1, 1, 24, 32, 24, generator=torch.Generator().manual_seed(0))
    tokens = forwards.primus(state, image.double(), 4, (3, 4, 3))
    with torch.no_grad():
        assert (encoder.forward_features(image) - tokens).abs().max() <= 1e-5 * tokens.abs().max()


@pytest.mark.slow
def test_what_is_logged(name, trained):
    shown = scalars(trained)
    figures = ["train_loss", "learning_rate", "rankme", "feature_std", "target_variance", "cosine_to_mean"]
    for figure in figures + (["momentum", "weight_decay"] if name == "ijepa_pretraining" else []):
        assert len(shown[figure]) == 2, figure
        assert np.isfinite(shown[figure]).all()
    steps = np.array(shown["step_loss"]).reshape(2, 2)
    np.testing.assert_allclose(shown["train_loss"], steps.mean(1), rtol=1e-5)


@pytest.mark.slow
def test_schedules_reach_the_optimizer(name, trained):
    plain, decayed = load(trained / "last.pt")["optimizer"]["param_groups"]
    cosine = (1 + np.cos(np.pi * 0.75)) / 2  # the last of four steps, no warm-up
    for group in (plain, decayed):
        assert group["lr"] == pytest.approx(5e-7 + (5e-4 - 5e-7) * cosine)
    assert plain["weight_decay"] == 0
    if name == "ijepa_pretraining":
        assert decayed["weight_decay"] == pytest.approx(0.1 + (0.04 - 0.1) * cosine)
    else:
        assert decayed["weight_decay"] == 0.05
        assert tuple(decayed["betas"]) == (0.9, 0.95)


def interrupt(engine):
    raise InterruptedError


@pytest.mark.slow
def test_interrupted_run_continues_exactly(bundle, on_balls, tmp_path):
    options = {"epochs": 2, "accumulation_steps": 2, **on_balls}
    run_here(bundle, "train", "medmnist", output_dir=tmp_path / "whole", **options)
    workflow = helpers.workflow(bundle, "train", "medmnist", output_dir=tmp_path / "parts", **options)
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.EPOCH_STARTED(once=2), interrupt)
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    assert isinstance(caught.value.__cause__, InterruptedError)
    assert [path.name for path in (tmp_path / "parts").glob("[!.]*") if "tfevents" not in path.name] == ["last.pt"]
    assert load(tmp_path / "parts" / "last.pt")["epoch"] == 1
    run_here(bundle, "train", "medmnist", output_dir=tmp_path / "parts", **options)
    whole, parts = (load(tmp_path / folder / "last.pt") for folder in ("whole", "parts"))
    assert whole["epoch"] == 2
    assert_same(parts, whole)
    encoders = [(tmp_path / folder / "encoder.safetensors").read_bytes() for folder in ("whole", "parts")]
    assert encoders[0] == encoders[1]


@pytest.mark.slow
def test_two_processes_train_as_one(bundle, on_balls, tmp_path):
    # nothing at random but order and masks: each process draws its own augmentation
    options = {"epochs": 2, "amp": False, "flip_prob": 0.0, "window": [16, 16, 16], **on_balls}
    three = "['configs/train.yaml','configs/medmnist.yaml','configs/multi_gpu_train.yaml']"
    run(torchrun("run", config_file=three, output_dir=tmp_path / "two", **options), bundle)
    run_here(bundle, "train", "medmnist", output_dir=tmp_path / "one", **{**options, "batch_size": 8})
    one, two = scalars(tmp_path / "one"), scalars(tmp_path / "two")
    assert len(one["train_loss"]) == 2
    for figure in ("train_loss", "learning_rate", "rankme"):
        np.testing.assert_allclose(two[figure], one[figure], atol=1e-5, err_msg=figure)
    first, second = load(tmp_path / "one" / "last.pt"), load(tmp_path / "two" / "last.pt")
    assert first["iteration"] == second["iteration"] == 6  # 24 balls in batches of 8
    assert_same(second["network"], first["network"], atol=1e-4)


@pytest.mark.slow
def test_checkpointing_changes_memory_only(bundle, on_balls, tmp_path):
    for enabled in (False, True):
        options = {"epochs": 1, "amp": False, "limit": 8, "checkpointing": enabled, **on_balls}
        run_here(bundle, "train", "medmnist", output_dir=tmp_path / str(enabled), **options)
    encoders = [load_file(tmp_path / str(enabled) / "encoder.safetensors") for enabled in (False, True)]
    assert_same(encoders[1], encoders[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_export_writes_what_the_run_wrote(bundle, tiny, trained, tmp_path):
    paths = {"encoder_path": tmp_path / "encoder.safetensors", "ckpt_path": tmp_path / "model.pt"}
    run_here(bundle, "train", "export", output_dir=trained, depth=3, **paths, **tiny)
    assert paths["encoder_path"].read_bytes() == (trained / "encoder.safetensors").read_bytes()
    assert_same(load(paths["ckpt_path"]), load(trained / "model.pt"))


def starts_with(network, encoder):
    """A checkpoint's network has the encoder's tensors, and positions of its own."""
    held = {f"backbone.{key}": value for key, value in load_file(encoder).items()}
    assert_same({key: network[key] for key in held}, held)
    assert {key for key in network if key.startswith("backbone.")} - set(held) == {"backbone.pos_embed"}


@pytest.mark.slow
def test_segmentation_starts_from_the_encoder(trained, phantom_task, tmp_path):
    data, split = phantom_task
    options = {"dataset_dir": data, "split_file": split, "epochs": 1, "learning_rate": 0.0, "val_interval": 1}
    small = {"network_def#backbone#embed_dim": 48, "network_def#backbone#depth": 3, "network_def#feature_size": 4}
    encoder = trained / "encoder.safetensors"
    run_here(SEGMENTATION, "train", pretrained=encoder, output_dir=tmp_path, **options, **small)
    starts_with(load(tmp_path / "last.pt")["network"], encoder)
    options = {"dataset_dir": data / "imagesTr", "output_dir": tmp_path / "out"}  # the weights say the rest
    run_here(SEGMENTATION, "inference", ckpt_path=tmp_path / "model.pt", **options)
    assert list((tmp_path / "out").glob("*_seg.nii.gz"))


@pytest.mark.slow
def test_classification_starts_from_the_encoder(trained, balls, tmp_path):
    encoder = trained / "encoder.safetensors"
    options = {**of(balls), **QUICK, "patch_size": 8, "depth": 3, "taps": [2], "learning_rate": 0.0}
    run_here(CLASSIFICATION, "train", pretrained=encoder, output_dir=tmp_path, epochs=1, **options)
    starts_with(load(tmp_path / "last.pt")["network"], encoder)


@pytest.fixture(scope="module")
def constants(tmp_path_factory):
    """Volumes that do not differ, in a folder and one below it."""
    root = tmp_path_factory.mktemp("constants")
    (root / "sub").mkdir()
    for i in range(6):
        volume = nib.Nifti1Image(np.full((16, 16, 8), 7, np.int16), np.diag([1, 1, 2, 1]))
        volume.to_filename(root / ("sub" if i % 2 else "") / f"{i}.nii.gz")
    return root


@pytest.mark.slow
def test_collapse_stops_the_run(bundle, tiny, constants, tmp_path):
    more = {"window": [16, 16, 16], "patch_size": 4, "depth": 2, "patience": 2}
    options = {"dataset_dir": constants, "output_dir": tmp_path, "epochs": 4, **tiny, **more}
    said = failure_here(bundle, "train", "nifti", **options)
    assert "TrainingCollapsed: epoch 2: The features have collapsed: 2 bad reports in a row." in said
    assert load(tmp_path / "last.pt")["epoch"] == 1
    assert not (tmp_path / "encoder.safetensors").exists()


@pytest.mark.slow
def test_folder_of_files_of_thick_slices(bundle, tiny, phantom_task, tmp_path):
    data, _ = phantom_task
    options = {"dataset_dir": data / "imagesTr", "spacing_mm": [1.5, 1.5, 3.0], "window": [24, 32, 8],
               "patch_size": [8, 8, 4], "depth": 1, "epochs": 1, "output_dir": tmp_path, **tiny}  # fmt: skip
    parser = parsed(bundle, "train", "nifti", **options)
    trained_on, watched = ({item["image"] for item in parser.get_parsed_content(f"{part}_data")}
                           for part in ("train", "monitor"))  # fmt: skip
    assert (len(trained_on), len(watched), len(trained_on | watched)) == (10, 2, 12)
    if "patch_mm" in parser:
        assert parser.get_parsed_content("masks").keywords == {"patch_mm": [12.0, 12.0, 12.0]}
    run_here(bundle, "train", "nifti", **options)
    with safe_open(tmp_path / "encoder.safetensors", "pt") as file:
        assert json.loads(file.metadata()["model_args"])["grid_size"] == [3, 4, 2]


@pytest.mark.slow
def test_rotary_positions_are_one_option(bundle, tiny, phantom_task, tmp_path):
    data, _ = phantom_task
    rope = {"ijepa_pretraining": "patch", "mae_pretraining": "mm"}[bundle.name]
    options = {"spacing_mm": [1.5, 1.5, 3.0], "window": [24, 32, 8], "patch_size": [8, 8, 4], "depth": 2, "rope": rope}
    training = {"dataset_dir": data / "imagesTr", "epochs": 1, "output_dir": tmp_path, **options, **tiny}
    run_here(bundle, "train", "nifti", **training)
    with safe_open(tmp_path / "encoder.safetensors", "pt") as file:
        assert json.loads(file.metadata()["model_args"])["rope"]["unit"] == rope
    paths = {"encoder_path": tmp_path / "again.safetensors", "ckpt_path": tmp_path / "again.pt"}
    run_here(bundle, "train", "nifti", "export", **training, **paths)
    assert paths["encoder_path"].read_bytes() == (tmp_path / "encoder.safetensors").read_bytes()
    if bundle.name == "mae_pretraining":
        pytest.importorskip("matplotlib")
        run_here(bundle, "train", "nifti", "export", "reconstruct", **training)
        assert (tmp_path / "reconstruction.png").is_file()
    options = {"spacing_mm": [1.5, 1.5, 3.0], "window": [24, 32, 8], "ckpt_path": tmp_path / "encoder.safetensors"}
    run_here(bundle, "inference", dataset_dir=data / "imagesTr", output_dir=tmp_path / "out", **options)
    rows = [line.split(",") for line in (tmp_path / "out" / "features.csv").read_text().splitlines()]
    parser = parsed(bundle, "inference", **options)
    network, preprocessing = (parser.get_parsed_content(name) for name in ("network", "preprocessing"))
    if rope == "mm":
        set_spacing(network, (1.5, 1.5, 3.0))
    assert len(rows) == 12
    with torch.no_grad():
        expected = network.cpu().eval()(torch.stack([preprocessing({"image": row[0]})["image"] for row in rows]))
    np.testing.assert_allclose(np.array([row[1:] for row in rows], float), expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("size", [28, 64])
def test_official_sets_need_no_other_option(bundle, size):
    more = {} if size == 28 else {"size": size}
    parser = parsed(bundle, "train", "medmnist", **more)
    network = parser.get_parsed_content("network_def").eval()
    masks = parser.get_parsed_content("prepare_batch").draw(1, 2, parser.get_parsed_content("encoder").grid_size)
    with torch.no_grad():
        loss = network(torch.randn(2, 1, *parser.get_parsed_content("window")), masks).loss
    assert torch.isfinite(loss)
    assert parser.get_parsed_content("window") == [20 if size == 28 else 48] * 3  # room to move


@pytest.mark.slow
def test_embedding_and_hidden_blocks_are_one_option_each(bundle, on_balls, tmp_path):
    kinds = {"embed_layer#_target_": "monai_vit3d.layers.ConvStem3D"}
    if bundle.name == "mae_pretraining":
        kinds["masks#_target_"] = "monai_vit3d.pretraining.sample_block_masks"
    run_here(bundle, "train", "medmnist", epochs=1, limit=8, output_dir=tmp_path, **on_balls, **kinds)
    with safe_open(tmp_path / "encoder.safetensors", "pt") as file:
        assert json.loads(file.metadata()["model_args"])["embed_layer"] == "ConvStem3D"


@pytest.mark.slow
def test_masked_autoencoder_draws_its_answers(balls, tmp_path):
    plt, name = pytest.importorskip("matplotlib.pyplot"), "mae_pretraining"
    bundle = BUNDLES / name
    options = {"epochs": 1, "limit": 8, "output_dir": tmp_path, **small_on_balls(balls, name)}
    run_here(bundle, "train", "medmnist", **options)
    run_here(bundle, "train", "medmnist", "export", "reconstruct", **options)
    picture = plt.imread(tmp_path / "reconstruction.png")
    assert picture.shape[:2] == (4 * 4 * 12, 3 * 4 * 12)  # the first batch of the monitor's: 4 balls, 4 pixels a voxel
    views = picture[..., 0].reshape(4, 48, 3, 48).transpose(0, 2, 1, 3)
    assert all(np.abs(views[:, a] - views[:, b]).max() > 0.1 for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_features_of_files(backend, bundle, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    volumes = {"a": rng.normal(100, 20, (32, 48, 32)), "b": rng.normal(100, 20, (36, 52, 40))}
    for key, volume in volumes.items():
        nib.Nifti1Image(volume.astype(np.float32), np.eye(4)).to_filename(tmp_path / "in" / f"{key}.nii.gz")
    options = {"embed_dim": 48, "depth": 3, "num_heads": 3}
    files = {"dataset_dir": tmp_path / "in", "output_dir": tmp_path / "out", "backend": backend}
    found = {}
    for weights in ("encoder.safetensors", "model.pt"):
        run_here(bundle, "inference", ckpt_path=trained / weights, **files, **options)
        found[weights] = (tmp_path / "out" / "features.csv").read_text()
    assert found["model.pt"] == found["encoder.safetensors"]
    backbone = parsed(bundle, "train", window=[32, 48, 32], **options).get_parsed_content("backbone").eval()
    backbone.load_state_dict(load_file(trained / "encoder.safetensors"))
    for line, (key, volume) in zip(found["model.pt"].splitlines(), volumes.items(), strict=True):
        path, *values = line.split(",")
        assert path == str(tmp_path / "in" / f"{key}.nii.gz")
        normal = (volume - volume.mean()) / volume.std()
        low = [(have - want) // 2 for have, want in zip(volume.shape, (32, 48, 32))]
        middle = normal[tuple(slice(n, n + want) for n, want in zip(low, (32, 48, 32)))]
        with torch.no_grad():
            expected = backbone.forward_features(torch.tensor(middle, dtype=torch.float32)[None, None])[0].mean(0)
        np.testing.assert_allclose(np.array(values, float), expected.numpy(), atol=1e-4)


@pytest.mark.slow
def test_verbs(bundle, tmp_path):
    encoder = parsed(bundle, "train").get_parsed_content("encoder")
    save_backbone(encoder, tmp_path / "encoder.safetensors")
    parser = parsed(bundle, "inference", ckpt_path=tmp_path / "encoder.safetensors")
    network = parser.get_parsed_content("network_def").eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    meta = str(bundle / "configs" / "metadata.json")
    config = {"meta_file": meta, "config_file": str(bundle / "configs" / "inference.yaml"), "bundle_root": str(bundle)}
    config["ckpt_path"] = str(tmp_path / "encoder.safetensors")
    monai.bundle.verify_metadata(meta_file=meta, filepath=str(SCHEMA))
    monai.bundle.verify_net_in_out("network_def", **config)
    files = {"ckpt_file": str(tmp_path / "model.pt"), **config}
    monai.bundle.ckpt_export("network_def", filepath=str(tmp_path / "model.ts"), **files)
    monai.bundle.onnx_export("network_def", filepath=str(tmp_path / "model.onnx"), **files)
    volume = torch.randn(1, 1, *parser["window"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(volume)
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(volume), expected, rtol=1e-4, atol=1e-5)
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: volume.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_both_downstream_networks_compute_what_the_encoder_does(bundle, tmp_path):
    """At their real sizes, by one override."""
    encoder = parsed(bundle, "train", window=[32, 48, 32]).get_parsed_content("encoder").eval()
    save_backbone(encoder, tmp_path / "encoder.safetensors")
    options = {"pretrained": tmp_path / "encoder.safetensors"}
    for downstream, which in DOWNSTREAM.items():
        started = parsed(downstream, "train", **options, **which).get_parsed_content("started")
        size = started.backbone.patch_embed.img_size
        encoder.set_input_size(size)
        x = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))
        assert_same(started.backbone.eval().forward_features(x), encoder.forward_features(x))


@pytest.mark.slow
@torch.no_grad()
def test_a_rotary_encoder_makes_the_network_a_rotary_one(bundle, tmp_path):
    encoder = parsed(bundle, "train", window=[32, 48, 32], rope="patch").get_parsed_content("encoder").eval()
    save_backbone(encoder, tmp_path / "encoder.safetensors")
    options = {"pretrained": tmp_path / "encoder.safetensors"}
    for downstream, which in DOWNSTREAM.items():
        backbone = parsed(downstream, "train", **options, **which).get_parsed_content("started").backbone.eval()
        size = backbone.patch_embed.img_size
        encoder.set_input_size(size)
        x = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))
        assert_same(backbone.forward_features(x), encoder.forward_features(x))


def test_split_is_the_segmentation_bundles(bundle):
    split = (bundle / "configs" / "split.json").read_text()
    assert split == (SEGMENTATION / "configs" / "split.json").read_text()


def test_configs_agree_and_have_what_monai_asks_for(bundle):
    train, infer = parsed(bundle, "train"), parsed(bundle, "inference")
    assert train["spacing_mm"] == infer["spacing_mm"]
    options = {"img_size": "@window", "global_pool": "avg", "fc_norm": False}  # the weights say the rest
    assert infer["network_def"] == {"_target_": "monai_vit3d.weights.network_from", "path": "@ckpt_path", **options}
    *before, typed = [*train["loading"], *train["intensity"], train["monitor"]["crop"]][:-1]
    assert infer["preprocessing"]["transforms"] == [
        *before, train["monitor"]["crop"], {k: v for k, v in typed.items() if k != "track_meta"}
    ]  # fmt: skip
    for parser, properties in ((train, TrainProperties), (infer, InferProperties)):
        missing = [key for key, p in properties.items() if p["required"] and p["id"].replace("::", "#") not in parser]
        assert missing == []
    data = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]
    assert data["inputs"]["image"]["spatial_shape"] == infer["window"]
    assert data["outputs"]["pred"]["num_channels"] == train["embed_dim"]


def test_the_two_bundles_differ_in_their_method_only():
    first, second = (BUNDLES / name / "configs" for name in sorted(TASKS))
    for config in ("nifti", "medmnist", "multi_gpu_train", "inference"):
        assert (first / f"{config}.yaml").read_text() == (second / f"{config}.yaml").read_text()
    train, other = (ConfigParser.load_config_file(str(folder / "train.yaml")) for folder in (first, second))
    for section in ("train", "monitor", "loading", "intensity", "backbone", "run", "saving", "initialize"):
        assert train[section] == other[section]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("configs", "change", "message"),
    [
        ("train", {"dataset_dir": "/nowhere"}, "/nowhere: no Decathlon task here (no folder imagesTr). Fetch it"),
        ("train nifti", {"dataset_dir": "/nowhere"}, "/nowhere: no such folder"),
        ("train nifti", {"limit": 1}, "0 training cases make no batch of 16. Give more cases."),
        ("train nifti", {"limit": 2}, "loader of 1 volume(s); expected two or more"),
        ("train nifti", {"window": [32, 44, 32]}, "img_size=(32, 44, 32)"),
        ("train nifti", {"rope": "mm", "train#inferer": PLAIN}, "rotary positions in mm need the voxel spacing"),
        ("train nifti", {"rope": "mm", "intensity#2#track_meta": False}, "by its affine, and no reader gave it"),
        ("train medmnist", {"dataset_name": "ball"}, "'ball': no such data set. MedMNIST has organmnist3d"),
        ("train export", {}, "last.pt: no such file"),
        ("inference", {"ckpt_path": "/nowhere/model.pt"}, "/nowhere/model.pt: no such file"),
    ],
)
def test_what_is_wrong_is_said(configs, change, message, bundle, phantom_task, tmp_path):
    data, _ = phantom_task
    options = {"dataset_dir": data / "imagesTr", "output_dir": tmp_path / "out", "embed_dim": 48, "depth": 1}
    said = failure_here(bundle, *configs.split(), **{**options, **change})
    assert message in said
    assert [path for path in (tmp_path / "out").glob("[!.]*") if "tfevents" not in path.name] == []


@pytest.mark.slow
def test_arrays_of_no_known_spacing_have_no_positions_in_mm(bundle, on_balls, tmp_path):
    options = {"rope": "mm", "epochs": 1, "output_dir": tmp_path, **on_balls}
    assert "by its affine, and no reader gave it" in failure_here(bundle, "train", "medmnist", **options)


@pytest.mark.slow
def test_another_runs_checkpoint_is_refused(bundle, tiny, trained, phantom_task):
    data, split = phantom_task
    options = {"dataset_dir": data, "split_file": split, "depth": 3, "output_dir": trained, **tiny}
    before = (trained / "encoder.safetensors").read_bytes()
    said = failure_here(bundle, "train", epochs=1, **options)
    assert "last.pt: not a checkpoint of this run (it has 2 epochs done, this run is to end after 1)" in said
    assert (trained / "encoder.safetensors").read_bytes() == before
