"""The vectors that published models' authors take: COLIPRI's attention pool, SPECTRE's network over the crops."""

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_vit3d import Embedder
from monai_vit3d.data import UsageError, WeightsError
from monai_vit3d.pipeline.embed_folder import embed_folder
from monai_vit3d.weights import load_combiner, load_pool
from tests.weights.convert import published_forwards as forwards
from tests.weights.convert.test_published import combiner_state, noise, primus_state, spectre_state

HEADS = 12  # of both entries
PLAIN = {"orientation": "RAS", "steps": [], "overlap": 0}


def scan(*shape):
    return nib.Nifti1Image(noise(*shape).numpy().astype(np.float32), np.eye(4))


def pool_state(width=72, out=48):
    state = {"projector.weight": noise(out, width, 1, 1, 1), "projector.bias": noise(out)}
    state |= {"pooler.attn.in_proj_weight": noise(3 * out, out), "pooler.attn.in_proj_bias": noise(3 * out)}
    return state | {"pooler.attn.out_proj.weight": noise(out, out), "pooler.attn.out_proj.bias": noise(out)}


@pytest.fixture
def colipri(tmp_path):
    """A file of COLIPRI's layout, the encoder's tensors and the pool's."""
    encoder, pool = primus_state(width=72), pool_state()
    named = {f"image_encoder.backbone.{key}": value for key, value in encoder.items()}
    named |= {f"image_encoder.{key}": value for key, value in pool.items()}
    named |= {f"text_encoder.{key}": value for key, value in pool_state().items()}
    torch.save(named, tmp_path / "colipri.pt")
    return tmp_path / "colipri.pt", encoder, pool


def test_colipris_vector_is_its_attention_pools(colipri):
    path, encoder, pool = colipri
    options = {"num_heads": HEADS, "img_size": (8, 8, 12), "grid": (2, 2, 3)}
    embedder = Embedder("colipri", weights=path, recipe=PLAIN, options=options, device="cpu")
    assert embedder.feature == "attention_pool"
    image = scan(8, 8, 12)
    x = torch.from_numpy(image.get_fdata())[None, None]
    expected = forwards.attention_pool(pool, forwards.primus(encoder, x, HEADS, (2, 2, 3)), HEADS)[0]
    vector = embedder(image)
    assert vector.shape == (48,)
    np.testing.assert_allclose(vector, expected.numpy(), rtol=0, atol=2e-5 * expected.abs().max())
    mean = Embedder("colipri", weights=path, recipe=PLAIN, options=options, feature="mean", device="cpu")(image)
    assert mean.shape == (72,)


def test_a_window_of_background_alone_has_a_vector_of_zeros(colipri):
    path, *_ = colipri
    options = {"num_heads": HEADS, "img_size": (8, 8, 8)}
    embedder = Embedder("colipri", weights=path, recipe=PLAIN, options=options, tokens="foreground", device="cpu")
    assert not embedder(nib.Nifti1Image(np.full((8, 8, 8), 7.0, np.float32), np.eye(4))).any()


def test_a_file_with_less_or_more_than_the_pool_is_refused(colipri, tmp_path):
    path, *_ = colipri
    state = torch.load(path, weights_only=True)
    key = "image_encoder.pooler.attn.in_proj_bias"
    for change, match in (
        ({name: value for name, value in state.items() if name != key}, f"no {key}.*feature='mean'"),
        ({**state, "image_encoder.pooler.query": torch.ones(4)}, r"image_encoder\.pooler\.query is a second one"),
        ({**state, "other.image_encoder.projector.bias": torch.ones(4)}, "is a second one, or none"),
        ({**state, key: torch.ones(3)}, "its attention pool: .*size mismatch for attn.in_proj_bias"),
    ):
        torch.save(change, tmp_path / "other.pt")
        with pytest.raises(WeightsError, match=match):
            load_pool("colipri", tmp_path / "other.pt")
    with pytest.raises(UsageError, match="spectre_large: its feature is no attention pool's"):
        load_pool("spectre_large")


@pytest.fixture
def spectre(tmp_path):
    """Files of SPECTRE's two networks, and their tensors."""
    first = spectre_state(72, pairs=1)
    second = combiner_state(72, 144, pairs=1)
    torch.save(first, tmp_path / "first.pt")
    torch.save(second, tmp_path / "second.pt")
    return {"weights": tmp_path / "first.pt", "combiner": tmp_path / "second.pt"}, first, second


def spectre_embedder(files, recipe=PLAIN, **options):
    options = {"options": {"img_size": (8, 16, 8)}, "recipe": recipe, "device": "cpu", **options}
    return Embedder("spectre_large", accept_licence=True, **files, **options)


def test_spectres_vector_is_the_class_token_over_the_grid_of_crops(spectre):
    files, first, second = spectre
    image = scan(16, 16, 24)
    x = torch.from_numpy(image.get_fdata())[None, None]
    of_crops = []
    for h in (0, 8):
        for d in (0, 8, 16):
            tokens = forwards.box_vit(first, x[:, :, h : h + 8, :, d : d + 8], HEADS, eps=1e-5)[0]
            of_crops.append(torch.cat([tokens[0], tokens[1:].mean(0)]))
    grid = torch.stack(of_crops, -1).reshape(1, 144, 2, 1, 3)
    expected = forwards.box_vit(second, grid, HEADS, eps=1e-5)[0, 0]
    embedding = spectre_embedder(files).embed(image)
    assert (embedding.windows, embedding.vector.shape) == (6, (72,))
    np.testing.assert_allclose(embedding.vector, expected.numpy(), rtol=0, atol=2e-5 * expected.abs().max())
    assert spectre_embedder(files)(scan(8, 16, 8)).shape == (72,)  # of one crop


def test_a_combiner_takes_windows_side_by_side(spectre):
    files, *_ = spectre
    for options in ({"overlap": 0.5}, {"whole": True}):
        with pytest.raises(UsageError, match=r"the combiner takes windows side by side.*feature='class_token\+mean'"):
            spectre_embedder(files, **options)
    with pytest.raises(UsageError, match=r"combiner=.*: for feature='combiner', not for 'mean'"):
        spectre_embedder(files, feature="mean")
    torch.save(spectre_state(48), files["weights"])
    with pytest.raises(UsageError, match=r"its combiner takes vectors of 144, not 96"):
        spectre_embedder(files, options={"img_size": (8, 16, 8), "num_heads": 4})
    with pytest.raises(UsageError, match="colipri: no network over its windows"):
        load_combiner("colipri")


@pytest.mark.slow
def test_other_weights_of_the_second_network_are_another_run(spectre, tmp_path):
    files, _, second = spectre
    scan(8, 16, 16).to_filename(tmp_path / "scan.nii.gz")
    out = tmp_path / "out"
    assert embed_folder(tmp_path / "scan.nii.gz", out, spectre_embedder(files)).done == 1
    assert embed_folder(tmp_path / "scan.nii.gz", out, spectre_embedder(files), existing="resume").skipped == 1
    torch.save({**second, "norm.bias": second["norm.bias"] + 1}, files["combiner"])
    before = np.load(out / "scan_embedding.npy")
    assert embed_folder(tmp_path / "scan.nii.gz", out, spectre_embedder(files), existing="resume").done == 1
    np.testing.assert_allclose(np.load(out / "scan_embedding.npy"), before + 1, atol=1e-5)
