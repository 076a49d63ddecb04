"""Validation Dice of the recipe that ``vit3d init`` plans, against MONAI's DynUNet by the same plan and training time.

The data are Task04's 150 training and 20 validation cases by the split of bundles/hippocampus_segmentation, as a MONAI
data list; its 30 test cases are not touched. Both networks train in the planned bundle, with its window, sampling,
augmentation, loss and seed. The time of a step of both and of the shipped bundle's recipe is measured in turn, several
rounds; each network then gets the epochs that fit into the time of the whole shipped recipe, about 20 minutes, so that
other load on the machine favours none. The last column is ours less the peer's, case by case, with its standard error.

    python benchmarks/own_data.py --threads 1

The limit: the shipped network's validation Dice, which its metadata.json has.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from hippocampus import BUNDLE, NETWORKS, ROOT, bundle_run, parser_for, print_table, read_scores, seconds_per_step

from monai_vit3d.planning.init import plan_bundle

NAMES = ("ours", "dynunet")


def write_data_list(data: Path, file: Path) -> None:
    """Write the split as a MONAI data list: fold 0 validates, fold 1 trains."""
    split = json.loads((BUNDLE / "configs" / "split.json").read_text())
    cases = [
        {"image": f"{data}/imagesTr/{name}.nii.gz", "label": f"{data}/labelsTr/{name}.nii.gz", "fold": fold}
        for fold, section in enumerate(("validation", "training"))
        for name in split[section]
    ]
    file.write_text(json.dumps({"training": cases}))


def train_and_score(name: str, epochs: int, threads: int, bundle: Path, folder: Path) -> dict:
    """Train one network on fold 0, score its validation cases; returns what the table shows."""
    folder.mkdir(parents=True, exist_ok=True)
    network = {} if NETWORKS[name] is None else {"network_def": NETWORKS[name]}
    best = {"ckpt_path": str(folder / "best.pt")}
    train = {"fold": 0, "epochs": epochs, "val_interval": max(1, epochs // 10), "output_dir": str(folder)}
    start = time.perf_counter()
    bundle_run(["train.yaml"], {**network, **best, **train}, threads, folder / "train.log", bundle)
    minutes = (time.perf_counter() - start) / 60
    score = {**best, "section": "validation", "fold": 0, "output_dir": str(folder / "scores")}
    bundle_run(["inference.yaml", "evaluate.yaml"], {**network, **score}, threads, folder / "scores.log", bundle)
    parameters = sum(
        p.numel() for p in parser_for(NETWORKS[name], bundle).get_parsed_content("network_def").parameters()
    )
    training = {"epochs": epochs, "wall_minutes": round(minutes, 1), "parameters_m": round(parameters / 1e6, 2)}
    return {**training, **read_scores(folder / "scores")}


def main() -> None:
    """Plan, measure, train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "own_data")
    args = parser.parse_args()
    output, bundle = args.output.resolve(), args.output.resolve() / "bundle"
    output.mkdir(parents=True, exist_ok=True)
    if not bundle.is_dir():
        data = Path(os.environ.get("MONAI_DATA_DIRECTORY", ".")).resolve() / "Task04_Hippocampus"
        write_data_list(data, output / "list.json")
        plan_bundle(output / "list.json", bundle)
    times_file, results_file = output / "seconds_per_epoch.json", output / "results.json"
    if not times_file.is_file():
        import torch

        torch.set_num_threads(args.threads)
        parsers = {"shipped": parser_for(None), **{name: parser_for(NETWORKS[name], bundle) for name in NAMES}}
        steps = {name: parser.get_parsed_content("steps_per_epoch") for name, parser in parsers.items()}
        times = {name: steps[name] * seconds for name, seconds in seconds_per_step(parsers, args.rounds).items()}
        times_file.write_text(json.dumps(times))
    times = json.loads(times_file.read_text())
    print("seconds per epoch, measured in turn:", {k: round(v, 1) for k, v in times.items()}, flush=True)
    seconds = times["shipped"] * parser_for(None)["epochs"]
    print(f"time of each training: {seconds / 60:.1f} minutes", flush=True)
    results = json.loads(results_file.read_text()) if results_file.is_file() else {}
    for name in NAMES:
        if name not in results:
            epochs = max(1, round(seconds / times[name]))
            results[name] = train_and_score(name, epochs, args.threads, bundle, output / name)
            results_file.write_text(json.dumps(results, indent=1))
    print_table(results)
    shipped = json.loads((BUNDLE / "configs" / "metadata.json").read_text())["eval_metrics"]["mean_dice_validation"]
    print(f"limit    the shipped network's validation Dice: {shipped:.4f}")


if __name__ == "__main__":
    main()
