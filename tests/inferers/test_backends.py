"""Engines against PyTorch: the same answers, and PyTorch where they do not apply."""

import copy
import logging

import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.inferers import SlidingWindowInferer
from torch import nn

from monai_vit3d.data.errors import UsageError
from monai_vit3d.inferers import BackendNetwork, backends, resolve_backend, stitch_windows
from monai_vit3d.layers import set_spacing
from tests.inferers.networks import SIZE, classifier, engines, segmenter, shallow_classifier, volumes


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "backend"), [(segmenter, "openvino"), (classifier, "auto"), (shallow_classifier, "compile")]
)
def test_gives_what_pytorch_gives(make, backend):
    net = make()
    fast = BackendNetwork(net, backend)
    for batch, seed in [(2, 1), (2, 2), (1, 3)]:
        x = volumes(batch, seed)
        out = fast(x)
        assert out.dtype is torch.float32
        torch.testing.assert_close(out, net(x), atol=1e-4, rtol=1e-4)
    assert len(engines(fast)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("size", [(64, 72, 80), (60, 50, 45), (1, 96, 96)])
def test_norms_of_many_voxels_keep_their_digits(size, affine):
    torch.manual_seed(0)
    norm = nn.InstanceNorm3d(16, affine=affine)
    for value in norm.parameters():
        nn.init.normal_(value)
    net = nn.Sequential(nn.Conv3d(1, 16, 3, padding=1), norm, nn.LeakyReLU(), nn.Conv3d(16, 2, 1)).eval()
    x = torch.randn(1, 1, *size)
    with torch.no_grad():
        found, exact = BackendNetwork(net, "openvino")(x), copy.deepcopy(net).double()(x.double())
    assert (found - exact).square().mean().sqrt() < 2e-6 * exact.std()


@pytest.mark.slow
def test_norms_of_other_shapes():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
            self.kept = nn.InstanceNorm3d(2, affine=True, track_running_stats=True)

        def forward(self, x):
            return self.kept(self.norm(x.flatten(2)).reshape(x.shape))

    net, x = Flat().eval(), torch.randn(1, 2, 6, 5, 4)
    torch.testing.assert_close(BackendNetwork(net, "openvino")(x), net(x))


@pytest.mark.slow
def test_an_answer_is_not_overwritten_by_the_next():
    fast = BackendNetwork(nn.Conv3d(1, 2, 3).eval(), "openvino")
    first = fast(volumes(seed=1))
    kept = first.clone()
    fast(volumes(seed=2))
    assert torch.equal(first, kept)


@pytest.mark.slow
def test_bfloat16_under_autocast():
    net = segmenter()
    fast = BackendNetwork(net, "openvino")
    expected, x = net(volumes()), volumes()
    full = fast(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = fast(x)
    assert len(engines(fast)) == 2
    error = ((half - expected).square().mean().sqrt() / expected.std()).item()
    assert error < 0.05
    # a processor without bfloat16 computes in float32, to the bit or nearly so
    assert error > 1e-3 or torch.allclose(half, full, atol=1e-4)


@pytest.mark.parametrize("backend", ["auto", "openvino"])
def test_training_and_gradients_stay_with_pytorch(backend):
    net = segmenter()
    fast = BackendNetwork(net, backend)
    with torch.enable_grad():
        fast(volumes()).mean().backward()
    assert net.backbone.patch_embed.proj.weight.grad.abs().sum() > 0
    fast.train()
    fast(volumes())
    assert engines(fast) == []


def test_float64_stays_with_pytorch():
    net = segmenter().double()
    fast = BackendNetwork(net, "openvino")
    assert torch.equal(fast(volumes().double()), net(volumes().double()))
    assert engines(fast) == []


def test_torch_means_torch():
    net = segmenter()
    fast = BackendNetwork(net, "torch")
    assert torch.equal(fast(volumes()), net(volumes()))
    assert engines(fast) == []


@pytest.mark.slow
def test_changed_weights_change_the_answer():
    net = nn.Sequential(nn.Conv3d(1, 4, 3), nn.GELU(), nn.Conv3d(4, 2, 1)).eval()
    fast = BackendNetwork(net, "openvino")
    before = fast(volumes())
    net.load_state_dict({key: value * 1.1 for key, value in net.state_dict().items()})
    after = fast(volumes())
    torch.testing.assert_close(after, net(volumes()), atol=1e-4, rtol=1e-4)
    assert (after - before).abs().max() > 1e-3


@pytest.mark.slow
def test_a_layer_that_was_exchanged_changes_the_answer():
    net = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1)).eval()
    fast = BackendNetwork(net, "openvino")
    fast(volumes())
    net[0] = nn.Conv3d(1, 2, 3, padding=1).eval()
    torch.testing.assert_close(fast(volumes()), net(volumes()), atol=1e-5, rtol=1e-5)
    assert len(engines(fast)) == 1  # the old one is gone


def test_positions_in_mm_follow_each_image():
    net = segmenter(pos_embed="none", rope="mm")
    fast = BackendNetwork(net, "auto")
    answers = []
    for spacing in [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0)]:
        set_spacing(net, spacing)
        answers.append(fast(volumes()))
        assert torch.equal(answers[-1], net(volumes()))
    assert not torch.allclose(*answers, atol=1e-6)  # two blocks that are not trained: little, but it follows
    with pytest.raises(UsageError, match="rotary positions in mm change with the image"):
        BackendNetwork(net, "openvino")


