"""Frozen features against tokens pooled by hand; probes against scikit-learn by hand, blind to the test part."""

import copy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset, MetaTensor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from monai_vit3d.data.errors import DatasetError, ScoreError, UsageError
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.pretraining import Features, extract_features, knn_probe, logistic_probe, ridge_probe

PROBES = {"logistic": logistic_probe, "knn": knn_probe}
NUMPY = {
    "mean": lambda tokens: tokens[:, 1:].mean(1),
    "std": lambda tokens: tokens[:, 1:].std(1),
    "max": lambda tokens: tokens[:, 1:].max(1),
    "class": lambda tokens: tokens[:, 0],
}


def network(**options):
    torch.manual_seed(0)
    chosen = {"embed_dim": 24, "depth": 3, "num_heads": 2, "drop_path_rate": 0.5, "proj_drop_rate": 0.5, **options}
    return VisionTransformer3D(16, (8, 8, 4), **chosen)


def images(count=5):
    return torch.randn(count, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def pairs(count=5, size=2):
    labels = torch.arange(count) % 3
    return [(images(count)[i : i + size], labels[i : i + size]) for i in range(0, count, size)]


def blobs(seed, cases=60, classes=3, distance=20.0, width=12):
    """Features of classes about their own axes, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(cases) % classes
    values = rng.standard_normal((cases, width)) + 7
    values[np.arange(cases), labels] += distance
    return Features(values.astype(np.float32), labels, "blobs")


def sections(distance=20.0, classes=3, cases=60):
    return [blobs(seed, distance=distance, classes=classes, cases=cases) for seed in range(3)]


# features


@pytest.mark.parametrize("pooling", [*NUMPY, "class+mean", "mean+std", "std+max+class"])
def test_poolings_by_hand(pooling):
    net = network()
    with torch.no_grad():
        tokens = copy.deepcopy(net).eval().forward_features(images()).numpy()
    expected = np.concatenate([NUMPY[name](tokens) for name in pooling.split("+")], 1)
    features = extract_features(net, pairs(), pooling)
    np.testing.assert_allclose(features.values, expected, atol=1e-5)
    assert features.values.dtype == np.float32
    np.testing.assert_array_equal(features.labels, [0, 1, 2, 0, 1])


def test_taps_by_hand():
    net = network(reg_tokens=2)
    kept = []
    handles = [net.blocks[i].register_forward_hook(lambda module, args, output: kept.append(output)) for i in (0, 2)]
    features = extract_features(net, [(images(), torch.arange(5))], "mean+class", taps=(0, -1))
    for handle in handles:
        handle.remove()
    levels = [net.norm(tokens).detach().numpy() for tokens in kept]
    expected = np.concatenate([part for level in levels for part in (level[:, 3:].mean(1), level[:, 0])], 1)
    np.testing.assert_allclose(features.values, expected, atol=1e-5)


def test_description_says_which_encoder_and_pooling():
    described = extract_features(network(), pairs(), "class+mean", taps=(-1, 0), encoder="target encoder").description
    assert described == (
        "target encoder (VisionTransformer3D, width 24): class token + mean of patch tokens, after block 1, 3 of 3, "
        "final norm"
    )
    plain = extract_features(network(global_pool="avg", class_token=False), pairs()).description
    assert plain == ("encoder (VisionTransformer3D, width 24): mean of patch tokens, after block 3 of 3, no final norm")


@pytest.mark.parametrize("training", [True, False])
def test_the_backbone_is_left_as_it_was(training):
    net = network(patch_drop_rate=0.5).train(training)
    net.blocks[1].eval()
    net.norm.weight.requires_grad_(False)
    net.head_drop.train()
    before, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    needs, state = [p.requires_grad for p in net.parameters()], torch.get_rng_state()
    seen = []
    handle = net.blocks[0].register_forward_hook(
        lambda module, args, output: seen.append((module.training, output.requires_grad))
    )
    loader = torch.utils.data.DataLoader([(image, 0) for image in images()], batch_size=2)
    first, second = extract_features(net, loader), extract_features(net, loader)
    handle.remove()
    assert set(seen) == {(False, False)}
    np.testing.assert_array_equal(first.values, second.values)
    assert [module.training for module in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == needs
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    net(images()).sum().backward()  # and can be trained on


def test_modes_come_back_after_an_error():
    net = network().train()
    with pytest.raises(ValueError, match="16"):
        extract_features(net, [(torch.zeros(2, 1, 8, 8, 8), torch.zeros(2))])
    assert all(module.training for module in net.modules())
    assert torch.is_grad_enabled()


def test_batches_of_monai_and_label_vectors():
    rows = [{"scan": MetaTensor(image), "target": torch.tensor([i, 2.0 * i])} for i, image in enumerate(images())]
    loader = DataLoader(Dataset(rows), batch_size=2)
    features = extract_features(network(), loader, keys=("scan", "target"))
    np.testing.assert_array_equal(features.labels, [[i, 2 * i] for i in range(5)])
    np.testing.assert_array_equal(features.values, extract_features(network(), pairs()).values)
    assert extract_features(network(), [(images(), torch.zeros(5, 1))]).labels.shape == (5,)  # as MedMNIST's


def test_a_copy_computes_on_another_device():
    net = network()
    with pytest.raises(RuntimeError, match="no data"):  # nothing comes back from "meta", but it is another device
        extract_features(net, pairs(), device="meta")
    assert {p.device.type for p in net.parameters()} == {"cpu"}
    np.testing.assert_array_equal(
        extract_features(net, pairs(), device="cpu").values, extract_features(net, pairs()).values
    )


def test_half_precision_encoder_gives_float32():
    features = extract_features(network().bfloat16(), pairs())
    assert features.values.dtype == np.float32
    np.testing.assert_allclose(features.values, extract_features(network(), pairs()).values, atol=0.1)


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        ("class", "no class token. Choose 'mean'"),
        ("median", "expected 'mean', 'std', 'max', 'class'"),
        ("mean+mean", "once"),
    ],
)
def test_poolings_that_cannot_be_had(pooling, message):
    with pytest.raises(UsageError, match=message):
        extract_features(network(class_token=False, global_pool="avg", reg_tokens=1), pairs(), pooling)


def test_batches_that_cannot_be_used():
    net, image = network(), images()
    with pytest.raises(UsageError, match="no batches came"):
        extract_features(net, [])
    with pytest.raises(UsageError, match="keys image; expected 'label'"):
        extract_features(net, [{"image": image}])
    with pytest.raises(UsageError, match="type Tensor; expected a dictionary or a pair"):
        extract_features(net, [image])
    with pytest.raises(UsageError, match=r"labels \(4,\); expected \(5,\) or \(5, L\)"):
        extract_features(net, [(image, torch.zeros(4))])
    with pytest.raises(UsageError, match="one block or more"):
        extract_features(net, [(image, torch.zeros(5))], taps=())
    image[3, 0, 0, 0, 0] = float("nan")
    with pytest.raises(ScoreError, match="features: 24 of 120 are NaN or infinite, the first in case 3"):
        extract_features(net, [(image, torch.zeros(5))])


# probes


@pytest.mark.slow
def test_logistic_probe_by_hand():
    train, validation, test = sections(distance=1.0)
    found = logistic_probe(train, validation, test, grid=(10.0, 0.001, 0.1))
    scaler = StandardScaler().fit(train.values.astype(np.float64))
    x, v, t = (scaler.transform(part.values.astype(np.float64)) for part in (train, validation, test))
    aucs, models = {}, {}
    for c in (0.001, 0.1, 10.0):
        models[c] = LogisticRegression(C=c, max_iter=2000).fit(x, train.labels)
        aucs[c] = roc_auc_score(validation.labels, models[c].predict_proba(v), multi_class="ovr")
    assert found.validation == pytest.approx(aucs)
    assert found.chosen == max(aucs, key=aucs.get)
    model = models[found.chosen]
    assert found.scores == pytest.approx(
        {
            "auc": roc_auc_score(test.labels, model.predict_proba(t), multi_class="ovr"),
            "accuracy": model.score(t, test.labels),
        }
    )
    assert (found.setting, found.features, found.cases) == ("C", "blobs", (60, 60, 60))
    assert found.as_dict() == {
        "logistic_auc": found.scores["auc"],
        "logistic_accuracy": found.scores["accuracy"],
        "logistic_C": found.chosen,
        "logistic_validation": found.validation[found.chosen],
    }


def nearest(train, values, k):
    """Class probabilities ``(N, K)`` by cosine neighbours, from the definition."""
    mean = train.values.astype(float).mean(0)
    x, y = train.values - mean, values - mean
    x, y = (rows / np.sqrt((rows**2).sum(1, keepdims=True)) for rows in (x, y))
    out = np.zeros((len(y), train.labels.max() + 1))
    for i, cosines in enumerate(y @ x.T):
        for j in np.argsort(-cosines)[:k]:
            out[i, train.labels[j]] += np.exp(cosines[j] / 0.07)
    return out / out.sum(1, keepdims=True)


def test_knn_probe_by_hand():
    train, validation, test = sections(distance=1.0)
    found = knn_probe(train, validation, test, grid=(7, 1, 200, 15))
    aucs = {
        k: roc_auc_score(validation.labels, nearest(train, validation.values, k), multi_class="ovr")
        for k in (1, 7, 15)  # 200 are not there
    }
    assert found.validation == pytest.approx(aucs, abs=1e-9)
    assert found.chosen == max(aucs, key=aucs.get)
    probabilities = nearest(train, test.values, found.chosen)
    assert found.scores == pytest.approx(
        {
            "auc": roc_auc_score(test.labels, probabilities, multi_class="ovr"),
            "accuracy": np.mean(probabilities.argmax(1) == test.labels),
        }
    )


def test_ridge_probe_by_hand():
    rng = np.random.default_rng(0)
    parts = [replace(part, labels=part.values[:, :2] * 3 + rng.standard_normal((60, 2))) for part in sections()]
    found = ridge_probe(*parts, grid=(1.0, 100.0))
    scaler = StandardScaler().fit(parts[0].values.astype(float))
    x, v, t = (scaler.transform(part.values.astype(float)) for part in parts)
    models = {alpha: Ridge(alpha=alpha).fit(x, parts[0].labels) for alpha in (1.0, 100.0)}
    r2s = {alpha: r2_score(parts[1].labels, model.predict(v)) for alpha, model in models.items()}
    assert found.validation == pytest.approx(r2s)
    predicted = models[max(r2s, key=r2s.get)].predict(t)
    assert found.scores["r2"] == pytest.approx(r2_score(parts[2].labels, predicted))
    assert found.scores["mae"] == pytest.approx(np.abs(predicted - parts[2].labels).mean())


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("classes", [2, 3])
def test_separable_blobs_are_told_apart(probe, classes):
    found = PROBES[probe](*sections(classes=classes))
    assert found.scores == {"auc": 1.0, "accuracy": 1.0}
    assert found.chosen == min(found.validation)  # all are right: the least of equals


@pytest.mark.slow
@pytest.mark.parametrize("probe", PROBES)
def test_shuffled_labels_are_chance(probe):
    rng = np.random.default_rng(0)
    parts = [replace(part, labels=rng.permutation(part.labels)) for part in sections(cases=600)]
    assert PROBES[probe](*parts).scores["auc"] == pytest.approx(0.5, abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("probe", PROBES)
@settings(max_examples=8)
@given(st.integers(0, 2**31))
def test_the_test_part_chooses_nothing(probe, seed):
    train, validation, test = sections(distance=1.0)
    rng = np.random.default_rng(seed)
    other = replace(test, values=test.values[rng.permutation(60)] * 2, labels=rng.permutation(test.labels))
    first, second = (PROBES[probe](train, validation, part) for part in (test, other))
    assert second.chosen == first.chosen
    assert second.validation == first.validation
    assert second.scores != first.scores
    assert PROBES[probe](train, validation, test) == first


@pytest.mark.slow
@settings(max_examples=8)
@given(st.integers(0, 2**31))
def test_the_test_part_chooses_no_alpha(seed):
    rng = np.random.default_rng(seed)
    train, validation, test = (replace(p, labels=rng.standard_normal(60) + p.values[:, 0]) for p in sections())
    other = replace(test, labels=rng.permutation(test.labels))
    first, second = ridge_probe(train, validation, test), ridge_probe(train, validation, other)
    assert (second.chosen, second.validation) == (first.chosen, first.validation)


@pytest.mark.slow
@pytest.mark.parametrize("probe", PROBES)
def test_validation_does_choose_and_does_not_train(probe):
    train, validation, test = sections(distance=1.0)
    rng = np.random.default_rng(3)
    other = replace(validation, labels=rng.permutation(validation.labels))
    first, second = (PROBES[probe](train, part, test) for part in (validation, other))
    assert second.validation != first.validation
    fixed = [PROBES[probe](train, part, test, grid=(5,)).scores for part in (validation, other)]
    assert fixed[0] == fixed[1]


@pytest.mark.slow
def test_float_class_numbers_score_the_same():
    parts = sections(distance=1.0)
    floats = [replace(part, labels=part.labels.astype(np.float32)) for part in parts]
    assert logistic_probe(*floats).scores == logistic_probe(*parts).scores


def test_probe_of_extracted_features():
    """A network that has learned nothing still tells bright from dark volumes."""
    parts = []
    for seed in range(3):
        labels = torch.arange(16) % 2
        x = torch.randn(16, 1, 16, 16, 16, generator=torch.Generator().manual_seed(seed)) + 3 * labels.view(
            -1, 1, 1, 1, 1
        )
        parts.append(extract_features(network(), [(x, labels[:, None])], "mean+std"))
    found = logistic_probe(*parts)
    assert found.scores["auc"] == 1
    assert found.features.startswith("encoder (VisionTransformer3D")


@pytest.mark.parametrize("probe", PROBES.values())
def test_parts_that_cannot_be_probed(probe):
    train, validation, test = sections()
    with pytest.raises(DatasetError, match="'validation' with 60 samples has no sample of class 2"):
        probe(train, replace(validation, labels=validation.labels % 2), test)
    with pytest.raises(UsageError, match=r"'test': labels \(60, 1\); expected one class number a case"):
        probe(train, validation, replace(test, labels=test.labels[:, None]))
    with pytest.raises(DatasetError, match=r"label 1\.5; expected 0 to 2"):
        probe(train, validation, replace(test, labels=np.where(test.labels == 1, 1.5, test.labels)))
    with pytest.raises(UsageError, match=r"'train': features \(60, 12\) and labels \(59,\)"):
        probe(replace(train, labels=train.labels[1:]), validation, test)
    with pytest.raises(UsageError, match=r"validation: 12 of class token; test: 12 of blobs.*one encoder and pooling"):
        probe(train, replace(validation, description="class token"), test)
    with pytest.raises(ScoreError, match="labels of section 'test': 1 of 60 are NaN"):
        probe(train, validation, replace(test, labels=np.where(np.arange(60) == 4, np.nan, test.labels)))
    with pytest.raises(UsageError, match="that fits 60 training cases"):
        probe(train, validation, test, grid=())


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for probe in (logistic_probe, knn_probe, ridge_probe):
        with pytest.raises(UsageError, match="its 'ssl' extra"):
            probe(*sections())
