"""What label values are called, against mappings that are written down here by hand."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Activationsd, AsDiscreted, Lambdad, MapLabelValued, SaveImaged

from monai_vit3d.bundle.postprocessing import Postprocessing
from monai_vit3d.bundle.value_names import value_names
from monai_vit3d.pipeline.folder import predict_folder
from tests.pipeline import chains

ARGMAX = AsDiscreted("pred", argmax=True)
MASKS = [Activationsd("pred", sigmoid=True), AsDiscreted("pred", threshold=0.5)]


def named(steps, names, classes=None):
    """Names of the values that the steps give, from those of the channels."""
    names = dict(enumerate(names)) if isinstance(names, list) else names
    return dict(value_names(Postprocessing.of(steps), classes or len(names), names).names)


@pytest.mark.slow
@settings(max_examples=15)
@given(values=st.lists(st.integers(0, 6), min_size=2, max_size=7))
def test_labels_that_are_mapped_to_other_values(values):
    names = [f"class {c}" for c in range(len(values))]
    mapped = MapLabelValued("pred", orig_labels=list(range(len(values))), target_labels=values)
    expected = {}
    for value in set(values) - {0}:
        expected[value] = " or ".join(name for name, own in zip(names, values) if own == value)
    if len(set(values)) == 1:  # one value for all: it tells no class from another
        expected = {}
    assert named([ARGMAX, mapped], names) == {v: name for v, name in expected.items() if len(name) <= 64}


@pytest.mark.slow
@settings(max_examples=15)
@given(order=st.permutations(range(4)), count=st.integers(2, 4), activated=st.booleans())
def test_masks_that_become_labels_by_rank(order, count, activated):
    """The first mask of an order that holds a voxel gives it its value, as in the zoo's BraTS bundle."""
    order = [channel for channel in order if channel < count]

    def by_rank(masks):
        labels = torch.zeros_like(masks[:1])
        for channel in reversed(order):
            labels[masks[[channel]] > 0] = 10 + channel
        return labels

    names = ["aa", "bb", "cc", "dd"][:count]
    found = named([*(MASKS if activated else []), Lambdad("pred", by_rank)], names)
    for rank, channel in enumerate(order):
        before = sorted(order[:rank])
        expected = names[channel] + (" without " if before else "") + ", ".join(names[c] for c in before)
        assert found.pop(10 + channel) == expected
    assert not found


@pytest.mark.slow
@settings(max_examples=10)
@given(order=st.permutations(range(7)))
def test_masks_in_another_order(order):
    names = [f"class {c}" for c in range(7)]
    found = named([*MASKS, Lambdad("pred", lambda masks: masks[order])], names)
    assert found == {i: names[channel] for i, channel in enumerate(order, 1)}


def test_many_classes():
    names = [f"parcel {c}" for c in range(105)]
    assert named([ARGMAX], names) == {c: names[c] for c in range(1, 105)}


@pytest.mark.parametrize(
    ("steps", "names", "classes", "expected"),
    [
        (MASKS, {0: "lesion"}, 1, {1: "lesion"}),
        (MASKS, {0: "background", 1: "lesion"}, 1, {0: "background", 1: "lesion"}),  # names of values, not channels
        ([ARGMAX], {0: "background", 1: "a", 4: "b"}, 3, {0: "background", 1: "a", 4: "b"}),
        ([ARGMAX], {1: "a", 2: "b"}, 3, {1: "a", 2: "b"}),
        ([ARGMAX], {0: "background", 1: "a"}, 3, {1: "a"}),
        ([ARGMAX], {}, 3, {}),
        ([], ["background", "a", "b"], 3, {1: "a", 2: "b"}),
        ([Lambdad("pred", lambda x: x.argmax(0, keepdim=True) + 1)], ["a", "b", "c"], 3, {1: "a", 2: "b", 3: "c"}),
        ([Lambdad("pred", lambda x: (x[1:2] > 0).float())], ["a", "b", "c"], 3, {1: "b"}),
        # a value that is there for one channel or another, and for two that are there at once
        ([*MASKS, Lambdad("pred", lambda x: x.amax(0, keepdim=True))], ["a", "b"], 2, {1: "a or b"}),
        ([*MASKS, Lambdad("pred", lambda x: x.sum(0, keepdim=True))], ["a", "b"], 2, {}),
        # nothing that follows from a single voxel, and what fails
        ([ARGMAX, Lambdad("pred", lambda x: torch.rand_like(x).round())], ["a", "b"], 2, {}),
        ([Lambdad("other", lambda x: x, allow_missing_keys=False)], ["a", "b"], 2, {}),
    ],
)
def test_by_hand(steps, names, classes, expected):
    assert named(steps, names, classes) == expected


def test_what_cannot_be_followed_has_no_name_and_is_said(tmp_path):
    """A step that looks at the image: values as they are, a warning, and no channel's name."""
    bright = {"_target_": "MaskIntensityd", "keys": "pred", "mask_key": "image", "select_fn": "$lambda x: x > 40"}
    chain = chains.Chain([chains.ARGMAX, bright, chains.NEAREST])
    image = chains.write_image(tmp_path / "in" / "a.nii.gz", "aligned")
    predict_folder([image], tmp_path / "out", chains.write_bundle(tmp_path / "bundle", chain), device="cpu")
    (record,) = json.loads((tmp_path / "out" / "run.json").read_text())["files"]
    present = sorted(set(np.unique(nib.load(record["output"]).dataobj)) - {0})
    assert [(row["label"], row["name"]) for row in record["stats"]] == [(v, f"label {v}") for v in present] != []
    assert (
        f"label {', '.join(map(str, present))}: written without a name, as the bundle's steps do not show which "
        "channels of its network that is"
    ) in record["warnings"]
    assert "label 1" in (tmp_path / "out" / "stats.csv").read_text()


def test_steps_behind_the_one_that_saves_give_no_names():
    steps = [ARGMAX, SaveImaged("pred", print_log=False), Lambdad("pred", lambda x: 2 - x)]
    assert named(steps, ["a", "b", "c"]) == {1: "b", 2: "c"}
