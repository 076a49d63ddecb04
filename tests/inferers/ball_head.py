"""A head of balls, and a network that reads classes off the brightness of its structures."""

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import nn
from torch.nn.functional import max_pool3d

from monai_vit3d.inferers import HeadLocalizer

# centres in an upright head in mm, and brightness; the head itself is 1
STRUCTURES = {
    "left part": ((-26.0, -20.0, -15.0), 0.8),
    "right part": ((26.0, -20.0, -15.0), 0.65),
    "front": ((0.0, 55.0, 5.0), 0.5),
    "back": ((0.0, -60.0, 0.0), 0.35),
    "top": ((0.0, 0.0, 55.0), 0.2),
}
BRIGHTNESS = [0.0, *(value for _, value in STRUCTURES.values()), 1.0]  # of the classes
STRUCTURES_MM = {name: centre for name, (centre, _) in STRUCTURES.items()}
RADIUS_MM = {"left part": 12.0, "right part": 12.0, "front": 14.0, "back": 14.0, "top": 14.0}


class ByBrightness(nn.Module):
    """Logits that are highest for the class whose brightness a voxel and its neighbours have; rims are class 0."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.tensor(values).view(1, -1, 1, 1, 1)

    def parameters(self, recurse=True):
        yield torch.zeros(1)

    def forward(self, x):
        rim = max_pool3d(x, 3, 1, 1) + max_pool3d(-x, 3, 1, 1) > 0.05
        logits = -1000 * (x - self.values) ** 2
        logits[:, :1][rim] = 1000
        return logits


def head(rotation=None, shift=(0.0, 0.0, 0.0), without=(), size=180):
    """A ball of a head in which dark balls lie, (1, H, W, D) of 1 mm, and the structures' centres in voxels."""
    turn = np.eye(3) if rotation is None else Rotation.from_euler("xyz", rotation, True).as_matrix()
    middle = (size - 1) / 2 + np.array(shift)
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), -1)
    image = (((grid - middle) ** 2).sum(-1) < 80**2).astype(np.float32)
    centres = {name: turn @ centre + middle for name, (centre, _) in STRUCTURES.items()}
    for name, centre in centres.items():
        if name not in without:
            image[((grid - centre) ** 2).sum(-1) < RADIUS_MM[name] ** 2] = STRUCTURES[name][1]
    noise = np.random.default_rng(0).normal(0, 0.002, image.shape)  # flat air is refused
    return torch.from_numpy(image + (noise * (image > 0)).astype(np.float32))[None], centres


def ball_localizer():
    """Make a localizer of the balls; the head itself has no place of its own."""
    return HeadLocalizer(ByBrightness(BRIGHTNESS), STRUCTURES_MM | {"head": None})
