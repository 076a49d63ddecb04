"""Published models by name, through huggingface_hub's own client on a cache that the tests make."""

import hashlib
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import hf_hub_download
from safetensors import safe_open
from safetensors.torch import save_file
from timm.data import resolve_model_data_config

from monai_vit3d import TokenClassifier, VisionTransformer3D, create_model
from monai_vit3d.cli import main
from monai_vit3d.data import UsageError, WeightsError
from monai_vit3d.data.published_models import published_model, published_models
from monai_vit3d.pipeline.scan_vector import FEATURES, LEARNED_FEATURES
from monai_vit3d.weights import (
    RECIPE_STEPS,
    backbone_from,
    convert_weights,
    fetch_weights,
    get_weights,
    list_published,
    load_backbone,
    load_published,
    pin_weights,
    save_backbone,
)
from monai_vit3d.weights.convert.families import FAMILIES
from tests.helpers import run_python, run_warm
from tests.hub_cache import COMMIT, cached_file, use_offline
from tests.weights.convert import published_forwards as forwards
from tests.weights.convert.test_published import OWN, primus_v1, spectre, spectre_combiner

# of an entry: the layout that was given, and its heads
LAYOUTS = {
    "primus_m_openmind_mae": ("primus_v1", 4),
    "colipri": ("colipri", 4),
    "spectre_large": ("spectre", 4),
    "flexict_3d": ("flexict3d", 2),
    "3dino_vit_large": ("3dino", 4),
    "m3d_clip": ("m3dclip", 4),
    "segvol": ("segvol", 4),
    "vjepa2_vit_large": ("hf_vjepa2", 2),
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    use_offline(monkeypatch, tmp_path / "hub")
    return tmp_path / "hub"


@pytest.fixture
def colipri(cache):
    """A small network in COLIPRI's layout in the cache, its input, tokens and options."""
    state, x, tokens, options = primus_v1()
    named = {f"image_encoder.backbone.{key}": value.contiguous() for key, value in state.items()}
    path = cached_file(cache, "microsoft/colipri", "model.safetensors")
    save_file({**named, "image_encoder.projector.weight": torch.ones(2)}, path)
    return path, x, tokens, options


@torch.no_grad()
def test_a_published_model_comes_by_name(colipri):
    _, x, tokens, options = colipri
    net = create_model("colipri", pretrained=True, **options)
    torch.testing.assert_close(net.forward_features(x), tokens.to(x.dtype), rtol=0, atol=1e-5 * tokens.abs().max())
    theirs = timm.create_model("colipri", pretrained=True, **options)
    torch.testing.assert_close(theirs.forward_features(x), net.forward_features(x), rtol=0, atol=0)
    assert theirs.pretrained_cfg["license"] == "mit"
    assert theirs.pretrained_cfg["hf_hub_id"] == "microsoft/colipri"
    config = resolve_model_data_config(theirs)
    assert config["input_size"] == (1, *options["img_size"])
    assert (config["mean"], config["std"]) == ((0.0,), (1.0,))
    maps = timm.create_model("colipri", pretrained=True, features_only=True, out_indices=[1], **options)(x)
    assert [map.shape[2:] for map in maps] == [net.grid_size]


@pytest.mark.slow
def test_timm_lists_them_after_a_plain_import():
    code = (
        "import monai_vit3d, timm\n"
        "assert {'colipri', 'spectre_large'} <= set(timm.list_models(pretrained=True))\n"
        "assert timm.get_pretrained_cfg('colipri').input_size == (1, 192, 192, 192)\n"
        "assert timm.get_pretrained_cfg('spectre_large').license == 'cc-by-nc-sa-4.0'\n"
        "import sys; assert 'monai' not in sys.modules"
    )
    code, _, errors = run_python("-c", code)
    assert code == 0, errors


def test_another_file_than_the_pinned_one_is_refused(colipri):
    path, *_ = colipri
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = published_model("colipri")
    assert pin_weights(entry) == (COMMIT, digest)
    pinned = replace(entry, revision=COMMIT, sha256=digest)
    assert fetch_weights(pinned) == path
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(WeightsError, match=f"SHA-256 .*, but colipri is {digest}.*do not load it"):
        load_published(pinned, **colipri[3])


def test_without_network_the_error_is_one_line(cache):
    with pytest.raises(WeightsError) as caught:
        fetch_weights("colipri")
    text = str(caught.value)
    assert "\n" not in text
    assert "colipri: model.safetensors of https://huggingface.co/microsoft/colipri is neither" in text
    with pytest.raises(WeightsError, match="The hub asks for a request first"):
        fetch_weights("3dino_vit_large", accept_licence=True)


@pytest.mark.slow
def test_the_hubs_own_warnings_of_each_try_are_not_shown(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    said = []
    handler = logging.Handler()
    handler.emit = said.append
    hub = logging.getLogger("huggingface_hub")
    hub.addHandler(handler)
    try:
        for call in (hf_hub_download, lambda *_: fetch_weights("colipri")):
            said.clear()
            with pytest.raises((WeightsError, OSError)):
                call("microsoft/colipri", "model.safetensors")
            assert bool(said) == (call is hf_hub_download)
    finally:
        hub.removeHandler(handler)


@pytest.mark.slow
@torch.no_grad()
def test_a_licence_is_accepted_and_travels_with_the_weights(cache, tmp_path):
    state, x, _, options = spectre()
    tokens = forwards.box_vit(state, x, 4, eps=1e-5)  # as the recipe of this model has it
    entry = published_model("spectre_large")
    torch.save(state, cached_file(cache, entry.repository, entry.file))
    sizes = {**options, "num_heads": 4}
    with pytest.raises(UsageError, match=r"cc-by-nc-sa-4\.0, not for commercial use.*accept_licence=True"):
        create_model("spectre_large", pretrained=True, **sizes)
    net = create_model("spectre_large", pretrained=True, accept_licence=True, **sizes)
    assert (net.forward_features(x) - tokens).abs().max() <= 1e-6 * tokens.abs().max()

    save_backbone(net, tmp_path / "backbone.safetensors")
    with safe_open(tmp_path / "backbone.safetensors", "pt") as file:
        assert file.metadata()["license"] == entry.licence.weights
    assert backbone_from(tmp_path / "backbone.safetensors").network.pretrained_cfg["license"] == entry.licence.weights
    convert_weights(tmp_path / "backbone.safetensors", tmp_path / "folder")
    assert f"license: {entry.licence.weights}" in (tmp_path / "folder" / "README.md").read_text()
    again = VisionTransformer3D.from_pretrained(tmp_path / "folder")
    classifier = TokenClassifier(again, num_classes=2)
    classifier.save_pretrained(tmp_path / "classifier")
    whole = TokenClassifier.from_pretrained(tmp_path / "classifier")
    assert whole.backbone.pretrained_cfg["license"] == entry.licence.weights
    fresh = VisionTransformer3D.from_pretrained(tmp_path / "folder", num_classes=3)
    fresh.pretrained_cfg.pop("license")
    load_backbone(fresh, tmp_path / "backbone.safetensors")
    assert fresh.pretrained_cfg["license"] == entry.licence.weights


def test_each_file_of_a_model_is_fetched_and_pinned(cache, capsys):
    entry = published_model("spectre_large")
    files = [cached_file(cache, entry.repository, name) for name in (entry.file, entry.combiner.file)]
    for path, (state, *_) in zip(files, (spectre(), spectre_combiner())):
        torch.save(state, path)
    assert main(["weights", "pin", "spectre_large"]) == 0
    (revision, digest), (inner, inner_digest) = (
        [line.split(": ")[1] for line in lines.strip().splitlines()]
        for lines in capsys.readouterr().out.split("combiner:\n")
    )
    assert (revision, digest) == (COMMIT, hashlib.sha256(files[0].read_bytes()).hexdigest())
    assert (inner, inner_digest) == (COMMIT, hashlib.sha256(files[1].read_bytes()).hexdigest())
    assert get_weights("spectre_large", accept_licence=True) == files[0]
    with pytest.raises(UsageError, match=r"spectre_large\.combiner: .*not for commercial use"):
        fetch_weights(entry.combiner)
    files[1].unlink()
    with pytest.raises(WeightsError, match=r"spectre_large\.combiner: spectre_combiner_feature_vit_large\.pt"):
        get_weights("spectre_large", accept_licence=True)


def test_what_cannot_be_loaded_says_why(cache, tmp_path):
    with pytest.raises(WeightsError, match="neuro_jepa: every second of its blocks is a mixture of experts"):
        fetch_weights("neuro_jepa", accept_licence=True)
    with pytest.raises(WeightsError, match=r"segvol: its file's name .* Download it, and give its path instead"):
        fetch_weights("segvol")
    with pytest.raises(UsageError, match=r"'colipry' is no published model .*such as colipri"):
        fetch_weights("colipry")
    with pytest.raises(UsageError, match="pretrained=False; the file says what the network is"):
        create_model("colipri", pretrained=False)
    with pytest.raises(UsageError, match=r"expected a new file \.safetensors"):
        get_weights("colipri", tmp_path / "w.pt")


def test_the_table_is_whole():
    rows = {row["name"]: row for row in list_published()}
    assert rows.keys() == published_models().keys()
    for entry in published_models().values():
        assert entry.family in (None, *FAMILIES)
        assert entry.feature in (None, *FEATURES, *LEARNED_FEATURES)
        assert bool(entry.pool) == (entry.feature == "attention_pool")
        assert (entry.combiner is not None) == (entry.feature == "combiner")
        assert entry.checked in (None, "layout", "file")
        assert entry.repository.count("/") == 1
        assert len(entry.input_size) == 4
        for step in (entry.recipe or {}).get("steps", ()):
            assert step.keys() <= RECIPE_STEPS.keys()
        assert entry.stated or entry.recipe is None
        assert not rows[entry.name]["loads"] or entry.file
    assert rows["colipri"]["unstated"] == []
    assert rows["brainiac"]["unstated"] == ["orientation"]


@pytest.mark.slow
def test_the_command_fetches_from_a_cache(colipri, cache, tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    code, out, errors = run_python("-m", "monai_vit3d.cli", "weights", "pin", "colipri", env=environment)
    assert (code, out.splitlines()[0]) == (0, f"revision: {COMMIT}"), errors
    code, out = run_warm("-m", "monai_vit3d.cli", "weights", "list")
    assert code == 0, out
    assert any(line.startswith("colipri") and "mit" in line for line in out.splitlines())
    code, out = run_warm("-m", "monai_vit3d.cli", "weights", "get", "spectre_large")
    assert code == 2
    (said,) = out.strip().splitlines()
    assert "--accept-licence" in said


@torch.no_grad()
@pytest.mark.parametrize("name", LAYOUTS)
def test_entries_read_the_layouts_that_they_name(name):
    folder = Path(os.environ.get("MONAI_DATA_DIRECTORY", ".")) / "layouts"
    layout, heads = LAYOUTS[name]
    if not (folder / f"{layout}.pt").is_file():
        pytest.skip("the layouts of published networks are not under MONAI_DATA_DIRECTORY")
    given = torch.load(folder / f"{layout}.ref.pt", weights_only=True)
    x = given["x"].transpose(1, 2) if layout == "hf_vjepa2" else given["x"]
    options = {**OWN[layout], "num_heads": heads, "img_size": tuple(x.shape[2:])}
    if layout == "spectre":  # given with its class's own eps, which is not that of the published size
        options["norm_eps"] = 1e-6
    net, report = load_published(name, path=folder / f"{layout}.pt", accept_licence=True, **options)
    assert (net.forward_features(x) - given["y"]).abs().max() <= 1e-5 * given["y"].abs().max()
    assert report.missing == ()
