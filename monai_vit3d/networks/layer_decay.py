"""Layer-wise learning-rate decay for torch's optimizers, by timm's own grouping."""

from __future__ import annotations

from typing import Any

from torch import nn

_STEM = r"^{}(?:cls_token|reg_token|pos_embed|patch_embed|norm_pre)"


def backbone_matcher(prefix: str = r"backbone\.") -> dict[str, Any]:
    """Return timm's ``group_matcher`` of a backbone inside a network; the rest, the head, comes last.

    Args:
        prefix: of the backbone's names, as a regular expression.
    """
    blocks = [(rf"^{prefix}blocks\.(\d+)", None), (rf"^{prefix}norm", (99999,))]
    return {"stem": _STEM.format(prefix), "blocks": blocks}


def backbone_no_weight_decay(backbone: nn.Module) -> set[str]:
    """Return what a backbone's ``no_weight_decay`` names, by their names inside the network that holds it.

    Args:
        backbone: the network's ``backbone``; one without that method names nothing.
    """
    no_decay = getattr(backbone, "no_weight_decay", set)
    return {f"backbone.{name}" for name in no_decay()}


def layer_decay_groups(
    network: nn.Module, learning_rate: float, weight_decay: float = 0.05, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return parameter groups with a learning rate falling from head to stem (Clark et al. 2020, arXiv:2003.10555).

    timm's groups carry ``lr_scale``, which torch's optimizers ignore; here each has its own ``lr``. Biases, norms and
    what ``network.no_weight_decay()`` names get no weight decay. Frozen parameters are left out.

    Args:
        network: one with timm's ``group_matcher`` and ``no_weight_decay``; without a layer decay, any network.
        learning_rate: of the head.
        weight_decay: of the weights that decay.
        layer_decay: learning rate of a layer over that of the one after it; 1 gives all the same.

    Returns:
        Groups for any ``torch.optim`` optimizer.

    Raises:
        ValueError: a layer decay outside (0, 1], or below 1 for a network without ``group_matcher``.
    """
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay  # imports all of timm's networks

    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay}; expected a number above 0 and up to 1.")
    no_decay: set[str] = getattr(network, "no_weight_decay", set)()
    if not hasattr(network, "group_matcher"):
        if layer_decay < 1:
            raise ValueError(f"layer_decay={layer_decay}; {type(network).__name__} has no group_matcher: expected 1.")
        groups = param_groups_weight_decay(network, weight_decay, no_weight_decay_list=no_decay)
        return [{**group, "lr": learning_rate} for group in groups]
    groups = param_groups_layer_decay(network, weight_decay, no_weight_decay_list=no_decay, layer_decay=layer_decay)
    return [{k: g[k] for k in ("params", "weight_decay")} | {"lr": learning_rate * g["lr_scale"]} for g in groups]
