"""Look at labelled data, plan a training, and write its bundle: what ``vit3d init`` runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.json_shape import shape_violation

from .classification import plan_classification
from .dataset import LabelledDataset
from .examine import examine
from .folds import own_folds
from .layouts import read_dataset
from .plan import Evidence, TrainingPlan
from .published_recipe import stated_input
from .rules_training import steps_an_epoch
from .segmentation import plan_segmentation
from .verify import Problem
from .write_bundle import require_new_folder, write_bundle

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True)
class InitReport:
    """What was seen and chosen.

    Args:
        dataset: the labelled cases.
        problems: what was found in their files; warnings only, unless nothing was planned.
        plan: the recipe; None where the data cannot be trained on.
        bundle: the folder that was written; None of a dry run, and where nothing was planned.
        training_seconds: that the steps of a fold take on this machine; None where they were not timed.
    """

    dataset: LabelledDataset
    problems: list[Problem]
    plan: TrainingPlan | None
    bundle: Path | None
    training_seconds: float | None = None


def plan_bundle(
    data: str | Path,
    output: str | Path | None,
    *,
    layout: str | None = None,
    channels: Sequence[str] = (),
    memory: str | float | None = None,
    pretrained: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    timed: bool = False,
    on_case: Callable[..., None] | None = None,
) -> InitReport:
    """Plan a training from labelled data, and write it as a MONAI bundle.

    Args:
        data: a folder, a ``dataset.json`` or another list of cases, or a CSV; see ``LAYOUTS``.
        output: the bundle's folder, a new or an empty one; None with ``dry_run``.
        layout: how to read ``data``; None finds out.
        channels: names of the channels to train on, of those that ``data`` have; all without.
        memory: of the device that will train, as ``"8GB"``, or in bytes; None takes this machine's.
        pretrained: an encoder to start from, as for :func:`~monai_vit3d.weights.read_encoder`; what its file does not
            show is the override ``encoder_options``.
        overrides: values of the plan by their keys, in place of what its rules would choose.
        dry_run: write nothing.
        timed: run two steps of the planned network, to say how long the training takes.
        on_case: called after each case is read.

    Returns:
        What was seen and chosen. Where the data cannot be trained on, ``plan`` is None and ``problems`` say why.

    Raises:
        DatasetError: no layout fits, or the one that was named does not.
        UsageError: ``output`` is not empty, or an argument or override that cannot be.
        WeightsError: ``pretrained`` is no encoder.
    """
    memory_bytes = parse_memory(memory)
    if not dry_run:
        if output is None:
            raise UsageError("output=: name the folder to write the bundle to, or pass dry_run=True.")
        require_new_folder(Path(output))
    dataset = read_dataset(data, layout, channels)
    problems, fingerprint, same_subjects = examine(dataset, on_case=on_case)
    dataset = dataset.with_subjects(same_subjects)
    if any(problem.severity == "error" for problem in problems):
        return InitReport(dataset, problems, None, None)
    training = dataset.section("training")
    evidence = Evidence(
        fingerprint, len({case.subject for case in training}), own_folds(training), memory_bytes,
        **_pretrained(pretrained, (overrides or {}).get("encoder_options", {})),
    )  # fmt: skip
    decide = plan_segmentation if dataset.task == "segmentation" else plan_classification
    plan = decide(evidence, overrides)
    if evidence.pretrained is not None:
        _require_loadable(evidence, plan, dataset)
    seconds = _training_seconds(evidence, plan, dataset) if timed else None
    bundle = None if dry_run or output is None else write_bundle(dataset, fingerprint, plan, output)
    return InitReport(dataset, problems, plan, bundle, seconds)


def _training_seconds(evidence: Evidence, plan: TrainingPlan, dataset: LabelledDataset) -> float | None:
    from .step_time import seconds_a_step

    seconds = seconds_a_step(plan, len(dataset.channel_names), max(1, len(dataset.class_names)), evidence.encoder)
    return None if seconds is None else seconds * plan["epochs"] * steps_an_epoch(evidence, plan)


def parse_memory(memory: str | float | None) -> int | None:
    """Read an amount of memory: ``"8GB"``, ``"512 MB"``, ``"8GiB"``, or a number of bytes.

    Raises:
        UsageError: anything else.
    """
    if memory is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", str(memory).lower())
    if not match or float(match[1]) <= 0:
        raise UsageError(f"memory={memory}: expected an amount above 0, such as 8GB.")
    return int(float(match[1]) * _UNITS[match[2]])


def _pretrained(pretrained: str | Path | None, options: Any) -> dict[str, Any]:
    """Read an encoder's architecture from its file.

    Raises:
        WeightsError: it is no encoder, or the file does not show all of it.
    """
    if pretrained is None:
        return {}
    from monai_vit3d.networks import model_args
    from monai_vit3d.weights import read_encoder

    if fault := shape_violation(options, {}, "encoder_options"):
        raise UsageError(f"{fault}.")
    args = model_args(read_encoder(pretrained, options=options).network)
    source = Path(pretrained).resolve() if Path(pretrained).exists() else pretrained
    stated = stated_input(str(pretrained), options)
    return {"pretrained": str(source), "encoder_options": options, "stated": stated, "encoder": args}


def _require_loadable(evidence: Evidence, plan: TrainingPlan, dataset: LabelledDataset) -> None:
    """Load the encoder into the plan's network, as the training will, so that it does not fail there.

    Raises:
        WeightsError: it does not fit.
    """
    from monai_vit3d.weights import start_network

    from .memory import build_classifier, build_segmenter

    build = build_segmenter if dataset.task == "segmentation" else build_classifier
    outputs = max(1, len(dataset.class_names))
    network = build(dict(plan), plan["window"], len(dataset.channel_names), outputs)
    start_network(network, evidence.pretrained, encoder_options=plan["encoder_options"])
