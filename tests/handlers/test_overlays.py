"""The first validation cases are drawn each time, through the reference's planes."""

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image

from monai_vit3d.data.volume import Grid
from monai_vit3d.handlers import ValidationOverlays
from monai_vit3d.visualize.overlay import draw_overlay
from monai_vit3d.visualize.stack import stack_pictures

SHAPE, SPACING = (12, 10, 8), (1.0, 1.5, 3.0)


def case(i, one_hot):
    image = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(i))
    label, pred = torch.zeros(1, *SHAPE), torch.zeros(1, *SHAPE)
    label[0, 2:6, 2:5, i] = 1
    pred[0, 6:9, 5:8, 5] = 2
    if one_hot:
        label, pred = (torch.cat([x == value for value in range(3)]).float() for x in (label, pred))
    return {"image": image, "label": label, "pred": pred}


def evaluator(handler, names, one_hot=False):
    """An engine over cases, one a batch, as MONAI leaves its state after decollating."""

    def step(engine, i):
        engine.state.batch = [{"name": names[i]}] if names else [{}]
        return [case(i, one_hot)]

    engine = Engine(step)
    handler.attach(engine)
    return engine


def run(handler, names=("a.nii.gz", "sub/b", "c", "d"), **options):
    engine = evaluator(handler, names, **options)
    engine.run(range(4), max_epochs=1)
    return engine


@pytest.mark.parametrize("one_hot", [False, True])
def test_the_first_cases_are_drawn_as_the_overlays_of_predictions_are(one_hot, tmp_path):
    run(ValidationOverlays(tmp_path, SPACING, 2), one_hot=one_hot)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png")) == [
        "epoch_001/a.png",
        "epoch_001/b.png",
    ]
    item = {key: value.numpy() for key, value in case(1, False).items()}
    grid = Grid(SHAPE, np.diag([*SPACING, 1.0]))
    rows = [draw_overlay(item["image"][0], item[k][0].astype(int), grid, centre=[2, 2, 1]) for k in ("label", "pred")]
    expected = stack_pictures(rows, ["reference", "prediction"])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "epoch_001/b.png")), np.asarray(expected))


def test_cases_without_names_and_other_processes(tmp_path):
    run(ValidationOverlays(tmp_path / "first", SPACING, 2), names=())
    run(ValidationOverlays(tmp_path / "second", SPACING, 2, rank=1))
    assert sorted(p.name for p in tmp_path.rglob("*.png")) == ["case_0.png", "case_1.png"]
    assert not (tmp_path / "second").exists()
