"""Mean and std by which a timm model's images were normalised, for volumes with other channels."""

from __future__ import annotations

from typing import NamedTuple

import timm

from monai_vit3d.data.errors import UsageError, WeightsError


class Normalisation(NamedTuple):
    """What to subtract from each channel of an image scaled to 0..1, and then to divide by."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def timm_normalisation(name: str, in_chans: int = 1) -> Normalisation:
    """Return the mean and std of the images that a timm model's weights were learned on, for other numbers of channels.

    For one channel, whose kernel is the sum of the three: the numbers with which the gray channel is the mean of the
    three channels that gray as RGB would give. Where the three have one mean and std (SigLIP, augreg, Perception
    Encoder), the tokens are just those of gray as RGB. Else (ImageNet's, CLIP's) they are not: each channel was
    shifted and scaled by its own numbers, which no affine map of one channel does before kernels that differ. To be
    exact there, keep ``in_chans=3``, repeat the gray channel, and normalise by the three means and stds.

    Args:
        name: timm's, as ``"vit_small_patch16_dinov3.lvd1689m"``.
        in_chans: channels of the network; 3 gives timm's own numbers, others but 1 repeat them in order, as the
            kernels are repeated.

    Raises:
        WeightsError: a name that timm does not know.
        UsageError: no positive number of channels.

    Example:
        >>> timm_normalisation("vit_base_patch16_siglip_224", in_chans=1)
        Normalisation(mean=(0.5,), std=(0.5,))
    """
    if in_chans < 1:
        raise UsageError(f"in_chans={in_chans}: expected 1 or more.")
    try:
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:  # a name or a tag that timm does not know
        cfg = None
    if cfg is None:
        raise WeightsError(f"{name!r} is no model of timm, or has no such weights; see timm.list_pretrained('*vit*').")
    mean, std = tuple(cfg.mean), tuple(cfg.std)
    if in_chans == 1:
        # sum((x - m) / s) / n = (x - gray_mean) / gray_std for every x
        scale = sum(1 / s for s in std) / len(std)
        shift = sum(m / s for m, s in zip(mean, std)) / len(std)
        return Normalisation((shift / scale,), (1 / scale,))
    order = [i % len(mean) for i in range(in_chans)]
    return Normalisation(tuple(mean[i] for i in order), tuple(std[i] for i in order))
