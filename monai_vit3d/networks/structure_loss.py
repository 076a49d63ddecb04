"""Loss for networks that locate structures: cross-entropy plus the distance of the structures' centres."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, nll_loss

from monai_vit3d.transforms.soft_centres import soft_centres

LEAST_VOXELS = 4  # a structure of fewer in a label map has no centre


class StructureLoss(nn.Module):
    """Cross-entropy weighted by class, plus the distance of each structure's soft centre from its true one.

    Centres are regressed as expectations over the volume, as in Sun et al. 2018, "Integral Human Pose Regression"
    (arXiv:1711.08229): a network learns where a structure is long before it learns its outline.

    Args:
        class_weights: of the background and the structures in the cross-entropy.
        centre_weight: of the mean distance along an axis, in voxels.
    """

    def __init__(self, class_weights: Sequence[float], centre_weight: float = 0.1) -> None:
        super().__init__()
        self.class_weights: Tensor
        self.register_buffer("class_weights", torch.tensor(list(class_weights)))
        self.centre_weight = centre_weight

    def forward(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            logits: (B, 1 + K, H, W, D).
            classes: (B, 1, H, W, D) class numbers.
        """
        classes = classes[:, 0].long()
        log_probabilities = logits.log_softmax(1)
        loss = nll_loss(log_probabilities, classes, self.class_weights)
        if not self.centre_weight:
            return loss
        truth, present = class_centres(classes, logits.shape[1])
        # halved: a quarter of the time, and centres that are as good
        centres = 2 * soft_centres(avg_pool3d(log_probabilities.exp()[:, 1:], 2)) + 0.5
        distances = (centres - truth[:, 1:]).abs().mean(-1)[present[:, 1:]]
        return loss + self.centre_weight * distances.mean() if len(distances) else loss


def class_centres(classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Average the voxel coordinates of each class.

    Args:
        classes: (B, H, W, D) whole numbers below ``count``.
        count: of classes.

    Returns:
        (B, count, 3) coordinates, and whether each class has voxels enough for them, (B, count).
    """
    own = count * torch.arange(len(classes), device=classes.device).view(-1, 1, 1, 1)
    places = (classes + own).flatten()  # a class of each sample is a bin of its own
    voxels = torch.bincount(places, minlength=count * len(classes))
    centres = []
    for axis in range(1, 4):
        line = torch.arange(classes.shape[axis], dtype=torch.float32, device=classes.device)
        line = line.view([-1 if a == axis else 1 for a in range(4)]).expand(classes.shape)
        sums = torch.bincount(places, line.flatten(), minlength=count * len(classes))
        centres.append(sums / voxels.clamp(min=1))
    shape = (len(classes), count)
    return torch.stack(centres, -1).view(*shape, 3), voxels.view(shape) >= LEAST_VOXELS