@pytest.mark.slow
def test_the_newest_few_engines_are_kept():
    net = nn.Conv3d(1, 2, 3, padding=1).eval()
    fast = BackendNetwork(net, "openvino")
    for n in range(4, 4 + backends.MAX_ENGINES + 2):
        x = torch.randn(1, 1, n, 4, 4)
        torch.testing.assert_close(fast(x), net(x), atol=1e-5, rtol=1e-5)
    assert [key[0][2] for key in fast._engines] == [6, 7, 8, 9]


@pytest.mark.slow
def test_dropout_that_was_left_on_stays_with_pytorch():
    net = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Dropout(0.5)).eval()
    net[1].train()
    fast = BackendNetwork(net, "openvino")
    assert net[1].training
    assert (fast(volumes()) == 0).float().mean() > 0.3
    net.eval()
    torch.testing.assert_close(fast(volumes()), net(volumes()), atol=1e-5, rtol=1e-5)
    assert len(engines(fast)) == 1


@pytest.mark.slow
def test_networks_made_in_inference_mode():
    with torch.inference_mode():
        net = nn.Conv3d(1, 2, 3, padding=1).eval()
        torch.testing.assert_close(BackendNetwork(net, "openvino")(volumes()), net(volumes()), atol=1e-5, rtol=1e-5)


def test_metadata_go_through():
    net, affine = nn.Conv3d(1, 2, 3, padding=1).eval(), torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    out = BackendNetwork(net, "openvino")(MetaTensor(volumes(), affine=affine))
    assert isinstance(out, MetaTensor)
    assert torch.equal(out.affine, affine.double())


def test_a_batch_is_taken_apart_as_that_of_pytorch():
    net = nn.Conv3d(1, 2, 3, padding=1).eval()
    cases = [MetaTensor(volume, meta={"name": name}) for volume, name in zip(volumes(), "ab")]
    for case, number in zip(cases, (2.0, 3.0)):
        case.affine = torch.diag(torch.tensor([number] * 3 + [1.0]))
    batch = list_data_collate(cases)
    found, expected = (decollate_batch(run(batch)) for run in (BackendNetwork(net, "openvino"), net))
    assert [item.meta["name"] for item in found] == ["a", "b"]
    for item, other in zip(found, expected):
        torch.testing.assert_close(item.as_tensor(), other.as_tensor(), atol=1e-5, rtol=1e-5)
        assert torch.equal(item.affine, other.affine)
        assert item.is_batch == other.is_batch


@pytest.mark.slow
def test_air_does_not_choose_the_engine():
    """Of a constant image, a norm leaves rounding alone, in which engines differ."""
    fast = BackendNetwork(nn.Sequential(nn.Conv3d(1, 8, 3), nn.InstanceNorm3d(8)).eval(), "openvino")
    fast(torch.full((1, 1, *SIZE), -0.8))
    assert len(engines(fast)) == 1


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_to(tmp_path, caplog):
    (tmp_path / "file").touch()
    net = nn.Conv3d(1, 2, 3, padding=1).eval()
    fast = BackendNetwork(net, "openvino", tmp_path / "file" / "cache")
    torch.testing.assert_close(fast(volumes()), net(volumes()), atol=1e-5, rtol=1e-5)
    assert "no exported model can be kept there" in caplog.text


class Branching(nn.Module):
    """What no export can follow: its way depends on the voxels."""

    def forward(self, x):
        return x * 2 if bool((x.sum() > 0).item()) else x * 3


class Dropping(nn.Module):
    """Exports without a word; OpenVINO knows no dropout."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


@pytest.mark.slow
@pytest.mark.parametrize(("net", "reason"), [(Branching(), "data-dependent"), (Dropping(), "differs from PyTorch's")])
def test_what_an_engine_cannot_run(net, reason, caplog):
    x = volumes().abs()
    with caplog.at_level(logging.WARNING):
        out = BackendNetwork(net.eval(), "auto")(x)
    assert out.shape == x.shape
    assert "openvino cannot run this network" in caplog.text
    assert reason in caplog.text
    with pytest.raises(UsageError, match=r"backend='openvino' cannot run this network.*Use 'torch'"):
        BackendNetwork(net.eval(), "openvino")(x)


def test_unknown_backend():
    with pytest.raises(UsageError, match="backend='tensorrt'; expected one of 'torch', 'auto', 'compile', 'openvino'"):
        BackendNetwork(segmenter(), "tensorrt")
    assert resolve_backend("compile") == "compile"
    assert resolve_backend("auto") == "openvino"


@pytest.mark.slow
def test_windows_of_a_volume():
    net, image = segmenter(), torch.randn(1, 1, 24, 20, 30)
    inferer = SlidingWindowInferer(SIZE, sw_batch_size=3, overlap=0.5, mode="gaussian")
    expected = inferer(image, net)
    fast = BackendNetwork(net, "openvino")
    torch.testing.assert_close(inferer(image, fast), expected, atol=1e-4, rtol=1e-4)
    labels = stitch_windows(image, fast, inferer, lambda x: x.argmax(1, keepdim=True))
    sure = expected.topk(2, dim=1).values.diff(dim=1).abs() > 1e-3
    assert torch.equal(labels[sure], expected.argmax(1, keepdim=True)[sure])
    assert sure.float().mean() > 0.99
