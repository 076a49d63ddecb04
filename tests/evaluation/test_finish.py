"""Choice of the largest component, against MONAI's transform: where it raises the Dice, and no label is split."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import KeepLargestConnectedComponent

from monai_vit3d.evaluation.finish import compare_largest_components
from monai_vit3d.evaluation.pairs import EvaluationCase
from tests.evaluation.folders import organ, write_map


def cases_of(folder, pairs):
    return [
        EvaluationCase(
            f"case_{i}",
            write_map(prediction, folder / "pred" / f"case_{i}.nii.gz"),
            write_map(label, folder / "labels" / f"case_{i}.nii.gz"),
        )
        for i, (prediction, label) in enumerate(pairs)
    ]


def speckled(shift=0):
    """The organ, moved, with a false liver of one voxel and a false tumour."""
    labels = organ(shift)
    labels[0, 0, 0], labels[17:19, 0:2, 0:2] = 1, 2
    return labels


def split_tumour():
    labels = organ()
    labels[17:19, 0:2, 0:2] = 2
    return labels


def mean_dice(pairs, value):
    masks = [(prediction == value, label == value) for prediction, label in pairs]
    return np.mean([2 * (p & r).sum() / (p.sum() + r.sum()) for p, r in masks if p.any() or r.any()])


def largest_by_monai(labels, value):
    kept = KeepLargestConnectedComponent(applied_labels=[value], is_onehot=False)(
        torch.tensor(labels)[None]
    )  # it works in place
    return kept[0].numpy()


def test_specks_are_removed_and_the_dice_are_those_of_monais_transform(tmp_path):
    pairs = [(speckled(1), organ()), (organ(1), organ())]
    chosen = compare_largest_components(cases_of(tmp_path, pairs), {1: "liver", 2: "tumour"})
    for value in (1, 2):
        after = [(largest_by_monai(prediction, value), label) for prediction, label in pairs]
        assert chosen[value].before == pytest.approx(mean_dice(pairs, value))
        assert chosen[value].after == pytest.approx(mean_dice(after, value))
        assert chosen[value].kept
    assert "liver: only the largest component is kept (validation Dice 0." in str(chosen[1])


def test_a_class_with_several_components_in_a_label_keeps_all(tmp_path):
    """Even where that lowers the mean Dice: the second case has two tumours."""
    pairs = [(speckled(), organ())] * 3 + [(organ(), split_tumour())]
    chosen = compare_largest_components(cases_of(tmp_path, pairs), {1: "liver", 2: "tumour"})
    assert chosen[2].after > chosen[2].before
    assert not chosen[2].kept
    assert str(chosen[2]).endswith("labels have up to 2 components)")
    assert chosen[1].kept


def test_nothing_is_removed_where_it_changes_nothing_or_harms(tmp_path):
    broken = organ()
    broken[7] = 0  # the smaller half is right, too
    pairs = [(broken, organ()), (organ(), organ())]
    chosen = compare_largest_components(cases_of(tmp_path, pairs), {1: "liver", 2: "tumour", 3: "absent"})
    assert [row.kept for row in chosen.values()] == [False, False, False]
    assert chosen[1].after < chosen[1].before
    assert np.isnan(chosen[3].before)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10)
def test_the_dice_after_is_that_of_monais_transform(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    prediction, label = (rng.random((2, 8, 7, 6)) < 0.15).astype(np.uint8)
    (case,) = cases_of(tmp_path_factory.mktemp("random"), [(prediction, label)])
    row = compare_largest_components([case], {1: "one"})[1]
    # of components of one size MONAI keeps one, too, maybe another
    sizes = np.bincount(_numbered(prediction))[1:]
    if len(sizes) and (sizes == sizes.max()).sum() == 1:
        assert row.after == pytest.approx(mean_dice([(largest_by_monai(prediction, 1), label)], 1))


def _numbered(mask):
    from skimage.measure import label

    return label(mask, connectivity=3).ravel()
