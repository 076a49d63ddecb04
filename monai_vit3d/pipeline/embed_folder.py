"""Embed files and folders: `vit3d embed` as a function."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from monai_vit3d.data.files import following_no_links, remove_parts, replacing
from monai_vit3d.data.nifti import write_map
from monai_vit3d.data.volume import Grid, Volume
from monai_vit3d.inferers.window_progress import OnWindow, following_windows
from monai_vit3d.networks.weights_licence import weights_licence
from monai_vit3d.networks.weights_sha256 import weights_sha256
from monai_vit3d.visualize.overlay import write_png
from monai_vit3d.visualize.patch_colours import draw_patch_colours

from .case import Case
from .case_runner import CaseRunner, Summary, Work, take_through
from .embedder import Embedder, Embedding
from .features import draw_features, read_features, write_features
from .folder import versions
from .jobs import check_jobs
from .options import Options
from .passed_over_summary import recorded
from .plan import RESERVED, Plan, plan_cases
from .record import RunRecord, merge_records, merging
from .report.embeddings import write_embedding_report
from .token_maps import pca_rgb, similarity_map


def plan_embedding(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    channels: int,
    *,
    maps: bool = False,
    similar: Sequence[float] | None = None,
    shard: tuple[int, int] = (1, 1),
    existing: str = "refuse",
    include_labels: bool = False,
    suffixes: Sequence[str] = (),
) -> Plan:
    """Plan what :func:`embed_folder` would do: nothing is written and no image is read. Arguments as there.

    Args:
        inputs: see there.
        output: see there.
        channels: images that each case has: those of the network's input.
        maps: see there.
        similar: see there.
        shard: see there.
        existing: see there.
        include_labels: see there.
        suffixes: see there.

    Raises:
        UsageError: a plan that clashes.
    """
    kinds = ["embedding", *(["tokens", "pca"] if maps else []), *(["similarity"] if similar is not None else [])]
    chosen: dict[str, Any] = {"include_labels": include_labels, "suffixes": suffixes, "channels": channels}
    return plan_cases(inputs, output, shard=shard, outputs=kinds, existing=existing, seg=False, **chosen)


def embed_folder(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    embedder: Embedder,
    *,
    maps: bool = False,
    similar: Sequence[float] | None = None,
    volume: int | None = None,
    max_voxels: int = 2**30,
    shard: tuple[int, int] = (1, 1),
    existing: str = "refuse",
    include_labels: bool = False,
    suffixes: Sequence[str] = (),
    units: str = "stored",
    resample_channels: bool = False,
    jobs: int | None = None,
    noted: Mapping[str, Any] | None = None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    on_case: Callable[[Mapping[str, Any]], None] = lambda record: None,
    on_window: OnWindow | None = None,
) -> Summary:
    """Embed files, folders, BIDS data sets or lists; inputs, isolation, resuming and shards as of ``predict_folder``.

    OUT gets ``NAME_embedding.npy`` for each case, ``run.json``, and of all cases in the order of their names
    ``features.csv`` (name, subject, windows, then the vector) and ``features.npz`` (names, subjects, vectors);
    ``report.html`` to look at, and of three cases or more ``features.png``, where their vectors lie.

    Args:
        inputs: as for :func:`~monai_vit3d.pipeline.folder.predict_folder`.
        output: OUT, the folder to write to.
        embedder: what embeds each volume.
        maps: whether to write ``NAME_tokens.nii.gz``, the patch tokens as channels, and ``NAME_pca.nii.gz``, their
            first three principal components, on the patches' grid in the scan's world.
        similar: a point of the world in mm, RAS+: write ``NAME_similarity.nii.gz``, each token's cosine with that at
            the point.
        volume: as for ``predict_folder``, and so are all further arguments.
        max_voxels: see there.
        shard: see there.
        existing: see there.
        include_labels: see there.
        suffixes: see there.
        units: see there.
        resample_channels: see there.
        jobs: see there.
        noted: see there.
        on_plan: see there.
        on_case: see there.
        on_window: see there.

    Returns:
        How many were done, skipped and failed.

    Raises:
        UsageError: arguments that contradict each other, a plan that clashes, or another run at work in OUT.
    """
    check_jobs(jobs)
    chosen: dict[str, Any] = {"include_labels": include_labels, "suffixes": suffixes}
    chosen |= {"maps": maps, "similar": similar, "shard": shard, "existing": existing}
    plan = plan_embedding(inputs, output, int(embedder.network.in_chans), **chosen)
    on_plan(plan)
    options = Options(volume=volume, max_voxels=max_voxels, units=units, seg=False, resample_channels=resample_channels)
    made_with = _made_with(embedder, options, plan.outputs, similar)
    record = RunRecord(plan.output, {**(noted or {}), **_about(embedder, made_with, plan)}, shard)
    runner = _EmbeddingRunner(plan, record, embedder, options, made_with, existing == "resume", similar)
    with following_no_links(plan.output), following_windows(on_window):
        try:
            summary = take_through(runner, plan, record, jobs, on_case)
        finally:
            record.close()
            if record.begun:
                publish_embeddings(plan.output)
    return summary


class _EmbeddingRunner(CaseRunner):
    """The stages of a case that is embedded."""

    def __init__(
        self,
        plan: Plan,
        record: RunRecord,
        embedder: Embedder,
        options: Options,
        made_with: dict[str, Any],
        resume: bool,
        similar: Sequence[float] | None,
    ) -> None:
        super().__init__(plan, record, options, int(embedder.network.in_chans), made_with, resume=resume)
        self.embedder, self.similar = embedder, similar
        self.keep_tokens = len(plan.outputs) > 1

    def main_output(self, case: Case) -> Path | None:
        """Return the path of its vector."""
        return self.place(case, "embedding")

    def check_grid(self, work: Work, path: Path, grid: Grid, channels: int) -> None:
        """Accept any grid: the recipe resamples it to the network's."""

    def prepare(self, work: Work, volumes: Sequence[Volume]) -> tuple[Volume, Any]:
        """Run the recipe; a case owns its transforms: threads share no state."""
        return volumes[0], copy.deepcopy(self.embedder.prepare)(list(volumes))

    def infer(self, prepared: tuple[Volume, Any]) -> tuple[Volume, Embedding]:
        """Run the network."""
        volume, image = prepared
        return volume, self.embedder.run(image, self.keep_tokens)

    def finish(self, work: Work) -> dict[str, Any]:
        """Write the vector, the chosen maps, and the picture."""
        volume, embedding = work.output
        colours = None if embedding.tokens is None else pca_rgb(embedding.tokens)
        maps: dict[str, Any] = {}
        if "tokens" in self.plan.outputs:
            maps = {"tokens": embedding.tokens, "pca": colours}
        if self.similar is not None:
            maps["similarity"] = similarity_map(embedding.tokens, embedding.grid, self.similar)
        work.record.pop("outputs", None)
        paths = [self.place(work.case, "embedding")]
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        with replacing(paths[0], "wb") as file:
            np.save(file, embedding.vector, allow_pickle=False)
        for kind, values in maps.items():
            paths.append(self.place(work.case, kind))
            write_map(values, embedding.grid, paths[-1])
        paths.append((self.plan.output / work.case.picture).absolute())
        write_png(draw_patch_colours(volume.voxels, volume.grid, colours, embedding.grid), paths[-1])
        return {
            "outputs": self.hashes(paths),
            "windows": embedding.windows,
            "picture": work.case.picture.as_posix(),
        }


