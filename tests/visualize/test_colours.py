"""The colours of labels."""

import numpy as np

from monai_vit3d.visualize.colours import PALETTE, label_colour


def test_colours_begin_anew_after_the_last():
    assert len(set(PALETTE)) == 12
    assert label_colour(1) == label_colour(13) == PALETTE[0]


def test_colours_can_be_told_apart_without_red_or_green_cones():
    """Machado, Oliveira & Fernandes (2009), severity 1, in linear light; distances in CIE L*a*b*."""
    red_blind = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    green_blind = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    light = (np.array(PALETTE) / 255) ** 2.2
    for sight in (np.eye(3), np.array(red_blind), np.array(green_blind)):
        x, y, z = np.cbrt(np.clip(light @ sight.T, 1e-4, 1) @ to_xyz.T / [0.9505, 1, 1.089]).T
        lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
        apart = np.linalg.norm(lab[:, None] - lab, axis=2)[np.triu_indices(12, 1)]
        assert apart.min() > 12  # 2 is just noticeable
        assert np.linalg.norm(lab[:4, None] - lab[:4], axis=2)[np.triu_indices(4, 1)].min() > 16
