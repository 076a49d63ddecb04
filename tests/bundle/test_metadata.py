"""metadata.json: what is not of its shape is refused."""

import json

import pytest

from monai_vit3d.cli import main


@pytest.mark.parametrize(
    "wrong",
    [
        {"network_data_format": None},
        {"network_data_format": {"inputs": {"image": {"num_channels": "one"}}}},
        {"network_data_format": {"outputs": {"pred": {"channel_def": ["background", "spleen"]}}}},
        ["not", "an", "object"],
    ],
)
def test_metadata_of_another_shape_is_refused_before_any_work(tmp_path, wrong, capsys):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "inference.yaml").write_text("network: 1")
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps(wrong))
    assert main(["info", str(tmp_path)]) == 2
    assert "metadata.json" in capsys.readouterr().err
