"""Networks that are built from the file of their weights: equal to the ones saved, or refused by what differs."""

import json

import pytest
import torch

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.decoders import DECODERS, LightDecoder
from monai_vit3d.handlers import moving_average, save_atomic
from monai_vit3d.layers import ConvStem3D
from monai_vit3d.networks import (
    TokenClassifier,
    TokenSegmenter,
    VisionTransformer3D,
    build_network,
    model_args,
)
from monai_vit3d.networks.heads import HEADS
from monai_vit3d.networks.lora import MergedState, apply_lora, merge_lora
from monai_vit3d.networks.wrappers import plain_state_dict
from monai_vit3d.weights import backbone_from, describe_weights, load_backbone, network_from

SIZE = (16, 16, 8)


def backbone(**options):
    torch.manual_seed(0)
    plain = {"embed_dim": 24, "depth": 4, "num_heads": 2, "class_token": False, "global_pool": ""}
    return VisionTransformer3D(SIZE, 4, **{**plain, **options})


def segmenter(decoder="light", **options):
    return TokenSegmenter(backbone(act_layer="silu", embed_layer=ConvStem3D), decoder, 3, **options).eval()


def classifier(head="linear", **options):
    return TokenClassifier(backbone(class_token=True), head, 5, **options).eval()


NETWORKS = {
    **{decoder: (segmenter, {"decoder": decoder}) for decoder in DECODERS},
    **{head: (classifier, {"head": head}) for head in HEADS},
    "ordinal": (classifier, {"task": "ordinal", "out_indices": (1, 3), "freeze": "backbone"}),
    "options": (segmenter, {"decoder": "unetr", "feature_size": 4, "norm_name": ("instance", {"affine": True})}),
    "backbone": (backbone, {"rope": "box", "reg_tokens": 2}),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    make, options = NETWORKS[request.param]
    return make(**options).eval()


@torch.no_grad()
def assert_equal(network, again):
    assert type(again) is type(network)
    assert not again.training
    x = torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(x), network(x))


