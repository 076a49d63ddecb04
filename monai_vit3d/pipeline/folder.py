"""Run a bundle over files and folders and write a folder of outputs: `vit3d predict` as a function."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_vit3d.bundle.config import Choice, choice_of
from monai_vit3d.bundle.load import Bundle, load_bundle, load_steps
from monai_vit3d.bundle.metadata import Metadata, read_metadata
from monai_vit3d.bundle.shipped import bundle_location
from monai_vit3d.bundle.unpack import open_bundle
from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.files import following_no_links, read_text_file, remove_parts, write_text_atomic
from monai_vit3d.data.printable import printable
from monai_vit3d.inferers.window_progress import OnWindow, following_windows

from .chosen_labels import ChosenLabel, choose_labels
from .jobs import check_jobs
from .label_files import label_outputs
from .options import Options, choose_views, output_kinds
from .passed_over_summary import recorded
from .paths import some
from .plan import RESERVED, Plan, plan_cases
from .record import RunRecord, merge_records, merging, write_json

if TYPE_CHECKING:
    from monai_vit3d.bundle.weights import BundleWeights, WeightsFile

    from .run_cases import Summary

logger = logging.getLogger(__name__)


def plan_folder(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    bundle: str | Path,
    *,
    tta: bool | str | Sequence[int] = False,
    uncertainty: str | None = None,
    probabilities: bool = False,
    shard: tuple[int, int] = (1, 1),
    existing: str = "refuse",
    include_labels: bool = False,
    suffixes: Sequence[str] = (),
    seg: bool = True,
    only: str | int | Sequence[str | int] = (),
    split: bool = False,
    mesh: str | None = None,
    config: str | Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    safe: bool = False,
) -> Plan:
    """Plan what :func:`predict_folder` would do: nothing is written and no image is read. Arguments as there.

    The bundle's steps are built only if labels are chosen or written one by one: their names follow from them.

    Raises:
        UsageError: arguments that contradict each other or the bundle, or a plan that clashes.
        BundleError: no bundle.
    """
    with open_bundle(bundle) as root:
        metadata = read_metadata(root)
        kinds = output_kinds(metadata, tta, uncertainty, probabilities)
        labels = _choose(root, only, split, mesh, safe, choice_of(config, overrides))
    kinds += label_outputs(labels, split, mesh)
    chosen: dict[str, Any] = {"suffixes": suffixes, "seg": seg, "channels": metadata.channels}
    chosen["include_labels"] = include_labels or metadata.takes_masks
    return plan_cases(inputs, output, shard=shard, outputs=kinds, existing=existing, **chosen)


def predict_folder(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    bundle: str | Path,
    *,
    tta: bool | str | Sequence[int] = False,
    uncertainty: str | None = None,
    probabilities: bool = False,
    volume: int | None = None,
    max_voxels: int = 2**30,
    shard: tuple[int, int] = (1, 1),
    existing: str = "refuse",
    include_labels: bool = False,
    suffixes: Sequence[str] = (),
    config: str | Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    units: str = "stored",
    seg: bool = True,
    only: str | int | Sequence[str | int] = (),
    split: bool = False,
    mesh: str | None = None,
    device: str | None = None,
    backend: str = "auto",
    bf16: bool = False,
    jobs: int | None = None,
    safe: bool = False,
    anyway: bool = False,
    strict: bool = False,
    resample_channels: bool = False,
    folds: Sequence[int] | None = None,
    tokens: str | float | None = None,
    noted: Mapping[str, Any] | None = None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    on_case: Callable[[Mapping[str, Any]], None] = lambda record: None,
    on_window: OnWindow | None = None,
) -> Summary:
    """Run a MONAI bundle over files, folders, a BIDS data set or a list, and write labels on each file's own grid.

    OUT gets ``NAME_seg.nii.gz`` for each case, the folders as those of the inputs, ``run.json``, ``stats.csv`` and
    ``volumes.csv`` (of a classifier, ``predictions.csv`` instead), ``report.html``, and names and colours of the
    labels as 3D Slicer, ITK-SNAP, FSLeyes and BIDS read them. A file that fails leaves the others alone.

    Args:
        inputs: one or several NIfTI files, folders of them or of DICOM series, BIDS data sets, CSV or JSON lists.
        output: OUT, the folder to write to.
        bundle: the bundle's folder, zip or name, here (:func:`~monai_vit3d.bundle.info.list_bundles`) or on the hub
            (``hf:OWNER/NAME@COMMIT``). Its config is code: give ``safe`` unless you trust it.
        tta: whether to average over the flips of the axes that the bundle's ``flip_axes`` names, or these axes of
            the network's input; ``"full"``, over the rotations and scales that it names (``tta_degrees``,
            ``tta_scales``), too. Flips that a network was not trained with make its labels worse.
        uncertainty: ``"entropy"`` writes the normalised entropy of the probabilities, in [0, 1]; ``"variance"``, with
            ``tta``, their variance over the flips, summed over the classes.
        probabilities: whether to write them, a map a class.
        volume: which volume of 4D files and of DICOM series with several, from 0; None refuses them, but for 4D
            files of as many volumes as the bundle has channels.
        max_voxels: the largest volume that is taken.
        shard: ``(i, n)``: do the i-th of n parts, from 1. All parts share OUT.
        existing: ``"refuse"`` outputs that are there, ``"resume"`` (skip those that are verified) or ``"overwrite"``.
        include_labels: whether label files and the outputs of earlier runs are images, too: by default they are passed
            over by name, and an image of few whole values such as 0, 1, 2 fails.
        suffixes: last words of the names of images to take from folders, such as ``T1w``; none takes all.
        config: config files of the bundle to merge, by name; None is its ``inference``.
        overrides: values to set in the config, by id such as ``"inferer::overlap"``.
        units: of DICOM PET: ``"stored"``, mostly Bq/ml, or ``"suv"``, standardised uptake values by body weight.
        seg: whether the labels of DICOM series are written as a DICOM SEG, too.
        only: names or values of the labels that are written, the others become background; none writes all. Checks
            of what cannot be true still see all.
        split: whether to write each label as a file of 0 and 1, too, ``NAME_seg-LABEL.nii.gz``.
        mesh: ``"stl"`` or ``"ply"`` writes a surface of each label, too, ``NAME_seg-LABEL.stl``, in mm, RAS+; its
            volume is that of the voxels.
        device: a torch device; None takes a GPU where there is one.
        backend: what runs the network: ``"auto"``, OpenVINO on a CPU if it is installed and gives PyTorch's answer,
            else PyTorch; ``"torch"``, whose numbers are those of ``monai.bundle run``; ``"compile"``; ``"openvino"``.
            They differ by rounding; run.json says which it was, and why.
        bf16: whether the network computes in bfloat16, whatever the bundle says.
        jobs: threads that read ahead of the network, and threads that write behind it; None begins with 1 and adds one
            each time that the network had to wait, while cores and memory allow.
        safe: whether to refuse a bundle whose config is more than settings.
        anyway: whether to run images, too, that are far from what the bundle was trained on; they fail otherwise.
        strict: whether a case fails, with nothing of it written, that is unlike the bundle's training or whose labels
            cannot be true; a warning otherwise, in run.json as ``suspicious``, with ``kind`` and ``text``.
        resample_channels: whether channels of a case that lie on other grids than its first are resampled onto that,
            with a warning; otherwise the case fails.
        folds: which trained folds of the bundle run, from 0, their probabilities averaged; None is the bundle's choice.
        tokens: which patches get a token: ``"all"``, ``"foreground"`` (those that are not constant), or a number in the
            units of the network's input (those with a voxel above it); None is the bundle's choice. Other engines than
            PyTorch mask background instead: the same labels, no faster.
        noted: what run.json says besides, by key, such as who asked for the run.
        on_plan: is given the plan before any work.
        on_case: is given the record of each case as soon as it has ended.
        on_window: is told after each batch of windows how many of the case's are done, and of how many.

    Returns:
        How many were done, skipped, failed, and suspicious of those done.

    Raises:
        UsageError: as :func:`plan_folder`, a device or backend that is not there, or another run is at work in OUT.
        BundleError: a bundle that cannot be used, or is not safe.
        WeightsError: weights that are missing, damaged or of another network.
    """
    check_jobs(jobs)
    choice = choice_of(config, overrides, folds, tokens)
    from monai_vit3d.data.dicom import VOXEL_UNITS

    if units not in VOXEL_UNITS:
        raise UsageError(f"units={units}; expected one of {', '.join(VOXEL_UNITS)}.")
    with open_bundle(bundle) as root:
        metadata = read_metadata(root)
        kinds = output_kinds(metadata, tta, uncertainty, probabilities)
        labels = _choose(root, only, split, mesh, safe, choice)
        kinds += label_outputs(labels, split, mesh)
        chosen: dict[str, Any] = {"suffixes": suffixes, "seg": seg, "channels": metadata.channels}
        chosen["include_labels"] = include_labels or metadata.takes_masks
        plan = plan_cases(inputs, output, shard=shard, outputs=kinds, existing=existing, **chosen)
        loaded = load_bundle(root, device, safe, choice)  # the first to import PyTorch and MONAI, which it does fast
        from .acceleration import accelerate
        from .channels import order_channels
        from .predictor import Predictor
        from .run_cases import run_cases

        loaded = accelerate(loaded, backend, bf16)
        cases, notes = order_channels(plan.cases, loaded)
        for line in notes:
            logger.info("%s", line)
        plan = replace(plan, cases=cases, about_weights=_about_weights(loaded.weights))
        on_plan(plan)
        kept = tuple(label.value for label in labels) if only else ()
        given: dict[str, Any] = {"uncertainty": uncertainty, "probabilities": probabilities, "volume": volume}
        given |= {"max_voxels": max_voxels, "units": units, "seg": seg, "resample_channels": resample_channels}
        options = Options(only=kept, split=split, mesh=mesh, **given, **choose_views(tta, loaded))
        about = _about(loaded, bundle_location(bundle), options, plan, choice, notes)
        about |= {"anyway": anyway, "strict": strict}
        record = RunRecord(plan.output, {**(noted or {}), **about}, shard)
        predictor = Predictor(loaded, options=options, anyway=anyway)
        with following_no_links(plan.output), following_windows(on_window):
            try:
                summary = run_cases(plan, predictor, record, jobs, existing == "resume", strict, on_case)
            finally:
                record.close()
                if record.begun:
                    publish(plan.output)
            _describe_derivative(plan, loaded.metadata)
    return summary


def _choose(
    root: Path, only: str | int | Sequence[str | int], split: bool, mesh: str | None, safe: bool, choice: Choice
) -> tuple[ChosenLabel, ...]:
    """Choose the labels that are kept or written one by one; none where all are written together."""
    return choose_labels(load_steps(root, safe, choice), only) if only or split or mesh else ()


def publish(output: Path) -> None:
    """Write what follows from the records of all shards: run.json, the tables, report.html."""
    from .label_tables import write_label_tables
    from .report.page import write_report
    from .stats import write_predictions, write_stats
    from .volumes import write_volumes

    with merging(output):
        remove_parts(output / name for name in RESERVED)
        about, records = merge_records(output)
        if any("cells" in record for record in records):
            write_predictions(records, output / "predictions.csv")
        else:
            write_stats(records, output / "stats.csv")
            write_volumes(records, output / "volumes.csv")
            write_label_tables(records, output)
        write_report(records, about, output)
    if names := [printable(record["name"]) for record in records if record.get("outliers")]:
        logger.info("volumes unlike those of this run's other cases: %s; look at them in report.html", some(names))


def _about(
    bundle: Bundle, location: str, options: Options, plan: Plan, choice: Choice, notes: list[str]
) -> dict[str, Any]:
    return {
        "bundle": bundle.metadata.name,
        "bundle_version": bundle.metadata.version,
        "bundle_path": location,
        "weights": [_weights_file(file) for file in bundle.weights.all_files],
        "weights_sha256": bundle.weights.sha256,
        "config": list(choice.names),
        "overrides": {name: repr(value) for name, value in choice.overrides.items()},
        "config_sha256": bundle.config_sha256,
        "inputs": notes,
        "device": _device_name(bundle),
        "backend": bundle.backend,
        "backend_reason": bundle.backend_reason,
        "bf16": bundle.bf16,
        "options": asdict(options),
        "shard": list(plan.shard),
        "versions": versions(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "warnings": list(plan.warnings),
        "passed_over": recorded(plan.passed_over),
    }


def _about_weights(weights: BundleWeights) -> tuple[str, ...]:
    """Return a line on the folds that are run; none for a bundle with one file of weights."""
    from monai_vit3d.weights.folds import is_fold_file

    if not any(is_fold_file(file.path) for file in weights.files):
        return ()
    files = ", ".join(f"{file.path.name} of {file.written}" for file in weights.files)
    return (f"weights: {files}{', probabilities averaged' if len(weights.files) > 1 else ''}",)


def _weights_file(file: WeightsFile) -> dict[str, str]:
    return {"file": str(file.path), "sha256": file.sha256, "written": file.written}


def versions() -> dict[str, str]:
    """List the versions of this package and of those that the outputs depend on."""
    installed = {"python": platform.python_version()}
    for package in ("monai-vit3d", "monai", "torch", "timm", "nibabel", "numpy"):
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def _device_name(bundle: Bundle) -> str:
    import torch

    if bundle.device.type == "cuda":
        return f"{bundle.device} ({torch.cuda.get_device_name(bundle.device)})"
    return str(bundle.device)


def _describe_derivative(plan: Plan, metadata: Metadata) -> None:
    """Write what BIDS asks of a folder of derivatives (https://bids-specification.readthedocs.io)."""
    if not any(case.bids for case in plan.cases):
        return
    generators = [{"Name": "monai_vit3d", "Version": versions()["monai-vit3d"]}, {"Name": metadata.name}]
    content = {"Name": metadata.name, "BIDSVersion": "1.9.0", "DatasetType": "derivative", "GeneratedBy": generators}
    write_json(content, plan.output / "dataset_description.json")
    if (table := plan.output / "labels.tsv").is_file():
        write_text_atomic(read_text_file(table), plan.output / "dseg.tsv")
