"""The command has PyTorch's tensors in huge pages, unless its user does not want that."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BUNDLE = Path(__file__).parents[1] / "bundles" / "hippocampus_segmentation"
PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CODE = """
import resource, sys
from monai_vit3d.cli import main

main(["info", sys.argv[1]])
import torch

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**26)  # 256 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not PAGES.is_file() or "[madvise]" not in PAGES.read_text(), reason="Linux with madvised huge pages"
)
@pytest.mark.parametrize("wanted", [None, "0"])
def test_tensors_lie_in_huge_pages(wanted):
    env = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"}
    env |= {} if wanted is None else {"THP_MEM_ALLOC_ENABLE": wanted}
    command = [sys.executable, "-c", CODE, str(BUNDLE)]
    out = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    small = 2**28 // 2**12
    faults = int(out.split()[-1])
    assert faults > 0.9 * small if wanted == "0" else faults < 0.5 * small
