"""A stranger's config: what is refused, that it would have run, and what passes."""

import contextlib
import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ConfigParser

from monai_vit3d.bundle.safety import check_config
from monai_vit3d.data.errors import BundleError
from tests.helpers import BUNDLES

ROOTS = ["network", "preprocessing", "inferer", "postprocessing", "ckpt_path", "class_names", "task"]


def under(**entries):
    """A config whose root ``network`` is ``entries["network"]``, with a few plain neighbours."""
    return {"imports": ["$import os", "$import numpy as np"], "a": 3, "names": ["x", "y"], **entries}


def as_read(config):
    """As a file has it: no object stands in it twice."""
    return json.loads(json.dumps(config))


def expression(text):
    return under(network=text)


def target(called, /, **arguments):
    return under(network={"_target_": called, **arguments})


EXPRESSIONS = {
    "os.system": "$os.system('id')",
    "os.popen": "$os.popen('id').get('x')",
    "import function": "$__import__('os').system('id')",
    "builtins eval": "$eval('1')",
    "builtins exec": "$exec('import os')",
    "open": "$open('/etc/passwd')",
    "compile": "$compile('1', '', 'eval')",
    "getattr": "$getattr(os, 'system')('id')",
    "vars": "$vars(os)['system']('id')",
    "globals": "$globals()['os']",
    "breakpoint": "$breakpoint()",
    "builtins by name": "$__builtins__['eval']",
    "class chain": "$().__class__.__base__.__subclasses__()",
    "class chain of a reference": "$@names.__class__.__mro__[1].__subclasses__()",
    "lambda globals": "$(lambda: 0).__globals__['os']",
    "lambda body": "$lambda x: os.system(x)",
    "lambda called": "$(lambda: 1)()",
    "lambda default": "$lambda x=os.system: x",
    "lambda stars": "$lambda *x: x",
    "lambda keyword default": "$lambda *, x=os.system('id'): x",
    "comprehension": "$[os.system(c) for c in ['id']]",
    "comprehension condition": "$[c for c in ['id'] if os.system(c)]",
    "comprehension source": "$[c for c in os.popen('id')]",
    "comprehension binds a builtin": "$[0 for exec in [1]] and exec",
    "comprehension binds a module": "$[os.path.join for os in [1]]",
    "comprehension binds a reference table": "$[__local_refs for __local_refs in [1]]",
    "comprehension writes into the config": "$[0 for @names['k'] in [1]]",
    "lambda binds a builtin": "$lambda len: len",
    "asynchronous comprehension": "$[c async for c in @names]",
    "generator frame": "$(x for x in @names).gi_frame.f_builtins",
    "format string": "$f'{os.system(1)}'",
    "format method": "$'{0.__class__}'.format(1)",
    "format map": "$'{x}'.format_map({'x': 1})",
    "walrus": "$(x := os)",
    "power": "$9 ** 9 ** 9",
    "shift": "$1 << 9999999",
    "matrix product": "$1 @ 2 ** 3",
    "await": "$await x",
    "yield": "$(yield 1)",
    "starred call": "$max(*@names)",
    "double starred call": "$dict(**{'a': 1})",
    "double starred display": "${**{'a': 1}}",
    "starred display": "$[*@names]",
    "builtin as a value": "$[print][0]",
    "module as a value": "$[os]",
    "called subscript": "$[eval][0]('1')",
    "called reference": "$@names('id')",
    "sort by a component": "$sorted(['/evil.npy'], key=@names)",
    "maximum by a builtin": "$max(['1'], key=eval)",
    "torch.load": "$torch.load('x.pt', weights_only=False)",
    "torch.hub": "$torch.hub.load('evil/repo', 'x')",
    "torch reaches os": "$torch.os.system('id')",
    "torch private": "$torch._C",
    "torch.save": "$torch.save(1, '/tmp/x')",
    "torch.ops": "$torch.ops.load_library('x.so')",
    "numpy load": "$np.load('x.npy', allow_pickle=True)",
    "numpy reaches os": "$np.lib.os.system('id')",
    "numpy tofile": "$np.zeros(3).tofile('/tmp/x')",
    "monai reaches subprocess": "$monai.bundle.scripts.subprocess.run('id')",
    "monai.bundle.run": "$monai.bundle.run(config_file='x.json')",
    "ours reaches torch.load": "$monai_vit3d.networks.checkpoints.torch.load('x')",
    "method of an allowed function": "$os.path.join.__globals__['os']",
    "method of an allowed module": "$os.get('x')",
    "attribute by a similar letter": "$@names.__clas\u017f__",
    "raw table of references": "$__local_refs['b']",
    "raw table behind a reference": "$[@a, __local_refs.get('b')]",
    "raw table by similar letters": "$\uff3f\uff3flocal_refs['b']",
    "reference inside quotes": "$'@or' + __local_refs['b']",
    "unknown reference": "$@nowhere",
    "two statements": "$1; os.system('id')",
    "import and a statement": "$import os\nos.system('id')",
    "import after an expression": "$1\nimport subprocess",
    "not Python": "$os.system(",
    "too long": "$" + "1+" * 1100 + "1",
    "too deep": "$" + "-" * 1990 + "1",
    "bytes": "$b'x'",
    "import subprocess": "$import subprocess",
    "import of two": "$import os, subprocess",
    "import from": "$from os import system",
    "import from everything": "$from os import *",
    "import under another's name": "$import os as torch",
    "import under a builtin's name": "$import os as len",
    "import of a local folder": "$import scripts",
    "import of a submodule": "$import os.path as np",
}
MKDIR = {"_target_": "os.mkdir", "path": "/nowhere"}
TARGETS = {
    "os.system": target("os.system", command="id"),
    "posix": target("posix.system", command="id"),
    "builtins.eval": target("builtins.eval"),
    "bare builtin": target("eval"),
    "subprocess": target("subprocess.run", args=["id"]),
    "runpy": target("runpy.run_path", path_name="x.py"),
    "pickle": target("pickle.load"),
    "importlib": target("importlib.import_module", name="x"),
    "torch.load": target("torch.load", f="x"),
    "traversal in torch": target("torch.nn.modules.module.torch.load", f="x"),
    "traversal in MONAI": target("monai.transforms.utils.np.save", file="x", arr=1),
    "traversal to os in MONAI": target("monai.data.utils.os.mkdir", path="/x"),
    "traversal in ours": target("monai_vit3d.networks.vit3d.torch.load", f="x"),
    "traversal to a class elsewhere": target("monai.data.utils.Path", x=1),
    "MONAI's own locate": target("monai.utils.module.instantiate"),
    "bare MONAI function": target("instantiate"),
    "monai.bundle.run": target("monai.bundle.run", config_file="x.json"),
    "bare run": target("run", config_file="x.json"),
    "download": target("monai.apps.utils.download_url", url="http://x", filepath="x"),
    "bare download": target("download_and_extract", url="http://x"),
    "class of another kind": target("monai.transforms.utils_create_transform_ims.Path"),
    "dunder": target("monai.transforms.Compose.__init__.__globals__"),
    "method": target("monai.transforms.Compose.flatten"),
    "expression as target": target("$os.system", command="id"),
    "harmless expression as target": target("$'Compose'"),
    "reference as target": under(b="os.system", network={"_target_": "@b", "command": "id"}),
    "number as target": target(3),
    "list as target": target(["os.system"]),
    "separator in target": target("os#system"),
    "unknown class": target("monai.transforms.Nothing"),
    "debugger": target("Compose", _mode_="debug"),
    "breakpoint": target("Compose", _debug_=True),
    "mode by expression": target("Compose", _mode_="$'debug'"),
    "class handed on": target("LoadImage", _mode_="callable"),
    "condition": target("Compose", _disabled_="$os.system('id')"),
    "arguments of a disabled component": target("Compose", _disabled_=True, transforms=[MKDIR]),
    "requirement": target("Compose", _requires_=["$os.system('id')"]),
    "description": target("Compose", _desc_="$os.system('id')"),
    "nested component": target("Compose", transforms=[{"_target_": "Lambda", "func": MKDIR}]),
    "lambda of a transform": target("Lambdad", keys="image", func="$lambda x: os.system(x)"),
    "builtin as a function": target("Lambdad", keys="image", func="$eval"),
    "TorchVision": target("TorchVision", name="x"),
    "TorchVisiond": target("TorchVisiond", keys="image", name="x"),
    "RandTorchVisiond": target("monai.transforms.RandTorchVisiond", keys="image", name="x"),
    "TorchIOd": target("TorchIOd", keys="image", name="x"),
    "RandTorchIO": target("RandTorchIO", name="x"),
    "CuCIM": target("CuCIM", name="x"),
    "adaptor": target("monai.transforms.adaptors.adaptor"),
    "SaveClassificationd": target("SaveClassificationd", keys="pred"),
    "WriteFileMapping": target("WriteFileMapping", mapping_file_path="/x"),
    "DataLoader": target("DataLoader", dataset=[]),
    "Dataset": target("Dataset", data=["/evil.npy"]),
    "PersistentDataset": target("PersistentDataset", data=[], cache_dir="x"),
    "CheckpointLoader": target("CheckpointLoader", load_path="x", load_dict={}),
    "NumpyReader": target("NumpyReader"),
    "PatchInferer": target("PatchInferer", merger_cls="x"),
    "reader by any name": target("LoadImaged", keys="image", reader="os.system"),
    "reader in a list": target("LoadImaged", keys="image", reader=["NibabelReader", "os.system"]),
    "reader that unpickles": target("LoadImaged", keys="image", reader="NumpyReader"),
    "reader by expression": target("LoadImage", reader="$'os.' + 'system'"),
    "reader by reference": under(b="os.system", network={"_target_": "LoadImage", "reader": "@b"}),
    "writer by any name": target("SaveImaged", keys="pred", output_dir="@output_dir", writer="os.system"),
    "saving elsewhere": target("SaveImaged", keys="pred", output_dir="/etc"),
    "saving by a path in the postfix": under(
        output_dir="o", network={"_target_": "SaveImage", "output_dir": "@output_dir", "output_postfix": "/../../x"}
    ),
    "pretrained": target("DenseNet121", spatial_dims=2, in_channels=3, out_channels=2, pretrained=True),
    "pretrained by reference": under(b=True, network={"_target_": "DenseNet121", "pretrained": "@b"}),
    "pretrained by expression": target("DenseNet121", pretrained="$1 == 1"),
    "pretrained url": target("UNet", pretrained_url="http://x"),
    "pretrained by default": target("EfficientNetBN", model_name="efficientnet-b0"),
    "torchvision network": target("TorchVisionFCModel", weights="x"),
    "unpickling reader's argument": target("LoadImaged", keys="image", allow_pickle=True),
    "saver's names": target("SaveImaged", keys="pred", output_dir="@output_dir", output_name_formatter="$lambda x: x"),
    "data parallel": target("torch.nn.parallel.DistributedDataParallel"),
}
NETWORK = {"_target_": "Compose", "transforms": []}
TWICE = ["x"]
CONFIGS = {
    "reference to an unchecked id": under(b=MKDIR, network={"_target_": "Compose", "transforms": ["@b"]}),
    "chain of references": under(b=MKDIR, c=["@b"], d="$@c + []", network="@d"),
    "nested reference": under(b={"c": [MKDIR]}, network="@b::c::0"),
    "old separator": under(b={"c": [MKDIR]}, network="@b#c#0"),
    "relative reference": under(b={"evil": MKDIR, "c": {"d": "@##evil"}}, network="@b::c"),
    "reference to everything": under(b=MKDIR, network="@"),
    "product as a reference to everything": under(b=MKDIR, network="$1 @ 2"),
    "reference out of the config": under(network="@####x"),
    "import that nobody refers to": under(unused={"x": "$import antigravity"}, network=NETWORK),
    "expression among the imports": under(imports=["$os.mkdir('x')"], network=NETWORK),
    "macro of a file": under(network="%/tmp/x.json::network"),
    "macro that nobody refers to": under(unused=["%/dev/stdin.json"], network=NETWORK),
    "macro of a file by a relative id": {**under(network=NETWORK), "/tmp/x.json": {"k": "%#x"}},
    "macro": under(b=MKDIR, network="%b"),
    "key with a separator": {"network::transforms": [MKDIR], **under(network=NETWORK)},
    "key with the old separator": {"network#transforms": [MKDIR], **under(network=NETWORK)},
    "empty key": {"": {"network": MKDIR}, **under(network=NETWORK)},
    "key with a space": under(network={"_target_": "Compose", "transforms ": [MKDIR], "transforms": []}),
    "key that is no percentile": under(b={"5%x": 1}, network=NETWORK),
    "key that ends as a percentile": under(b={"::5%": 1}, network=NETWORK),
    "key that writes to the terminal": under(b={"\x1b[2J": "%"}, network=NETWORK),
    "key that merges": {"+imports": ["$import sys"], **under(network=NETWORK)},
    "number and text as one key": under(b={0: MKDIR, "0": 1}, network="@b::0"),
    "key that MONAI renames": under(optional_packages_version=MKDIR, required_packages_version=1, network=NETWORK),
    "list used twice": under(b=TWICE, c=TWICE, network=NETWORK),
    "set": under(network={1, 2}),
}
ATTACKS = {
    **{f"expression: {name}": expression(text) for name, text in EXPRESSIONS.items()},
    **{f"target: {name}": config for name, config in TARGETS.items()},
    **{f"config: {name}": config for name, config in CONFIGS.items()},
}


