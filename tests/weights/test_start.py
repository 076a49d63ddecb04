"""What trainings start from: encoders of published layouts in networks of any size, trained in three regimes.

Files of random weights in the sources' layouts, with the tokens of their own code, are in MONAI_DATA_DIRECTORY/layouts
where a developer has them; a test that needs them skips.
"""

import logging
import os
from pathlib import Path

import pytest
import timm
import torch

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.networks import TokenClassifier, TokenSegmenter, VisionTransformer3D, model_args
from monai_vit3d.weights import backbone_from, network_from, read_encoder, save_backbone, start_network

# name: what no tensor shows of the training, and the size and patch of the input that the tokens are of
HEADS, FLAT = {"num_heads": 4}, {"num_heads": 4, "patch_size": [4, 16, 16]}
LAYOUTS = {
    "primus_v1": ({**HEADS, "grid": [2, 3, 4]}, (16, 24, 32), 8),
    "primus_v1_registers": ({**HEADS, "grid": [2, 3, 4]}, (16, 24, 32), 8),
    "primus_v2": ({**HEADS, "grid": [2, 3, 4]}, (16, 24, 32), 8),
    "colipri": (HEADS, (16, 16, 24), 8),
    "spectre": ({}, (32, 48, 16), (16, 16, 8)),
    "flexict3d": ({}, (16, 24, 32), 8),
    "3dino": (HEADS, (48, 48, 48), 16),
    "neurojepa": ({}, (24, 36, 48), 12),
    "vjepa2": ({"num_heads": 2}, (4, 48, 64), (2, 16, 16)),
    "hf_vjepa2": ({"num_heads": 2}, (4, 48, 48), (2, 16, 16)),
    "m3dclip": ({**FLAT, "grid": [2, 2, 3]}, (8, 32, 48), (4, 16, 16)),
    "segvol": ({**FLAT, "grid": [2, 2, 3]}, (8, 32, 48), (4, 16, 16)),
    "hf_vit": (HEADS, (64, 64, 1), (16, 16, 1)),
    "hf_dinov2": (HEADS, (64, 64, 1), (16, 16, 1)),
    "hf_videomae": (HEADS, (4, 48, 48), (2, 16, 16)),
}
WITH_CUBES = {"primus_v2"}  # whose stem keeps its patch of 8
BESIDE = {"videomae2": ({"num_heads": 4}, (4, 48, 48), (2, 16, 16))}  # whose tokens are given pooled


def layout(name):
    path = Path(os.environ.get("MONAI_DATA_DIRECTORY", ".")) / "layouts" / f"{name}.pt"
    if not path.is_file():
        pytest.skip("the layouts of published networks are not under MONAI_DATA_DIRECTORY")
    return path


def vit(img_size=(8, 16, 24), patch_size=(2, 4, 4), in_chans=2, **options):
    """A small backbone of another architecture than any file's."""
    options = {"embed_dim": 24, "depth": 3, "num_heads": 2, "class_token": False, "global_pool": "", **options}
    return VisionTransformer3D(img_size, patch_size, in_chans=in_chans, **options)


def steps(network, count=20):
    """Train some steps; the names of the parameters that changed."""
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in network.train().parameters() if p.requires_grad], 1e-3)
    for _ in range(count):
        image = torch.randn(2, network.backbone.in_chans, *network.backbone.img_size)
        loss = network(image).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    return {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}


@torch.no_grad()
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_network_starts_with_the_tokens_of_the_sources_own_code(name):
    path, (options, size, patch) = layout(name), LAYOUTS[name]
    given = torch.load(path.with_name(f"{name}.ref.pt"), weights_only=True)
    x = given["x"]
    x = x[..., None] if x.dim() == 4 else x.transpose(1, 2) if name in ("hf_videomae", "hf_vjepa2") else x
    network = TokenClassifier(vit(size, patch, x.shape[1]), "linear", num_classes=3)
    started = start_network(network, path, encoder_options=options)
    tokens = started.backbone.eval().forward_features(x)
    assert (tokens - given["y"]).abs().max() <= 1e-5 * given["y"].abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LAYOUTS, *BESIDE])
