"""Time a training step of a planned network on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from .memory import build_classifier, build_segmenter


def seconds_a_step(
    plan: Mapping[str, Any], channels: int, outputs: int, encoder: Mapping[str, Any] | None = None
) -> float | None:
    """Run two steps of the planned network on noise and time the second: forward, backward and AdamW.

    Args:
        plan: a recipe's values.
        channels: of the images.
        outputs: classes, background included, or values.
        encoder: arguments of a pretrained encoder.

    Returns:
        Seconds; None where this machine is not the planned one.
    """
    if plan["device"] == "cuda" and not torch.cuda.is_available():
        return None
    build = build_segmenter if "decoder" in plan else build_classifier
    network = build(plan, plan["window"], channels, outputs, encoder).to(plan["device"]).train()
    optimizer = torch.optim.AdamW(network.parameters())
    count = plan["batch_size"] * plan.get("samples_per_case", 1)
    image = torch.randn(count, channels, *plan["window"], device=plan["device"])
    seconds = 0.0
    for _ in range(2):  # the first one also allocates and chooses algorithms
        begin = time.perf_counter()
        with torch.autocast(plan["device"], torch.bfloat16, enabled=plan["amp"]):
            loss = network(image).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if plan["device"] == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
    return seconds