@pytest.mark.parametrize("config", ATTACKS.values(), ids=ATTACKS)
def test_attacks_are_refused(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = repr(config)
    with pytest.raises(BundleError, match=r"^(not allowed in a bundle|MONAI cannot read)") as caught:
        check_config({"b": "a neighbour", "output_dir": "o", **config}, ROOTS)
    assert repr(config) == before
    assert "\x1b" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def side_effects(path):
    """Configs that make ``path`` when MONAI resolves ``network``."""
    make = f"os.mkdir('{path}')"
    return {
        "expression": under(network=f"${make}"),
        "target": under(network={"_target_": "os.mkdir", "path": path}),
        "target by traversal": under(network={"_target_": "monai.data.utils.os.mkdir", "path": path}),
        "target by expression": under(network={"_target_": "$os.mkdir", "path": path}),
        "target by reference": under(b="os.mkdir", network={"_target_": "@b", "path": path}),
        "method": under(network=f"$monai.data.dataset.Path('{path}').touch()"),
        "disabled": under(network={"_target_": "Compose", "_disabled_": True, "x": f"${make}"}),
        "condition": under(network={"_target_": "Compose", "_disabled_": f"$not {make}"}),
        "description": under(network={"_target_": "Compose", "_desc_": f"${make}"}),
        "comprehension": under(network=f"$[f('{path}') for f in [os.mkdir]]"),
        "chain": under(b=[f"${make}"], c="$@b", network={"_target_": "Compose", "transforms": "$[] and @c"}),
        "reader": under(network={"_target_": "LoadImage", "reader": "os.mkdir", "path": path}),
        "empty key": {"": {"network": f"${make}"}, **under(network=1)},
        "key with a separator": {"network::x": f"${make}", **under(network={"x": 1, "y": "@network::x"})},
        "number and text as one key": under(b={0: f"${make}", "0": 1}, network="@b::0"),
        "renamed key": under(
            required_packages_version=1, optional_packages_version=f"${make}", network="@required_packages_version"
        ),
        "everything": under(b=f"${make}", network="$[0 for x in @]"),
        "reference table": under(network=["$__local_refs['imports::0'].mkdir('" + str(path) + "')"]),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", side_effects("x"))
def test_what_is_refused_would_run(name, tmp_path):
    made = tmp_path / "made"
    config = side_effects(str(made))[name]
    with pytest.raises(BundleError):
        check_config(config, ["network"])
    assert not made.exists()
    # what the attack returns may be of no use to MONAI
    with contextlib.suppress(RuntimeError, TypeError, ValueError, KeyError):
        ConfigParser(copy.deepcopy(config)).get_parsed_content("network")
    assert made.exists()


def test_load_image_with_an_argument_of_its_readers_would_run_a_file(tmp_path):
    evil, made = tmp_path / "evil.npy", tmp_path / "made"
    evil.write_bytes(f"cos\nmkdir\n(V{made}\ntR.".encode())
    transforms = [
        {"_target_": "Lambdad", "keys": "image", "func": f"$lambda x: '{evil}'"},
        {"_target_": "LoadImaged", "keys": "image"},
    ]
    config = {"preprocessing": {"_target_": "Compose", "transforms": transforms}}
    check_config(config, ["preprocessing"])
    with pytest.raises(RuntimeError):
        ConfigParser(copy.deepcopy(config)).get_parsed_content("preprocessing")({"image": "x.nii"})
    assert not made.exists()
    transforms[1]["allow_pickle"] = True
    with pytest.raises(BundleError, match=r"transforms::1: 'allow_pickle: True': LoadImage may have .*reader"):
        check_config(config, ["preprocessing"])
    with pytest.raises(RuntimeError):
        ConfigParser(config).get_parsed_content("preprocessing")({"image": "x.nii"})
    assert made.exists()


SAVING = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "data_root_dir": "@dataset_dir"}


def test_save_image_would_write_where_metadata_say(tmp_path):
    out, meta = tmp_path / "deep" / "out", f"$lambda x: {{'filename_or_obj': '{tmp_path}/x.nii', 'affine': None}}"
    transforms = [
        {"_target_": "CopyItemsd", "keys": "pred", "names": "pred_meta_dict"},
        {"_target_": "Lambdad", "keys": "pred_meta_dict", "func": meta, "track_meta": False},
        {"_target_": "OneOf", "transforms": [{**SAVING, "separate_folder": False, "print_log": False}]},
    ]
    config = {"output_dir": str(out), "dataset_dir": str(tmp_path / "x" / "y"), "postprocessing": {}}
    config["postprocessing"] = {"_target_": "Compose", "transforms": transforms}
    with pytest.raises(
        BundleError, match=r"transforms::2::transforms::0: 'SaveImaged': allowed in the Compose of post"
    ):
        check_config(config, ["postprocessing"])
    ConfigParser(config).get_parsed_content("postprocessing")({"pred": torch.zeros(1, 2, 2, 2)})
    assert not list(out.rglob("*.nii.gz"))
    assert list(tmp_path.rglob("x_trans.nii.gz"))


@pytest.mark.parametrize(
    "transforms",
    [
        [{"_target_": "Lambdad", "keys": "pred", "func": SAVING}],
        [{"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: @saving"}],
        "$[@held]",
        [{"_target_": "Compose", "transforms": [{"_target_": "RandomOrder", "transforms": ["@saving"]}]}],
    ],
    ids=["function", "lambda", "expression", "nested"],
)
def test_save_image_stands_where_the_pipeline_finds_it(transforms):
    entries = {"output_dir": "o", "dataset_dir": "d", "saving": SAVING}
    entries["held"] = {"_target_": "OneOf", "transforms": "$[@saving]"}
    allowed = {"_target_": "Compose", "transforms": [{"_target_": "Compose", "transforms": "$[] + [@saving]"}]}
    check_config({**entries, "postprocessing": allowed}, ROOTS)
    for refused in (
        {"preprocessing": allowed},
        {"postprocessing": {"_target_": "Compose", "transforms": copy.deepcopy(transforms)}},
    ):
        with pytest.raises(BundleError, match="'SaveImaged': allowed in the Compose of postprocessing only"):
            check_config({**copy.deepcopy(entries), **refused}, ROOTS)


# what passes


def shipped(name):
    config = ConfigParser.load_config_file(BUNDLES / name / "configs" / "inference.yaml")
    config.update(bundle_root=str(BUNDLES / name), dataset_dir="images", output_dir="out", device="cpu")
    return config


@pytest.mark.parametrize("name", ["hippocampus_segmentation", "medmnist3d_classification"])
def test_shipped_bundles_pass(name):
    config = shipped(name)
    check_config(config, ROOTS)
    config["preprocessing"] = {"_target_": "os.system"}
    with pytest.raises(BundleError, match=r"  preprocessing: 'os.system': .*\nRead the bundle; .* without safe=True.$"):
        check_config(config, ROOTS)


HARMLESS = {
    "arithmetic": "$[@a * 2 - 1, @a / 2, @a // 2, @a % 2, -@a, not @a]",
    "comparison": "$@a if 0 < @a <= 3 and 'x' in @names or @a is None else [1]",
    "displays": "$({'a': 1}, {1, 2} & {2}, [(1, 2)], @names[0], @names[1:])",
    "comprehensions": "$dict((k, v) for k, v in zip(@names, range(len(@names)))) or {k: [k] for k in @names if k}",
    "builtins": "$sorted([round(abs(-1.5)), max(1, 2), min([3]), sum([1])], key=lambda v: -v, reverse=True)",
    "methods": "${'a': 1}.get('a', 'B'.lower())",
    "calls": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
    "paths": "$os.path.join(os.path.basename('a/b'), 'c')",
    "dtype": "$[torch.float32, np.uint8]",
    "lambda": "$lambda x, y: {'x': x[0] + y}",
    "literals": "$(None, True, 1.5, 'text', [])",
    "import": "$import json",
    "text with an at sign": "someone@example.org",
    "reference": "@b::c#1",
    "relative references": {"x": "@#y", "y": "$@##a + 1"},
    "component": {"_target_": "Compose", "transforms": [{"_target_": "EnsureTyped", "keys": "image"}]},
    "full name": {"_target_": "monai.networks.nets.UNet", "act": ["relu", {"inplace": True}], "pretrained": None},
    "torch": {"_target_": "torch.nn.Conv3d", "_mode_": "callable", "in_channels": 1},
    "ours": {"_target_": "monai_vit3d.networks.create_preset", "name": "vit3d_tiny", "_disabled_": "$@a > 2"},
    "reader": {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
    "dtype text": {"_target_": "CastToTyped", "keys": ["a", "b"], "dtype": ["float32", "$torch.uint8"]},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32]},
    "numbers as keys": {"names": {0: "background", 1: "liver"}},
    "percentiles as keys": {"input": {"5%": [0, 1], "99.5%": [2, 3]}},
    "device": torch.device("cpu"),
    "path": Path("model.pt"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", HARMLESS.values(), ids=HARMLESS)
def test_harmless_configs_pass_and_mean_something(entry):
    # a loader is fed in the preprocessing only
    place = "preprocessing" if "LoadImage" in str(entry) else "network"
    config = under(b={"c": [1, 2]}, **{place: entry})
    check_config(config, ROOTS)
    if not (isinstance(entry, dict) and entry.get("_target_", "").endswith("UNet")):
        ConfigParser(config).get_parsed_content(place)


LOADER = {"_target_": "LoadImaged", "keys": "image"}
UNFED = {
    "in the postprocessing": {"postprocessing": {"_target_": "Compose", "transforms": [LOADER]}},
    "in the inferer": {"inferer": {"_target_": "SimpleInferer", "loader": LOADER}},
    "in another component": {"preprocessing": {"_target_": "OneOf", "transforms": [LOADER]}},
    "a second one": {"preprocessing": {"_target_": "Compose", "transforms": [LOADER, {**LOADER, "keys": "b"}]}},
    "in an inner Compose, twice": {
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [LOADER, {"_target_": "Compose", "transforms": [LOADER]}],
        }
    },
    "called by a lambda": {"load": LOADER, "postprocessing": {"_target_": "Lambdad", "func": "$lambda x: [@load]"}},
    "handed on": {
        "preprocessing": {"_target_": "Compose", "transforms": [LOADER]},
        "postprocessing": {"_target_": "Lambdad", "keys": "pred", "func": "@preprocessing"},
    },
    "the Compose once more": {
        "preprocessing": {"_target_": "Compose", "transforms": [LOADER]},
        "postprocessing": {"_target_": "Compose", "transforms": ["@preprocessing"]},
    },
    "undone by one that also holds another": {
        "preprocessing": {"_target_": "Compose", "transforms": [LOADER]},
        "postprocessing": {"_target_": "Invertd", "keys": "pred", "transform": LOADER},
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entries", UNFED.values(), ids=UNFED)
def test_loaders_that_the_pipeline_does_not_feed(entries):
    with pytest.raises(BundleError, match=r"'LoadImaged': (allowed in the Compose of preprocessing|a second one)"):
        check_config(as_read(under(**{"network": 1, **entries})), ROOTS)


def test_the_loader_that_is_fed_and_the_inversion_of_it():
    steps = [LOADER, {"_target_": "EnsureTyped", "keys": "image"}]
    undo = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
    for transforms in (steps, [{"_target_": "Compose", "transforms": steps}], "$@steps[:1] + @steps[1:]"):
        config = under(steps=steps, network=1, preprocessing={"_target_": "Compose", "transforms": transforms})
        for post in (
            undo,
            {"_target_": "Compose", "transforms": [undo]},
            {"_target_": "Compose", "transforms": "@later"},
        ):
            check_config(as_read({**config, "later": [undo], "postprocessing": post}), ROOTS)


def test_what_no_root_leads_to_may_be_anything():
    check_config(under(network=1, run=["$os.system('id')"], dataset=MKDIR), [*ROOTS, "absent"])


def test_five_findings_are_shown_each_once():
    config = under(network=[f"$open({i})" for i in range(8)], task="@network")
    with pytest.raises(BundleError) as caught:
        check_config(config, ROOTS)
    lines = str(caught.value).splitlines()
    assert len(lines) == 8
    assert lines[1].startswith("  network::0: '$open(0)': a call of open; allowed are abs, ")
    assert lines[6:] == ["  and 3 more", "Read the bundle; if you trust it, run without safe=True."]


def test_a_config_without_end_is_refused():
    endless: list = []
    endless.append(endless)
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    for entry in (endless, deep):
        with pytest.raises(BundleError, match="used twice"):
            check_config(under(network=entry), ROOTS)


NAMES = st.sampled_from(["os", "eval", "x", "len", "@a", "@names", "__local_refs", "torch", "1", "'t'"])
PIECES = st.sampled_from([".", "(", ")", "[", "]", " for x in ", "lambda x: ", "system", "get", "__class__", ",", "+"])


@given(st.lists(NAMES | PIECES, max_size=8).map("".join))
def test_what_passes_touches_nothing_beyond_the_lists(text):
    config = under(network=f"${text}")
    try:
        check_config(config, ["network"])
    except BundleError:
        return
    outside = {"os", "eval", "torch", "system", "__class__", "__local_refs"}
    code = compile(text.replace("@", "").strip() or "1", "", "eval")
    names = set(code.co_names)
    for constant in code.co_consts:
        names |= set(getattr(constant, "co_names", ()))
    assert not names & outside


def test_a_bundle_as_the_model_zoo_has_them():
    config = {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/data",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz')))",  # no root leads here
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": "UNet", "spatial_dims": 3, "channels": [16, 32], "norm": "batch"},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -57, "a_max": 164, "clip": True},
            ],
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96], "overlap": 0.5},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"},
                {"_target_": "SaveImaged", "keys": "pred", "meta_keys": "pred_meta_dict", "output_dir": "@output_dir"},
            ],
        },
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
            }
        ],
        "run": ["$@evaluator.run()"],
    }
    check_config(config, [*ROOTS, "handlers::0::load_path"])
    with pytest.raises(BundleError, match="CheckpointLoader"):
        check_config(config, ["handlers"])
