"""Names with something before them: taken off where it is a wrapper's, named with what to do where it is not."""

import pytest
import timm
import torch

from monai_vit3d.data.errors import WeightsError
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.weights import backbone_from, checkpoint_filter_fn, create_model, load_backbone, load_weights

SIZE = (16, 16, 8)
HOW = {"num_heads": 2, "img_size": SIZE}


def network(**options):
    torch.manual_seed(0)
    return VisionTransformer3D(SIZE, 4, embed_dim=24, depth=2, num_heads=2, **options)


def saved(folder, state, prefix=""):
    torch.save({prefix + key: value for key, value in state.items()}, folder / "w.pt")
    return folder / "w.pt"


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_fsdp_wrapped_module.", "module._orig_mod."])
@pytest.mark.parametrize("load", [load_weights, load_backbone])
def test_wrappers_are_taken_off(load, prefix, tmp_path):
    net, other = network(), network().requires_grad_(False)
    for p in other.parameters():
        p.zero_()
    same(load(other, saved(tmp_path, net.state_dict(), prefix)).state_dict(), net.state_dict())
    same(backbone_from(tmp_path / "w.pt", **HOW).network.state_dict(), net.state_dict())


@pytest.mark.parametrize(
    ("prefix", "word"),
    [
        ("ct_tower.", "ct_tower"),
        ("base_model.model.", "base_model"),
        ("model.tower.net.vision.", "tower.net.vision"),
        ("swa_model.", "swa_model"),
    ],
)
def test_refusal_names_the_word_that_opens(prefix, word, tmp_path):
    state = network().state_dict()
    path = saved(tmp_path, state, prefix)
    with pytest.raises(WeightsError, match=f"pass take='{word}'"):
        backbone_from(path, **HOW)
    same(backbone_from(path, take=word, **HOW).network.state_dict(), state)
    with pytest.raises(WeightsError, match=f"names have '{prefix}' before them"):
        load_weights(network(), path)
    with pytest.raises(WeightsError, match=r"backbone_from\(path, take="):
        load_backbone(network(), path)


def test_dinov2s_teacher_with_chunks_and_a_masks_token(tmp_path):
    state = network(init_values=0.1).state_dict()
    chunked = {(f"blocks.0.{key[7:]}" if key.startswith("blocks.") else key): value for key, value in state.items()}
    chunked = {f"backbone.{key}": value for key, value in chunked.items()} | {"backbone.mask_token": torch.ones(1, 24)}
    torch.save({"teacher": chunked, "iteration": 7}, tmp_path / "w.pt")
    network_, report = backbone_from(tmp_path / "w.pt", **HOW)
    same(network_.state_dict(), state)
    assert "mask_token" in report.unexpected


@pytest.mark.parametrize("wrapping", [("model",), ("state_dict",), ("model", "state_dict")])
def test_filter_takes_what_timms_takes(wrapping):
    state, wrapped = network().state_dict(), network().state_dict()
    for word in reversed(wrapping):
        wrapped = {word: wrapped}
    same(checkpoint_filter_fn(wrapped, network()), checkpoint_filter_fn(state, network()))


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "module."])
def test_whole_open_clip_file_with_timms_tower(prefix, tmp_path):
    tower = timm.create_model("vit_xsmall_patch16_clip_224").state_dict()
    image = {f"visual.trunk.{key}": value for key, value in tower.items() if not key.startswith("head.")}
    text = {"text.positional_embedding": torch.zeros(7, 8), "text.transformer.resblocks.0.ln_1.weight": torch.zeros(8)}
    path = saved(tmp_path, {**image, **text, "logit_scale": torch.ones(())}, prefix)
    net = create_model("vit_xsmall_patch16_clip_224", 32, 16, in_chans=1, num_classes=0, pretrained=path)
    torch.testing.assert_close(net.blocks[3].mlp.fc1.weight, tower["blocks.3.mlp.fc1.weight"], atol=0, rtol=0)
