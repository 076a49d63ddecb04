"""What the decoders' tests share: inputs, a small decoder with noise on its parameters, a norm written out."""

import torch

from monai_vit3d.decoders import DECODERS, create_decoder
from tests.helpers import randn

EMBED_DIM = 12


def noise(*shape, seed=0):
    return randn(*shape, seed=seed, dtype=torch.float32)


def maps_for(name, patch, grid=(2, 3, 2), batch=2):
    return [noise(batch, EMBED_DIM, *grid, seed=i) for i in range(DECODERS[name].num_maps(patch))]


def fresh(name, patch, in_chans=1, **options):
    """A small decoder of 3 classes, as it is before training."""
    torch.manual_seed(1)
    return create_decoder(name, in_chans, EMBED_DIM, patch, 3, **{"feature_size": 4, **options}).eval()


@torch.no_grad()
def noisy(name, patch, in_chans=1, **options):
    """The same with norms and kernels that do something, so that a mistaken order shows."""
    net = fresh(name, patch, in_chans, **options)
    for i, parameter in enumerate(net.parameters()):
        parameter.add_(0.1 * noise(*parameter.shape, seed=i))
    return net


def norm(x, module):
    """Each voxel's channels to zero mean and unit variance, then scaled."""
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    shape = (-1, 1, 1, 1)
    return (x - mean) / (var + 1e-5).sqrt() * module.weight.view(shape) + module.bias.view(shape)


def idle(net):
    """Parameters without a gradient."""
    return {n for n, p in net.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9}
