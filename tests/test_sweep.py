"""Presets, decoders, heads and the forms that users run, each with each other one: as eager gives."""

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
from tests.helpers import pairwise

SIZE, PATCH, CLASSES = (32, 16, 16), (16, 8, 4), 3
BATCH = ({0: Dim("batch")},)  # of any size, in the forms that can say so
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


def networks(*axes):
    """Parameters of a fixture, all but the smallest preset's slow."""
    rows = []
    for row in itertools.product(*axes):
        marks = () if row[0] == "vit3d_tiny" else pytest.mark.slow
        rows.append(pytest.param(row if len(row) > 1 else row[0], id="-".join(row), marks=marks))
    return rows


@pytest.fixture(scope="module", params=networks(PRESETS, DECODERS))
def segmenter(request):
    """A segmenter as wide as its preset, only as deep as its decoder needs, and what it says of two volumes."""
    preset, decoder = request.param
    torch.manual_seed(0)
    backbone = create_preset(preset, SIZE, PATCH, depth=max(2, DECODERS[decoder].num_maps(PATCH)))
    net = TokenSegmenter(backbone, decoder, CLASSES, feature_size=4).eval()
    with torch.no_grad():
        return net, volumes(2, seed=1), net(volumes(2, seed=1))


@pytest.fixture(scope="module", params=networks(PRESETS))
def classifier(request):
    torch.manual_seed(0)
    net = create_preset(request.param, SIZE, PATCH, depth=2, num_classes=CLASSES).eval()
    with torch.no_grad():
        return net, volumes(2, seed=1), net(volumes(2, seed=1))


def token_classifier_of(preset, head, task):
    """A classifier as wide as its preset, of two blocks that its head reads both, and its logits of two volumes."""
    torch.manual_seed(0)
    backbone = create_preset(preset, SIZE, PATCH, depth=2)
    net = TokenClassifier(backbone, head, CLASSES, task, out_indices=(0, 1)).eval()
    net.scale_logits(20)  # a new head says little: its logits are made large enough to differ
    with torch.no_grad():
        return net, volumes(2, seed=1), net(volumes(2, seed=1))


@pytest.fixture(scope="module", params=networks(PRESETS, HEADS))
def token_classifier(request):
    preset, head = request.param
    return token_classifier_of(preset, head, "multi-class")


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


FORMS = [aot_eager, exported, scripted, traced, openvino, onnx]
QUICK_FORMS = (scripted, traced, symbolic)


def sweep(fixture, networks, forms):
    """Parametrize a test by a network and a form; ``networks`` are axes of which all pairs are taken, forms too."""
    rows = []
    for *network, form in pairwise(*networks, forms):
        marks = () if network[0] in ("vit3d_tiny", "mm") and form in QUICK_FORMS else pytest.mark.slow
        value = tuple(network) if len(network) > 1 else network[0]
        rows.append(pytest.param(value, form, marks=marks, id="-".join([*network, form.__name__])))
    return pytest.mark.parametrize((fixture, "form"), rows, indirect=[fixture])


def check(form, net, image, expected, folder):
    """Exported with one example, run on other volumes: nothing of the example may be baked in."""
    out = form(net, volumes(3, seed=2), folder)(image)
    assert out.dtype is torch.float32
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def test_dense_map(segmenter):
    net, image, expected = segmenter
    assert expected.shape == (2, CLASSES, *SIZE)
    assert expected.isfinite().all()
    assert expected.std() > 0.05
    # a volume's map does not depend on its neighbours in the batch
    torch.testing.assert_close(net(image[1:]), expected[1:], atol=1e-4, rtol=1e-4)


@sweep("segmenter", [PRESETS, DECODERS], FORMS)
def test_segmenter_in_every_form(segmenter, form, folder):
    check(form, *segmenter, folder)


@sweep("classifier", [PRESETS], [*FORMS, symbolic])
def test_classifier_in_every_form(classifier, form, folder):
    check(form, *classifier, folder)


@sweep("token_classifier", [PRESETS, HEADS], [*FORMS, symbolic])
def test_token_classifier_in_every_form(token_classifier, form, folder):
    check(form, *token_classifier, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "head", "form"),
    pairwise([task for task in TASKS if task != "multi-class"], HEADS, [exported, scripted, onnx]),
)
def test_token_classifier_of_every_task(task, head, form, folder):
    net, image, expected = token_classifier_of("vit3d_tiny", head, task)
    assert expected.shape == (2, CLASSES - (task == "ordinal"))
    check(form, net, image, expected, folder)


@pytest.fixture(scope="module", params=["patch", "mm"])
def rotary(request):
    """A classifier with rotary positions alone, and its logits of two volumes."""
    torch.manual_seed(0)
    options = {"depth": 2, "num_classes": CLASSES, "pos_embed": "none", "patch_drop_rate": 0.5}
    net = create_preset("vit3d_tiny", SIZE, PATCH, rope=request.param, **options).eval()
    for block in net.blocks:
        block.attn.qkv.weight.data.mul_(8)  # a new network looks at all patches alike, wherever they are
    net.head.weight.data.mul_(5)
    if request.param == "mm":
        set_spacing(net, (0.7, 0.7, 5.0))
    with torch.no_grad():
        return net, volumes(2, seed=1), net(volumes(2, seed=1))


@sweep("rotary", [["patch", "mm"]], [form for form in (*FORMS, symbolic) if form is not openvino])
def test_rotary_classifier_in_every_form(rotary, form, folder):
    check(form, *rotary, folder)


def test_logits(token_classifier):
    net, image, expected = token_classifier
    assert expected.shape == (2, CLASSES)
    assert (expected[0] - expected[1]).abs().max() > 0.05
    torch.testing.assert_close(net(image[1:]), expected[1:], atol=1e-4, rtol=1e-4)


def test_bfloat16_and_autocast_stay_near(segmenter):
    net, image, expected = segmenter
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(image)
    whole = copy.deepcopy(net).bfloat16()(image.bfloat16())
    assert whole.dtype is torch.bfloat16
    for out in (mixed, whole):
        # bf16 keeps 8 bits; the root mean square error of a few layers stays within some of their last places
        error = (out.float() - expected).square().mean().sqrt() / expected.std()
        assert 0 < error < 0.05


@pytest.mark.slow
def test_inductor():
    torch.manual_seed(0)
    torch._dynamo.reset()
    backbone = create_preset("vit3d_tiny", (16, 8, 8), (4, 4, 2), depth=2)  # few stages: few kernels to compile
    net, image = TokenSegmenter(backbone, "unetr", CLASSES, feature_size=4).eval(), torch.randn(2, 1, 16, 8, 8)
    torch.testing.assert_close(torch.compile(net, fullgraph=True)(image), net(image), atol=1e-4, rtol=1e-4)
