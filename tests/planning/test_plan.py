"""The plan: each rule against nnU-Net's or the field's own, and what may be set."""

import math
from itertools import pairwise

import pytest
import torch

from monai_vit3d.data import UsageError
from monai_vit3d.decoders import DECODERS
from monai_vit3d.networks.presets import PRESETS
from monai_vit3d.planning.folds import assign_folds, own_folds
from monai_vit3d.planning.memory import build_segmenter, training_bytes
from monai_vit3d.planning.plan import show_value
from monai_vit3d.planning.segmentation import SEGMENTATION_RULES
from tests.helpers import run_python
from tests.planning.evidence import CT, MR, PET, plan

SMALL = {"shape": (40, 40, 40)}


def _case(name, subject=None, fold=None):
    from monai_vit3d.planning.dataset import LabelledCase

    return LabelledCase(name, (), None, subject or name, fold)


@pytest.mark.slow
def test_every_decision_has_a_reason_on_its_line():
    chosen = plan(**SMALL)
    assert list(chosen) == [rule.key for rule in SEGMENTATION_RULES]
    for decision, line in zip(chosen.decisions, chosen.lines(), strict=True):
        assert decision.reason
        assert line.startswith(decision.key)
        assert line.endswith(f"({decision.reason})")
        assert "\n" not in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("facts", "spacing"),
    [
        ({"spacing": (1.0, 1.2, 2.5), "shape": (64, 64, 32)}, [1.0, 1.2, 2.5]),
        # nnU-Net: a coarse axis with few slices gets its 10th percentile, but no finer than the others are
        ({"spacing": (0.5, 0.5, 5.0), "fine": (0.4, 0.4, 3.0), "shape": (128, 128, 20)}, [0.5, 0.5, 3.0]),
        ({"spacing": (0.5, 0.5, 5.0), "fine": (0.4, 0.4, 0.3), "shape": (128, 128, 20)}, [0.5, 0.5, 0.5]),
        # coarse, but as many slices as rows: nothing is gained
        ({"spacing": (0.5, 0.5, 2.0), "fine": (0.4, 0.4, 1.0), "shape": (64, 64, 60)}, [0.5, 0.5, 2.0]),
    ],
)
def test_spacing(facts, spacing):
    assert plan(**facts)["spacing_mm"] == pytest.approx(spacing)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spacing", "shape", "patch"),
    [
        ((1, 1, 1), (64, 64, 64), [8, 8, 8]),
        ((0.5, 0.5, 5.0), (64, 56, 12), [8, 8, 1]),
        ((1.5, 1.5, 3.0), (40, 36, 28), [8, 8, 4]),
        ((3.0, 1.0, 1.0), (20, 64, 64), [2, 8, 8]),  # log2(8 / 3) is 1.4
        ((1, 1, 1), (64, 64, 6), [8, 8, 2]),  # two patches or more
    ],
)
def test_a_patch_is_a_power_of_two_and_about_a_cube_in_mm(spacing, shape, patch):
    chosen = plan(spacing=spacing, shape=shape)
    assert chosen["patch_size"] == patch
    assert [n % p for n, p in zip(chosen["window"], patch)] == [0, 0, 0]


@pytest.mark.slow
def test_a_window_covers_a_small_case_and_is_cut_in_proportion_from_a_large_one():
    assert plan(shape=(36, 50, 35))["window"] == [32, 48, 32]  # 95 % are 34, 47.5 and 33 voxels
    large = plan(shape=(256, 256, 64))["window"]
    assert math.prod(large) <= 64 * 64 * 40
    assert large[0] == large[1] > large[2]


@pytest.mark.slow
def test_a_window_fits_the_memory():
    given = {"shape": (64, 64, 64)}
    large, small = plan(**given), plan(**given, memory_bytes=int(0.4 * 2**30))
    assert math.prod(small["window"]) < math.prod(large["window"])
    network = build_segmenter(dict(small), small["window"], 1, 2)
    assert training_bytes(network, (2, 1, *small["window"]), 2, small["amp"]) <= 0.4 * 2**30
    assert small["memory_gb"] == 0.4


