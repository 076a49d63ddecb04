"""Grad-CAM against autograd by hand and MONAI's own; occlusion against a loop and MONAI's own."""

import copy

import monai.visualize
import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from monai_vit3d.networks import probabilities
from monai_vit3d.visualize import TokenGradCAM, grad_cam, occlusion_map
from tests.visualize.nets import (
    GRID,
    PATCH,
    SIZE,
    Raises,
    assert_same_condition,
    classifier,
    condition,
    interpolated,
    vit,
    volume,
)

NETS = {
    "class token": lambda **o: vit(**o),
    "class token and registers": lambda **o: vit(reg_tokens=2, **o),
    "mean": lambda **o: vit(class_token=False, global_pool="avg", **o),
    "map": lambda **o: vit(global_pool="map", **o),
    "linear": lambda **o: classifier("linear", out_indices=[0, 1], backbone=o, pool="cls_token"),
    "mlp": lambda **o: classifier("mlp", backbone=o),
    "attentive": lambda **o: classifier("attentive", out_indices=[0, 1], backbone=o, num_queries=2),
}


@pytest.fixture(params=NETS)
def net(request):
    return NETS[request.param]()


def by_hand(net, x, class_idx=None):
    """Grad-CAM at the last block's first norm before its ReLU, one volume at a time."""
    net, maps = copy.deepcopy(net).requires_grad_(False), []
    backbone = getattr(net, "backbone", net)
    block, p = backbone.blocks[-1], backbone.num_prefix_tokens
    for one in x.split(1):
        seen = []

        def run(tokens, seen=seen):
            h = block.norm1(tokens).detach().requires_grad_()
            seen.append(h)
            tokens = tokens + block.attn(h)
            return tokens + block.mlp(block.norm2(tokens))

        block.forward = run
        logits = net(one)[0]
        logits[logits.argmax() if class_idx is None else class_idx].backward()
        (h,) = seen
        weights = h.grad[0, p:].mean(0)
        maps.append((h[0, p:].detach() @ weights).reshape(1, *GRID))
    return torch.stack(maps)


def scaled(maps):
    return torch.stack([(m - m.min()) / (m.max() - m.min()) if m.any() else m for m in maps])


@pytest.mark.parametrize("class_idx", [None, 0, 2])
def test_grad_cam_by_hand(net, class_idx):
    x = volume(3, 1, *SIZE)
    signed = by_hand(net, x, class_idx)
    assert (signed.std((1, 2, 3, 4)) > 1e-4).all()  # patches reach every kind of pooling
    theirs = signed.clamp(min=0)
    name = next(n for n, m in net.named_modules() if m is getattr(net, "backbone", net).blocks[-1].norm1)
    ours = TokenGradCAM(net, name).compute_map(x, class_idx)
    # a batch's gradients are rounded otherwise than those of one volume, on some processors by 2e-6
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    found = grad_cam(net, x, class_idx)
    torch.testing.assert_close(found, scaled(interpolated(theirs, PATCH, SIZE)), atol=1e-4, rtol=1e-4)
    assert (found.dtype, found.shape, found.requires_grad) == (torch.float32, (3, 1, *SIZE), False)


