"""Recognise labels and maps by file and folder names, as data sets and tools write them."""

from __future__ import annotations

import re
from collections.abc import Sequence

# nnU-Net and Decathlon (labelsTr, labelsTs), TotalSegmentator (segmentations), MONAI Label (labels/final)
_FOLDER = re.compile(
    r"(labels?|masks?|segs?|segmentations?)([-_ ]?(tr|ts|te|va|vl|val|train|test|final|original))?", re.IGNORECASE
)
# last word of a name: BIDS derivatives, FSL, ANTs, BraTS, ITK-SNAP, 3D Slicer, and the maps that vit3d writes
_LAST = re.compile(
    "masks?|msk|rois?|segs?|dseg|probseg|pveseg|firstseg|segmentations?|segmask|lesionmask|defacemask|labels?|labelmap|"
    "groundtruth|gt|predictions?|pred|probs?|entropy|variance"
)
# the whole name, maybe numbered: label0001 (BTCV), segmentation-0 (LiTS), mask
_WHOLE = re.compile(r"(labels?|masks?|segs?|segmentations?|labelmap|groundtruth|gt)[-_. ]?\d*", re.IGNORECASE)
_FREESURFER = re.compile(r"[lr]h\..*|(aseg|aparc|wmparc|ribbon|filled|wm)([.+_].*)?", re.IGNORECASE)
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])")  # lesionMask


def is_label_name(stem: str) -> bool:
    """Return whether a file name without suffix is that of labels, of a mask, or of a map made from an image.

    Args:
        stem: such as ``sub-01_T1w_label-lesion_roi``.
    """
    words = [word for word in re.split(r"[^A-Za-z0-9]+", _HUMP.sub("_", stem).lower()) if word]
    last = words[-1] if len(words) > 1 else ""
    # of BIDS, and of the files that vit3d writes for each label
    entity = any(part.lower().startswith(("label-", "seg-")) for part in stem.split("_"))
    return bool(_LAST.fullmatch(last) or entity or _WHOLE.fullmatch(stem) or _FREESURFER.fullmatch(stem))


def is_label_folder(names: Sequence[str]) -> bool:
    """Return whether one of these folders is named as those that hold labels.

    Args:
        names: of the folders that a file lies in, from the input that was given on.
    """
    return any(map(_FOLDER.fullmatch, names))