@pytest.mark.slow
def test_too_little_memory_is_said():
    with pytest.raises(
        UsageError, match=r"memory=0.01GB: the smallest window .16, 16, 16. needs 0\.\d+ GB to train. Give more"
    ):
        plan(**SMALL, memory_bytes=10 * 2**20)


@pytest.mark.slow
def test_each_channel_is_normalised_as_its_kind_is():
    chosen = plan(**SMALL, channels=(CT, MR, PET))
    clip = {"scheme": "clip_z", "low": -160.0, "high": 240.0, "mean": 40.0, "std": 60.0}
    assert chosen["intensity"] == [clip, {"scheme": "z_nonzero"}, {"scheme": "z"}]
    given = plan(**SMALL, channels=(CT, MR), overrides={"modality": ["MR", "CT"]})
    assert [scheme["scheme"] for scheme in given["intensity"]] == ["z", "clip_z"]


def test_ct_of_one_value_in_the_labels_is_normalised_by_the_image():
    flat = {**CT, "std": 0.0, "percentiles": dict.fromkeys(CT["percentiles"], 40.0)}
    assert plan(**SMALL, channels=(flat,))["intensity"] == [{"scheme": "z"}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "pairs", "axes"),
    [
        (["tumour"], [], [0, 1, 2]),
        (["left_kidney", "right_kidney"], [["left_kidney", "right_kidney"]], [1, 2]),
        (["leftLung", "tumour"], [], [1, 2]),  # a side without the other
        (["kidney_L"], [], [1, 2]),
        (["Anterior", "Posterior"], [], [0, 2]),
        (["upper lobe", "liver"], [], [0, 1]),
        (["lung", "toplevel", "rl"], [], [0, 1, 2]),  # parts of words are no sides
    ],
)
def test_flips_along_the_axes_on_which_no_class_has_a_side(classes, pairs, axes):
    assert plan(shape=(128, 128, 128), classes=classes, pairs=pairs)["flip_axes"] == axes


@pytest.mark.slow
def test_a_window_that_shows_the_whole_is_flipped_left_to_right_alone():
    assert plan(**SMALL, classes=["tumour"])["flip_axes"] == [0]


@pytest.mark.slow
def test_slices_are_rotated_in_their_plane_where_they_are_thick():
    assert plan(spacing=(0.5, 0.5, 5.0), shape=(64, 56, 12))["rotate_range"] == [0.0, 0.0, 0.26]
    assert plan(spacing=(4.0, 1.0, 1.0), shape=(12, 56, 64))["rotate_range"] == [0.26, 0.0, 0.0]
    assert plan(**SMALL)["rotate_range"] == [0.26] * 3


@pytest.mark.slow
def test_a_third_of_the_windows_shows_background_and_all_classes_alike_the_others():
    ratios = plan(**SMALL, classes=["a", "b", "c"])["class_ratios"]
    shares = [ratio / sum(ratios) for ratio in ratios]
    assert shares == pytest.approx([1 / 3, 2 / 9, 2 / 9, 2 / 9])


@pytest.mark.slow
def test_a_rare_class_changes_the_loss():
    assert plan(**SMALL, volume_ml=1)["loss"] == "DiceCELoss"
    assert plan(**SMALL, volume_ml=0.05)["loss"] == "DiceFocalLoss"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("subjects", "cases", "folds", "batch", "samples"), [(40, 40, 5, 2, 1), (3, 3, 3, 2, 1), (2, 2, 2, 1, 2)]
)
def test_folds_batches_and_epochs(subjects, cases, folds, batch, samples):
    chosen = plan(**SMALL, subjects=subjects, cases=cases)
    assert (chosen["folds"], chosen["batch_size"], chosen["samples_per_case"]) == (folds, batch, samples)
    steps = cases * (folds - 1) // folds * chosen["repeats"] // batch
    assert steps >= 50
    assert 1000 <= steps * chosen["epochs"] <= 4500
    assert 1 <= chosen["val_interval"] <= chosen["epochs"] // 8


