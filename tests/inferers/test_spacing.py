"""Spacings from affines: angles of millimetres by nibabel, in trainers, evaluators, windows; no affine, no answer."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, list_data_collate
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.transforms import (
    Compose,
    LoadImaged,
    Orientation,
    Orientationd,
    RandFlip,
    RandRotate,
    RandRotate90,
    RandZoomd,
    Spacingd,
    SpatialCrop,
    SpatialPad,
)
from torch import nn

from monai_vit3d.data.errors import UsageError
from monai_vit3d.inferers import (
    AutocastInferer,
    FlipEnsemble,
    SpacingInferer,
    spacing_of,
    stitch_windows,
    unwrap_inferer,
    with_spacing,
)
from monai_vit3d.layers import set_spacing
from monai_vit3d.networks import VisionTransformer3D

PATCH, GRID = (4, 4, 2), (2, 3, 2)
SIZE = tuple(p * g for p, g in zip(PATCH, GRID))
THIN, THICK = (1.0, 1.0, 1.0), (0.7, 0.7, 5.0)
TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "class_token": False, "global_pool": "avg"}


class Seen(nn.Module):
    """A network with positions in mm that keeps the angles of its calls; it answers with a map."""

    def __init__(self, rope="mm"):
        super().__init__()
        torch.manual_seed(0)
        self.net = VisionTransformer3D(SIZE, PATCH, **TINY, rope=rope)
        self.tables = []
        if self.net.rope is not None:
            self.net.rope.register_forward_hook(lambda module, args, table: self.tables.append(table.detach()))

    def forward(self, x):
        return x + self.net(x).mean(1)[:, None, None, None, None]


def volume(spacing, size=SIZE, turn=(0.0, 0.0, 0.0), **meta):
    """``(1, H, W, D)`` noise, its grid turned in the scanner by three angles."""
    affine = nib.affines.from_matvec(nib.eulerangles.euler2mat(*turn) @ np.diag(spacing), [-30, 7, 12])
    meta = {"original_affine": affine, **meta}
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(sum(size)))
    return MetaTensor(x, affine=torch.as_tensor(affine), meta=meta)


def batch(*spacings, **options):
    return list_data_collate([{"image": volume(s, **options)} for s in spacings])["image"]


def angles_by_world(affine, unit_mm=16.0, head_dim=12, size=PATCH):
    """Angles ``(N, pairs)`` from nothing but where patch centres lie in the scanner.

    Places are mm along the grid's own axes, from the middle of the grid.
    """
    corner = np.stack(np.meshgrid(*map(np.arange, GRID), indexing="ij"), -1).reshape(-1, 3)
    centres = nib.affines.apply_affine(affine, (corner + 0.5) * np.array(size) - 0.5)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    mm = (centres - centres.mean(0)) @ np.linalg.inv(directions).T
    ladder = 100.0 ** (-np.arange(2) / 2)  # 6 pairs, two an axis
    assert head_dim == 12
    return np.concatenate([mm[:, axis : axis + 1] / unit_mm * ladder for axis in range(3)], 1)


def assert_angles(table, affine):
    """A table ``(1, N, 2 * 12)`` is that of the affine."""
    sines, cosines = np.split(table[0].double().numpy(), 2, axis=1)
    angles = angles_by_world(np.asarray(affine)).repeat(2, 1)
    np.testing.assert_allclose(sines, np.sin(angles), atol=2e-7)
    np.testing.assert_allclose(cosines, np.cos(angles), atol=2e-7)


@pytest.mark.parametrize("turn", [(0, 0, 0), (0.3, -0.2, 1.1)])
def test_the_same_anatomy_at_two_spacings_has_the_angles_of_its_millimetres(turn):
    net = Seen()
    for spacing in (THIN, THICK):
        SpacingInferer()(batch(spacing, turn=turn), net)
        assert_angles(net.tables[-1][0], volume(spacing, turn=turn).affine)
    assert (net.tables[0] - net.tables[1]).abs().max() > 0.1


@torch.no_grad()
def test_as_if_told_by_hand_and_then_forgotten():
    net, image = Seen().eval(), batch(THICK)
    out = SpacingInferer()(image, net)
    with pytest.raises(ValueError, match="none was set"):
        net(image)
    set_spacing(net, THICK)
    assert torch.equal(net(image.as_tensor()), out.as_tensor())
    set_spacing(net, (9, 8, 7))
    SpacingInferer()(image, net)
    assert net.net.rope.spacing_mm.tolist() == [[9, 8, 7]]


@torch.no_grad()
def test_samples_of_one_batch_keep_their_spacings():
    net, both = Seen().eval(), batch(THIN, THICK)
    out = AutocastInferer(SpacingInferer(), enabled=False)(both, net)
    for i, spacing in enumerate((THIN, THICK)):
        assert_angles(net.tables[0][i], volume(spacing).affine)
        alone = SpacingInferer()(batch(spacing), net)
        torch.testing.assert_close(out[i : i + 1].as_tensor(), alone.as_tensor(), rtol=0, atol=1e-6)


def test_backward_comes_after_the_call():
    grads = []
    for spacing_known in (False, True):
        net = Seen().double()
        net.net.set_grad_checkpointing()
        if spacing_known:
            set_spacing(net, THICK)
            out = net(batch(THICK).double())
        else:
            out = SpacingInferer()(batch(THICK).double(), net)
        out.square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


@torch.no_grad()
@pytest.mark.parametrize("around", [SpacingInferer, lambda x: AutocastInferer(SpacingInferer(x), enabled=False)])
def test_windows_have_the_spacing_of_their_volume(around):
    net, large = Seen().eval(), (2 * SIZE[0], *SIZE[1:])
    inferer = around(SlidingWindowInferer(SIZE, 3, 0.5, "gaussian"))
    for spacing in (THIN, THICK):
        image = volume(spacing, large)[None]
        net.tables.clear()
        out = inferer(image, net)
        assert len(net.tables) == 1
        for table in net.tables:
            assert_angles(table[0], volume(spacing).affine)
        assert torch.equal(stitch_windows(image, net, inferer, lambda x: x), out.as_tensor())
        net.tables.clear()
        inferer(image, FlipEnsemble(net, (0,)))
        assert len(net.tables) == 2
        assert_angles(net.tables[1][0], volume(spacing).affine)
    with pytest.raises(UsageError, match="plain tensor"):
        stitch_windows(image.as_tensor(), net, inferer, lambda x: x)
    assert net.net.rope.spacing_mm is None


@torch.no_grad()
def test_windows_of_a_batch_need_one_spacing():
    net, inferer = Seen().eval(), SpacingInferer(SlidingWindowInferer(SIZE, 2))
    with pytest.raises(UsageError, match="several spacings in a SlidingWindowInferer"):
        inferer(batch(THIN, THICK), net)
    with pytest.raises(UsageError, match="several spacings in a SlidingWindowInferer"):
        SpacingInferer(AutocastInferer(inferer))(batch(THIN, THICK), net)
    # one spacing, its axes turned: as many rows as the network's batches have is not asked for
    turned = list_data_collate(
        [{"image": volume(THICK, turn=turn)} for turn in [(0, 0, 0), (0.3, -0.2, 1.1), (1, 0, 0)]]
    )
    inferer(turned["image"], net)
    assert len(net.tables[-1]) == 1


@pytest.fixture
def files(tmp_path):
    """Two files of the same noise, thin and thick, their axes not RAS."""
    paths = []
    for i, spacing in enumerate((THIN, THICK)):
        voxels = np.random.default_rng(i).normal(size=(SIZE[1], SIZE[0], SIZE[2])).astype(np.float32)
        affine = nib.affines.from_matvec(np.diag(spacing)[:, [1, 0, 2]] * [1, -1, 1], [3, 4, 5])
        paths.append(tmp_path / f"{i}.nii.gz")
        nib.Nifti1Image(voxels, affine).to_filename(paths[-1])
    return paths


def loader(files, batch_size, *more):
    steps = [LoadImaged("image", ensure_channel_first=True), Orientationd("image", "RAS", labels=None), *more]
    data = [{"image": str(path), "label": torch.zeros(1, *SIZE)} for path in files]
    return DataLoader(Dataset(data, Compose(steps)), batch_size=batch_size)


@pytest.mark.parametrize("size", [1, 2])
def test_a_trainer_and_an_evaluator(files, size):
    net = Seen()
    trainer = SupervisedTrainer(
        torch.device("cpu"), 1, loader(files, size), net, torch.optim.SGD(net.parameters(), 0.1), nn.MSELoss(),
        inferer=SpacingInferer(),
    )  # fmt: skip
    before = [p.detach().clone() for p in net.parameters()]
    trainer.run()
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters()))
    evaluator = SupervisedEvaluator(torch.device("cpu"), loader(files, size), net, inferer=SpacingInferer())
    evaluator.run()
    tables = torch.cat(net.tables)
    assert len(tables) == 4
    for table, spacing in zip(tables, (THIN, THICK) * 2):
        assert_angles(table, np.diag([*spacing, 1]))


def test_transforms_before_it_count(files):
    net = Seen()
    for image in loader(files, 1, Spacingd("image", (2.0, 2.0, 3.0))):
        volume = image["image"][..., : SIZE[0], : SIZE[1], : SIZE[2]]
        np.testing.assert_allclose(spacing_of(volume), [[2, 2, 3]], rtol=1e-9)
    for image in loader(files[:1], 1, RandZoomd("image", prob=1, min_zoom=2, max_zoom=2, keep_size=True)):
        np.testing.assert_allclose(spacing_of(image["image"]), [[0.5, 0.5, 0.5]], rtol=0.1)
        SpacingInferer()(image["image"], net)


def made_up(count=1):
    return list_data_collate([{"image": MetaTensor(torch.zeros(1, *SIZE))} for _ in range(count)])["image"]


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (torch.zeros(1, 1, *SIZE), "a plain tensor, which has no affine"),
        (volume(THIN), r"volumes \(B, C, H, W, D\)"),
        (made_up(), "1 mm by its affine, and no reader gave it"),
        (made_up(2), "1 mm by its affine, and no reader gave it"),
        (torch.stack([volume(THIN), volume(THICK)]), r"1 affine\(s\) for 2 volumes"),
        (torch.cat([batch(THIN), batch(THICK)]), r"1 affine\(s\) for 2 volumes"),
        (batch((1, 0, 1)), "three lengths above 0"),
        (batch((1, float("nan"), 1)), "three lengths above 0"),
    ],
)
def test_no_affine_is_no_guess(image, match):
    net = Seen()
    set_spacing(net, THICK)
    for inferer in (SpacingInferer(), AutocastInferer(SpacingInferer(SlidingWindowInferer(SIZE, 2)))):
        with pytest.raises(UsageError, match=match):
            inferer(image, net)
    assert not net.tables
    assert net.net.rope.spacing_mm.tolist() == [list(THICK)]


def test_one_sample_without_an_affine_is_no_guess():
    known = volume(THICK, original_affine=torch.eye(4))
    image = list_data_collate([{"image": known}, {"image": MetaTensor(torch.zeros(1, *SIZE))}])["image"]
    with pytest.raises(UsageError, match="1 mm by its affine, and no reader"):
        spacing_of(image)


@pytest.mark.parametrize(
    "change",
    [
        RandFlip(1.0, 1),
        RandRotate90(1.0, spatial_axes=(0, 2)),
        RandRotate((1, 1), (0.5, 0.5), prob=1.0),
        SpatialPad([30, 30, 30]),
        SpatialCrop(roi_start=(2, 0, 1), roi_end=(6, 8, 3)),
        Orientation("LPS", labels=None),
    ],
)
def test_what_crops_and_flips_make_of_an_unknown_affine_is_no_guess(change):
    for known in (False, True):
        x = MetaTensor(torch.zeros(1, *SIZE), meta={"original_affine": np.eye(4)} if known else {})
        image = list_data_collate([{"image": change(x)}])["image"]
        assert (image.affine != torch.eye(4)).any()
        if known:
            assert spacing_of(image).tolist() == [[1, 1, 1]]
            continue
        with pytest.raises(UsageError, match="1 mm by its affine, and no reader gave it"):
            spacing_of(image)


def test_another_affine_than_mm_1_needs_no_reader():
    image = MetaTensor(torch.zeros(1, 1, *SIZE), affine=torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0])))
    assert spacing_of(image).tolist() == [[1, 1, 2]]


def test_an_identity_that_a_reader_gave_is_one():
    image = MetaTensor(torch.zeros(1, 1, *SIZE), affine=torch.eye(4), meta={"original_affine": torch.eye(4)})
    assert spacing_of(image).tolist() == [[1, 1, 1]]


@torch.no_grad()
@pytest.mark.parametrize("rope", [None, "patch"])
def test_networks_without_millimetres_run_as_they_are(rope):
    net, image = Seen(rope).eval(), torch.zeros(2, 1, *SIZE)
    assert torch.equal(SpacingInferer()(image, net), net(image))


def test_all_backbones_in_a_network_are_told_and_get_back_what_they_had():
    both, image = nn.ModuleList([Seen(), Seen()]), batch(THICK)
    set_spacing(both[1], THIN)
    with with_spacing(both, image):
        assert [net.net.rope.spacing_mm.tolist() for net in both] == [[list(THICK)]] * 2
    assert both[0].net.rope.spacing_mm is None
    assert both[1].net.rope.spacing_mm.tolist() == [list(THIN)]


def test_nearly_1_mm_is_a_spacing_that_somebody_gave():
    image = MetaTensor(torch.zeros(1, 1, *SIZE), affine=torch.diag(torch.tensor([0.999, 1, 1, 1], dtype=torch.float64)))
    assert spacing_of(image).tolist() == [[0.999, 1, 1]]
    both = batch(THIN, (1.0, 1.001, 1.0))
    assert spacing_of(both).tolist() == [[1, 1, 1], [1, 1.001, 1]]
    assert spacing_of(batch((1.0, 1.001, 1.0), THIN))[1].tolist() == [1, 1, 1]


@pytest.mark.parametrize("known", [0, 1])
def test_one_of_two_samples_of_an_unknown_affine_is_enough(known):
    items = [{"image": MetaTensor(torch.zeros(1, *SIZE), affine=torch.diag(torch.tensor([*THICK, 1.0])))}]
    items.insert(1 - known, {"image": MetaTensor(torch.zeros(1, *SIZE))})
    with pytest.raises(UsageError, match="1 mm by its affine, and no reader"):
        spacing_of(list_data_collate(items)["image"])


def test_what_is_no_network():
    with pytest.raises(UsageError, match=r"network: a function; expected an nn\.Module"):
        SpacingInferer()(batch(THIN), lambda x: x)


def test_what_it_wraps():
    inner = SlidingWindowInferer(SIZE)
    assert unwrap_inferer(AutocastInferer(SpacingInferer(AutocastInferer(inner)))) is inner
    assert type(unwrap_inferer(SpacingInferer())) is SimpleInferer
    mine = type("Mine", (SpacingInferer,), {})(inner)
    assert unwrap_inferer(SpacingInferer(mine)) is mine
    net = Seen()
    with with_spacing(net, batch(THIN)):
        assert net.net.rope.spacing_mm.tolist() == [[1, 1, 1]]
    assert net.net.rope.spacing_mm is None
