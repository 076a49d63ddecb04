"""Token heads against numpy and einsum in float64, written out from their weights."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from monai_vit3d.networks import HEADS
from monai_vit3d.networks.heads import ConcatPool, Tokens, create_head
from tests.helpers import randn

WIDTH, PATCHES, BATCH = 12, 10, 2
TASKS = ["multi-class", "multi-label", "ordinal", "regression"]


def tokens(taps=2, prefix=3, class_token=True):
    return Tokens(embed_dim=WIDTH, num_heads=3, num_taps=taps, num_prefix_tokens=prefix, class_token=class_token)


def levels(seen):
    return [randn(BATCH, seen.num_prefix_tokens + PATCHES, WIDTH, seed=10 + i) for i in range(seen.num_taps)]


def head(name, seen, num_classes=4, task="multi-class", **options):
    """A head with noise on every parameter: no bias, norm or level stays trivial."""
    torch.manual_seed(0)
    net = create_head(name, seen, num_classes, task, **options).double().eval()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.add_(0.3 * randn(*p.shape, seed=100 + i))
    return net


def weights(net):
    return {name: p.detach().numpy() for name, p in net.named_parameters()}


def close(got, want, atol=1e-12):
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=0, atol=atol)


# the reference


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(x, w, name):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def mlp(x, w, name):
    x = linear(x, w, f"{name}.fc1")
    return linear(x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2, w, f"{name}.fc2")


def output(x, w, task):
    if task != "ordinal":
        return linear(x, w, "output")
    return x @ w["output.weight"].T - np.sort(-w["output.bias"])


def pooled(seen, xs, pool):
    parts = []
    for x in xs:
        if "cls_token" in pool:
            parts.append(x[:, 0].numpy())
        if "avg" in pool:
            parts.append(x[:, seen.num_prefix_tokens :].numpy().mean(1))
    return np.concatenate(parts, 1)


def attended(seen, xs, w, queries, heads):
    """What the learned queries read of the patch tokens of all levels."""
    x = np.concatenate([x[:, seen.num_prefix_tokens :].numpy() + e for x, e in zip(xs, w["level_embed"])], 1)
    size = WIDTH // heads
    q = linear(w["pool.latent"][0], w, "pool.q").reshape(queries, heads, size)
    k, v = np.split(linear(x, w, "pool.kv"), 2, -1)
    k, v = k.reshape(BATCH, -1, heads, size), v.reshape(BATCH, -1, heads, size)
    scores = np.einsum("qhc,bnhc->bhqn", q, k) / math.sqrt(size)
    attention = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    read = np.einsum("bhqn,bnhc->bqhc", attention, v).reshape(BATCH, queries, WIDTH)
    read = linear(read, w, "pool.proj")
    return (read + mlp(layer_norm(read, w, "pool.norm"), w, "pool.mlp")).reshape(BATCH, -1)


# what it computes

all_seen = pytest.mark.parametrize(
    ("taps", "prefix", "class_token"), [(1, 1, True), (2, 3, True), (3, 0, False), (2, 2, False)]
)
POOLS = ["cls_token", "avg", "cls_token+avg"]


def pools(class_token):
    return [p for p in POOLS if class_token or p == "avg"]


@all_seen
@pytest.mark.parametrize("task", TASKS)
def test_linear(taps, prefix, class_token, task):
    seen = tokens(taps, prefix, class_token)
    for pool in pools(class_token):
        net, xs = head("linear", seen, task=task, pool=pool), levels(seen)
        close(net(xs), output(pooled(seen, xs, pool), weights(net), task))


@pytest.mark.slow
@all_seen
@pytest.mark.parametrize("hidden", [None, 7])
def test_mlp(taps, prefix, class_token, hidden):
    seen = tokens(taps, prefix, class_token)
    for pool, task in zip(pools(class_token), ["ordinal", "multi-class", "regression"]):
        net, xs = head("mlp", seen, task=task, pool=pool, hidden=hidden), levels(seen)
        w = weights(net)
        assert w["output.weight"].shape[1] == (hidden or WIDTH)
        close(net(xs), output(mlp(layer_norm(pooled(seen, xs, pool), w, "norm"), w, "mlp"), w, task))


@all_seen
@pytest.mark.parametrize(
    ("queries", "heads", "task"),
    [(1, None, "multi-class"), (3, None, "ordinal"), (2, 1, "regression"), (3, 4, "multi-label")],
)
def test_attentive(taps, prefix, class_token, queries, heads, task):
    seen = tokens(taps, prefix, class_token)
    net, xs = head("attentive", seen, task=task, num_queries=queries, num_heads=heads, mlp_ratio=1.5), levels(seen)
    w = weights(net)
    assert w["pool.mlp.fc1.weight"].shape == (18, WIDTH)
    close(net(xs), output(attended(seen, xs, w, queries, heads or 3), w, task))


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_default_pool_takes_what_is_there(name, class_token):
    seen = tokens(prefix=2, class_token=class_token)
    given = "cls_token+avg" if class_token else "avg"
    assert torch.equal(head(name, seen)(levels(seen)), head(name, seen, pool=given)(levels(seen)))


def test_levels_are_told_apart_only_by_their_embedding():
    seen = tokens()
    fresh, xs = create_head("attentive", seen, 4, "multi-class").double(), levels(seen)
    assert not fresh.level_embed.any()
    close(fresh(xs[::-1]), fresh(xs).detach().numpy())
    told = head("attentive", seen)
    assert (told(xs[::-1]) - told(xs)).abs().max() > 1e-2


# what it reads


def changed(x, where):
    x = x.clone()
    x[:, where] += randn(*x[:, where].shape, seed=5)
    return x


CASES = [("attentive", {}), *((name, {"pool": pool}) for name in ("linear", "mlp") for pool in POOLS)]


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("level", [0, 1])
def test_tokens_that_matter(name, options, level):
    seen = tokens(prefix=3)
    net, xs = head(name, seen, **options), levels(seen)
    before, pool = net(xs), options.get("pool", "patches")

    def moves(where):
        return not torch.equal(net([changed(x, where) if i == level else x for i, x in enumerate(xs)]), before)

    assert moves(slice(0, 1)) is ("cls_token" in pool)
    assert not moves(slice(1, 3))  # registers are no features
    for where in (slice(3, 4), slice(-1, None)):  # the first patch and the last
        assert moves(where) is (pool != "cls_token")


@pytest.mark.parametrize(("name", "options"), CASES)
def test_order_of_the_patches_does_not_matter(name, options):
    seen = tokens(prefix=3)
    net, xs = head(name, seen, **options), levels(seen)
    shuffled = [x[:, [0, 1, 2, *(3 + np.random.default_rng(i).permutation(PATCHES))]] for i, x in enumerate(xs)]
    assert not torch.equal(shuffled[0], xs[0])
    close(net(shuffled), net(xs).detach().numpy())


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("task", TASKS)
def test_every_parameter_learns_from_the_start(name, task):
    torch.manual_seed(0)
    seen = tokens(prefix=3)
    net = create_head(name, seen, 4, task)
    net([x.float() for x in levels(seen)]).square().sum().backward()
    assert {n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()} == set()


@pytest.mark.parametrize("name", HEADS)
def test_cases_of_a_batch_do_not_meet(name):
    seen = tokens(prefix=3)
    net, xs = head(name, seen), levels(seen)
    close(net([x[1:] for x in xs]), net(xs)[1:].detach().numpy())


# dropout


def seeded(call):
    torch.manual_seed(3)
    return call()


def test_linear_dropout_stands_before_the_last_layer():
    seen = tokens()
    net, xs = head("linear", seen, drop_rate=0.4).train(), levels(seen)
    x = torch.from_numpy(pooled(seen, xs, "cls_token+avg"))
    want = seeded(lambda: F.dropout(x, 0.4))
    assert (want == 0).any()
    close(seeded(lambda: net(xs)), linear(want.numpy(), weights(net), "output"))


def test_mlp_dropout_stands_behind_the_hidden_layer_and_before_the_last():
    seen = tokens()
    net, xs = head("mlp", seen, drop_rate=0.4, hidden=7).train(), levels(seen)
    w = weights(net)

    def by_hand():
        x = torch.from_numpy(linear(layer_norm(pooled(seen, xs, "cls_token+avg"), w, "norm"), w, "mlp.fc1"))
        x = linear(F.dropout(F.gelu(x), 0.4).numpy(), w, "mlp.fc2")
        return linear(F.dropout(torch.from_numpy(x), 0.4).numpy(), w, "output")

    close(seeded(lambda: net(xs)), seeded(by_hand))


def test_attentive_dropout_stands_before_the_last_layer():
    seen = tokens()
    net, xs = head("attentive", seen, drop_rate=0.4, num_queries=2).train(), levels(seen)
    w = weights(net)
    x = torch.from_numpy(attended(seen, xs, w, 2, 3))
    close(seeded(lambda: net(xs)), linear(seeded(lambda: F.dropout(x, 0.4)).numpy(), w, "output"))


@pytest.mark.parametrize("name", HEADS)
def test_dropout_is_off_unless_asked_for(name):
    seen = tokens()
    net, xs = head(name, seen), levels(seen)
    want = net(xs)
    assert torch.equal(net.train()(xs), want)
    assert not torch.equal(head(name, seen, drop_rate=0.5).train()(xs), want)


# refusals


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("attention", {}, "^head='attention' is unknown; expected one of 'linear', 'attentive', 'mlp'"),
        ("linear", {"pool": "max"}, r"^pool='max'; expected one of 'cls_token', 'avg', 'cls_token\+avg'"),
        ("mlp", {"pool": ""}, "^pool=''; expected one of"),
        ("linear", {"pool": "cls_token"}, "^pool='cls_token', but the backbone has no class token: use 'avg'"),
        ("mlp", {"pool": "cls_token+avg"}, "but the backbone has no class token"),
        ("attentive", {"num_heads": 5}, "^num_queries=1, num_heads=5; expected positive .* divide embed_dim=12"),
        ("attentive", {"num_heads": 0}, "num_heads=0; expected positive"),
        ("attentive", {"num_heads": -3}, "num_heads=-3; expected positive"),
        ("attentive", {"num_queries": 0}, "^num_queries=0, num_heads=3; expected positive"),
    ],
)
def test_refusals(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_head(name, tokens(prefix=1, class_token=False), 4, "multi-class", **options)


@pytest.mark.parametrize("name", HEADS)
def test_last_layer_is_refused_by_its_own_rules(name):
    with pytest.raises(ValueError, match=r"^num_classes=1: task 'multi-class' needs 2"):
        create_head(name, tokens(), 1, "multi-class")
    with pytest.raises(ValueError, match=r"^task='nothing'; expected one of"):
        create_head(name, tokens(), 3, "nothing")
    assert isinstance(create_head(name, tokens(), 1, "regression").output, nn.Linear)


def test_pool_tells_its_width():
    for pool, parts in (("cls_token", 1), ("avg", 1), ("cls_token+avg", 2)):
        seen = tokens(taps=3)
        assert ConcatPool(seen, pool).num_features == 3 * WIDTH * parts == ConcatPool(seen, pool)(levels(seen)).shape[1]
