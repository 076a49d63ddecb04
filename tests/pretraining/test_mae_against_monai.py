"""Our masked autoencoder with the weights of MONAI's MaskedAutoEncoderViT predicts what MONAI's predicts."""

import pytest
import torch
from monai.networks.nets import MaskedAutoEncoderViT

from monai_vit3d.pretraining import MAE
from monai_vit3d.pretraining.masking import MAEMasks
from monai_vit3d.pretraining.patches import patchify
from monai_vit3d.weights import from_monai_vit

SIZE, PATCH = (8, 12, 16), (4, 4, 8)
NAMES = {"attn.out_proj": "attn.proj", "mlp.linear1": "mlp.fc1", "mlp.linear2": "mlp.fc2"}


def monai_mae(**options):
    torch.manual_seed(0)
    network = MaskedAutoEncoderViT(
        2, SIZE, PATCH, hidden_size=12, mlp_dim=24, num_layers=2, num_heads=2, decoder_hidden_size=18,
        decoder_mlp_dim=72, decoder_num_layers=2, decoder_num_heads=3, **options,
    )  # fmt: skip
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.double().eval()


def ours(network):
    """An MAE with all weights of MONAI's, its decoder's positions among them."""
    mae = MAE(from_monai_vit(network), 18, 2, 3, normalize_targets=False).double().eval()
    decoder, state = mae.decoder, {}
    for key, value in network.decoder_blocks.state_dict().items():
        number, _, name = key.partition(".")
        if "cross_attn" in name:
            continue
        for monais, timms in NAMES.items():
            name = name.replace(monais, timms)
        state[f"norm.{name}" if number == "2" else f"blocks.{number}.{name}"] = value
    for i, block in enumerate(decoder.blocks):
        block.norm1.eps = block.norm2.eps = 1e-5  # MONAI's LayerNorms are torch's, timm's have 1e-6
        state[f"blocks.{i}.attn.qkv.bias"] = torch.zeros_like(block.attn.qkv.bias)  # MONAI's have none
    for name, layer in (("embed", network.decoder_embed), ("head", network.decoder_pred)):
        state |= {f"{name}.{key}": value for key, value in layer.state_dict().items()}
    decoder.load_state_dict({**state, "mask_token": network.mask_tokens})
    decoder.positions = network.decoder_pos_embedding.detach()
    return mae


@torch.no_grad()
@pytest.mark.parametrize("positions", ["sincos", "learnable"])
@pytest.mark.parametrize("masking_ratio", [0.25, 0.75])
def test_predictions_of_masked_patches_are_monais(positions, masking_ratio):
    network = monai_mae(pos_embed_type=positions, decoder_pos_embed_type=positions)
    x = torch.randn(3, 2, *SIZE, dtype=torch.float64)
    predicted, mask = network(x, masking_ratio=masking_ratio)
    numbers = mask.argsort(dim=1, stable=True)
    visible = int((mask[0] == 0).sum())
    masks = MAEMasks(numbers[:, :visible], numbers[:, visible:])
    mae = ours(network)
    output = mae(x, masks)
    masked = predicted.gather(1, masks.masked[..., None].expand(-1, -1, predicted.shape[2]))
    torch.testing.assert_close(output.prediction, masked, atol=1e-10, rtol=1e-10)
    # the loss is the paper's: squared error over masked patches alone
    error = ((predicted - patchify(x, PATCH)).square().mean(-1) * mask).sum() / mask.sum()
    torch.testing.assert_close(output.loss, error, atol=1e-10, rtol=1e-10)
