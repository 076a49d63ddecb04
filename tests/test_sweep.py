"""Every preset, every decoder and head in every form that users run: as eager gives.

Presets differ by numbers alone, so a preset meets one form and one decoder; decoders and heads meet every form.
"""

import copy
import itertools
import shutil

import onnxruntime
import pytest
import torch
from monai.networks.utils import convert_to_torchscript
from torch.export import Dim

from monai_vit3d.data.task_names import TASKS
from monai_vit3d.decoders import DECODERS
from monai_vit3d.inferers import BackendNetwork
from monai_vit3d.layers import set_spacing
from monai_vit3d.networks import HEADS, PRESETS, TokenClassifier, TokenSegmenter, create_preset
from tests.helpers import pairwise, side_by_side

SIZE, PATCH, CLASSES = (16, 8, 8), (8, 4, 2), 3
BATCH = ({0: Dim("batch")},)  # of any size, in the forms that can say so
SMALLEST = next(iter(PRESETS))
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    shutil.rmtree(tmp_path)  # pytest keeps folders: the files of the large presets would be gigabytes


def volumes(batch, seed):
    return torch.randn(batch, 1, *SIZE, generator=torch.Generator().manual_seed(seed))


def segmenter_of(preset, decoder):
    """A segmenter as wide as its preset, only as deep as its decoder needs, and what it says of two volumes."""
    torch.manual_seed(0)
    backbone = create_preset(preset, SIZE, PATCH, depth=max(2, DECODERS[decoder].num_maps(PATCH)))
    return with_answer(TokenSegmenter(backbone, decoder, CLASSES, feature_size=4).eval())


def classifier_of(preset):
    """A backbone with its own head, as wide as its preset, of two blocks, and its logits of two volumes."""
    torch.manual_seed(0)
    return with_answer(create_preset(preset, SIZE, PATCH, depth=2, num_classes=CLASSES).eval())


def token_classifier_of(preset, head, task):
    """A classifier as wide as its preset, of two blocks that its head reads both, and its logits of two volumes."""
    torch.manual_seed(0)
    backbone = create_preset(preset, SIZE, PATCH, depth=2)
    net = TokenClassifier(backbone, head, CLASSES, task, out_indices=(0, 1)).eval()
    net.scale_logits(20)  # a new head says little: its logits are made large enough to differ
    return with_answer(net)


def rotary_of(positions):
    """A classifier with rotary positions alone, and its logits of two volumes."""
    torch.manual_seed(0)
    options = {"depth": 2, "num_classes": CLASSES, "pos_embed": "none", "patch_drop_rate": 0.5}
    net = create_preset(SMALLEST, SIZE, PATCH, rope=positions, **options).eval()
    for block in net.blocks:
        block.attn.qkv.weight.data.mul_(8)  # a new network looks at all patches alike, wherever they are
    net.head.weight.data.mul_(5)
    if positions == "mm":
        set_spacing(net, (0.7, 0.7, 5.0))
    return with_answer(net)


def foreground_of(decoder):
    """A segmenter whose background gets no token, and what it says of two volumes that hold some."""
    net, image, _ = segmenter_of(SMALLEST, decoder)
    image[0, :, : PATCH[0]] = image[1, :, :, :, PATCH[2] :] = 0.3
    net.set_tokens("foreground")
    return net, image, net(image)


def with_answer(net):
    return net, volumes(2, seed=1), net(volumes(2, seed=1))


def aot_eager(net, example, folder):
    torch._dynamo.reset()
    return torch.compile(net, backend="aot_eager", fullgraph=True)


def exported(net, example, folder):
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=BATCH), folder / "net.pt2")
    return torch.export.load(folder / "net.pt2").module()


def scripted(net, example, folder):
    # as MONAI's ckpt_export does it: torch.jit.script, and a comparison of its own
    torch.jit.save(convert_to_torchscript(net, verify=True, inputs=[example], rtol=1e-4, atol=1e-4), folder / "net.ts")
    return torch.jit.load(folder / "net.ts")


def traced(net, example, folder):
    return torch.jit.trace(net, example)


