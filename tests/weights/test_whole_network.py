"""A backbone of other channels or patches, and a whole network of other classes, as a start."""

import logging

import pytest
import torch

from monai_vit3d import TokenClassifier, TokenSegmenter, VisionTransformer3D
from monai_vit3d.data import UsageError, WeightsError
from monai_vit3d.decoders import DECODERS
from monai_vit3d.layers import ConvStem3D
from monai_vit3d.weights import load_backbone, load_network, save_backbone, start_network

SIZE = {"img_size": (16, 16, 8), "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2}


def vit(seed=0, **options):
    torch.manual_seed(seed)
    return VisionTransformer3D(**{**SIZE, **options})


def segmenter(seed=0, num_classes=3, decoder="unetr", **options):
    return TokenSegmenter(vit(seed, **options), decoder, num_classes=num_classes, feature_size=4)


def headless(backbone):
    return {key: value for key, value in backbone.state_dict().items() if not key.startswith(("head.", "attn_pool."))}


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"in_chans": 2}, "from 1 to 2 channels"),
        ({"in_chans": 3}, "from 1 to 3 channels"),
        ({"patch_size": 8, "img_size": (32, 32, 16)}, "from (4, 4, 4) to (8, 8, 8)"),
        ({"patch_size": (4, 4, 2), "img_size": (16, 16, 4)}, "from (4, 4, 4) to (4, 4, 2)"),
        ({"patch_size": 2, "img_size": (8, 8, 4), "in_chans": 2}, "from 1 to 2 channels"),
    ],
    ids=str,
)
def test_a_backbone_is_adapted_as_from_pretrained_does_it(option, said, kind, tmp_path, caplog):
    save_backbone(vit(1), tmp_path / "e.safetensors")
    torch.save(vit(1).state_dict(), tmp_path / "e.pt")
    expected = VisionTransformer3D.from_pretrained(tmp_path / "e.safetensors", **option)
    with caplog.at_level(logging.INFO):
        network = load_backbone(segmenter(2, **option), tmp_path / f"e.{kind}")
    assert said in caplog.text
    found, wanted = headless(network.backbone), headless(expected)
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


def test_channels_are_summed_for_one(tmp_path):
    save_backbone(vit(1, in_chans=3), tmp_path / "e.safetensors")
    expected = vit(1, in_chans=3).patch_embed.proj.weight.sum(1, keepdim=True)
    found = load_backbone(vit(2), tmp_path / "e.safetensors").patch_embed.proj.weight
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_a_stem_of_another_patch_is_another_network(tmp_path):
    save_backbone(vit(1, embed_layer=ConvStem3D), tmp_path / "e.safetensors")
    with pytest.raises(WeightsError, match="patch_size="):
        load_backbone(vit(embed_layer=ConvStem3D, patch_size=(4, 4, 2)), tmp_path / "e.safetensors")
    network = load_backbone(vit(embed_layer=ConvStem3D, in_chans=2), tmp_path / "e.safetensors")
    assert network.patch_embed.stem[0].weight.shape[1] == 2


@pytest.mark.parametrize("decoder", DECODERS)
def test_all_but_the_last_layer_comes_along(decoder, tmp_path, caplog):
    old, new = segmenter(1, 3, decoder), segmenter(2, 5, decoder)
    fresh = {key: value.clone() for key, value in new.state_dict().items()}
    torch.save(old.state_dict(), tmp_path / "model.pt")
    with caplog.at_level(logging.INFO):
        assert load_network(new, tmp_path / "model.pt") is new
    had, found = old.state_dict(), new.state_dict()
    anew = {key for key in found if found[key].shape != had[key].shape}
    assert 1 <= len(anew) <= 2  # weight and bias of the last convolution
    for key, value in found.items():
        assert torch.equal(value, fresh[key] if key in anew else had[key]), key
    assert all(key in caplog.text for key in anew)
    assert "5 outputs instead of 3" in caplog.text