def test_a_state_dict_builds_its_network(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "model.pt")
    torch.save({"network": network.state_dict(), "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "last.pt")
    for name in ("model.pt", "last.pt"):
        assert_equal(network, network_from(tmp_path / name))
    assert model_args(network_from(tmp_path / "model.pt")) == json.loads(json.dumps(model_args(network)))


def test_a_folder_builds_its_network(network, tmp_path):
    network.save_pretrained(tmp_path)
    assert_equal(network, network_from(tmp_path))
    assert_equal(network, type(network).from_pretrained(tmp_path))
    page = (tmp_path / "README.md").read_text()
    assert f"{type(network).__name__}.from_pretrained" in page


@torch.no_grad()
def test_types_and_a_new_last_layer(tmp_path):
    for network in (segmenter(), classifier()):
        network.half().save_pretrained(tmp_path / type(network).__name__)
        again = type(network).from_pretrained(tmp_path / type(network).__name__)
        assert {p.dtype for p in again.parameters()} == {torch.float16}
        other = type(network).from_pretrained(tmp_path / type(network).__name__, num_classes=7, dtype="float32")
        assert other(torch.zeros(1, 1, *SIZE)).shape[1] == 7
        assert torch.equal(other.backbone.norm.weight, network.backbone.norm.weight.float())


@pytest.mark.slow
def test_names_of_wrappers_leave_the_arguments(tmp_path):
    network = segmenter()
    network.backbone = torch.compile(network.backbone, backend="eager")
    torch.save(plain_state_dict(network), tmp_path / "model.pt")
    assert_equal(segmenter(), network_from(tmp_path / "model.pt"))


def test_what_the_network_became(tmp_path):
    network = segmenter()
    network.reset_classifier(2)
    network.backbone.set_input_size((32, 16, 8))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    again = network_from(tmp_path / "model.pt", num_classes=2)
    assert again(torch.zeros(1, 1, 32, 16, 8)).shape == (1, 2, 32, 16, 8)


@pytest.mark.parametrize(("expected", "match"), [
    ({"num_classes": 4}, "num_classes=3 came, 4 is expected"), ({"decoder": "unetr"}, "decoder='light' came, 'unetr'"),
    ({"backbone": {"depth": 8, "patch_size": 4}}, "depth=4 came, 8 is expected"),
    ({"backbone": {"patch_size": (4, 4, 2)}}, r"patch_size=\[4, 4, 4\] came"),
], ids=str)  # fmt: skip
def test_other_arguments_than_expected_are_refused(tmp_path, expected, match):
    torch.save(segmenter().state_dict(), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=rf"model\.pt: weights of another architecture: {match}"):
        network_from(tmp_path / "model.pt", **expected)
    network_from(tmp_path / "model.pt", num_classes=3, decoder=None, backbone={"patch_size": 4, "img_size": SIZE})


def test_files_that_build_nothing(tmp_path):
    network = segmenter()
    torch.save(dict(network.state_dict()), tmp_path / "plain.pt")
    with pytest.raises(WeightsError, match=r"plain\.pt: it has no model_args.*build the network and use load_weights"):
        network_from(tmp_path / "plain.pt")
    own = TokenSegmenter(backbone(), LightDecoder(1, 24, 4, 3))
    torch.save(own.state_dict(), tmp_path / "own.pt")
    with pytest.raises(WeightsError, match=r"own\.pt: .*decoder: '.*LightDecoder'\. Pass the classes: decoder=\.\.\."):
        network_from(tmp_path / "own.pt")
    again = build_network(model_args(own), decoder=LightDecoder(1, 24, 4, 3))
    again.load_state_dict(own.state_dict())
    assert_equal(own.eval(), again.eval())
    state = network.state_dict()
    for change in (
        {"backbone": None},
        {"backbone": 3},
        {"out_indices": "x"},
        {"options": None},
        {"decoder": "os.system"},
    ):
        state._metadata[""]["model_args"] = {**model_args(network), **change}
        torch.save(state, tmp_path / "odd.pt")
        with pytest.raises(WeightsError, match=r"odd\.pt: "):
            network_from(tmp_path / "odd.pt")
    state._metadata[""]["model_args"] = model_args(segmenter("pyramid"))
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(WeightsError, match=r"odd\.pt: weights of another architecture than its arguments say"):
        network_from(tmp_path / "odd.pt")


def test_another_class_is_refused(tmp_path):
    segmenter().save_pretrained(tmp_path / "segmenter")
    backbone().save_pretrained(tmp_path / "backbone")
    with pytest.raises(UsageError, match=r"a TokenSegmenter, not a VisionTransformer3D\. .*TokenSegmenter\.from_pre"):
        VisionTransformer3D.from_pretrained(tmp_path / "segmenter")
    with pytest.raises(UsageError, match=r"a VisionTransformer3D, not a TokenClassifier"):
        TokenClassifier.from_pretrained(tmp_path / "backbone")


@torch.no_grad()
def test_the_backbone_of_a_recorded_network_needs_no_options(tmp_path):
    network = segmenter()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    x = torch.randn(1, 1, *SIZE)
    assert torch.equal(backbone_from(tmp_path / "model.pt").network(x), network.backbone(x))
    found = describe_weights(tmp_path / "model.pt")
    assert (found["family"], found["wrapping"], found["architecture"]["num_heads"]) == ("monai_vit3d", ["backbone."], 2)
    with pytest.raises(WeightsError, match="act_layer='SiLU' came, expected 'GELU'"):
        load_backbone(backbone(embed_layer=ConvStem3D), tmp_path / "model.pt")
    larger = TokenSegmenter(
        VisionTransformer3D((32, 16, 8), 4, embed_dim=24, depth=4, num_heads=2, class_token=False, global_pool="",
                            act_layer="silu", embed_layer=ConvStem3D), "light", 3
    )  # fmt: skip
    load_backbone(larger, tmp_path / "model.pt")  # positions are resampled: the file says their grid
    network.backbone.set_input_size((32, 16, 8))
    torch.testing.assert_close(larger.backbone.pos_embed, network.backbone.pos_embed)


@torch.no_grad()
def test_what_training_keeps_as_best_builds_the_merged_network(tmp_path):
    pytest.importorskip("peft")
    network = apply_lora(segmenter(), 2)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.normal_()
    save_atomic(MergedState(moving_average(network).module).state_dict(), tmp_path / "model.pt")
    assert_equal(merge_lora(network).eval(), network_from(tmp_path / "model.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("make", [segmenter, classifier, backbone])
def test_which_patches_get_a_token_may_be_chosen_anew(make, tmp_path):
    for trained in ("all", 0.5):
        network = make()
        network.set_tokens(trained)
        torch.save(network.state_dict(), tmp_path / "model.pt")
        for chosen in (None, "all", "foreground", -1.5):
            again = network_from(tmp_path / "model.pt", tokens=chosen)
            assert getattr(again, "backbone", again).tokens == (trained if chosen is None else chosen)
    with pytest.raises(ValueError, match="expected 'all', 'foreground'"):
        network_from(tmp_path / "model.pt", tokens="some")
