"""The cache of engines: never stale, never half-written, never larger than it should be."""

import os
import shutil
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from monai_vit3d.inferers import BackendNetwork, openvino
from monai_vit3d.inferers.openvino import OpenVINOEngine, fingerprint
from tests.helpers import run_warm
from tests.inferers.networks import SIZE, classifier, engines, segmenter, volumes


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.slow
def test_the_cache_gives_the_same_answer(tmp_path, caplog):
    caplog.set_level("INFO", "monai_vit3d")
    net, x = segmenter(), volumes()
    first = BackendNetwork(net, "openvino", tmp_path)(x)
    (place,) = tmp_path.iterdir()
    said = f"exporting the network for OpenVINO; later runs find it in {place}"
    assert caplog.messages == [said]
    assert place.name == fingerprint(net, x.shape)
    written = (place / "model.bin").stat().st_mtime_ns
    assert torch.equal(BackendNetwork(net, "openvino", tmp_path)(x), first)
    BackendNetwork(net, "openvino", tmp_path)(volumes(batch=1))  # another batch needs no other file
    assert [p.name for p in tmp_path.iterdir()] == [place.name]
    assert (place / "model.bin").stat().st_mtime_ns == written
    assert caplog.messages == [said]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.bin", "model.xml", "sha256"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_cache_is_made_anew(tmp_path, name, damage):
    net, x = nn.Conv3d(1, 2, 3, padding=1).eval(), volumes()
    expected = OpenVINOEngine(net, x.shape, torch.float32, tmp_path)(x)
    (place,) = tmp_path.iterdir()
    content = bytearray((place / name).read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        (place / name).unlink()
    else:
        (place / name).write_bytes(content if damage == "flip" else content[: len(content) // 2])
    assert torch.equal(OpenVINOEngine(net, x.shape, torch.float32, tmp_path)(x), expected)
    assert torch.equal(OpenVINOEngine(net, x.shape, torch.float32, tmp_path)(x), expected)
    assert [p.name for p in tmp_path.iterdir()] == [place.name]


@pytest.mark.slow
def test_fingerprint_knows_what_the_answer_depends_on():
    def prints(net, shape=(1, 1, *SIZE)):
        return fingerprint(net, shape)

    same = prints(classifier())
    assert len(same) == 64
    assert prints(classifier()) == same
    assert prints(classifier(), (7, 1, *SIZE)) == same
    others = [prints(classifier(), (1, 1, 16, 16, 20)), prints(segmenter())]
    # weights, and settings that neither weights nor a print of the network show
    changed = classifier()
    next(changed.parameters()).view(-1)[0] += 1e-6
    others.append(prints(changed))
    changed = classifier()
    changed.out_indices = (1, 0)
    others.append(prints(changed))
    changed = classifier()
    changed.backbone.blocks[1].attn.scale *= 2
    others.append(prints(changed))
    changed = classifier()
    changed.backbone.blocks[1].mlp.act = nn.ReLU()
    others.append(prints(changed))
    assert len({same, *others}) == len(others) + 1


def test_fingerprint_knows_no_cache():
    net = classifier(dynamic_img_size=True)
    same = fingerprint(net, (1, 1, *SIZE))
    net(torch.zeros(1, 1, 16, 8, 24))  # keeps the positions of this grid
    assert net.backbone._pos_cache._entry is not None
    assert fingerprint(net, (1, 1, *SIZE)) == same


@pytest.mark.slow
def test_nobody_is_told_of_a_run(tmp_path):
    """OpenVINO's own way in counts imports and exports on a server, by a number that it leaves in the user's folder."""
    code = (
        "import sys; import torch; from torch import nn; from monai_vit3d.inferers import BackendNetwork\n"
        "with torch.no_grad(): BackendNetwork(nn.Conv3d(1, 2, 3).eval(), 'openvino')(torch.zeros(1, 1, 8, 8, 8))\n"
        "assert 'openvino' in sys.modules and 'openvino_telemetry' not in sys.modules\n"
    )
    exit_code, output = run_warm("-c", code, env={"HOME": str(tmp_path)})
    assert exit_code == 0, output
    assert not (tmp_path / "intel").exists()


@pytest.mark.slow
def test_fingerprint_is_the_same_in_another_process():
    code = (
        "import torch; from torch import nn; from monai_vit3d.inferers.openvino import fingerprint\n"
        "torch.manual_seed(0)\n"
        "print(fingerprint(nn.Sequential(nn.Conv3d(1, 2, 3), nn.GELU('tanh')), (1, 1, 8, 8, 8)))"
    )
    other = run_warm("-c", code)
    torch.manual_seed(0)
    assert other == (0, fingerprint(nn.Sequential(nn.Conv3d(1, 2, 3), nn.GELU("tanh")), (1, 1, 8, 8, 8)) + "\n")


def test_what_cannot_be_told_apart_is_not_kept(tmp_path):
    net = nn.Conv3d(1, 2, 3, padding=1).eval()
    net.scale = volumes().sum
    assert fingerprint(net, (1, 1, *SIZE)) is None  # two objects' methods have one name
    net.scale = lambda: 2
    assert fingerprint(net, (1, 1, *SIZE)) is None
    torch.testing.assert_close(BackendNetwork(net, "openvino", tmp_path)(volumes()), net(volumes()))
    assert list(tmp_path.iterdir()) == []


class Counted(nn.Conv3d):
    """A network that knows how often PyTorch ran it; exporting runs it too, without values and in a trace."""

    calls = 0

    def forward(self, x):
        if type(x) is torch.Tensor and not torch.jit.is_tracing():
            Counted.calls += 1
        return super().forward(x)


@pytest.fixture
def counted():
    torch.manual_seed(0)
    Counted.calls = 0
    return Counted(1, 2, 3, padding=1).eval()


def ran(net, cache, x=None):
    """How often PyTorch ran the network until a new engine had answered."""
    before = Counted.calls
    fast = BackendNetwork(net, "openvino", cache)
    fast(volumes() if x is None else x)
    assert engines(fast) == ["OpenVINOEngine"]
    return Counted.calls - before


@pytest.mark.slow
def test_an_engine_is_compared_with_pytorch_once(tmp_path, counted):
    assert ran(counted, tmp_path) == 1
    assert ran(counted, tmp_path) == 0
    assert ran(counted, tmp_path, volumes(batch=3)) == 1  # another shape has another engine
    assert ran(counted, tmp_path, volumes(batch=3)) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert [ran(counted, tmp_path) for _ in "ab"] == [1, 0]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert ran(counted, tmp_path) == 0
    finally:
        torch.set_num_threads(threads)
    assert ran(counted, None) == ran(counted, None) == 1
    (place,) = tmp_path.iterdir()
    assert len(list(place.glob("checked-*"))) == 3


@pytest.mark.slow
def test_another_processor_is_compared_anew(tmp_path, counted, monkeypatch):
    ran(counted, tmp_path)
    monkeypatch.setattr(openvino, "_processor", lambda: "another")
    assert [ran(counted, tmp_path) for _ in "ab"] == [1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.bin", "model.xml", "sha256"])
def test_a_damaged_model_is_compared_anew(tmp_path, counted, name):
    ran(counted, tmp_path)
    (place,) = tmp_path.iterdir()
    (place / name).write_bytes((place / name).read_bytes()[:-1])
    assert [ran(counted, tmp_path) for _ in "ab"] == [1, 0]


@pytest.mark.slow
def test_a_mark_holds_for_the_files_that_were_compared(tmp_path, counted):
    """A model that was exchanged together with its sums, as nothing here does."""
    ran(counted, tmp_path)
    (place,) = tmp_path.iterdir()
    (place / "model.xml").write_bytes((place / "model.xml").read_bytes() + b"\n")
    (place / "sha256").write_text(openvino._files_sha256(place))
    assert [ran(counted, tmp_path) for _ in "ab"] == [1, 0]


@pytest.mark.slow
def test_a_wrong_answer_leaves_no_mark(tmp_path, counted, monkeypatch):
    call = OpenVINOEngine.__call__
    monkeypatch.setattr(OpenVINOEngine, "__call__", lambda self, x: 1.1 * call(self, x))
    for _ in "ab":
        assert torch.equal(BackendNetwork(counted, "auto", tmp_path)(volumes()), counted(volumes()))
    assert not list(tmp_path.rglob("checked-*"))


class Branching(nn.Conv3d):
    """What no export can follow: its way depends on the voxels."""

    def forward(self, x):
        return super().forward(x) if bool((x.sum() > 0).item()) else x


@pytest.mark.slow
def test_what_cannot_be_exported_is_tried_once(tmp_path, caplog, monkeypatch):
    net, x, tried = Branching(1, 1, 3, padding=1).eval(), volumes().abs(), []
    export = openvino.export_to_openvino
    monkeypatch.setattr(openvino, "export_to_openvino", lambda *args: (tried.append(1), export(*args))[1])
    for _ in "ab":
        assert torch.equal(BackendNetwork(net, "auto", tmp_path)(x), net(x))
    assert len(tried) == 1
    first, second = (text for text in caplog.messages if "cannot run this network" in text)
    assert "data-dependent" in first
    assert second.partition(": ")[2] == first.partition(": ")[2]
    for number in range(openvino.MAX_MODELS):
        keep(tmp_path, number)
    assert not list(tmp_path.rglob("refused"))  # it takes a place as any other


@pytest.mark.slow
def test_a_lack_of_memory_is_not_remembered(tmp_path, counted, monkeypatch):
    def fails(*args):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(openvino, "export_to_openvino", fails)
        assert torch.equal(BackendNetwork(counted, "auto", tmp_path)(volumes()), counted(volumes()))
    assert ran(counted, tmp_path) == 1


def test_a_failing_network_says_so_itself(tmp_path, counted):
    with pytest.raises(RuntimeError, match="to have 1 channels, but got 2"):
        BackendNetwork(counted, "openvino", tmp_path)(torch.zeros(1, 2, *SIZE))


def keep(cache, number):
    """A real model of another network for each number; its folder."""
    net = nn.Conv3d(1, 1, 1).eval()
    net.weight.fill_(1)
    net.bias.fill_(number)
    OpenVINOEngine(net, (1, 1, 4, 4, 4), torch.float32, cache)
    return cache / fingerprint(net, (1, 1, 4, 4, 4))


def age(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.mark.slow
def test_the_last_used_models_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(openvino, "MAX_MODELS", 3)
    kept = []
    for number in range(openvino.MAX_MODELS):
        kept.append(keep(tmp_path, number))
        age(kept[-1], 1000 - number)
    assert set(tmp_path.iterdir()) == set(kept)
    assert keep(tmp_path, 0) == kept[0]  # a use: the second is the oldest now
    kept.append(keep(tmp_path, -1))
    assert set(tmp_path.iterdir()) == set(kept) - {kept[1]}
    for place in kept[2:]:
        age(place, -1000)  # a clock that goes wrong: the new one stays nevertheless
    newest = keep(tmp_path, -2)
    assert newest.is_dir()
    assert len(list(tmp_path.iterdir())) == openvino.MAX_MODELS
    assert openvino._is_whole(newest)


FOREIGN = st.one_of(
    st.text("0123456789abcdef", min_size=62, max_size=66).filter(lambda name: len(name) != 64),
    st.text("0123456789ABCDEF", min_size=64, max_size=64).filter(lambda name: name != name.lower()),
    st.text("abc.-_", min_size=1, max_size=12).filter(lambda name: name not in (".", "..")),
    st.sampled_from(["model.xml", "model.bin", "sha256", ".part", ".part-", ".part-abc", ".part-abcdefgh.old"]),
)


@given(names=st.sets(FOREIGN, min_size=1, max_size=4), folders=st.booleans())
def test_what_others_have_there_stays(tmp_path, names, folders):
    cache = tmp_path / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    for name in names:
        if folders:
            (cache / name).mkdir()
            (cache / name / "model.xml").write_text("their own")
        else:
            (cache / name).write_text("their own")
        age(cache / name, 10**7)
    place = cache / ("0" * 64)
    place.mkdir()
    for number in range(openvino.MAX_MODELS):
        (cache / f"{number:064x}").mkdir(exist_ok=True)
    openvino._remove_old_models(place)
    assert names <= {path.name for path in cache.iterdir()}
    for name in names:
        path = cache / name / "model.xml" if folders else cache / name
        assert path.read_text() == "their own"


@pytest.mark.slow
def test_models_with_something_else_in_them_and_links_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(openvino, "MAX_MODELS", 1)
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    mixed, link, file = (cache / (digit * 64) for digit in "abc")
    mixed.mkdir(parents=True)
    (mixed / "model.xml").touch()
    (mixed / "notes.txt").touch()
    elsewhere.mkdir()
    (elsewhere / "model.xml").touch()
    link.symlink_to(elsewhere)
    (cache / ".part-abcdefgh").symlink_to(elsewhere)
    (cache / ".part-abcdefgi").touch()
    file.touch()
    for path in cache.iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    first = keep(cache, 0)
    second = keep(cache, 1)
    parts = {cache / ".part-abcdefgh", cache / ".part-abcdefgi"}
    assert set(cache.iterdir()) == {mixed, link, file, second} | parts
    assert not first.exists()
    assert (elsewhere / "model.xml").exists()


@pytest.mark.slow
def test_what_is_being_written_stays_and_what_a_killed_process_left_goes(tmp_path):
    for name, hours in (("young000", 23), ("old00000", 25)):
        (tmp_path / f".part-{name}" / "model").mkdir(parents=True)
        (tmp_path / f".part-{name}" / "model" / "model.bin").write_bytes(b"half")
        age(tmp_path / f".part-{name}", hours * 3600)
    place = keep(tmp_path, 0)
    assert set(tmp_path.iterdir()) == {place, tmp_path / ".part-young000"}


@pytest.mark.slow
def test_what_cannot_be_removed_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(openvino, "MAX_MODELS", 1)
    first, second = keep(tmp_path, 0), tmp_path / ("f" * 64)
    (tmp_path / "kept").mkdir()
    shutil.copytree(first, second)
    age(first, 50)
    age(second, 100)
    remove = os.rmdir

    def stuck(path, **options):
        if str(path).endswith(first.name):
            raise PermissionError(path)
        remove(path, **options)

    monkeypatch.setattr(os, "rmdir", stuck)
    third = keep(tmp_path, 1)
    assert first.is_dir()
    assert not second.exists()
    assert openvino._is_whole(third)
