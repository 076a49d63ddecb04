"""`vit3d init`: what it prints, what it writes, and its one line for each mistake."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from monai_vit3d.cli import main
from tests.hub_cache import use_offline
from tests.planning.toy_data import write_toy


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four cases as nnU-Net has them; not to be changed."""
    return write_toy(tmp_path_factory.mktemp("toy"), "nnunet_v2", cases=4, testing=1)


@pytest.fixture
def copy(data, tmp_path):
    """The same, to be spoilt."""
    return shutil.copytree(data, tmp_path / "data")


def _init(capsys, *words):
    """Exit code, and the lines of standard output and standard error."""
    code = main(["init", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def test_a_dry_run_prints_every_choice_and_writes_nothing(data, tmp_path, capsys):
    code, out, err = _init(capsys, data, "-o", tmp_path / "b", "--dry-run", "--set", "epochs=7", "--memory", "6GB")
    assert (code, err) == (0, [])
    assert out[0] == f"{data}: 4 labelled cases, read as nnunet"
    assert out[1] == "channels: CT, PET  (all that the data have; --channel NAME takes some)"
    assert any(line.split() == ["epochs", "7", "(given)"] for line in out)
    assert any(line.split() == ["memory_gb", "6.0", "(given)"] for line in out)
    assert all(line.endswith(")") for line in out[1:])
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_it_writes_what_was_set(data, tmp_path, capsys):
    words = ("--set", "window=[32,32,16]", "--set", "loss=DiceFocalLoss", "--set", "folds=2")
    code, out, _ = _init(capsys, data, "-o", tmp_path / "b", *words)
    assert code == 0
    assert out[-1] == f"{tmp_path / 'b'}: written. Next: vit3d train {tmp_path / 'b'}"
    metadata = json.loads((tmp_path / "b" / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [32, 32, 16]
    assert "\nloss: DiceFocalLoss\n" in (tmp_path / "b" / "configs" / "train.yaml").read_text()
    split = json.loads((tmp_path / "b" / "configs" / "split.json").read_text())
    assert {case["fold"] for case in split["training"]} == {0, 1}


@pytest.mark.slow
def test_a_channel_may_be_chosen(data, tmp_path, capsys):
    code, out, _ = _init(capsys, data, "-o", tmp_path / "b", "--channel", "PET")
    assert (code, out[1]) == (0, "channels: PET  (given)")
    metadata = json.loads((tmp_path / "b" / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["inputs"]["image"]["channel_def"] == {"0": "PET"}
    (case, *_) = json.loads((tmp_path / "b" / "configs" / "split.json").read_text())["training"]
    assert [path.endswith("_0001.nii.gz") for path in case["image"]] == [True]


def _remove_label(root):
    next((root / "labelsTr").iterdir()).unlink()
    return "no such file; the label map of"


def _add_class(root):
    path = next((root / "labelsTr").iterdir())
    image = nib.load(path)
    labels = np.asarray(image.dataobj).copy()
    labels[0, 0, 0] = 9
    nib.save(nib.Nifti1Image(labels, image.affine), path)
    return "label 9 (1 voxels); 0 (background), 1 (lesion)"


def _shift_label(root):
    path = next((root / "labelsTr").iterdir())
    image = nib.load(path)
    affine = image.affine.copy()
    affine[0, 3] += 5
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)
    return "voxels away from where their image lies"


def _truncate_image(root):
    path = next((root / "imagesTr").iterdir())
    path.write_bytes(path.read_bytes()[:-200])
    return ""


@pytest.mark.parametrize("spoil", [_remove_label, _add_class, _shift_label, _truncate_image])
def test_data_that_cannot_be_trained_on_are_listed_by_file(spoil, copy, tmp_path, capsys):
    text = spoil(copy)
    code, out, err = _init(capsys, copy, "-o", tmp_path / "b")
    assert code == 2
    (problem,) = out[1:]
    assert problem.startswith(f"error    {copy}")
    assert text in problem
    assert err == [f"vit3d: {copy}: 1 error in the data, listed above. Fix it and run again."]
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_a_warning_is_printed_and_the_bundle_written(copy, tmp_path, capsys):
    path = next((copy / "labelsTr").iterdir())
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    code, out, _ = _init(capsys, copy, "-o", tmp_path / "b")
    assert code == 0
    assert out[1].startswith(f"warning  {path}: no voxel of ")
    assert (tmp_path / "b" / "configs" / "train.yaml").is_file()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--set", "epoch=3"), "epoch: no choice of the plan has this name. Did you mean epochs? They are device, "),
        (("--set", "epochs"), "--set epochs: expected ID=VALUE"),
        (("--set", "window=[30,32,16]"), "window=[30, 32, 16]: multiples of patch_size=[8, 8, 4] are expected"),
        (("--set", "folds=9"), "folds=9; 4 subjects are there: expected 2 to 4."),
        (("--memory", "lots"), "--memory lots: expected an amount above 0, such as 8GB."),
        (("--memory", "1MB"), "--memory 0.001GB: the smallest window [16, 16, 8] needs"),
        (("--layout", "dicom"), "--layout 'dicom'"),
        (("--layout", "csv"), ""),
        (("--channel", "T1w"), "--channel T1w: expected names of channels, each once; "),
        (("--pretrained", "none.safetensors"), "none.safetensors: no such file"),
    ],
)
def test_a_mistake_ends_in_one_line(words, line, data, tmp_path, capsys):
    code, _, err = _init(capsys, data, "-o", tmp_path / "b", *words)
    assert code == 2
    assert len(err) == 1
    assert err[0].startswith(f"vit3d: {line}")
    assert not (tmp_path / "b").exists()


def test_the_licence_of_a_published_encoder_is_accepted_by_a_flag(data, tmp_path, capsys, monkeypatch):
    use_offline(monkeypatch, tmp_path / "hub")
    words = (data, "-o", tmp_path / "b", "--pretrained", "spectre_large")
    code, _, err = _init(capsys, *words)
    assert (code, len(err)) == (2, 1)
    assert err[0].endswith("pass --accept-licence if you keep to it.")
    _, _, err = _init(capsys, *words, "--accept-licence")
    assert "is neither in the hub's cache nor could it be fetched" in err[0]


def test_without_a_folder_to_write_to(data, capsys):
    code, _, err = _init(capsys, data)
    assert code == 2
    assert err == ["vit3d: --output: name the folder to write the bundle to, or pass --dry-run."]


def test_a_folder_that_is_not_empty_is_refused_before_the_data_are_read(data, tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    code, out, err = _init(capsys, data, "-o", tmp_path)
    assert (code, out) == (2, [])
    text = "a folder that is not empty; a bundle is written into a new folder. Choose another --output."
    assert err == [f"vit3d: {tmp_path}: {text}"]


@pytest.mark.slow
@pytest.mark.parametrize("cases", [1, 2])
def test_few_cases(cases, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    data = write_toy(tmp_path / "data", "nnunet_v2", cases=cases, testing=0)
    code, _, err = _init(capsys, data, "-o", tmp_path / "b")
    if cases == 1:
        assert code == 2
        assert err == ["vit3d: 1 subject with labels; expected 2 or more: one validates. Add cases."]
    else:
        assert code == 0
        split = json.loads((tmp_path / "b" / "configs" / "split.json").read_text())
        assert sorted(case["fold"] for case in split["training"]) == [0, 1]


@pytest.mark.slow
def test_a_pretrained_encoder_decides_the_network(data, tmp_path, capsys):
    from monai_vit3d.networks import VisionTransformer3D
    from monai_vit3d.weights import save_backbone

    encoder = tmp_path / "encoder.safetensors"
    options = {"embed_dim": 96, "depth": 4, "num_heads": 2, "class_token": False, "global_pool": ""}
    save_backbone(VisionTransformer3D((32, 32, 32), (8, 8, 8), **options), encoder)
    code, out, err = _init(capsys, data, "-o", tmp_path / "b", "--pretrained", encoder)
    assert (code, err) == (0, [])
    choices = dict(line.split(maxsplit=1) for line in out[1:-1])
    for key, value in (("embed_dim", 96), ("depth", 4), ("num_heads", 2), ("embed_layer", "patch")):
        assert choices[key] == f"{value}  (the pretrained encoder's)"
    assert choices["patch_size"].startswith("[8, 8, 8]")
    assert choices["layer_decay"].startswith("0.75 ")
    assert choices["clip_norm"].startswith("1.0 ")
    assert not choices["frozen_epochs"].startswith("0 ")

    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_meta(str(tmp_path / "b" / "configs" / "metadata.json"))
    parser.read_config(str(tmp_path / "b" / "configs" / "train.yaml"))
    network = parser.get_parsed_content("started")
    assert network.backbone.embed_dim == 96


@pytest.mark.slow
def test_an_encoder_of_few_blocks_gets_a_decoder_that_reads_few(data, tmp_path, capsys):
    from monai_vit3d.networks import VisionTransformer3D
    from monai_vit3d.weights import save_backbone

    encoder = tmp_path / "encoder.safetensors"
    options = {"embed_dim": 96, "depth": 2, "num_heads": 2, "class_token": True, "global_pool": ""}
    save_backbone(VisionTransformer3D((32, 32, 32), (8, 8, 8), **options), encoder)
    words = (data, "-o", tmp_path / "b", "--pretrained", encoder)
    code, _, err = _init(capsys, *words, "--set", "decoder=unetr")
    needed = "it reads more than the network's 2 blocks and patch_size=[8, 8, 8] have; expected pyramid."
    assert (code, err) == (2, [f"vit3d: decoder=unetr: {needed}"])
    assert not (tmp_path / "b").exists()
    code, out, err = _init(capsys, *words)
    assert (code, err) == (0, [])
    (line,) = (line for line in out if line.startswith("decoder "))
    assert line.split(maxsplit=1)[1].startswith("pyramid  (the one that reads no more than 2 blocks")
    assert "\ndecoder: pyramid\n" in (tmp_path / "b" / "configs" / "train.yaml").read_text()