def onnx(net, example, folder):
    program = torch.onnx.export(net, (example,), dynamo=True, verbose=False, dynamic_shapes=BATCH)
    program.save(folder / "net.onnx")
    session = onnxruntime.InferenceSession(folder / "net.onnx", providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def symbolic(net, example, folder):
    return torch.fx.symbolic_trace(net)


def openvino(net, example, folder):
    pytest.importorskip("openvino")
    return BackendNetwork(net, "openvino")  # by name: it may not leave the network to PyTorch


FORMS = [openvino, onnx, exported, aot_eager, scripted, traced]  # a preset's turn comes the later, the larger it is


def quick(*rows):
    """Rows of a test, all but those of the smallest preset slow."""
    return [pytest.param(*row, marks=[] if row[0] == SMALLEST else pytest.mark.slow) for row in rows]


def check(form, net, image, expected, folder):
    """Exported with one example, run on other volumes: nothing of the example may be baked in."""
    out = form(net, volumes(3, seed=2), folder)(image)
    assert out.dtype is torch.float32
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("preset", "decoder"), quick(*side_by_side(PRESETS, DECODERS)))
def test_dense_map(preset, decoder):
    net, image, expected = segmenter_of(preset, decoder)
    assert expected.shape == (2, CLASSES, *SIZE)
    assert expected.isfinite().all()
    assert expected.std() > 0.05
    # a volume's map does not depend on its neighbours in the batch
    torch.testing.assert_close(net(image[1:]), expected[1:], atol=1e-4, rtol=1e-4)
    # bf16 keeps 8 bits; the root mean square error of a few layers stays within some of their last places
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(image)
    whole = copy.deepcopy(net).bfloat16()(image.bfloat16())
    assert whole.dtype is torch.bfloat16
    for out in (mixed, whole):
        error = (out.float() - expected).square().mean().sqrt() / expected.std()
        assert 0 < error < 0.05


@pytest.mark.parametrize(("preset", "head"), quick(*side_by_side(PRESETS, HEADS)))
def test_logits(preset, head):
    net, image, expected = token_classifier_of(preset, head, "multi-class")
    assert expected.shape == (2, CLASSES)
    assert (expected[0] - expected[1]).abs().max() > 0.05
    torch.testing.assert_close(net(image[1:]), expected[1:], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("decoder", "form"), itertools.product(DECODERS, FORMS))
def test_decoder_in_every_form(decoder, form, folder):
    check(form, *segmenter_of(SMALLEST, decoder), folder)


@pytest.mark.parametrize("decoder", DECODERS)
def test_decoders_get_zeros_where_background_has_no_token(decoder):
    net, image, expected = foreground_of(decoder)
    keys = torch.ones(2, 1, 2, 2, 4, dtype=torch.bool)
    keys[0, :, 0] = keys[1, :, :, :, 1:] = False
    mask = torch.cat([torch.ones(2, 1, dtype=torch.bool), keys.flatten(1)], 1)[:, None, None]
    net.set_tokens("all")
    options = {"output_fmt": "NCHWD", "attn_mask": mask}
    maps = net.backbone.forward_intermediates(image, net.out_indices, intermediates_only=True, **options)
    final = net.backbone.forward_features(image, mask)[:, 1:].transpose(1, 2).unflatten(2, (2, 2, 4))
    by_hand = net.decoder(image, [torch.where(keys, grid, 0) for grid in (*maps, final)])
    torch.testing.assert_close(expected, by_hand, atol=1e-4, rtol=1e-4)
    assert (net(image) - expected).abs().max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("form", "decoder"), side_by_side(FORMS, DECODERS))
def test_tokens_of_foreground_in_every_form(form, decoder, folder):
    check(form, *foreground_of(decoder), folder)


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "form"), side_by_side(PRESETS, [*FORMS, symbolic]))
def test_preset_and_every_form(preset, form, folder):
    check(form, *classifier_of(preset), folder)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "head", "form"), pairwise(TASKS, HEADS, [*FORMS, symbolic]))
def test_head_in_every_form(task, head, form, folder):
    net, image, expected = token_classifier_of(SMALLEST, head, task)
    assert expected.shape == (2, CLASSES - (task == "ordinal"))
    check(form, net, image, expected, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("positions", "form"),
    itertools.product(["patch", "mm"], [exported, onnx]),  # tests/networks/test_vit3d_rotary.py has the other forms
)
def test_rotary_classifier_in_files(positions, form, folder):
    check(form, *rotary_of(positions), folder)


@pytest.mark.slow
def test_inductor():
    torch.manual_seed(0)
    torch._dynamo.reset()
    backbone = create_preset("vit3d_tiny", (16, 8, 8), (4, 4, 2), depth=2)  # few stages: few kernels to compile
    net, image = TokenSegmenter(backbone, "unetr", CLASSES, feature_size=4).eval(), torch.randn(2, 1, 16, 8, 8)
    torch.testing.assert_close(torch.compile(net, fullgraph=True)(image), net(image), atol=1e-4, rtol=1e-4)
