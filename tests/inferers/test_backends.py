"""Engines against PyTorch: the same answers, PyTorch where they do not apply, and a cache that is never stale."""

import logging
import subprocess
import sys

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from torch import nn

from monai_vit3d.data.errors import UsageError
from monai_vit3d.inferers import BackendNetwork, backends, resolve_backend, stitch_windows
from monai_vit3d.inferers.openvino import OpenVINOEngine, fingerprint
from monai_vit3d.layers import set_spacing
from monai_vit3d.networks import TokenClassifier, TokenSegmenter, VisionTransformer3D

SIZE = (16, 16, 16)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def backbone(**options):
    torch.manual_seed(0)
    return VisionTransformer3D(SIZE, 4, embed_dim=48, depth=3, num_heads=4, **options)


def segmenter(**options):
    return TokenSegmenter(backbone(**options), "unetr", 3, feature_size=4).eval()


def classifier():
    return TokenClassifier(backbone(), "attentive", 3, taps=(0, 2)).eval()


def volumes(batch=2, seed=1):
    return torch.randn(batch, 1, *SIZE, generator=torch.Generator().manual_seed(seed))


def engines(network):
    return [type(engine).__name__ for engine in network._engines.values() if engine is not None]


@pytest.mark.parametrize("make", [segmenter, classifier])
@pytest.mark.parametrize("backend", ["openvino", "auto", pytest.param("compile", marks=pytest.mark.slow)])
def test_gives_what_pytorch_gives(make, backend):
    net = make()
    fast = BackendNetwork(net, backend)
    for batch, seed in [(2, 1), (2, 2), (1, 3)]:
        x = volumes(batch, seed)
        out = fast(x)
        assert out.dtype is torch.float32
        torch.testing.assert_close(out, net(x), atol=1e-4, rtol=1e-4)
    assert len(engines(fast)) == 2


def test_an_answer_is_not_overwritten_by_the_next():
    fast = BackendNetwork(segmenter(), "openvino")
    first = fast(volumes(seed=1))
    kept = first.clone()
    fast(volumes(seed=2))
    assert torch.equal(first, kept)


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


def test_changed_weights_change_the_answer():
    net = segmenter()
    fast = BackendNetwork(net, "openvino")
    before = fast(volumes())
    net.load_state_dict({key: value * 1.1 for key, value in net.state_dict().items()})
    after = fast(volumes())
    torch.testing.assert_close(after, net(volumes()), atol=1e-4, rtol=1e-4)
    assert (after - before).abs().max() > 1e-3


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
    assert not torch.allclose(*answers, atol=1e-4)
    with pytest.raises(UsageError, match="rotary positions in mm change with the image"):
        BackendNetwork(net, "openvino")


def test_the_newest_few_engines_are_kept():
    net = nn.Conv3d(1, 2, 3, padding=1).eval()
    fast = BackendNetwork(net, "openvino")
    for n in range(4, 4 + backends.MAX_ENGINES + 2):
        x = torch.randn(1, 1, n, 4, 4)
        torch.testing.assert_close(fast(x), net(x), atol=1e-5, rtol=1e-5)
    assert [key[0][2] for key in fast._engines] == [6, 7, 8, 9]


def test_dropout_that_was_left_on_stays_with_pytorch():
    net = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Dropout(0.5)).eval()
    net[1].train()
    fast = BackendNetwork(net, "openvino")
    assert net[1].training
    assert (fast(volumes()) == 0).float().mean() > 0.3
    net.eval()
    torch.testing.assert_close(fast(volumes()), net(volumes()), atol=1e-5, rtol=1e-5)
    assert len(engines(fast)) == 1


def test_networks_made_in_inference_mode():
    with torch.inference_mode():
        net = nn.Conv3d(1, 2, 3, padding=1).eval()
        torch.testing.assert_close(BackendNetwork(net, "openvino")(volumes()), net(volumes()), atol=1e-5, rtol=1e-5)


def test_metadata_go_through():
    net, affine = nn.Conv3d(1, 2, 3, padding=1).eval(), torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    out = BackendNetwork(net, "openvino")(MetaTensor(volumes(), affine=affine))
    assert isinstance(out, MetaTensor)
    assert torch.equal(out.affine, affine.double())


