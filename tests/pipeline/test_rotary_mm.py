"""A bundle with rotary positions in mm: files of the same voxels and other spacings, from end to end."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import run as run_bundle
from monai.inferers import SlidingWindowInferer

from monai_vit3d.layers import set_spacing
from monai_vit3d.networks import TokenSegmenter, VisionTransformer3D
from tests.bundles.helpers import command, run
from tests.helpers import run_python
from tests.pipeline import tiny

SHAPE, WINDOW, PATCH = (24, 16, 12), (16, 16, 8), (8, 8, 4)  # along R, A, S
SPACINGS = {"thin": (1.0, 1.0, 1.0), "thick": (0.7, 0.9, 5.0)}
WIDTHS = {"embed_dim": 24, "depth": 3, "num_heads": 2}
SPACED = "inferer: {_target_: monai_vit3d.inferers.SpacingInferer, inferer: '@windows'}"
CONFIG = """
bundle_root: .
dataset_dir: $@bundle_root + '/images'
output_dir: $@bundle_root + '/eval'
network_def:
  _target_: monai_vit3d.networks.TokenSegmenter
  backbone:
    _target_: monai_vit3d.networks.VisionTransformer3D
    img_size: [16, 16, 8]
    patch_size: [8, 8, 4]
    embed_dim: 24
    depth: 3
    num_heads: 2
    class_token: true
    pos_embed: none
    rope: mm
  decoder: unetr
  num_classes: 3
  feature_size: 4
preprocessing:
  _target_: Compose
  transforms:
    - {_target_: LoadImaged, keys: image, ensure_channel_first: true}
    - {_target_: Orientationd, keys: image, axcodes: RAS, labels: null}
    - {_target_: EnsureTyped, keys: image}
dataset:
  _target_: Dataset
  data: "$[{'image': f} for f in monai_vit3d.data.nifti_files(@dataset_dir)]"
  transform: '@preprocessing'
dataloader: {_target_: DataLoader, dataset: '@dataset'}
windows: {_target_: SlidingWindowInferer, roi_size: [16, 16, 8], sw_batch_size: 2, overlap: 0.5, mode: gaussian}
INFERER
postprocessing:
  _target_: Compose
  transforms:
    - {_target_: AsDiscreted, keys: pred, argmax: true}
    - {_target_: Invertd, keys: pred, transform: '@preprocessing', orig_keys: image, nearest_interp: true}
    - {_target_: SaveImaged, keys: pred, output_dir: '@output_dir', output_postfix: seg, separate_folder: false,
       resample: false, output_dtype: $torch.uint8}
evaluator:
  _target_: SupervisedEvaluator
  device: $torch.device('cpu')
  val_data_loader: '@dataloader'
  network: '@network_def'
  inferer: '@inferer'
  postprocessing: '@postprocessing'
loader:
  _target_: CheckpointLoader
  load_path: $@bundle_root + '/models/model.pt'
  load_dict: {model: '@network_def'}
initialize: ['$@loader(@evaluator)']
run: ['$@evaluator.run()']
imports: [$import torch, $import monai_vit3d]
"""


@pytest.fixture(scope="module")
def network():
    """The config's network, its weights so large that attention and classes differ from place to place."""
    backbone = VisionTransformer3D(WINDOW, PATCH, **WIDTHS, class_token=True, pos_embed="none", rope="mm")
    net = TokenSegmenter(backbone, "unetr", 3, feature_size=4).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in net.backbone.parameters():
            p.normal_(0, 1, generator=generator)
        for p in net.decoder.parameters():
            p.normal_(0, 0.3, generator=generator)
    return net


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """By name: the same voxels along R, A, S; in the file the axes are S, L, A."""
    folder = tmp_path_factory.mktemp("rotary") / "images"
    folder.mkdir()
    voxels = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    turn = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("RAS", "SLA")))
    for name, spacing in SPACINGS.items():
        image = nib.Nifti1Image(voxels, nib.affines.from_matvec(np.diag(spacing), [-30, 7, 12]))
        image.as_reoriented(turn).to_filename(folder / f"{name}.nii.gz")
    return folder


def written(root, network, spaced):
    """The bundle's folder; ``spaced`` says whether its config thinks of the spacing itself."""
    tiny.write_bundle(root)
    config = CONFIG.replace("INFERER", SPACED if spaced else "inferer: '@windows'")
    (root / "configs" / "inference.yaml").write_text(config)
    torch.save(network.state_dict(), root / "models" / "model.pt")
    return root


