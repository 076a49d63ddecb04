"""Segmenters and classifiers on tokens of foreground: as by the backbone's own grids; heads see kept tokens only."""

import pytest
import torch
from torch import nn

from monai_vit3d.handlers.feature_monitor import FeatureMonitor
from monai_vit3d.networks import HEADS, TokenClassifier, TokenSegmenter, model_args
from monai_vit3d.pretraining import IJEPA, extract_features
from tests.networks.nets import noisy
from tests.networks.test_vit3d_foreground import EQUAL, UNEQUAL, close, volume

NONE_LAST = torch.cat([UNEQUAL[0], volume([])[0]])


def classifier(head="attentive", tokens="foreground", **options):
    torch.manual_seed(0)
    backbone = noisy(tokens=tokens, reg_tokens=1)
    return TokenClassifier(backbone, head, 3, out_indices=(0, 2), **options).double().eval()


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_a_head_sees_the_patches_of_foreground(head):
    net = classifier(head)
    levels = net.backbone.forward_intermediates(UNEQUAL[0], [0, 2], norm=True, intermediates_only=True)
    for sample, valid in enumerate(UNEQUAL[1]):
        kept = torch.cat([torch.ones(2, dtype=torch.bool), valid])
        close(net(UNEQUAL[0])[sample], net.head([level[sample : sample + 1, kept] for level in levels])[0])
    net.set_tokens("all")
    assert (net(UNEQUAL[0]) - classifier(head)(UNEQUAL[0])).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_a_volume_without_foreground(head):
    net = classifier(head, **({} if head == "attentive" else {"pool": "avg"}))
    zeros = [torch.zeros(1, 26, 24, dtype=torch.float64)] * 2
    nothing = torch.zeros(1, 24, dtype=torch.bool)
    close(net(NONE_LAST)[3:], net.head(zeros, nothing))
    if head == "linear":
        close(net(NONE_LAST)[3], net.head.output.bias)


@torch.no_grad()
def test_a_segmenter_decodes_the_grids_with_zeros():
    torch.manual_seed(0)
    net = TokenSegmenter(noisy(tokens="foreground"), "light", 2).double().eval()
    maps = net.backbone.forward_intermediates(NONE_LAST, net.out_indices, output_fmt="NCHWD")[1]
    final = net.backbone.token_maps(NONE_LAST, [])[0]
    close(net(NONE_LAST), net.decoder(NONE_LAST, [*maps, final]))
    out = net(NONE_LAST)
    net.set_tokens("all")
    assert (net(NONE_LAST) - out).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize(
    "form", [torch.jit.script, lambda net: torch.jit.trace(net, EQUAL[0])], ids=["script", "trace"]
)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_exported_classifiers(head, form):
    net = classifier(head)
    close(form(net)(UNEQUAL[0][:2]), net(UNEQUAL[0][:2]))


class Sum(nn.Module):
    def forward(self, levels: list[torch.Tensor]):
        return torch.cat(levels, 1).sum(1)


@pytest.mark.slow
def test_a_head_that_cannot_leave_patches_out():
    with pytest.raises(ValueError, match=r"Sum\.forward has no argument patch_valid"):
        TokenClassifier(noisy(tokens="foreground"), Sum())
    net = TokenClassifier(noisy(), Sum())
    with pytest.raises(ValueError, match=r"Sum\.forward has no argument patch_valid"):
        net.set_tokens(0.5)
    net.set_tokens("all")
    assert torch.jit.script(net.double().eval())(EQUAL[0]).shape == (2, 24)


def test_recorded_with_their_backbone(tmp_path):
    net = classifier(tokens=-0.5)
    assert model_args(net)["backbone"]["tokens"] == -0.5
    net.save_pretrained(tmp_path)
    again = TokenClassifier.from_pretrained(tmp_path)
    assert again.backbone.tokens == -0.5
    assert torch.equal(again(EQUAL[0]), net(EQUAL[0]))


@pytest.mark.parametrize("reads", [IJEPA, lambda net: extract_features(net, []), lambda net: FeatureMonitor(net, [])])
def test_who_reads_the_tokens_of_all_patches_says_so(reads):
    with pytest.raises(ValueError, match=r"reads the tokens of all patches: call set_tokens\('all'\) first"):
        reads(noisy(tokens="foreground"))
