"""Targets, losses and probabilities of each task against numpy in float64, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import nn

from monai_vit3d.networks import EqualDrawLoss, encode_target, probabilities, task_loss
from monai_vit3d.networks.task_losses import OrdinalLinear, output_layer
from tests.helpers import randn

MEDMNIST = [
    ("binary-class", "multi-class"),
    ("multi-label, binary-class", "multi-label"),
    ("ordinal-regression", "ordinal"),
]
OWN = ["multi-class", "multi-label", "ordinal", "regression"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_softmax(x):
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def close(got, want, atol=1e-12):
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=0, atol=atol)


# targets


@pytest.mark.parametrize(
    ("label", "task", "num_classes", "target"),
    [
        (0, "multi-class", 4, [1, 0, 0, 0]),
        (2, "multi-class", 4, [0, 0, 1, 0]),
        (3, "multi-class", 4, [0, 0, 0, 1]),
        (0, "ordinal", 4, [0, 0, 0]),
        (2, "ordinal", 4, [1, 1, 0]),
        (3, "ordinal", 4, [1, 1, 1]),
        (1, "ordinal", 2, [1]),
        ([1, 0, 1], "multi-label", 3, [1, 0, 1]),
        (1, "multi-label", 1, [1]),
        (np.array([0.25, -3e4], dtype=np.float64), "regression", 2, [0.25, -3e4]),
        (7.5, "regression", 1, [7.5]),
    ],
)
def test_target(label, task, num_classes, target):
    encoded = encode_target(label, task, num_classes)
    assert encoded.dtype is torch.float32
    assert encoded.tolist() == target


@pytest.mark.parametrize(
    "label", [2, 2.0, np.int64(2), np.uint8([2]), torch.tensor(2), torch.tensor([2.0]), MetaTensor(torch.tensor([2]))]
)
def test_class_number_in_any_wrapping(label):
    # MedMNIST's files hold each label as an array of one
    assert encode_target(label, "multi-class", 3).tolist() == [0, 0, 1]
    assert encode_target(label, "ordinal", 3).tolist() == [1, 1]


@pytest.mark.parametrize("task", ["multi-class", "ordinal"])
@pytest.mark.parametrize("label", [-1, 3, 1.5, float("nan"), float("inf"), np.array([1, 2]), []])
def test_labels_that_are_no_class(label, task):
    with pytest.raises(ValueError, match=r"^label .*; expected a class number from 0 to 2\.$"):
        encode_target(label, task, 3)


@pytest.mark.parametrize("task", ["multi-label", "regression"])
@pytest.mark.parametrize(("label", "count"), [([1, 0], 2), (1, 1), ([1, 0, 1, 0], 4)])
def test_wrong_number_of_labels(label, count, task):
    with pytest.raises(ValueError, match=rf"^label .* has {count} values; expected 3\.$"):
        encode_target(label, task, 3)


# probabilities


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_probabilities(shape):
    logits = 3 * randn(*shape)
    x = logits.numpy()
    close(probabilities(logits, "multi-class"), np.exp(log_softmax(x)))
    close(probabilities(logits, "multi-label"), sigmoid(x))
    close(probabilities(logits, "regression"), x, atol=0)
    above = logits.sort(-1, descending=True)[0]
    s = sigmoid(above.numpy())
    parts = [1 - s[..., 0], *(s[..., k] - s[..., k + 1] for k in range(4)), s[..., 4]]
    close(probabilities(above, "ordinal"), np.stack(parts, -1))


@pytest.mark.parametrize("task", ["multi-class", "ordinal"])
@pytest.mark.parametrize("label", range(4))
def test_sure_logits_give_back_the_label(task, label):
    logits = 100 * (2 * encode_target(label, task, 4) - 1)
    assert probabilities(logits, task).tolist() == pytest.approx(np.eye(4)[label])


def floats(bound, size):
    return st.lists(st.floats(-bound, bound, width=32), min_size=size, max_size=size)


@given(st.data(), st.integers(2, 20), st.integers(1, 4), st.sampled_from([1.0, 30.0, 2.0**15]))
def test_ordinal_probabilities_are_a_distribution(data, num_classes, width, bound):
    layer = OrdinalLinear(width, num_classes)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([data.draw(floats(bound, width))]))
        layer.bias.copy_(torch.tensor(data.draw(floats(bound, num_classes - 1))))
        logits = layer(torch.tensor([data.draw(floats(8, width)) for _ in range(3)]))
    assert logits.shape == (3, num_classes - 1)
    assert logits.diff().le(0).all()
    p = probabilities(logits, "ordinal")
    assert p.shape == (3, num_classes)
    assert p.min() >= 0
    torch.testing.assert_close(p.sum(1), torch.ones(3), rtol=0, atol=1e-5)


def test_equal_thresholds_leave_nothing_between_them():
    # a vectorised sigmoid and that of the remaining elements differ in the last place, near 2.4 on some machines
    for logit in torch.linspace(-5, 5, 101).tolist():
        p = probabilities(torch.full((7, 21), logit), "ordinal")
        assert p.min() >= 0
        assert p[:, 1:-1].max() < 1e-6


# layers


def test_ordinal_layer():
    layer = OrdinalLinear(6, 5).double()
    with torch.no_grad():
        layer.weight.copy_(randn(1, 6))
        layer.bias.copy_(torch.tensor([0.5, -2, 3, 0.25]))
    x = randn(4, 6, seed=1)
    score = x.numpy() @ layer.weight.detach().numpy().T
    close(layer(x), score + np.array([3, 0.5, 0.25, -2]))
    layer(x).sum().backward()
    assert layer.bias.grad.tolist() == [4, 4, 4, 4]  # a sort passes each threshold its gradient


@pytest.mark.parametrize("num_classes", [2, 3, 9])
def test_ordinal_layer_starts_with_equally_frequent_classes(num_classes):
    p = probabilities(OrdinalLinear(6, num_classes)(torch.zeros(1, 6)), "ordinal")
    close(p, np.full((1, num_classes), 1 / num_classes), atol=1e-6)


@pytest.mark.parametrize(
    ("task", "kind", "outputs"),
    [
        ("multi-class", nn.Linear, 3),
        ("multi-label", nn.Linear, 3),
        ("ordinal", OrdinalLinear, 2),
        ("regression", nn.Linear, 3),
    ],
)
def test_output_layer(task, kind, outputs):
    torch.manual_seed(0)
    layer = output_layer(task, 4000, 3)
    assert type(layer) is kind
    assert layer(torch.zeros(2, 4000)).shape == (2, outputs)
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.weight.mean().item() == pytest.approx(0, abs=0.002)
    assert kind is OrdinalLinear or not layer.bias.any()


@pytest.mark.parametrize(("task", "least"), [("multi-class", 2), ("ordinal", 2), ("multi-label", 1), ("regression", 1)])
def test_too_few_classes(task, least):
    x = torch.zeros(1, 4)
    assert output_layer(task, 4, least)(x).shape == (1, 1 if task == "ordinal" else least)
    with pytest.raises(ValueError, match=f"^num_classes={least - 1}: task '{task}' needs {least} or more"):
        output_layer(task, 4, least - 1)


# losses


def targets(labels, task, num_classes):
    return torch.stack([encode_target(label, task, num_classes) for label in labels]).double()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_multi_class_loss(smoothing):
    logits, y = 2 * randn(4, 3), targets([0, 2, 1, 2], "multi-class", 3)
    smooth = (1 - smoothing) * y.numpy() + smoothing / 3
    want = -(smooth * log_softmax(logits.numpy())).sum(1).mean()
    options = {"label_smoothing": smoothing} if smoothing else {}
    close(task_loss("multi-class", **options)(logits, y), want)


def test_multi_label_loss():
    logits, y = 2 * randn(4, 3), targets([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], "multi-label", 3)
    s = sigmoid(logits.numpy())
    close(task_loss("multi-label")(logits, y), -np.where(y.numpy() == 1, np.log(s), np.log(1 - s)).mean())


def test_ordinal_loss_is_corals():
    logits = (2 * randn(4, 4)).sort(-1, descending=True)[0].requires_grad_()
    y = targets([0, 4, 2, 3], "ordinal", 5)
    x, levels = logits.detach().numpy(), y.numpy()
    # as the code of arXiv:1901.07884 has it: a sum over levels, a mean over cases
    log_sigmoid = np.log(sigmoid(x))
    coral = -(log_sigmoid * levels + (log_sigmoid - x) * (1 - levels)).sum(1).mean()
    loss = task_loss("ordinal")(logits, y)
    close(loss, coral / 4)  # ours is a mean over the levels too
    loss.backward()
    close(logits.grad, (sigmoid(x) - levels) / 16)


def test_regression_loss():
    values, y = randn(4, 2), targets([[1, 2], [-1, 0.5], [0, 0], [3, -7]], "regression", 2)
    close(task_loss("regression")(values, y), ((values - y).numpy() ** 2).mean())


# names


@pytest.mark.parametrize(("name", "own"), MEDMNIST)
def test_medmnist_names(name, own):
    label = [1, 0, 1] if own == "multi-label" else 1
    assert encode_target(label, name, 3).tolist() == encode_target(label, own, 3).tolist()
    logits = randn(2, 2).sort(-1, descending=True)[0]
    assert torch.equal(probabilities(logits, name), probabilities(logits, own))
    assert type(task_loss(name)) is type(task_loss(own))
    assert type(output_layer(name, 4, 3)) is type(output_layer(own, 4, 3))


@pytest.mark.parametrize(
    "call",
    [
        lambda task: encode_target(0, task, 3),
        lambda task: probabilities(torch.zeros(1, 3), task),
        task_loss,
        lambda task: output_layer(task, 4, 3),
    ],
    ids=["encode_target", "probabilities", "task_loss", "output_layer"],
)
@pytest.mark.parametrize("task", ["multiclass", "", "Ordinal"])
def test_unknown_task(call, task):
    with pytest.raises(ValueError, match=f"^task={task!r}; expected one of 'multi-class'") as error:
        call(task)
    assert all(repr(name) in str(error.value) for name in [*OWN, *(m for m, _ in MEDMNIST)])


def test_equal_draws_teach_the_shares_of_the_data():
    """Logits alone, fitted to cases drawn equally often, become the classes' own frequencies; plain ones do not."""
    labels = [0] * 6 + [1] * 3 + [2]
    drawn = torch.eye(3)  # each class once
    found = {}
    for name, loss in (("equal draws", EqualDrawLoss(labels, 3)), ("plain", task_loss("multi-class"))):
        logits = torch.zeros(1, 3, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

        def closure(logits=logits, optimizer=optimizer, loss=loss):
            optimizer.zero_grad()
            value = loss(logits.expand(3, -1), drawn)
            value.backward()
            return value

        optimizer.step(closure)
        found[name] = logits.detach().softmax(1)[0].numpy()
    np.testing.assert_allclose(found["equal draws"], [0.6, 0.3, 0.1], atol=1e-3)
    np.testing.assert_allclose(found["plain"], 1 / 3, atol=1e-3)


def test_equal_draws_of_equal_classes_are_cross_entropy():
    logits, target = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.eye(4)[[0, 1, 2, 3, 0]]
    torch.testing.assert_close(EqualDrawLoss([0, 1, 2, 3], 4)(logits, target), task_loss("multi-class")(logits, target))
    assert EqualDrawLoss([0, 1], 3)(logits[:, :3], target[:, :3]).isfinite()  # class 2 has no case