def test_probe_adapters_and_fine_tuning_of_each_layout(name, tmp_path):
    """In another size, patch and number of channels than the file's, for classes and for labels."""
    path, options = layout(name), ({**LAYOUTS, **BESIDE})[name][0]
    for head in ("linear", "attentive"):
        probe = TokenClassifier(vit(), head, num_classes=3, freeze="backbone")
        probe = start_network(probe, path, encoder_options=options)
        changed = steps(probe)
        assert {"head.output.weight", "head.output.bias"} <= changed
        assert all(key.startswith("head.") for key in changed)
    adapted = start_network(TokenClassifier(vit(), "linear", num_classes=3), path, 2, encoder_options=options)
    changed = steps(adapted)
    assert any(".lora_B." in key for key in changed)
    assert not any(key.startswith("backbone.") and "lora" not in key for key in changed)
    tuned = start_network(TokenClassifier(vit(), "linear", num_classes=3), path, encoder_options=options)
    assert {key.split(".")[1] for key in steps(tuned) if key.startswith("backbone.")} >= {"blocks", "patch_embed"}
    torch.save(tuned.state_dict(), tmp_path / "model.pt")
    again, image = network_from(tmp_path / "model.pt"), torch.randn(1, 2, *tuned.backbone.img_size)
    torch.testing.assert_close(again(image), tuned.eval()(image))
    if name not in WITH_CUBES:  # of two blocks, which three levels need more of
        segmenter = start_network(TokenSegmenter(vit(), "light", 3), path, encoder_options=options)
        assert segmenter(torch.randn(1, 2, 8, 16, 24)).shape == (1, 3, 8, 16, 24)
        assert any(key.startswith("backbone.blocks.0.") for key in steps(segmenter, 1))


def test_what_no_tensor_shows_is_asked_for_by_name(tmp_path):
    state = backbone_from_state()
    torch.save(state, tmp_path / "nidl.pt")
    with pytest.raises(WeightsError, match=r"no tensor shows num_heads, pos_embed .*encoder_options=\{num_heads: "):
        read_encoder(tmp_path / "nidl.pt")
    options = {"num_heads": 4, "pos_embed": "sincos"}
    started = start_network(TokenSegmenter(vit(), "light", 3), tmp_path / "nidl.pt", encoder_options=options)
    assert (started.backbone.embed_dim, started.backbone.num_heads, started.backbone.in_chans) == (48, 4, 2)


def test_an_encoder_in_float64_gets_the_networks_type(tmp_path):
    state = {key: value.double() for key, value in backbone_from_state().items()}
    torch.save(state, tmp_path / "double.pt")
    for network in (vit(), TokenSegmenter(vit(), "light", 3)):
        started = start_network(network, tmp_path / "double.pt", encoder_options={"num_heads": 4, "pos_embed": "none"})
        assert {value.dtype for value in started.parameters()} == {torch.float32}


def backbone_from_state():
    """A state dict in nidl's layout, and of this package without a record."""
    network = vit(16, 8, 1, embed_dim=48, depth=2, num_heads=4, pos_embed="sincos")
    return {key: value for key, value in network.state_dict().items() if key != "pos_embed"}


@torch.no_grad()
def test_a_file_of_a_published_model_takes_what_its_entry_says(tmp_path):
    """COLIPRI's heads and trained size; the grid of positions is another, in patches of the task's size."""
    from tests.weights.convert.test_published import primus_state

    torch.save(primus_state(width=96, patch=(8, 8, 8)), tmp_path / "colipri.pt")
    encoder = read_encoder(tmp_path / "colipri.pt", options={"published": "colipri"}).network
    assert (encoder.num_heads, encoder.img_size, encoder.patch_size) == (12, (192, 192, 192), (8, 8, 8))
    options = {"published": "colipri"}
    started = start_network(TokenSegmenter(vit(), "light", 3), tmp_path / "colipri.pt", encoder_options=options)
    assert (started.backbone.num_heads, started.backbone.img_size, started.backbone.in_chans) == (12, (8, 16, 24), 2)
    with pytest.raises(UsageError, match="'colipry' is no published model"):
        read_encoder(tmp_path / "colipri.pt", options={"published": "colipry"})