@pytest.fixture(scope="module", params=["spaced", "bare"])
def bundle(request, tmp_path_factory, network):
    return written(tmp_path_factory.mktemp("rotary") / "bundle", network, request.param == "spaced")


def canonical(path):
    """Voxels along R, A, S."""
    return np.ascontiguousarray(nib.as_closest_canonical(nib.load(path)).dataobj)


@torch.no_grad()
def logits_by_hand(network, path, spacing):
    """The spacing said, and MONAI's windows: (C, H, W, D) along R, A, S."""
    set_spacing(network, spacing)
    voxels = torch.from_numpy(canonical(path))
    inferer = SlidingWindowInferer(WINDOW, sw_batch_size=2, overlap=0.5, mode="gaussian")
    return inferer(voxels[None, None], network)[0]


@pytest.fixture(scope="module")
def expected(network, images):
    """Logits of each file by name."""
    return {name: logits_by_hand(network, images / f"{name}.nii.gz", mm) for name, mm in SPACINGS.items()}


def test_the_network_tells_the_spacings_apart(expected):
    thin, thick = (expected[name].argmax(0) for name in SPACINGS)
    assert 0.03 < (thin != thick).float().mean() < 0.95
    for labels in (thin, thick):
        assert (labels.flatten().bincount(minlength=3) > 0.05 * labels.numel()).sum() >= 2


@pytest.mark.slow
@pytest.mark.parametrize("order", [("thin", "thick"), ("thick", "thin")])
def test_labels_and_probabilities_are_those_of_each_files_own_spacing(bundle, images, expected, order, tmp_path):
    paths = [images / f"{name}.nii.gz" for name in order]
    assert tiny.predict(*paths, to=tmp_path, bundle=bundle, options=["--probabilities"]) == 0  # with --safe
    for name, logits in expected.items():
        labels = nib.load(tmp_path / f"{name}_seg.nii.gz")
        np.testing.assert_array_equal(labels.affine, nib.load(images / f"{name}.nii.gz").affine)
        np.testing.assert_array_equal(canonical(tmp_path / f"{name}_seg.nii.gz"), logits.argmax(0).numpy())
        shares = canonical(tmp_path / f"{name}_prob.nii.gz")
        np.testing.assert_allclose(np.moveaxis(shares, -1, 0), logits.softmax(0).numpy(), atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_flips_have_the_spacing_too(bundle, images, network, expected, tmp_path):
    assert tiny.predict(images, to=tmp_path, bundle=bundle, options=["--tta-axes", "0,2"]) == 0
    inferer = SlidingWindowInferer(WINDOW, sw_batch_size=2, overlap=0.5, mode="gaussian")
    flips = ((), (2,), (4,), (2, 4))
    for name, spacing in SPACINGS.items():
        set_spacing(network, spacing)
        voxels = torch.from_numpy(canonical(images / f"{name}.nii.gz"))[None, None]
        logits = inferer(voxels, lambda x: sum(network(x.flip(dims)).flip(dims) for dims in flips))[0]
        labels = canonical(tmp_path / f"{name}_seg.nii.gz")
        np.testing.assert_array_equal(labels, logits.argmax(0).numpy())
        assert (labels != expected[name].argmax(0).numpy()).any()


def check_saved(folder, images, expected):
    """What MONAI's SaveImaged wrote."""
    for name, logits in expected.items():
        saved = nib.load(folder / f"{name}_seg.nii.gz")
        np.testing.assert_allclose(saved.affine, nib.load(images / f"{name}.nii.gz").affine, atol=1e-5)
        np.testing.assert_array_equal(canonical(folder / f"{name}_seg.nii.gz"), logits.argmax(0).numpy())


def test_monais_own_run_writes_the_same(network, images, expected, tmp_path):
    root = written(tmp_path / "bundle", network, spaced=True)
    options = {"bundle_root": str(root), "dataset_dir": str(images), "output_dir": str(tmp_path / "out")}
    run_bundle(config_file=str(root / "configs" / "inference.yaml"), logging_file=False, **options)
    check_saved(tmp_path / "out", images, expected)


@pytest.mark.slow
def test_both_commands_write_the_same(network, images, expected, tmp_path):
    root = written(tmp_path / "bundle", network, spaced=True)
    options = {"config_file": "configs/inference.yaml", "dataset_dir": images, "output_dir": tmp_path / "monai"}
    run(command("run", **options), root)
    check_saved(tmp_path / "monai", images, expected)
    words = tiny.arguments(images, to=tmp_path / "ours", bundle=root)
    code, _, said = run_python("-m", "monai_vit3d.cli", *words)
    assert code == 0, said
    check_saved(tmp_path / "ours", images, expected)