def test_one_subject_cannot_be_trained_and_validated_on():
    with pytest.raises(UsageError, match="1 subject with labels; expected 2 or more"):
        plan(**SMALL, subjects=1, cases=1)


def test_more_folds_than_subjects_are_refused():
    with pytest.raises(UsageError, match="folds=5; 2 subjects are there: expected 2 to 2"):
        plan(**SMALL, subjects=2, cases=2, overrides={"folds": 5})


@pytest.mark.slow
def test_a_given_value_replaces_a_rule_and_is_followed():
    chosen = plan(**SMALL, overrides={"preset": "vit3d_small", "decoder": "light", "epochs": 3})
    assert (chosen["embed_dim"], chosen["num_heads"]) == (PRESETS["vit3d_small"].embed_dim, 6)
    assert chosen["image_levels"] is None
    assert (chosen["epochs"], chosen["val_interval"], chosen["warmup_epochs"]) == (3, 1, 1)
    assert next(d.reason for d in chosen.decisions if d.key == "epochs") == "given"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epoch": 3}, "epoch: no choice of the plan has this name. Did you mean epochs. They are device, memory_gb"),
        ({"epochs": "many"}, "epochs is 'many'; a whole number is expected"),
        (
            {"window": [40, 40, 36]},
            r"window=\[40, 40, 36\]: multiples of patch_size=.8, 8, 8. are expected, such as .40, 40, 32.",
        ),
        ({"window": [40, 40]}, r"window=\[40, 40\]: 3 numbers are expected, one for each axis"),
        ({"preset": "huge"}, "preset=huge: unknown; expected one of vit3d_tiny"),
        ({"decoder": "unet"}, "decoder=unet: unknown; expected one of dpt"),
        ({"orientation": "RLS"}, "orientation=RLS: one of R and L, A and P, S and I each"),
        ({"orientation": "RASS"}, "orientation=RASS: one of R and L"),
        ({"flip_axes": [3]}, "flip_axes=.3.: axes 0, 1 and 2 are expected"),
        ({"tta_degrees": [8.0, 8.0, 90.0]}, "tta_degrees=.8.0, 8.0, 90.0.: numbers below 90 are expected"),
        ({"tta_scales": [0.0]}, "tta_scales=.0.0.: factors above 0 are expected"),
        ({"loss": "Dice"}, "loss=Dice: one of DiceCELoss"),
        ({"epochs": 0}, "epochs=0: 1 or more is expected"),
        ({"intensity": [{"scheme": "minmax"}]}, "intensity=.*channels.0.: scheme 'minmax'; expected one of clip_z"),
        ({"intensity": [{"scheme": "z"}] * 2}, "2 entries; one for each of 1 channels is expected"),
        ({"num_heads": 5}, "num_heads=5: a divisor of embed_dim=192 is expected"),
        ({"class_ratios": [1.0]}, "1 entries; one for each of 2 classes is expected"),
    ],
)
def test_a_value_that_cannot_be_is_refused_on_one_line(overrides, message):
    with pytest.raises(UsageError, match=message) as caught:
        plan(**SMALL, overrides=overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "patch"), [(2, [8, 8, 4]), (3, [8, 8, 4]), (1, [2, 2, 2])])
def test_the_decoder_reads_no_more_blocks_than_there_are(depth, patch):
    given = {"depth": depth, "patch_size": patch, "embed_dim": 12, "num_heads": 1, "window": [2 * n for n in patch]}
    chosen = plan(overrides=given)
    assert chosen["decoder"] == ("unetr" if math.log2(max(patch)) <= depth else "pyramid")
    for name, decoder in DECODERS.items():
        if decoder.num_maps(patch) <= depth:
            assert plan(overrides={**given, "decoder": name})["decoder"] == name
        else:
            with pytest.raises(
                UsageError, match=rf"^decoder={name}: .* expected (\w+, )*{chosen['decoder']}(, \w+)*\.$"
            ):
                plan(overrides={**given, "decoder": name})


