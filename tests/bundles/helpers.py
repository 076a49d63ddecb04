"""Running bundles as their users do: by MONAI's commands, and by its workflows where a new process adds nothing."""

import traceback
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from tests.helpers import run_python, run_warm


@dataclass(frozen=True)
class Command:
    """A verb of ``monai.bundle`` with its options, for one process or for several under torchrun."""

    words: tuple[str, ...]
    processes: int = 1


def command(*verb, processes=1, **options):
    """``python -m monai.bundle VERB --option value``."""
    given = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return Command((*verb, *given), processes)


def torchrun(*verb, **options):
    """The same in two processes."""
    return command(*verb, processes=2, **options)


def _end(command, bundle, fresh, environment):
    """Exit code and output."""
    words = ("-m", "monai.bundle", *command.words)
    if not fresh:
        return run_warm(*words, folder=bundle, processes=command.processes, env=environment)
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={command.processes}")
    launcher = launcher if command.processes > 1 else ("-W", "ignore")
    code, out, err = run_python(*launcher, *words, cwd=bundle, env=environment)
    return code, out + err


def run(command, bundle, fresh=False, **environment):
    """What a command that succeeds has printed; it runs in the bundle's folder, if ``fresh`` in new interpreters."""
    code, output = _end(command, bundle, fresh, environment)
    assert code == 0, output[-3000:]
    return output


def run_to_fail(command, bundle, fresh=False, **environment):
    """What a command that fails has printed."""
    code, output = _end(command, bundle, fresh, environment)
    assert code != 0
    return output


def workflow(bundle, *configs, **options):
    """A bundle's configs, by their names, in this process."""
    files = [str(bundle / "configs" / f"{name}.yaml") for name in configs]
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    return ConfigWorkflow(files, logging_file=False, bundle_root=str(bundle), **plain)


def run_here(bundle, *configs, **options):
    """``monai.bundle run`` in this process."""
    started = workflow(bundle, *configs, **options)
    started.initialize()
    started.run()
    started.finalize()


def failure_here(bundle, *configs, **options):
    """The traceback of a run that fails: the cause stands in it, MONAI's own words after it."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the caller looks at the words
        run_here(bundle, *configs, **options)
    return "".join(traceback.format_exception(caught.value))


def labels_by_monai(bundle, image, folder):
    """The labels of a NIfTI image by ``monai.bundle run`` of a bundle's inference configuration."""
    image.to_filename(folder / "head.nii.gz")
    options = {"dataset_dir": folder, "output_dir": folder / "out"}
    run(command("run", config_file="configs/inference.yaml", **options), bundle=bundle)
    return np.asarray(nib.load(folder / "out" / "head_seg.nii.gz").dataobj)
