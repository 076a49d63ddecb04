"""Every row of OUTPUT_MAPS keeps what it declares: channels, range, and the output that it is computed from."""

import pytest
import torch

from monai_vit3d.inferers import OUTPUT_MAPS, FlipSpread

CLASSES = 3


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", OUTPUT_MAPS)
def test_a_map_has_its_channels(name, activation):
    row = OUTPUT_MAPS[name]
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, CLASSES, 3, padding=1)
    x = torch.randn(2, 1, 5, 6, 7)
    with torch.no_grad():
        output = FlipSpread(network, activation=activation)(x) if row.needs_flips else network(x)
        values = row.compute(output, CLASSES, activation)
    assert values.shape == (2, row.channels(CLASSES), 5, 6, 7)
    assert values.dtype is torch.float32
    assert 0 <= values.min() < values.max() <= 1
    assert row.bids_suffix


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_further_channels_of_flips_do_not_matter(activation):
    logits = torch.randn(1, CLASSES, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for name in ("entropy", "prob"):
        alone = OUTPUT_MAPS[name].compute(logits, CLASSES, activation)
        assert torch.equal(OUTPUT_MAPS[name].compute(logits.repeat(1, 3, 1, 1, 1), CLASSES, activation), alone)