@pytest.mark.slow
def test_as_many_classes_are_the_whole_network(tmp_path, caplog):
    old, new = segmenter(1), segmenter(2)
    torch.save(old.state_dict(), tmp_path / "model.pt")
    with caplog.at_level(logging.INFO):
        load_network(torch.compile(new, backend="eager"), tmp_path / "model.pt")
    assert all(torch.equal(value, new.state_dict()[key]) for key, value in old.state_dict().items())
    assert "nothing starts anew" in caplog.text


@pytest.mark.parametrize("head", ["linear", "attentive"])
def test_a_classifier_of_other_classes(head, tmp_path):
    old, new = (TokenClassifier(vit(n), head, num_classes=classes) for n, classes in ((1, 2), (2, 6)))
    torch.save(old.state_dict(), tmp_path / "model.pt")
    load_network(new, tmp_path / "model.pt")
    same = [k for k, v in old.state_dict().items() if v.shape == new.state_dict()[k].shape]
    assert all(torch.equal(old.state_dict()[k], new.state_dict()[k]) for k in same)
    assert len(old.state_dict()) - len(same) == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: segmenter(decoder="light"), "is missing"),
        (lambda: TokenSegmenter(vit(), "unetr", num_classes=3, feature_size=8), "another architecture than TokenSegm"),
        (lambda: segmenter(depth=4), "another architecture"),
        (lambda: TokenClassifier(vit(), "linear", num_classes=3), "TokenClassifier"),
    ],
    ids=["decoder", "width", "depth", "classifier"],
)
def test_other_networks_are_refused_and_nothing_changes(make, words, tmp_path):
    torch.save(segmenter(1).state_dict(), tmp_path / "model.pt")
    network = make()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match=words):
        load_network(network, tmp_path / "model.pt")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("kind", ["width of the decoder", "blocks that the head reads"])
def test_another_number_that_is_not_of_classes_is_refused(kind, tmp_path):
    # all tensors that differ do so from one number to one other, as those of other classes do
    if kind == "width of the decoder":
        old, new = (TokenSegmenter(vit(), "light", 3, feature_size=size) for size in (4, 8))
    else:
        old, new = (TokenClassifier(vit(), "linear", 3, out_indices=blocks) for blocks in ((1, 2), (2,)))
    torch.save(old.state_dict(), tmp_path / "model.pt")
    before = {key: value.clone() for key, value in new.state_dict().items()}
    with pytest.raises(WeightsError, match="another architecture"):
        load_network(new, tmp_path / "model.pt")
    assert all(torch.equal(value, before[key]) for key, value in new.state_dict().items())


@pytest.mark.parametrize("task", ["multi-class", "ordinal", "multi-label"])
def test_tasks_whose_outputs_are_fewer_than_classes(task, tmp_path):
    old, new = (TokenClassifier(vit(n), "mlp", classes, task) for n, classes in ((1, 4), (2, 6)))
    torch.save(old.state_dict(), tmp_path / "model.pt")
    load_network(new, tmp_path / "model.pt")
    had, found = old.state_dict(), new.state_dict()
    assert all(torch.equal(had[key], value) for key, value in found.items() if had[key].shape == value.shape)
    assert {key for key in had if had[key].shape != found[key].shape} <= {"head.output.weight", "head.output.bias"}


def test_a_backbone_alone_is_no_whole_network(tmp_path):
    torch.save({f"backbone.{k}": v for k, v in headless(vit(1)).items()}, tmp_path / "encoder.pt")
    with pytest.raises(WeightsError, match="a backbone alone"):
        load_network(segmenter(), tmp_path / "encoder.pt")
    with pytest.raises(UsageError, match="without pretrained"):
        start_network(segmenter(), whole=True)


def test_a_start_takes_the_decoder_where_it_is_told(tmp_path):
    old = segmenter(1)
    torch.save(old.state_dict(), tmp_path / "model.pt")
    for whole in (False, True):
        started = start_network(segmenter(2, 5), tmp_path / "model.pt", whole=whole)
        key = "decoder.up_blocks.0.transp_conv.conv.weight"
        assert torch.equal(started.state_dict()[key], old.state_dict()[key]) == whole
        assert torch.equal(started.backbone.norm.weight, old.backbone.norm.weight)
