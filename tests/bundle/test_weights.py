"""A bundle's weights: inside the bundle, found by reference, compared, and hashed as they were read."""

import hashlib
import shutil

import pytest
import torch
from monai.networks.nets import UNet

from monai_vit3d.bundle.config import Choice
from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.data import medmnist3d_info, nifti_files
from monai_vit3d.data.confinement import reading_only_below
from monai_vit3d.data.errors import BundleError, WeightsError
from monai_vit3d.weights import load_weights
from tests.helpers import BUNDLES
from tests.pipeline.fold_bundle import segmenter, write_fold_bundle
from tests.pipeline.tiny import reconfigure

LOADING = "network: $monai_vit3d.weights.load_weights(@network_def, @ckpt_path)\n"


OUTSIDE = ["'/elsewhere/model.pt'", "@bundle_root + '/../model.pt'", "@bundle_root + '/models/../../model.pt'"]


@pytest.mark.parametrize("path", [*OUTSIDE, "@bundle_root + '/models/link.pt'"])
def test_weights_outside_the_bundle_are_not_opened(bundle, path):
    shutil.copy(bundle / "models" / "model.pt", bundle.parent / "model.pt")
    (bundle / "models" / "link.pt").symlink_to(bundle.parent / "model.pt")
    reconfigure(bundle, more=f"network: $monai_vit3d.weights.load_weights(@network_def, {path})\n")
    with pytest.raises(BundleError, match=r"outside the bundle .* safe=True a bundle reads its own files only"):
        load_bundle(bundle, "cpu", safe=True)


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_checkpoint_outside_the_bundle(bundle, path):
    reconfigure(bundle, ("$@bundle_root + '/models/model.pt'", f"${path}"))
    with pytest.raises(BundleError, match="outside the bundle"):
        load_bundle(bundle, "cpu", safe=True)


def test_other_functions_that_take_paths(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "info.json").write_text("{}")
    torch.save({}, tmp_path / "a.pt")
    with reading_only_below(tmp_path / "in"):
        for call in (
            lambda: nifti_files(tmp_path),
            lambda: nifti_files(tmp_path / "in" / ".."),
            lambda: medmnist3d_info("a", tmp_path / "info.json"),
            lambda: load_weights(torch.nn.Identity(), tmp_path / "a.pt"),
        ):
            with pytest.raises(BundleError, match="outside the bundle"):
                call()
    load_weights(torch.nn.Identity(), tmp_path / "a.pt")


def test_a_network_that_loaded_the_file_itself_is_left_alone(bundle):
    reconfigure(bundle, more=LOADING)
    network = load_bundle(bundle, "cpu", safe=True).network
    assert network.weight.flatten().tolist() == [0.0, 100.0, 200.0]


@pytest.mark.parametrize(
    "more",
    [
        "ckpt_path_old: b\nnetwork: $@network_def if len(@ckpt_path_old) else 0\n",
        "network: $dict(x='ckpt_path', n=@network_def)['n']\n",
    ],
)
def test_a_text_is_no_reference(bundle, more):
    reconfigure(bundle, more=more)
    network = load_bundle(bundle, "cpu", safe=True).network
    assert network.weight.flatten().tolist() == [0.0, 100.0, 200.0]


def test_a_reference_in_another_entry_counts(bundle):
    loaded = "loaded: $monai_vit3d.weights.load_weights(@network_def, @ckpt_path)\nnetwork: $@loaded.to(@device)\n"
    reconfigure(bundle, more=loaded)
    assert load_bundle(bundle, "cpu", safe=True).network.weight.flatten().tolist() == [0.0, 100.0, 200.0]


def test_other_weights_than_the_files_are_refused(bundle):
    other = {key: value + 1 for key, value in torch.load(bundle / "models" / "model.pt").items()}
    torch.save(other, bundle / "models" / "other.pt")
    path = "@bundle_root + '/models/other.pt'"
    reconfigure(bundle, more=f"network: $[monai_vit3d.weights.load_weights(@network_def, {path}), @ckpt_path][0]\n")
    with pytest.raises(WeightsError, match=r"holds other weights \(weight differs\)"):
        load_bundle(bundle, "cpu", safe=True)


@pytest.mark.parametrize("folds", [[0], [0, 1]])
def test_each_file_is_read_once(tmp_path, monkeypatch, folds):
    root, paths, load = write_fold_bundle(tmp_path / "folds", folds), [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: paths.append(path.name) or load(path, **options))
    loaded = load_bundle(root, "cpu", safe=True)
    assert paths == [f"fold_{fold}.pt" for fold in folds]
    members = loaded.network.members if len(folds) > 1 else [loaded.network]
    for fold, member in zip(folds, members):
        state = segmenter(fold).state_dict()
        assert all(torch.equal(value, state[key]) for key, value in member.state_dict().items())


def test_a_network_in_place_of_a_bundles_own_gets_its_weights(tmp_path):
    root = write_fold_bundle(tmp_path / "folds", [0, 1])
    peers = [UNet(3, 2, 3, channels=(4, 8), strides=(2,)) for _ in range(2)]
    for fold, peer in enumerate(peers):
        torch.save(peer.state_dict(), root / "models" / f"fold_{fold}.pt")
    network_def = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 2, "out_channels": 3}
    network_def |= {"channels": [4, 8], "strides": [2]}
    ensemble = load_bundle(root, "cpu", True, Choice(overrides={"network_def": network_def})).network
    for member, peer in zip(ensemble.members, peers, strict=True):
        assert all(torch.equal(value, peer.state_dict()[key]) for key, value in member.state_dict().items())


@pytest.mark.parametrize("victim", ["models/model.pt", "configs/inference.yaml", "configs/extra.txt"])
def test_files_that_change_while_they_are_loaded_are_refused(bundle, victim):
    (bundle / "configs" / "extra.txt").write_text("a")
    code = f"open(@bundle_root + '/{victim}', 'ab').write(b'#')"
    reconfigure(bundle, more=f"network: $[@network_def, {code}][0]\n")
    with pytest.raises((BundleError, WeightsError), match=r"changed while|not a readable"):
        load_bundle(bundle, "cpu")


@pytest.mark.slow
def test_files_of_other_networks_are_hashed_too(tmp_path):
    """The localizer's, so that a run is not resumed with another one."""
    root = shutil.copytree(BUNDLES / "head_hippocampus", tmp_path / "bundle")
    weights = load_bundle(root, "cpu", safe=True).weights
    assert [file.path.name for file in weights.files] == ["hippocampus.pt"]
    assert [file.path.name for file in weights.others] == ["localizer.pt"]
    listed = "\n".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in
                       (root / "models" / "hippocampus.pt", root / "models" / "localizer.pt"))  # fmt: skip
    assert weights.sha256 == hashlib.sha256(listed.encode()).hexdigest()
    state = torch.load(root / "models" / "localizer.pt", weights_only=True)
    state["backbone.norm.bias"] += 1
    torch.save(state, root / "models" / "localizer.pt")
    other = load_bundle(root, "cpu", safe=True).weights
    assert (other.files[0].sha256, other.sha256 == weights.sha256) == (weights.files[0].sha256, False)
    with pytest.raises(WeightsError, match=r"localizer\.pt: changed while it was being loaded"):
        weights.check_unchanged()
