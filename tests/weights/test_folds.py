"""The files of trained folds, and the network that they make."""

import pytest
import torch

from monai_vit3d.data.confinement import reading_only_below
from monai_vit3d.data.errors import BundleError, WeightsError
from monai_vit3d.networks import FoldEnsemble, TokenSegmenter
from monai_vit3d.weights import fold_files, network_from
from tests.pipeline.fold_bundle import segmenter


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "mine" / "models"
    folder.mkdir(parents=True)
    for fold in (10, 2, 0):
        torch.save(segmenter(fold).state_dict(), folder / f"fold_{fold}.pt")
    for name in ("fold_1.pt.part", "fold_01.pt", "model.pt", "fold_a.pt", "my_fold_3.pt"):
        (folder / name).write_bytes(b"")
    (folder / "fold_4.pt").mkdir()
    return folder


def test_all_folds_in_their_order_or_some(models):
    assert fold_files(models) == [str(models / f"fold_{fold}.pt") for fold in (0, 2, 10)]
    assert fold_files(str(models), [10, 0]) == [str(models / f"fold_{fold}.pt") for fold in (0, 10)]
    assert fold_files(models, 2) == [str(models / "fold_2.pt")]


@pytest.mark.parametrize(
    ("folds", "words"),
    [
        ([0, 4], r"no weights of fold 4 \(finished: 0, 2, 10\).*vit3d train .*mine --fold 4"),
        ([0, 0], r"folds=\[0, 0\]; numbers from 0, each once"),
        ([-1], r"folds=\[-1\]"),
        ([True], r"folds=\[True\]"),
        ([], r"folds=\[\]"),
        ("all", "folds='all'"),
    ],
)
def test_folds_that_are_not_there(models, folds, words):
    with pytest.raises(WeightsError, match=words):
        fold_files(models, folds)


def test_nothing_is_trained_yet(tmp_path):
    with pytest.raises(WeightsError, match=r"no training is finished. Train the bundle first: vit3d train .*mine$"):
        fold_files(tmp_path / "mine" / "models")


def test_an_untrusted_bundle_lists_its_own_folder_alone(models):
    with reading_only_below(models / "fold_4.pt"), pytest.raises(BundleError, match="outside the bundle"):
        fold_files(models)


@torch.no_grad()
def test_one_file_is_its_network_and_several_are_an_ensemble(models):
    files = fold_files(models)
    one, several = network_from(files[:1], num_classes=3), network_from(files, num_classes=3)
    image = torch.randn(1, 2, 16, 16, 16)
    assert isinstance(one, TokenSegmenter)
    assert isinstance(several, FoldEnsemble)
    assert not several.training
    torch.testing.assert_close(one(image), segmenter(0)(image))
    alone = [segmenter(fold)(image).double().softmax(1) for fold in (0, 2, 10)]
    torch.testing.assert_close(several(image).double().softmax(1), sum(alone) / 3, atol=1e-6, rtol=1e-5)
    assert network_from(files, average="mean").average == "mean"


def test_files_that_make_no_network(models):
    with pytest.raises(WeightsError, match="an empty list of weights"):
        network_from([])
    with pytest.raises(WeightsError, match=r"fold_0.pt: weights of another architecture: num_classes=3 came, 4"):
        network_from(fold_files(models), num_classes=4)
