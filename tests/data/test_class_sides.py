import pytest

from monai_vit3d.data.class_sides import left_right_pairs


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left_organ", "right_organ"),
        ("kidney left", "kidney right"),
        ("Left-Hippocampus", "Right-Hippocampus"),
        ("LeftKidney", "RightKidney"),
        ("leftkidney", "rightkidney"),
        ("kidney_L", "kidney_R"),
        ("kidneyL", "kidneyR"),
        ("l.cuneus", "r.cuneus"),
        ("ctx-lh-cuneus", "ctx-rh-cuneus"),
        ("Lt adrenal", "Rt adrenal"),
        ("lung_upper_lobe_left", "lung_upper_lobe_right"),
        ("LEFT LUNG", "RIGHT LUNG"),
        ("rib_left_10", "rib_right_10"),
    ],
)
def test_pairs_by_name(left, right):
    others = ["liver", "rib_left_9", "lung_lower_lobe_left", "brightness", "left", "cleft palate", "femur_r"]
    assert left_right_pairs([right, *others, left]) == [[left, right]]


@pytest.mark.parametrize(
    "names", [["left_kidney", "left_lung"], ["left_kidney", "right_lung"], ["lesion", "liver"], ["L1", "L2"], []]
)
def test_no_pairs(names):
    assert left_right_pairs(names) == []
