"""Forward passes of published 3D ViTs over their own tensors, in plain torch, apart from the package.

Each takes a state dict and an image and returns the tokens after the final norm; angles, axes and layers are spelled
out one by one.
"""

import math

import torch
import torch.nn.functional as F


class Tensors:
    """A state dict whose parts are called as layers."""

    def __init__(self, state, eps):
        self.state, self.eps = state, eps

    def linear(self, x, name):
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], self.eps)

    def conv(self, x, name, stride=1, padding=0):
        return F.conv3d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), stride, padding)

    def instance_norm(self, x, name):
        return F.instance_norm(x, weight=self.state[f"{name}.weight"], bias=self.state[f"{name}.bias"], eps=1e-5)


def attend(q, k, v):
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def heads_of(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def places(grid):
    """The three coordinates of every patch, the last axis fastest, (3, N)."""
    return torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")).flatten(1)


def turn_neighbours(x, angles):
    """Rotate the pairs (2i, 2i + 1) of the last axis by angles (N, pairs)."""
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack(
        [even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()], -1
    ).flatten(-2)


def turn_halves(x, angles):
    one, other = x.chunk(2, -1)
    return torch.cat([one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()], -1)


def turn_as_vjepa(x, angles):
    """One axis' channels: channel c turns by the angle c mod n of n, its pair is its neighbour."""
    angles = torch.cat([angles, angles], -1)
    partner = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * angles.cos() + partner * angles.sin()


def primus(state, x, heads, reference, version=1):
    t = Tensors(state, 1e-5)
    if version == 1:
        x = t.conv(x, "down_projection.proj", stride=state["down_projection.proj.weight"].shape[2:])
    else:
        x = primus_stem(t, x, 0.01 if version == 3 else 0)
    grid = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    registers = state.get("register_tokens", x[:, :0])
    x = torch.cat([registers, x], 1) + state.get("eva.pos_embed", 0)
    p, head = registers.shape[1], x.shape[2] // heads
    n = head // 6
    speeds = 10000.0 ** (-torch.arange(n, dtype=torch.float64) / n)
    spots = places(grid) * torch.tensor([r / g for r, g in zip(reference, grid)])[:, None]
    angles = torch.cat([spot[:, None] * speeds for spot in spots], -1)
    for i in range(depth_of(state, "eva.blocks.")):
        at = f"eva.blocks.{i}."
        y = t.norm(x, f"{at}norm1")
        q, k, v = (heads_of(t.linear(y, f"{at}attn.{part}_proj"), heads) for part in "qkv")
        q, k = (torch.cat([z[:, :, :p], turn_neighbours(z[:, :, p:], angles)], 2) for z in (q, k))
        y = t.linear(t.norm(attend(q, k, v), f"{at}attn.norm"), f"{at}attn.proj")
        x = x + state[f"{at}gamma_1"] * y
        y = t.norm(x, f"{at}norm2")
        y = t.norm(F.silu(t.linear(y, f"{at}mlp.fc1_g")) * t.linear(y, f"{at}mlp.fc1_x"), f"{at}mlp.norm")
        x = x + state[f"{at}gamma_2"] * t.linear(y, f"{at}mlp.fc2")
    return t.norm(x, "eva.norm")


def primus_stem(t, x, slope):
    at = "down_projection."
    maps = [primus_stage(t, x, f"{at}stem.blocks.0", 1, slope)]
    for i in range(sum(f"{at}stages.{n}.blocks.0.conv1.conv.weight" in t.state for n in range(9))):
        maps.append(primus_stage(t, maps[-1], f"{at}stages.{i}.blocks.0", 2, slope))
    tokens = t.conv(maps[-1], f"{at}final_proj")
    for i, level in enumerate(maps[:-1]):
        if f"{at}proj_to_tokens.{i}.weight" in t.state:
            step = level.shape[2] // tokens.shape[2]
            tokens = tokens + t.state[f"{at}scale_proj_to_tokens.{i}"] * t.conv(level, f"{at}proj_to_tokens.{i}", step)
    return tokens


def primus_stage(t, x, at, stride, slope):
    """With V2's ReLUs, or V3's leaky ones."""
    y = F.leaky_relu(t.instance_norm(t.conv(x, f"{at}.conv1.conv", stride, 1), f"{at}.conv1.norm"), slope)
    y = t.instance_norm(t.conv(y, f"{at}.conv2.conv", 1, 1), f"{at}.conv2.norm")
    skip = F.avg_pool3d(x, stride) if stride > 1 else x
    name = f"{at}.skip.{int(stride > 1)}"
    if f"{name}.conv.weight" in t.state:
        skip = t.instance_norm(t.conv(skip, f"{name}.conv"), f"{name}.norm")
    return F.leaky_relu(y + skip, slope)


def vjepa2(state, x, heads, counted=(0, 1, 2)):
    """V-JEPA 2 in Meta's layout, and Neuro-JEPA, whose patches are counted on a grid of other axes."""
    t = Tensors(state, 1e-6)
    x = t.conv(x, "patch_embed.proj", stride=state["patch_embed.proj.weight"].shape[2:])
    grid = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    spots, head = places([grid[axis] for axis in counted]), x.shape[2] // heads
    width = 2 * (head // 3 // 2)
    speeds = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    for i in range(depth_of(state, "blocks.")):
        at = f"blocks.{i}."
        y = t.norm(x, f"{at}norm1")
        q, k, v = (heads_of(part, heads) for part in t.linear(y, f"{at}attn.qkv").chunk(3, -1))
        turned = []
        for z in (q, k):
            parts = [turn_as_vjepa(z[..., a * width : (a + 1) * width], spots[a][:, None] * speeds) for a in range(3)]
            turned.append(torch.cat([*parts, z[..., 3 * width :]], -1))
        out = attend(*turned, v)
        if f"{at}attn.proj_attn_gate.weight" in state:
            gate = t.linear(y, f"{at}attn.proj_attn_gate").sigmoid()
            out = (out.unflatten(-1, (heads, head)) * gate[..., None]).flatten(2)
        x = x + t.linear(out, f"{at}attn.proj")
        y = t.norm(x, f"{at}norm2")
        if f"{at}mlp.fc3.weight" in state:
            x = x + t.linear(F.silu(t.linear(y, f"{at}mlp.fc1")) * t.linear(y, f"{at}mlp.fc2"), f"{at}mlp.fc3")
        else:
            x = x + t.linear(F.gelu(t.linear(y, f"{at}mlp.fc1")), f"{at}mlp.fc2")
    return t.norm(x, "norm")


def box_vit(state, x, heads, eps=1e-6):
    """SPECTRE and DINOv3 in 3D: rotary positions in the box, by the periods that the file holds."""
    t = Tensors(state, eps)
    embed = "patch_embed_3D.proj" if "patch_embed_3D.proj.weight" in state else "patch_embed.proj"
    periods = next(value for key, value in state.items() if key.endswith("periods") and "2D" not in key)
    if "patch_proj.weight" in state:  # SPECTRE's second network: a vector is a token
        x = t.linear(x.movedim(1, -1), "patch_proj").movedim(-1, 1)
    else:
        x = t.conv(x, embed, stride=state[f"{embed}.weight"].shape[2:])
    spots = places(x.shape[2:])
    sizes = torch.tensor(x.shape[2:], dtype=torch.float64)[:, None]
    box = 2 * (spots + 0.5) / sizes - 1
    angles = torch.cat([2 * math.pi * axis[:, None] / periods for axis in box], -1)
    prefix = [state[key] for key in ("cls_token", "storage_tokens") if key in state]
    x = torch.cat([*prefix, x.flatten(2).transpose(1, 2)], 1)
    p = x.shape[1] - spots.shape[1]
    for i in range(depth_of(state, "blocks.")):
        at = f"blocks.{i}."
        y = t.norm(x, f"{at}norm1")
        if f"{at}attn.q.weight" in state:
            q, (k, v) = t.linear(y, f"{at}attn.q"), t.linear(y, f"{at}attn.kv").chunk(2, -1)
        else:
            bias = state.get(f"{at}attn.qkv.bias")
            bias = bias if bias is None else bias * state.get(f"{at}attn.qkv.bias_mask", 1)
            q, k, v = F.linear(y, state[f"{at}attn.qkv.weight"], bias).chunk(3, -1)
        q, k, v = (heads_of(z, heads) for z in (q, k, v))
        q, k = (torch.cat([z[:, :, :p], turn_halves(z[:, :, p:], angles)], 2) for z in (q, k))
        x = x + state[f"{at}ls1.gamma"] * t.linear(attend(q, k, v), f"{at}attn.proj")
        y = t.norm(x, f"{at}norm2")
        if f"{at}mlp.w1.weight" in state:
            y = t.linear(F.silu(t.linear(y, f"{at}mlp.w1")) * t.linear(y, f"{at}mlp.w2"), f"{at}mlp.w3")
        else:
            y = t.linear(F.gelu(t.linear(y, f"{at}mlp.fc1")), f"{at}mlp.fc2")
        x = x + state[f"{at}ls2.gamma"] * y
    return t.norm(x, "norm")


def attention_pool(state, tokens, heads):
    """COLIPRI's image head: projected tokens, attended to by their mean."""
    x = F.linear(tokens, state["projector.weight"].flatten(1), state["projector.bias"])
    (wq, wk, wv), (bq, bk, bv) = (state[f"pooler.attn.in_proj_{kind}"].chunk(3) for kind in ("weight", "bias"))
    q, k, v = F.linear(x.mean(1, keepdim=True), wq, bq), F.linear(x, wk, bk), F.linear(x, wv, bv)
    pooled = attend(*(heads_of(z, heads) for z in (q, k, v)))
    return F.linear(pooled, state["pooler.attn.out_proj.weight"], state["pooler.attn.out_proj.bias"])[:, 0]


def depth_of(state, start):
    return len({key[len(start) :].split(".")[0] for key in state if key.startswith(start)})
