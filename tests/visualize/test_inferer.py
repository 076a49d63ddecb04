"""ExplainInferer in MONAI's engine: a NIfTI file in, a map on the file's own grid out."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from monai_vit3d.visualize import ExplainInferer, attention_maps, grad_cam, occlusion_map
from monai_vit3d.visualize.inferer import EXPLAIN_METHODS
from tests.visualize.nets import SIZE, classifier, looking_at_bright_patches, vit, volume

CONFIG = {
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 2.0], "mode": "bilinear"},
        ],
    },
    "dataset": {
        "_target_": "Dataset",
        "data": "$[{'image': f} for f in @files]",
        "transform": "@preprocessing",
    },
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
    "inferer": {"_target_": "monai_vit3d.visualize.ExplainInferer", "method": "rollout"},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "image",
                "nearest_interp": False,
            },
            {
                "_target_": "SaveImaged",
                "keys": "pred",
                "output_dir": "@out",
                "output_postfix": "map",
                "resample": False,
                "separate_folder": False,
                "print_log": False,
            },
        ],
    },
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "$torch.device('cpu')",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
    },
}


def flipped_and_turned():
    """An affine whose first voxel axis runs to the left, the second downwards and the third forwards, all askew."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[-1.3, 0.1, 0.0], [0.1, 0.0, 1.1], [0.0, -1.6, 0.1]])
    affine[:3, 3] = [20, -11, 40]
    return affine


@pytest.mark.slow
@pytest.mark.parametrize("method", EXPLAIN_METHODS)
def test_maps_land_on_the_files_own_grid(method, tmp_path):
    data, bright = np.zeros((16, 20, 18), np.float32), (11, 4, 13)
    data[tuple(slice(b - 2, b + 3) for b in bright)] = 8
    nib.Nifti1Image(data, flipped_and_turned()).to_filename(tmp_path / "scan.nii.gz")
    parser = ConfigParser({**CONFIG, "imports": ["$import torch"], "out": str(tmp_path / "out")})
    parser["files"] = [str(tmp_path / "scan.nii.gz")]
    parser["inferer"]["method"] = method
    parser["network"] = net = looking_at_bright_patches(
        (24, 21, 16), (3, 3, 2), dynamic_img_size=True, dynamic_img_pad=True, global_pool="map"
    )
    net.attn_pool.q.bias.data[0] = 10
    net.attn_pool.kv.weight.data[0, 0] = 10
    net.norm.weight.data.fill_(1)
    for layer in (*(b.attn for b in net.blocks), net.attn_pool):  # the class follows the brightness looked at
        values = layer.qkv.weight.data[16:] if hasattr(layer, "qkv") else layer.kv.weight.data[8:]
        values[0, 0] = 1
        layer.proj.weight.data[0, 0] = 1
    net.head.weight.data[1, 0] = 1
    parser.get_parsed_content("evaluator").run()
    (found,) = (tmp_path / "out").rglob("*.nii.gz")
    assert found.name == "scan_map.nii.gz"
    found = nib.load(found)
    assert found.shape == data.shape
    assert found.get_data_dtype() == np.float32
    np.testing.assert_allclose(found.affine, flipped_and_turned(), atol=1e-5)
    peak = np.unravel_index(np.abs(found.get_fdata()).argmax(), data.shape)
    assert np.abs(np.subtract(peak, bright)).max() <= 3, peak


def test_methods_are_the_functions():
    net, x = classifier(), MetaTensor(volume(2, 1, *SIZE))
    maps = attention_maps(net, x)
    theirs = [*maps, grad_cam(net, x), occlusion_map(net, x)]
    for method, found in zip(EXPLAIN_METHODS, theirs):
        assert torch.equal(ExplainInferer(method)(x, net), found)
    options = {"class_idx": 1, "layer": "backbone.blocks.0"}
    assert torch.equal(ExplainInferer("grad_cam", **options)(x, net), grad_cam(net, x, **options))
    assert torch.equal(ExplainInferer("occlusion", class_idx=1, mode=0)(x, net), occlusion_map(net, x, 1, mode=0))


def test_refusals():
    with pytest.raises(
        ValueError, match="method='lime'; expected one of 'rollout', 'last_block', 'head', 'grad_cam', 'occlusion'"
    ):
        ExplainInferer("lime")
    with pytest.raises(ValueError, match="method='rollout': got an unexpected keyword argument 'class_idx'"):
        ExplainInferer("rollout", class_idx=1)
    with pytest.raises(ValueError, match="method='head': the network has no attentive head"):
        ExplainInferer("head")(volume(1, 1, *SIZE), vit())
    with pytest.raises(TypeError, match="function; expected a TokenClassifier"):
        ExplainInferer()(volume(1, 1, *SIZE), lambda x: x)
