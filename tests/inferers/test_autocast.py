"""bfloat16 by default where the processor has it, as Linux says in /proc/cpuinfo."""

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from monai_vit3d.inferers import computes_in_bfloat16
from tests.helpers import BUNDLES

RECIPES = sorted(BUNDLES.glob("*/configs/train.yaml"))


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="Linux alone says what its processor has")
def test_the_processor_has_it():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert computes_in_bfloat16("cpu") == computes_in_bfloat16(torch.device("cpu"))
    assert computes_in_bfloat16("cpu") == bool(flags & {"avx512_bf16", "amx_bf16"})


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.parents[1].name)
def test_shipped_recipes_ask(recipe):
    parser = ConfigParser()
    parser.read_config(recipe)
    expected = (False, computes_in_bfloat16("cuda" if torch.cuda.is_available() else "cpu"))
    assert parser.get_parsed_content("amp") in expected
    # the localizer and the small classifier train in float32 by their recipes; the others in bfloat16 where it is fast
    assert (parser["amp"] is False) == (recipe.parents[1].name in ("head_hippocampus", "medmnist3d_classification"))