class ThroughGrid(nn.Module):
    """A norm, then the tokens as a map and back, so that MONAI's own GradCAM can read them."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.grid = norm, nn.Identity()

    def forward(self, x):
        grid = self.grid(self.norm(x).transpose(1, 2).reshape(len(x), -1, *GRID))
        return grid.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("class_idx", [None, 1])
def test_grad_cam_equals_monais(class_idx):
    net = vit(class_token=False, global_pool="avg")
    other = copy.deepcopy(net)
    other.blocks[2].norm1 = ThroughGrid(other.blocks[2].norm1)
    theirs = monai.visualize.GradCAM(other, "blocks.2.norm1.grid")
    for x in volume(4, 1, *SIZE).split(1):  # one by one: MONAI's mixes the classes of a batch
        ours = TokenGradCAM(net, "blocks.2.norm1").compute_map(x, class_idx)
        torch.testing.assert_close(ours, theirs.compute_map(x, class_idx))
        upside_down = grad_cam(net, x, class_idx, postprocessing=monai.visualize.default_normalizer)
        torch.testing.assert_close(upside_down, theirs(x, class_idx), atol=1e-5, rtol=1e-4)
        expected = 1 - upside_down if ours.any() else upside_down  # MONAI's has 0 for most, and for nowhere
        torch.testing.assert_close(grad_cam(net, x, class_idx), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_cam_of_frozen_networks_in_any_context(net, context):
    x = volume(2, 1, *SIZE)
    theirs = grad_cam(net, x)
    for frozen in (getattr(net, "backbone", net), net):
        frozen.requires_grad_(False)
        with context():
            torch.testing.assert_close(grad_cam(net, x * 1), theirs, atol=1e-5, rtol=1e-4)


def test_grad_cam_with_gradient_checkpointing():
    net, x = classifier(), volume(2, 1, *SIZE)
    theirs = grad_cam(net, x)
    net.backbone.set_grad_checkpointing()
    torch.testing.assert_close(grad_cam(net, x), theirs)


def test_grad_cam_of_any_attention_and_layer():
    net, x = vit(attn_layer="diff", num_heads=2), volume(1, 1, *SIZE)
    assert grad_cam(net, x).max() == 1
    assert not torch.equal(grad_cam(net, x, layer="blocks.0"), grad_cam(net, x, layer="blocks.1.norm2"))
    assert grad_cam(net, x, layer="norm").max() == 0  # behind the last block no patch reaches the class token


@pytest.mark.parametrize("explain", [grad_cam, occlusion_map])
def test_nothing_changes(explain):
    net = classifier(freeze=1, drop_rate=0.5, backbone={"attn_drop_rate": 0.5, "patch_drop_rate": 0.5})
    x = volume(2, 1, *SIZE)
    theirs = explain(net, x)
    net.train()
    net.backbone.blocks[1].mlp.eval()
    net.head.output.weight.grad = torch.ones_like(net.head.output.weight)
    before = condition(net)
    assert torch.equal(explain(net, x), theirs)  # no dropout
    assert_same_condition(before, net)
    net.head.output = Raises()
    before = condition(net)
    with pytest.raises(RuntimeError, match="broken"):
        explain(net, x)
    assert_same_condition(before, net)


@pytest.mark.parametrize("explain", [grad_cam, occlusion_map])
def test_size_and_metadata_stay(explain):
    net = classifier(backbone={"dynamic_img_pad": True, "in_chans": 2})
    affine = torch.diag(torch.tensor([-2.0, 1, 3, 1]))
    x = MetaTensor(volume(2, 5, 7, 2), affine=affine, applied_operations=[{"id": 1}])
    found = explain(net, x)
    assert found.shape == (1, 5, 7, 2)
    assert torch.equal(found.affine, affine)
    assert found.applied_operations == x.applied_operations
    batch = explain(net, x.as_tensor()[None])
    assert type(batch) is torch.Tensor
    assert torch.equal(batch[0], found.as_tensor())


def test_grad_cam_of_a_padded_volume_is_scaled_over_the_volume():
    net, x = classifier(backbone={"dynamic_img_pad": True}), volume(1, 1, 5, 7, 2)
    raw = TokenGradCAM(net, "backbone.blocks.2.norm1").compute_map(x)
    assert raw.shape == (1, 1, 2, 3, 2)
    theirs = interpolated(raw, PATCH, (6, 9, 2))[..., :5, :7, :]
    torch.testing.assert_close(grad_cam(net, x), scaled(theirs), atol=1e-5, rtol=1e-4)


# occlusion


def loop(net, x, class_idx, task, boxes, fill):
    """The drop under each box in turn; where boxes overlap, their mean."""
    total, count = torch.zeros_like(x[:, :1]), torch.zeros_like(x[:, :1])
    for i, one in enumerate(x):
        whole = probabilities(net(one[None]), task)[0]
        c = int(whole.argmax()) if class_idx is None else class_idx
        for box in boxes:
            covered = one.clone()
            covered[(slice(None), *box)] = fill(one)
            total[(i, 0, *box)] += whole[c] - probabilities(net(covered[None]), task)[0, c]
            count[(i, 0, *box)] += 1
    return total / count


def boxes_of(size, box, step):
    starts = [sorted({min(a, s - b) for a in range(0, s, n)}) for s, b, n in zip(size, box, step)]
    return [
        tuple(slice(a, a + b) for a, b in zip((i, j, k), box)) for i in starts[0] for j in starts[1] for k in starts[2]
    ]


@pytest.mark.parametrize("class_idx", [None, 1])
@torch.no_grad()
def test_occlusion_is_a_loop_over_patches(net, class_idx):
    x = volume(2, 1, *SIZE) + 0.5
    theirs = loop(net, x, class_idx, "multi-class", boxes_of(SIZE, PATCH, PATCH), torch.mean)
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(occlusion_map(net, x, class_idx), theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("mode", ["mean_img", 2, "gaussian"])
def test_occlusion_equals_monais(mode):
    net, x = vit(), volume(1, 1, *SIZE)
    own = monai.visualize.OcclusionSensitivity(
        net, (4, 4, 2), verbose=False, mode=mode if isinstance(mode, str) else 2.0, overlap=0.5, activate=lambda y: y
    )
    ours = occlusion_map(net, x, 1, (4, 4, 2), overlap=0.5, mode=mode, task="regression", n_batch=3)
    with torch.no_grad():
        torch.testing.assert_close(ours, net(x)[0, 1] - own(x)[0][:, 1:2].as_tensor(), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multi-class", "multi-label", "ordinal", "regression"])
@torch.no_grad()
def test_occlusion_of_each_task(task):
    net, x = classifier(task=task, backbone={"in_chans": 2}), volume(2, 2, *SIZE)
    boxes = boxes_of(SIZE, (2, 3, 2), (1, 1, 1))
    theirs = loop(net, x, 2, task, boxes, lambda one: 0.25)
    ours = occlusion_map(net, x, 2, (2, 3, 2), overlap=0.5, mode=0.25, task=task)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_mask_larger_than_the_volume_covers_it():
    net, x = classifier(backbone={"dynamic_img_pad": True}), volume(1, 1, 4, 2, 1)
    theirs = loop(net, x, 0, "multi-class", boxes_of((4, 2, 1), (3, 2, 1), (3, 2, 1)), torch.mean)
    torch.testing.assert_close(occlusion_map(net, x, 0, (3, 9, 9)), theirs, atol=1e-5, rtol=1e-4)


# refusals


@pytest.mark.parametrize("explain", [grad_cam, occlusion_map])
@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (vit, {"class_idx": 3}, "class_idx=3; expected 0 to 2, or None"),
        (vit, {"class_idx": -1}, "class_idx=-1; expected 0 to 2"),
        (lambda: vit(num_classes=0), {}, "num_classes=0, global_pool='cls_token': there is no class"),
        (lambda: vit(global_pool=""), {}, "num_classes=3, global_pool='': there is no class"),
    ],
)
def test_no_such_class(explain, make, options, message):
    with pytest.raises(ValueError, match=message):
        explain(make(), volume(1, 1, *SIZE), **options)


@pytest.mark.parametrize("explain", [grad_cam, occlusion_map])
def test_other_models(explain):
    with pytest.raises(TypeError, match="Linear; expected a TokenClassifier or a VisionTransformer3D"):
        explain(nn.Linear(2, 2), volume(1, 1, *SIZE))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("blocks.9.norm1", "'blocks.9.norm1' is no layer"),
        ("patch_embed", r"puts out \[1, 18, 24\]; expected tokens \[1, 19, 'E'\]: try a block's 'norm1'"),
        ("head", r"puts out \[1, 3\]"),
        ("blocks.0.attn.q_norm", r"puts out \[1, 3, 19, 8\]"),
        ("blocks.0.attn.attn_drop", "does not run"),
    ],
)
def test_no_such_layer(layer, message):
    net = vit()
    before = condition(net)
    with pytest.raises(ValueError, match=message):
        grad_cam(net, volume(1, 1, *SIZE), layer=layer)
    assert_same_condition(before, net)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "mean_patch"}, "mode='mean_patch'; expected a number or one of 'mean_img', 'gaussian'"),
        ({"mask_size": (2, 2)}, "mask_size"),
        ({"task": "colour"}, "colour"),
    ],
)
def test_no_such_option(options, message):
    with pytest.raises(ValueError, match=message):
        occlusion_map(vit(), volume(1, 1, *SIZE), **options)
