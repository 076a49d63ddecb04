"""Running bundles as their users do: by MONAI's commands, and by its workflows where a new process adds nothing."""

import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def command(*verb, **options):
    """The words of ``python -m monai.bundle VERB --option value``."""
    words = [sys.executable, "-W", "ignore", "-m", "monai.bundle", *verb]
    for key, value in options.items():
        words += [f"--{key}", str(value)]
    return words


def torchrun(*verb, **options):
    """The same in two processes."""
    return [*TORCHRUN, *command(*verb, **options)[3:]]


def _result(words, bundle, environment):
    return subprocess.run(
        words, capture_output=True, text=True, cwd=bundle, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}
    )


def run(words, bundle, **environment):
    """What a command that succeeds has printed; it runs in the bundle's folder."""
    result = _result(words, bundle, environment)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return result.stdout + result.stderr


def run_to_fail(words, bundle, **environment):
    """What a command that fails has printed."""
    result = _result(words, bundle, environment)
    assert result.returncode != 0
    return result.stdout + result.stderr


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