def publish_embeddings(output: Path) -> None:
    """Write what follows from the records of all shards: run.json, tables and map of the vectors, report.html."""
    with merging(output):
        remove_parts(output / name for name in RESERVED)
        about, records = merge_records(output)
        features = read_features(records, output)
        if features:
            write_features(features, output)
        write_embedding_report(records, about, output, draw_features(features, output))


def _made_with(
    embedder: Embedder, options: Options, kinds: Sequence[str], similar: Sequence[float] | None
) -> dict[str, Any]:
    made_with = {
        "weights_sha256": weights_sha256([embedder.network, *embedder.vector.children()]),
        "recipe": embedder.recipe,
        "feature": embedder.feature,
        "overlap": embedder.overlap,
        "whole": embedder.whole,
        **({} if embedder.network.tokens == "all" else {"tokens": embedder.network.tokens}),
        "kinds": list(kinds),
        "similar": None if similar is None else [float(value) for value in similar],
        "options": {key: getattr(options, key) for key in ("volume", "units", "resample_channels")},
        "device": next(embedder.network.parameters()).device.type,
    }
    return dict(json.loads(json.dumps(made_with)))  # as an earlier record has it, lists for tuples


def _about(embedder: Embedder, made_with: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    entry = embedder.entry
    return {
        **made_with,
        "model_name": embedder.name,
        "model": None if entry is None else asdict(entry),
        "license": weights_licence(embedder.network),
        "pooling": embedder.vector.in_words,
        "shard": list(plan.shard),
        "versions": versions(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "warnings": list(plan.warnings),
        "passed_over": recorded(plan.passed_over),
    }
