"""The grid that positions were learned on: the network's own if it fits, else a square or cube, which is said."""

import logging

import pytest
import timm
import torch

from monai_vit3d.weights.convert.timm2d import checkpoint_filter_fn, create_timm2d, from_timm2d

TALL, PATCH = (64, 144, 16), (16, 16, 4)


def flat(size):
    torch.manual_seed(0)
    return timm.create_model("test_vit", pretrained=False, img_size=size)


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 2])
def test_a_plane_of_as_many_patches_is_the_grid(axis, caplog):
    state = flat((64, 144)).state_dict()  # 4x9 patches; 6x6 are as many
    size, patch = (TALL, PATCH) if axis == 2 else ((16, 64, 144), (4, 16, 16))
    net, report = create_timm2d("test_vit", size, patch, pretrained=state, axis=axis)
    plane = (4, 9, 4) if axis == 2 else (4, 4, 9)
    assert net.grid_size == plane
    pos = net.pos_embed[0, 1:].reshape(*plane, -1).movedim(axis, 0)
    for one in pos:
        assert torch.equal(one.flatten(0, 1), state["pos_embed"][0, 1:])
    assert report.assumed == ("grid 4x9",)
    assert "grid 4x9 assumed" in caplog.text
    assert create_timm2d("test_vit", size, patch, pretrained=state, axis=axis, grid=(4, 9)).report.assumed == ()


def test_a_square_that_is_assumed_is_said(caplog):
    state = flat(64).state_dict()
    report = create_timm2d("test_vit", (96, 96, 8), PATCH, pretrained=state).report
    assert report.assumed == ("grid 4x4",)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_the_models_own_grid_and_a_plain_square_are_certain(caplog):
    model = flat((64, 144))
    assert from_timm2d(model, (96, 96, 8), PATCH).report.assumed == ()
    net = from_timm2d(flat(64), (64, 64, 8), PATCH).network
    caplog.clear()
    checkpoint_filter_fn(flat(64).state_dict(), net)
    assert not caplog.records