def test_air_does_not_choose_the_engine():
    """Of a constant image, a norm leaves rounding alone, in which engines differ."""
    fast = BackendNetwork(nn.Sequential(nn.Conv3d(1, 8, 3), nn.InstanceNorm3d(8)).eval(), "openvino")
    fast(torch.full((1, 1, *SIZE), -0.8))
    assert len(engines(fast)) == 1


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
    with pytest.raises(UsageError, match="backend='tensorrt'; one of 'torch', 'auto', 'compile', 'openvino' is needed"):
        BackendNetwork(segmenter(), "tensorrt")
    assert resolve_backend("compile") == "compile"
    assert resolve_backend("auto") == "openvino"


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


def test_the_cache_gives_the_same_answer(tmp_path):
    net, x = segmenter(), volumes()
    first = BackendNetwork(net, "openvino", tmp_path)(x)
    (place,) = tmp_path.iterdir()
    assert place.name == fingerprint(net, x.shape)
    written = (place / "model.bin").stat().st_mtime_ns
    assert torch.equal(BackendNetwork(net, "openvino", tmp_path)(x), first)
    BackendNetwork(net, "openvino", tmp_path)(volumes(batch=1))  # another batch needs no other file
    assert [p.name for p in tmp_path.iterdir()] == [place.name]
    assert (place / "model.bin").stat().st_mtime_ns == written


@pytest.mark.parametrize("name", ["model.bin", "model.xml", "sha256"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_cache_is_made_anew(tmp_path, name, damage):
    net, x = nn.Conv3d(1, 2, 3, padding=1).eval(), volumes()
    expected = OpenVINOEngine(net, x.shape, torch.float32, tmp_path)(x)
    (place,) = tmp_path.iterdir()
    content = bytearray((place / name).read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        (place / name).unlink()
    else:
        (place / name).write_bytes(content if damage == "flip" else content[: len(content) // 2])
    assert torch.equal(OpenVINOEngine(net, x.shape, torch.float32, tmp_path)(x), expected)
    assert torch.equal(OpenVINOEngine(net, x.shape, torch.float32, tmp_path)(x), expected)
    assert [p.name for p in tmp_path.iterdir()] == [place.name]


def test_fingerprint_knows_what_the_answer_depends_on():
    def prints(net, shape=(1, 1, *SIZE)):
        return fingerprint(net, shape)

    same = prints(classifier())
    assert len(same) == 64
    assert prints(classifier()) == same
    assert prints(classifier(), (7, 1, *SIZE)) == same
    others = [prints(classifier(), (1, 1, 16, 16, 20)), prints(segmenter())]
    # weights, and settings that neither weights nor a print of the network show
    changed = classifier()
    next(changed.parameters()).view(-1)[0] += 1e-6
    others.append(prints(changed))
    changed = classifier()
    changed.taps = (1, 2)
    others.append(prints(changed))
    changed = classifier()
    changed.backbone.blocks[1].attn.scale *= 2
    others.append(prints(changed))
    changed = classifier()
    changed.backbone.blocks[1].mlp.act = nn.ReLU()
    others.append(prints(changed))
    assert len({same, *others}) == len(others) + 1


def test_fingerprint_is_the_same_in_another_process():
    code = (
        "import torch; from torch import nn; from monai_vit3d.inferers.openvino import fingerprint\n"
        "torch.manual_seed(0)\n"
        "print(fingerprint(nn.Sequential(nn.Conv3d(1, 2, 3), nn.GELU('tanh')), (1, 1, 8, 8, 8)))"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in "ab"
    }
    torch.manual_seed(0)
    assert runs == {fingerprint(nn.Sequential(nn.Conv3d(1, 2, 3), nn.GELU("tanh")), (1, 1, 8, 8, 8)) + "\n"}


def test_what_cannot_be_told_apart_is_not_kept(tmp_path):
    net = nn.Conv3d(1, 2, 3, padding=1).eval()
    net.scale = volumes().sum
    assert fingerprint(net, (1, 1, *SIZE)) is None  # two objects' methods have one name
    net.scale = lambda: 2
    assert fingerprint(net, (1, 1, *SIZE)) is None
    torch.testing.assert_close(BackendNetwork(net, "openvino", tmp_path)(volumes()), net(volumes()))
    assert list(tmp_path.iterdir()) == []
