"""What volume.py times: one image through a bundle, ours and MONAI's, in a process that waits for its turn."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import reading
import torch
from made_up_bundle import SHIPPED, with_monai_parts, write_unetr_bundle
from monai.bundle import ConfigParser
from nilearn.datasets import load_mni152_template

from monai_vit3d.bundle.load import Bundle, load_bundle
from monai_vit3d.data import cut_box
from monai_vit3d.pipeline.acceleration import accelerate
from monai_vit3d.pipeline.folder import publish
from monai_vit3d.pipeline.plan import plan_cases
from monai_vit3d.pipeline.predictor import Predictor
from monai_vit3d.pipeline.record import RunRecord
from monai_vit3d.pipeline.run_cases import run_cases

PEER = "MONAI"
ENGINES = {"torch float32": ("torch", False), "auto float32": ("auto", False), "auto bfloat16": ("auto", True)}


@dataclass
class Case:
    """A file, our bundle's folder and the peer's."""

    name: str
    image: Path
    bundle: Path
    peer: Path


def cases(folder: Path, quick: bool, only: str | None) -> Iterator[Case]:
    """Images and bundles, written one after another."""
    if only != "unetr":
        template = load_mni152_template(resolution=1)
        image = image_in(folder / "hippocampus")
        cut_box(template, (0, -22, -14), (96, 64, 64)).to_filename(image)
        peer = Path(shutil.copytree(SHIPPED, folder / "hippocampus-peer"))
        yield Case("hippocampus", image, SHIPPED, with_monai_parts(peer))
    if only != "hippocampus":
        reading.SHAPE = (256, 176, 48) if quick else reading.SHAPE
        image = image_in(folder / "unetr")
        reading.write_ct(image)
        peer = with_monai_parts(write_unetr_bundle(folder / "unetr-peer", monai=True))
        yield Case("unetr", image, write_unetr_bundle(folder / "unetr-ours"), peer)


def image_in(folder: Path) -> Path:
    """Where a case's image goes."""
    (folder / "images").mkdir(parents=True)
    return folder / "images" / "image.nii.gz"


class Clock(torch.nn.Module):
    """A network, and the seconds that were spent in it."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.seconds = network, 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the network gives."""
        start = time.perf_counter()
        found = self.network(x)
        self.seconds += time.perf_counter() - start
        return found


def ours(bundle: Bundle, images: list[Path], out: Path) -> list[dict]:
    """All that `vit3d predict` does once the bundle is loaded; the cases' records."""
    plan = plan_cases(images, out, existing="overwrite")
    record, records = RunRecord(plan.output, {}), []
    try:
        run_cases(plan, Predictor(bundle), record, on_case=records.append)
    finally:
        record.close()
    publish(plan.output)
    if any(one["status"] != "done" for one in records):
        raise SystemExit(f"failed: {records}")
    return records


def by_monai(root: Path, image: Path, out: Path, device: str = "cpu") -> tuple[Callable[[], None], Clock]:
    """MONAI's components of the bundle's config, one after another, and the clock of its network."""
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "inference.yaml"))
    parser["bundle_root"], parser["dataset_dir"], parser["output_dir"] = str(root), str(image.parent), str(out)
    parser["device"] = f"$torch.device('{device}')"
    parser.get_parsed_content("imports")
    parts = [parser.get_parsed_content(name) for name in ("network", "preprocessing", "inferer", "postprocessing")]
    network, preprocessing, inferer, postprocessing = parts
    clock = Clock(network.eval())

    def run() -> None:
        data = preprocessing({"image": str(image)})
        with torch.no_grad():
            data["pred"] = inferer(data["image"][None].to(device), clock)[0]
        postprocessing(data)

    return run, clock


def call_of(name: str, image: Path, root: Path, out: Path) -> tuple[Callable[[], object], Clock]:
    """One run of an engine's, or of the peer's, and the clock of its network."""
    if name == PEER:
        return by_monai(root, image, out)
    bundle = accelerate(load_bundle(root, "cpu"), *ENGINES[name])
    clock = Clock(bundle.network)
    bundle = replace(bundle, network=clock)
    return lambda: ours(bundle, [image], out)[0]["stages"], clock


def main() -> None:
    """Run once for each line that comes, and say how long the network took, and our stages."""
    name, image, root, out, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    call, clock = call_of(name, Path(image), Path(root), Path(out))
    for _ in sys.stdin:
        clock.seconds = 0.0
        stages = call()
        print(json.dumps({"network": clock.seconds, "stages": stages}), flush=True)


if __name__ == "__main__":
    main()
