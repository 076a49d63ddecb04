"""Embedding: vectors of files by the tokens of the network, in windows, whatever the order and the way of storing."""

import json
from contextlib import suppress

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_vit3d import VisionTransformer3D
from monai_vit3d.cli import main
from monai_vit3d.data import ImageError, UsageError, WeightsError
from monai_vit3d.pipeline.embed_folder import embed_folder
from monai_vit3d.pipeline.embedder import Embedd, Embedder
from monai_vit3d.pipeline.features import subject_of
from monai_vit3d.pipeline.token_maps import pca_rgb, principal_components, similarity_map
from monai_vit3d.weights import save_backbone
from tests.hub_cache import use_offline
from tests.pipeline.report.test_page import Page

RECIPE = {"orientation": "RAS", "steps": [{"z_score": {"nonzero": False}}], "overlap": 0.5}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    options = {
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
    }
    return VisionTransformer3D(16, 8, **options).eval()


@pytest.fixture(scope="module")
def embedder(network):
    return Embedder(network, recipe=RECIPE, device="cpu")


def image(seed=0, shape=(16, 24, 16), turned=False):
    voxels = np.random.default_rng(seed).integers(0, 500, shape).astype(np.int16)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = [-10, 5, 20]
    if not turned:
        return nib.Nifti1Image(voxels, affine)
    change = np.array([[0, 0, -1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    change[0, 3] = shape[0] - 1
    return nib.Nifti1Image(voxels[::-1].transpose(1, 2, 0).astype(np.float32), affine @ change)


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    for subject, seed in (("01", 0), ("02", 1), ("03", 2)):
        (folder / f"sub-{subject}").mkdir(parents=True)
        image(seed).to_filename(folder / f"sub-{subject}" / "t1.nii.gz")
    return folder


@torch.no_grad()
def test_the_vector_is_the_networks(network, embedder):
    voxels = image().get_fdata()
    scaled = torch.from_numpy((voxels - voxels.mean()) / voxels.std()).float()[None, None]
    parts, expected, weights = [], [], []
    for start in (0, 8):  # windows of 16 with an overlap of a half
        part = scaled[..., start : start + 16, :]
        tokens = network.forward_features(part)[0, network.num_prefix_tokens :]
        parts.append(tokens)
        expected.append(tokens.mean(0).double().numpy())
        weights.append(float((part > scaled.min()).float().mean()))
    embedding = embedder.embed(image(), keep_tokens=True)
    assert embedding.windows == 2
    np.testing.assert_allclose(embedding.vector, np.average(expected, 0, weights), rtol=0, atol=1e-5)
    grids = [tokens.T.reshape(-1, 2, 2, 2).numpy() for tokens in parts]
    middle = (grids[0][:, :, 1] + grids[1][:, :, 0]) / 2
    merged = np.stack([grids[0][:, :, 0], middle, grids[1][:, :, 1]], axis=2)
    np.testing.assert_allclose(embedding.tokens, merged, rtol=0, atol=1e-5)
    # the first patch's centre lies in the middle of its 8 voxels
    np.testing.assert_allclose(embedding.grid.affine_mm[:3, 3], (image().affine @ [3.5, 3.5, 3.5, 1.0])[:3], atol=1e-5)
    np.testing.assert_allclose(embedding.grid.spacing_mm, [16, 16, 24], atol=1e-5)


def test_a_turned_file_gives_the_same_vector(embedder, tmp_path):
    image(turned=True).to_filename(tmp_path / "turned.nii.gz")
    np.testing.assert_allclose(embedder(tmp_path / "turned.nii.gz"), embedder(image()), rtol=0, atol=1e-6)
    data = Embedd("image", embedder)({"image": str(tmp_path / "turned.nii.gz"), "age": 3})
    assert torch.equal(data["image_embedding"], torch.from_numpy(embedder(tmp_path / "turned.nii.gz")))
    assert data["age"] == 3


@torch.no_grad()
def test_features_are_rows_of_a_table():
    torch.manual_seed(0)
    net = VisionTransformer3D(
        16, 8, embed_dim=24, depth=1, num_heads=2, class_token=True, global_pool="cls_token"
    ).eval()
    voxels = image(shape=(16, 16, 16)).get_fdata()
    tokens = net.forward_features(torch.from_numpy((voxels - voxels.mean()) / voxels.std()).float()[None, None])[0]
    rows = {
        "class_token": tokens[0],
        "mean": tokens[1:].mean(0),
        "first_patch": tokens[1],
        "class_token+mean": torch.cat([tokens[0], tokens[1:].mean(0)]),
    }
    for feature, expected in rows.items():
        vector = Embedder(net, recipe=RECIPE, feature=feature, device="cpu")(image(shape=(16, 16, 16)))
        np.testing.assert_allclose(vector, expected.numpy(), rtol=0, atol=1e-5)


def test_a_small_volume_is_padded_and_a_whole_one_is_one_window(embedder):
    assert embedder.embed(image(shape=(10, 12, 9))).windows == 1
    torch.manual_seed(0)
    rotary = VisionTransformer3D(
        16, 8, embed_dim=24, depth=1, num_heads=2, pos_embed="none", rope="patch", global_pool="avg"
    )
    embedding = Embedder(rotary, recipe=RECIPE, whole=True, device="cpu").embed(
        image(shape=(24, 17, 30)), keep_tokens=True
    )
    assert embedding.windows == 1
    assert embedding.tokens.shape[1:] == (3, 3, 4)
    with pytest.raises(UsageError, match=r"whole=True: the network's positions are of \(16, 16, 16\)"):
        Embedder(embedder.network, recipe=RECIPE, whole=True)


def test_what_does_not_fit_says_so(network, embedder):
    with pytest.raises(UsageError, match="how its scans are prepared is not stated"):
        Embedder(network)
    with pytest.raises(UsageError, match="feature='class'; of this network expected one of mean, first_patch"):
        Embedder(network, recipe=RECIPE, feature="class")
    with pytest.raises(UsageError, match=r"weights=w\.pt: for a published model"):
        Embedder(network, recipe=RECIPE, weights="w.pt")
    with pytest.raises(ImageError, match="2 channels; expected 1"):
        embedder([image(), image(1)])


def read(folder, *names):
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.slow
def test_order_jobs_shards_and_resuming_change_no_byte(embedder, scans, tmp_path):
    first = tmp_path / "first"
    summary = embed_folder(scans, first, embedder)
    assert (summary.done, summary.failed) == (3, 0)
    for path in scans.rglob("*.nii.gz"):
        assert (first / path.relative_to(scans)).with_name("t1_embedding.npy").is_file()
    tables = read(first, "features.csv", "features.npz", "features.png")
    reverse = tmp_path / "reverse"
    embed_folder(sorted(scans.iterdir(), reverse=True), reverse, embedder, jobs=3)
    assert read(reverse, "features.csv", "features.npz", "features.png") == tables
    shards = tmp_path / "shards"
    for i in (2, 1):
        embed_folder(scans, shards, embedder, shard=(i, 2))
    assert read(shards, "features.csv", "features.npz", "features.png") == tables
    assert embed_folder(scans, first, embedder, existing="resume").skipped == 3
    assert read(first, "features.csv", "features.npz", "features.png") == tables
    again = embed_folder(
        scans, first, Embedder(embedder.network, recipe=RECIPE, feature="first_patch"), existing="resume"
    )
    assert again.done == 3

    with np.load(shards / "features.npz") as loaded:
        assert loaded["subjects"].tolist() == ["sub-01", "sub-02", "sub-03"]
        np.testing.assert_array_equal(loaded["vectors"][1], embedder(scans / "sub-02" / "t1.nii.gz"))
    header, row, *_ = tables["features.csv"].decode().splitlines()
    assert header.startswith("name,subject,windows,f0,f1")
    assert row.startswith("sub-01/t1,sub-01,2,")
    assert np.float32(row.split(",")[3]) == embedder(scans / "sub-01" / "t1.nii.gz")[0]


def test_a_broken_file_leaves_the_others_alone(embedder, scans, tmp_path):
    (scans / "sub-02" / "t1.nii.gz").write_bytes(b"no image")
    out = tmp_path / "out"
    summary = embed_folder(scans, out, embedder, maps=True, similar=(-5.0, 10.0, 25.0))
    assert (summary.done, summary.failed) == (2, 1)
    assert len((out / "features.csv").read_text().splitlines()) == 3
    about = json.loads((out / "run.json").read_text())
    assert about["recipe"]["orientation"] == "RAS"
    tokens, pca, similarity = (
        nib.load(out / "sub-01" / f"t1_{kind}.nii.gz") for kind in ("tokens", "pca", "similarity")
    )
    embedding = embedder.embed(scans / "sub-01" / "t1.nii.gz", keep_tokens=True)
    np.testing.assert_allclose(tokens.affine, embedding.grid.affine_mm, atol=1e-4)
    np.testing.assert_allclose(np.moveaxis(tokens.get_fdata(), -1, 0), embedding.tokens, atol=1e-6)
    assert pca.shape[:3] == similarity.shape == embedding.grid.shape


@pytest.mark.slow
def test_the_report_shows_each_scan_and_where_its_vector_lies(embedder, scans, tmp_path):
    image(4).to_filename(scans / "other.nii.gz")
    (scans / "sub-02" / "t1.nii.gz").write_bytes(b"no image")
    out = tmp_path / "out"
    embed_folder(scans, out, embedder, maps=True)
    page = Page(out / "report.html")
    assert page.text("h1") == ["backbone"]
    assert page.text("h2") == ["Failed", "Map", "Results"]
    assert page.text("h3") == ["other", "sub-01/t1", "sub-03/t1"]
    assert page.text("p", "soft").count("2 windows") == 3
    with np.load(out / "features.npz") as loaded:
        vectors = loaded["vectors"].astype(np.float64)
    values, axes = np.linalg.eigh(np.cov(vectors.T))
    scores, shares = principal_components(vectors, 2)
    np.testing.assert_allclose(shares, values[::-1][:2] / values.sum(), atol=1e-6)
    np.testing.assert_allclose(np.abs(scores), np.abs((vectors - vectors.mean(0)) @ axes[:, ::-1][:, :2]), atol=1e-6)
    pixels = np.asarray(Image.open(out / "qc" / "sub-01" / "t1.png"))
    assert (pixels.max(-1) > pixels.min(-1)).mean() > 0.2  # in colours
    before = (out / "report.html").read_text()
    assert embed_folder(scans, out, embedder, maps=True, existing="resume").skipped == 3
    assert Page(out / "report.html").text("h3") == page.text("h3")
    assert (out / "report.html").read_text() != before  # "from an earlier run"
    (out / "sub-03" / "t1_embedding.npy").unlink()
    (scans / "sub-03" / "t1.nii.gz").write_bytes(b"no image")
    embed_folder(scans, out, embedder, maps=True, existing="resume")
    assert Page(out / "report.html").text("h2") == ["Failed", "Results"]  # two vectors make no map


def test_pictures_of_tokens_are_those_of_numpy(embedder):
    embedding = embedder.embed(image(), keep_tokens=True)
    rows = embedding.tokens.reshape(24, -1).T.astype(np.float64)
    rows = rows - rows.mean(0)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    for channel, axis in zip(pca_rgb(embedding.tokens), vectors[:, np.argsort(-values)[:3]].T):
        scores = rows @ (axis * np.sign(axis[np.abs(axis).argmax()]))
        low, high = np.percentile(scores, (1, 99))
        np.testing.assert_allclose(channel.ravel(), np.clip((scores - low) / (high - low), 0, 1), atol=1e-5)
    some = embedding.tokens.copy()
    some[:, 0] = 0  # of background
    alone = pca_rgb(some[:, 1:])
    np.testing.assert_allclose(pca_rgb(some)[:, 1:], alone, atol=1e-6)
    assert not pca_rgb(some)[:, 0].any()
    centre = embedding.grid.affine_mm @ [1, 2, 0, 1]
    likeness = similarity_map(embedding.tokens, embedding.grid, centre[:3])
    token = embedding.tokens[:, 1, 2, 0].astype(np.float64)
    other = embedding.tokens[:, 0, 1, 1].astype(np.float64)
    assert likeness[1, 2, 0] == pytest.approx(1)
    cosine = token @ other / np.linalg.norm(token) / np.linalg.norm(other)
    assert likeness[0, 1, 1] == pytest.approx(cosine, abs=1e-6)
    with pytest.raises(ImageError, match="outside of what the network saw"):
        similarity_map(embedding.tokens, embedding.grid, [500, 0, 0])


def test_subjects_are_those_of_bids():
    names = ["sub-01/ses-1/sub-01_ses-1_T1w", "a/b_sub-x1_t1", "mysub-3", "case7"]
    assert [subject_of(name) for name in names] == ["sub-01", "sub-x1", "mysub-3", "case7"]


def test_the_command_embeds_a_folder(network, scans, tmp_path, capsys):
    save_backbone(network, tmp_path / "backbone.safetensors")
    (tmp_path / "recipe.yaml").write_text(json.dumps({**RECIPE, "orientation": None}))
    command = ["embed", str(scans), "-o", str(tmp_path / "out"), "--model", str(tmp_path / "backbone.safetensors")]
    command += ["--device", "cpu", "--recipe", str(tmp_path / "recipe.yaml")]
    assert main(command) == 2
    assert "recipe: not stated by its authors: orientation" in capsys.readouterr().err
    assert main([*command, "--state", "orientation=RAS"]) == 0
    assert "3 done, 0 skipped, 0 failed" in capsys.readouterr().out
    with suppress(SystemExit):
        main([*command, "--similar", "1,2"])
    assert "expected three numbers" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_names_what_a_run_writes_and_fetches_nothing(network, scans, tmp_path, capsys, monkeypatch):
    use_offline(monkeypatch, tmp_path / "cache")
    out = tmp_path / "out"
    command = ["embed", str(scans), "-o", str(out), "--maps", "--similar=-5,10,25", "--dry-run", "--model"]
    assert main([*command, "colipri"]) == 0
    of_name = capsys.readouterr().out
    save_backbone(network, tmp_path / "backbone.safetensors")
    assert main([*command, str(tmp_path / "backbone.safetensors")]) == 0
    assert capsys.readouterr().out == of_name
    assert not out.exists()
    embed_folder(scans, out, Embedder(network, recipe=RECIPE, device="cpu"), maps=True, similar=(-5, 10, 25))
    *lines, count = of_name.splitlines()
    assert count == "3 cases"
    named = {path for line in lines for path in line.partition(" -> ")[2].split(", ")}
    assert named == {str(path) for path in out.glob("sub-*/*")}


def with_air(shape=(16, 24, 16)):
    """A scan whose second half along the second axis is one value, but for a corner."""
    voxels = image(shape=shape).get_fdata()
    voxels[:, 12:] = 40
    voxels[:8, 16:, :8] = image(7, shape).get_fdata()[:8, 16:, :8]
    return nib.Nifti1Image(voxels, image().affine)


@torch.no_grad()
@pytest.mark.parametrize("feature", ["mean", "class_token", "class_token+mean"])
def test_vectors_of_tokens_of_foreground(feature):
    torch.manual_seed(0)
    net = VisionTransformer3D(16, 8, embed_dim=24, depth=2, num_heads=2, global_pool="avg", fc_norm=True).eval()
    embedder = Embedder(net, recipe=RECIPE, feature=feature, tokens="foreground", device="cpu")
    assert embedder.network.tokens == "foreground"
    voxels = with_air().get_fdata()
    scaled = torch.from_numpy((voxels - voxels.mean()) / voxels.std()).float()[None, None]
    vectors, weights = [], []
    for start in (0, 8):
        part = scaled[..., start : start + 16, :]
        blocks = part.reshape(2, 8, 2, 8, 2, 8).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)
        valid = blocks.amax(1) > blocks.amin(1)
        assert 0 < int(valid.sum()) < 8 or start == 0
        net.set_tokens("all")
        mask = torch.cat([torch.ones(1, dtype=torch.bool), valid])[None, None, None]
        tokens = net.fc_norm(net.forward_features(part, mask)[0])
        mean = tokens[1:][valid].mean(0)
        vectors.append({"mean": mean, "class_token": tokens[0]}.get(feature, torch.cat([tokens[0], mean])).numpy())
        weights.append(float((part > scaled.min()).float().mean()))
    net.set_tokens("foreground")
    embedding = embedder.embed(with_air(), keep_tokens=True)
    np.testing.assert_allclose(embedding.vector, np.average(vectors, 0, weights), rtol=0, atol=1e-5)
    is_zero = (embedding.tokens == 0).all(0)
    assert is_zero[:, 2].tolist() == [[False, True], [True, True]]
    assert not is_zero[:, :2].any()


def test_an_image_of_one_value_has_a_vector_of_zeros(network):
    flat = nib.Nifti1Image(np.full((16, 24, 16), 7, np.int16), np.eye(4))
    embedder = Embedder(network, recipe=RECIPE, tokens="foreground", device="cpu")
    assert not embedder(flat).any()
    network.set_tokens("all")


@pytest.mark.slow
def test_tokens_are_part_of_what_a_vector_is_made_with(scans, tmp_path, capsys):
    torch.manual_seed(0)
    net = VisionTransformer3D(16, 8, embed_dim=24, depth=1, num_heads=2)
    save_backbone(net, tmp_path / "net.safetensors")
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    words = ["embed", scans, "-o", tmp_path / "out", "--model", tmp_path / "net.safetensors", "--device", "cpu"]
    words += ["--recipe", tmp_path / "recipe.yaml", "--resume"]
    first, second = (main([*map(str, [*words, *more])]) for more in ([], ["--tokens", "0.5"]))
    assert first == second == 0
    assert capsys.readouterr().out.count("3 done, 0 skipped") == 2
    assert json.loads((tmp_path / "out" / "run.json").read_text())["tokens"] == 0.5
    with pytest.raises(UsageError, match="may be background"):
        Embedder(net, recipe=RECIPE, feature="first_patch", tokens="foreground", device="cpu")


def test_a_misspelt_name_of_a_published_model_is_no_file():
    with pytest.raises(
        UsageError, match="'colipry' is no published model that is known here; expected one such as coli"
    ):
        Embedder("colipry")
    with pytest.raises(WeightsError, match=r"colipry\.pt: no such file"):
        Embedder("colipry.pt")
