"""Fingerprints as they would be measured, for plans without files."""

from monai_vit3d.planning.plan import Evidence
from monai_vit3d.planning.segmentation import plan_segmentation

CT = {"name": "CT", "modality": "CT", "mean": 40.0, "std": 60.0, "background_is_constant": False,
      "percentiles": {"0.5": -160.0, "5": -60.0, "50": 42.0, "95": 130.0, "99.5": 240.0}}  # fmt: skip
MR = {**CT, "name": "T2w", "modality": "MR", "background_is_constant": True}
PET = {**CT, "name": "PET", "modality": "PET"}


def fingerprint(spacing=(1.0, 1.0, 1.0), shape=(96, 96, 96), channels=(CT,), classes=("organ",), volume_ml=50.0,
                fine=None, pairs=(), cases=40):  # fmt: skip
    """A fingerprint whose percentiles are all the median, but for ``fine``, the 10th of the spacing."""
    spacings = {"10": list(fine or spacing), "50": list(spacing), "90": list(spacing)}
    facts = {"voxel_share": 0.01, "cases": cases, "components": 1, "volume_ml": volume_ml}
    return {
        "cases": cases,
        "spacing_mm": spacings,
        "shape": {key: list(shape) for key in ("10", "50", "90")},
        "channels": [dict(channel) for channel in channels],
        "classes": {str(i): {"name": name, **facts} for i, name in enumerate(classes, 1)},
        "left_right_pairs": [list(pair) for pair in pairs],
    }


def plan(*, overrides=None, subjects=40, memory_bytes=None, **facts):
    """The plan for a fingerprint, on a CPU."""
    evidence = Evidence(fingerprint(**facts), subjects, memory_bytes=memory_bytes)
    return plan_segmentation(evidence, {"device": "cpu", **(overrides or {})})
