"""Names that data sets and tools give to labels, and names of scans that resemble them."""

import pytest

from monai_vit3d.data.label_names import is_label_folder, is_label_name


@pytest.mark.parametrize(
    "stem",
    [
        "sub-01_T1w_label-lesion_roi",  # BIDS, fMRIPrep
        "sub-01_desc-brain_mask",
        "sub-01_dseg",
        "sub-01_label-CSF_probseg",
        "case_seg-left_hippocampus",  # vit3d predict --split
        "sub-01_space-MNI_label-L_desc-T1lesion",
        "BraTS-GLI-00000-000-seg",
        "BraTS20_Training_001_seg",
        "label0001",  # BTCV
        "segmentation-0",  # LiTS
        "patient001_frame01_gt",  # ACDC
        "case.seg",  # 3D Slicer
        "Segmentation",
        "Patient01-label",
        "mask",
        "liverMask",
        "LUNG_MASK",
        "T1_all_fast_firstseg",  # FSL
        "T1_pveseg",
        "aseg",  # FreeSurfer
        "aparc+aseg",
        "aparc.a2009s+aseg",
        "lh.ribbon",
        "a_seg",  # vit3d
        "a_prob",
        "a_entropy",
        "a_variance",
    ],
)
def test_labels(stem):
    assert is_label_name(stem)


@pytest.mark.parametrize(
    "stem",
    [
        "sub-01_T1w",
        "sub-label_T1w",
        "sub-01_desc-segfree_T1w",
        "sub-01_T1map",
        "volume-0",
        "img0001",
        "case_0000",
        "masked_T1",
        "T1_masked",
        "patient_seg01_T1",
        "segment_T1w",
        "label_T1w",
        "brainmask",  # FreeSurfer's is a scan without its skull
        "orig",
        "T1",
        "a.b",
        "probe",
        "",
        "-",
    ],
)
def test_scans(stem):
    assert not is_label_name(stem)


def test_folders():
    for name in ("labelsTr", "labelsTs", "labels", "Masks", "segmentations", "labels_train", "seg"):
        assert is_label_folder(["Task", name, "deep"])
    for name in ("imagesTr", "labelled", "maskedimages", "segmented", "final"):
        assert not is_label_folder(["Task", name])