def test_a_given_window_may_not_exceed_the_memory():
    with pytest.raises(
        UsageError, match=r"window=\[128, 128, 128\]: a step needs about .* GB, memory is 0.5 GB; a smaller"
    ):
        plan(shape=(200, 200, 200), memory_bytes=2**29, overrides={"window": [128, 128, 128]})


def test_values_are_shown_as_they_are_given():
    import yaml

    for value in ([8, 8, 1], 0.001, 1e-5, None, True, "DiceCELoss", [{"scheme": "z"}]):
        assert yaml.safe_load(show_value(value)) == value


def test_folds_keep_subjects_together_and_sizes_alike():
    cases = [_case(f"case_{i}", f"subject_{i // 3}") for i in range(60)]
    folds = assign_folds(cases, 5)
    assert [folds.count(fold) for fold in range(5)] == [12] * 5
    for i in range(0, 60, 3):
        assert len(set(folds[i : i + 3])) == 1
    # the order of the cases does not matter
    backwards = assign_folds(cases[::-1], 5)[::-1]
    assert backwards == folds


def test_neighbouring_names_do_not_share_a_fold_more_than_others():
    folds = assign_folds([_case(f"case_{i:03d}") for i in range(100)], 5)
    assert [folds.count(fold) for fold in range(5)] == [20] * 5
    same = sum(a == b for a, b in pairwise(folds))
    assert 8 <= same <= 34  # 20 by chance


def test_the_datas_own_folds_are_kept():
    cases = [_case("a", fold=1), _case("b", fold=3), _case("c", fold=1)]
    assert own_folds(cases) == 2
    assert assign_folds(cases, 2) == [0, 1, 0]
    assert own_folds([_case("a", fold=0), _case("b", fold=0)]) == 0
    assert own_folds([_case("a", fold=0), _case("b")]) == 0


_STEP = """
import torch
from monai.losses import DiceCELoss
from monai_vit3d.planning.memory import build_segmenter, training_bytes
from tests.helpers import kernel_bytes, new_peak
options = dict(patch_size=[8, 8, 8], embed_dim=192, depth=8, num_heads=3, embed_layer="conv_stem", decoder="unetr",
               feature_size=16, image_levels=3)
window, classes = {window}, {classes}
network = build_segmenter(options, window, 1, classes)
estimate = training_bytes(network, (2, 1, *window), classes, amp=False)
optimizer, loss = torch.optim.AdamW(network.parameters()), DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
average = torch.optim.swa_utils.AveragedModel(network)
before = new_peak()
image, label = torch.randn(2, 1, *window), torch.randint(0, classes, (2, 1, *window)).float()
for _ in range(2):
    optimizer.zero_grad()
    loss(network(image), label).backward()
    optimizer.step()
    average.update_parameters(network)
held = 2 * 4 * sum(p.numel() for p in network.parameters())  # weights and their average are there before
print(estimate, kernel_bytes("VmHWM") - before + held)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("window", "classes"), [((64, 32, 32), 3), ((64, 64, 32), 14)])
def test_the_estimate_of_memory_against_a_training_step(window, classes):
    # in pages of one size, whether or not the command has set huge ones for this process
    code, out, err = run_python("-c", _STEP.format(window=window, classes=classes), env={"THP_MEM_ALLOC_ENABLE": "0"})
    assert code == 0, err
    estimate, measured = map(int, out.split()[-2:])
    assert 0.8 * measured <= estimate <= 1.4 * measured, (estimate / 2**20, measured / 2**20)


@pytest.mark.slow
def test_reduced_precision_keeps_half_the_activations():
    chosen = plan(shape=(64, 64, 64))
    network = build_segmenter(dict(chosen), (64, 64, 64), 1, 3)
    weights = 20 * sum(p.numel() for p in network.parameters())
    full, half = (training_bytes(network, (2, 1, 64, 64, 64), 3, amp) - weights for amp in (False, True))
    assert 0.45 * full <= half <= 0.65 * full
    assert torch.is_grad_enabled()
