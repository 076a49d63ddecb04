import pytest

from monai_vit3d.planning.channel_modality import guess_modality


@pytest.mark.parametrize(
    ("name", "low", "high", "modality"),
    [
        ("CT", 0, 255, "CT"),  # as stored by some programs
        ("ct-low_dose", 0, 1, "CT"),
        ("pet", 0, 30, "PET"),
        ("SUV", 0, 30, "PET"),
        ("MRI", -3, 4, "MR"),
        ("T1w", 0, 4000, "MR"),
        ("acq-low_T2w", 0, 4000, "MR"),
        ("FLAIR", 0, 900, "MR"),
        ("channel 0", -1024, 3071, "CT"),
        ("channel 0", -3024, 1500, "CT"),
        ("channel 0", 0, 1500, "other"),
        ("channel 0", -3, 5, "other"),
        ("channel 0", -1e6, 1e6, "other"),
        ("impact", 0, 1, "other"),
        ("T1 map", -1024, 3000, "MR"),  # a name is believed
    ],
)
def test_modality(name, low, high, modality):
    assert guess_modality(name, low, high) == modality
