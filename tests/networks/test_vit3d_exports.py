"""A graph exported at one size must be right at all: no size of the example may be decided while tracing."""

import itertools

import onnxruntime
import pytest
import torch
from torch.export import Dim

from monai_vit3d.layers import set_spacing
from monai_vit3d.networks import TokenClassifier, TokenSegmenter, VisionTransformer3D

# the first is img_size, on whose grid the positions are; the next three have as many tokens
SIZES = [(16, 16, 8), (8, 16, 16), (16, 8, 16), (32, 8, 8), (20, 24, 12), (8, 8, 8), (8, 16, 32), (24, 8, 20)]
SIZES += [(12, 28, 8), (28, 12, 8)]
SMALLER = [(16, 16, 8), (8, 16, 8), (16, 8, 8), (12, 12, 6), (13, 10, 7), (9, 15, 5)]  # what fits into the first
PADDED = [(13, 10, 7), (9, 22, 11)]  # no multiples of the patch
pytestmark = pytest.mark.filterwarnings("ignore")  # of exporters, about themselves


def backbone(dynamic_img_size=True, **options):
    sizes = {"dynamic_img_size": dynamic_img_size, **options}
    return VisionTransformer3D(SIZES[0], 4, embed_dim=24, depth=2, num_heads=2, **sizes)


NETS = {
    "learned": backbone,
    "sincos": lambda: backbone(pos_embed="sincos"),
    "pad": lambda: backbone(dynamic_img_pad=True),
    "corner": lambda: backbone(dynamic_img_pad=True, dynamic_img_size=False),
    "patch": lambda: backbone(rope="patch", pos_embed="none"),
    "box": lambda: backbone(rope="box"),
    "mm": lambda: backbone(rope="mm"),
    "foreground": lambda: backbone(tokens="foreground", num_classes=3),
    "unetr": lambda: TokenSegmenter(backbone(), "unetr", 3, feature_size=2),
    "unetr, pad": lambda: TokenSegmenter(backbone(dynamic_img_pad=True), "unetr", 3, feature_size=2),
    "light": lambda: TokenSegmenter(backbone(), "light", 3, feature_size=2),
    "light, foreground": lambda: TokenSegmenter(backbone(tokens=0.5), "light", 3, feature_size=2),
    "dpt": lambda: TokenSegmenter(backbone(), "dpt", 3, feature_size=2),
    "pyramid": lambda: TokenSegmenter(backbone(), "pyramid", 3, feature_size=2),
    "attentive": lambda: TokenClassifier(backbone(), "attentive", 3),
}


# they resample and crop what the others do
ALIKE_IN_A_TRACE = {"sincos", "patch", "box", "unetr", "attentive"}


def network(name):
    torch.manual_seed(0)
    net = NETS[name]().eval()
    if name == "mm":
        set_spacing(net, (0.7, 0.7, 5.0))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def volume(size):
    x = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1))
    x[0, :, : size[0] // 2] = 0  # background
    return x


def exported(net, name, folder):
    # of a padded segmenter no tracer can prove that cropping back is possible, except for whole patches
    most = dict(zip("hwd", SIZES[0])) if name == "corner" else dict.fromkeys("hwd", 64)
    pads = name in ("pad", "corner")
    sides = [Dim(axis, min=5, max=most[axis]) if pads else 4 * Dim(axis, min=2, max=16) for axis in "hwd"]
    program = torch.export.export(net, (volume(SIZES[0]),), dynamic_shapes=(dict(enumerate(sides, 2)),))
    return program.module()


def onnx_by_trace(net, name, folder):
    axes = {"volume": {0: "batch", 2: "h", 3: "w", 4: "d"}}
    example = (volume(SIZES[0]),)
    torch.onnx.export(net, example, folder / "net.onnx", dynamo=False, input_names=["volume"], dynamic_axes=axes)
    session = onnxruntime.InferenceSession(folder / "net.onnx", providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"volume": x.numpy()})[0])


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("form", "name"),
    [
        *itertools.product([exported], NETS),
        *itertools.product([onnx_by_trace], [name for name in NETS if name not in ALIKE_IN_A_TRACE]),
    ],
)
def test_exported_at_img_size_right_at_ten_sizes(name, form, tmp_path):
    net = network(name)
    program = form(net, name, tmp_path)
    wants = {}
    padded = PADDED if name == "pad" or (form is onnx_by_trace and "pad" in name) else []
    sizes = SMALLER if name == "corner" else SIZES + padded
    for size in sizes:
        wants[size] = net(volume(size))
        torch.testing.assert_close(program(volume(size)), wants[size], atol=1e-4, rtol=1e-4)
    assert (wants[sizes[0]].mean() - wants[sizes[4]].mean()).abs() > 1e-5  # sizes do matter