@pytest.mark.slow
def test_timms_weights_of_a_file_become_the_encoder(tmp_path):
    name = "vit_tiny_patch16_224"
    model = timm.create_model(name, depth=12)
    torch.save(model.state_dict(), tmp_path / "timm.pt")
    started = start_network(TokenSegmenter(vit(), "light", 3), tmp_path / "timm.pt", encoder_options={"timm": name})
    assert (len(started.backbone.blocks), started.backbone.embed_dim) == (12, 192)
    assert torch.equal(started.backbone.blocks[3].mlp.fc1.weight, model.blocks[3].mlp.fc1.weight)
    assert started.backbone.patch_embed.proj.weight.shape == (192, 2, 2, 4, 4)
    with pytest.raises(WeightsError, match=r"nowhere\.pt: no such file, and no Vision Transformer of timm"):
        start_network(TokenSegmenter(vit(), "light", 3), tmp_path / "nowhere.pt")


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_own_encoders_of_another_architecture_replace_the_backbone(positions, tmp_path, caplog):
    torch.manual_seed(1)
    encoder = vit(embed_dim=48, depth=6, num_heads=4, rope="patch", reg_tokens=2, pos_embed=positions, in_chans=1)
    save_backbone(encoder, tmp_path / "encoder.safetensors")
    with caplog.at_level(logging.INFO, "monai_vit3d"):
        network = TokenClassifier(vit(in_chans=1), "linear", num_classes=3)
        started = start_network(network, tmp_path / "encoder.safetensors")
    args = {"num_classes": 0, "global_pool": "", "pos_embed": "learned"}
    assert model_args(started.backbone) == {**model_args(encoder), **args}
    image = torch.randn(1, 1, 8, 16, 24)
    torch.testing.assert_close(started.backbone.eval()(image), encoder.eval()(image))
    assert "takes the place of the network's: 6 blocks of width 48, 4 heads, 2 prefix tokens" in caplog.text


def test_an_encoder_of_the_networks_architecture_leaves_the_rest_of_it_alone(tmp_path):
    save_backbone(vit(), tmp_path / "encoder.safetensors")
    network = TokenClassifier(vit(), "linear", num_classes=3)
    assert start_network(network, tmp_path / "encoder.safetensors") is network


@pytest.mark.parametrize("width", [24, 48])
def test_the_network_says_which_patches_get_a_token(width, tmp_path):
    save_backbone(vit(embed_dim=width, tokens=0.5), tmp_path / "encoder.safetensors")
    for tokens in ("all", "foreground"):
        network = TokenClassifier(vit(tokens=tokens), "linear", num_classes=3)
        assert start_network(network, tmp_path / "encoder.safetensors").backbone.tokens == tokens


def test_a_whole_network_of_another_architecture_is_taken_with_its_decoder(tmp_path):
    old = TokenSegmenter(vit(depth=4, embed_dim=48, num_heads=4, rope="patch"), "light", 3)
    torch.save(old.state_dict(), tmp_path / "model.pt")
    started = start_network(TokenSegmenter(vit(), "light", 3), tmp_path / "model.pt", whole=True)
    assert all(torch.equal(value, old.state_dict()[key]) for key, value in started.state_dict().items())


def test_a_decoder_of_ones_own_cannot_be_built_around_another_encoder(tmp_path):
    save_backbone(vit(embed_dim=48), tmp_path / "encoder.safetensors")
    decoder = TokenSegmenter(vit(), "light", 3).decoder
    with pytest.raises(UsageError, match="the decoder or head was built elsewhere"):
        start_network(TokenSegmenter(vit(), decoder), tmp_path / "encoder.safetensors")


def test_published_weights_in_the_sources_own_size_are_backbone_froms(tmp_path):
    from tests.weights.convert.test_published import spectre

    state, x, _, options = spectre()
    torch.save(state, tmp_path / "spectre.pt")
    encoder = read_encoder(tmp_path / "spectre.pt", options["img_size"]).network
    torch.testing.assert_close(encoder.forward_features(x), backbone_from(state, **options).network.forward_features(x))
