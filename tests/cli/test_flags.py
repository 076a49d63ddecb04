"""The command's flags are the arguments of Python functions, and errors that name these are shown with flags."""

import argparse
import inspect

import pytest

from monai_vit3d.bundle.info import describe_bundle
from monai_vit3d.cli.command import build_parser
from monai_vit3d.cli.flags import use_flags_of, with_flags
from monai_vit3d.cli.options import parsed
from monai_vit3d.pipeline.check import check_files
from monai_vit3d.pipeline.embed_folder import embed_folder
from monai_vit3d.pipeline.folder import predict_folder
from monai_vit3d.weights.info import convert_weights, describe_weights

PREDICT = ["predict", "in", "-o", "out", "--bundle", "b"]
EMBED = ["embed", "in", "-o", "out", "--model", "m"]
OF_EMBEDDER = ["model", "weights", "recipe", "stated", "num_heads", "feature", "combiner", "overlap", "whole", "tokens",
               "device", "accept_licence", "dry_run"]  # fmt: skip
# the shortest command line of a verb, what of it the function does not have, and the function
FUNCTIONS = [
    (PREDICT, ["dry_run"], predict_folder),
    (EMBED, OF_EMBEDDER, embed_folder),
    (["check", "in"], ["json"], check_files),
    (["info", "b"], [], describe_bundle),
    (["weights", "info", "w"], ["json"], describe_weights),
    (["weights", "convert", "w", "out"], [], convert_weights),
]


@pytest.mark.parametrize(
    ("words", "without", "function"), FUNCTIONS, ids=lambda value: getattr(value, "__name__", None)
)
def test_each_flag_is_an_argument_of_the_function_with_the_same_default(words, without, function):
    parameters = inspect.signature(function).parameters
    more = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name, value in parsed(build_parser().parse_args(words), *without).items():
        assert more or name in parameters, name
        if name in parameters and parameters[name].default is not inspect.Parameter.empty and name != "shard":
            assert (value or None) == (parameters[name].default or None), name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.nii: pick one with volume=.", "a.nii: pick one with --volume."),
        ("volume=7; 0 to 3 are there", "--volume 7; 0 to 3 are there"),
        ("give anyway=True, or crop it", "give --anyway, or crop it"),
        ("existing='resume' skips, existing='overwrite' writes anew", "--resume skips, --overwrite writes anew"),
        ("tta=flips: no flip_axes; give tta=0,1", "--tta flips: no flip_axes; give --tta 0,1"),
        ("seg=False", "--no-seg"),
        ("overrides=x::y: no such entry", "--set x::y: no such entry"),
        ("img_size=(8, 8, 8)", "img_size=(8, 8, 8)"),  # another verb's
        ("in/jobs=3.nii.gz: too small; sub-jobs=3 and my.volume=1 are names", None),
    ],
)
def test_arguments_are_shown_as_the_verbs_flags(text, expected):
    use_flags_of(build_parser().parse_args(PREDICT).parser)
    assert with_flags(text) == (expected or text)


def test_every_argument_of_every_verb_is_shown_as_its_flag():
    for words, _, _ in FUNCTIONS:
        verb = build_parser().parse_args(words).parser
        use_flags_of(verb)
        for action in verb._actions:
            if action.option_strings and action.help is not argparse.SUPPRESS and action.dest != "help":
                value, after = (repr(action.const), "") if action.nargs == 0 else ("7", " 7")
                flag = action.option_strings[-1]
                assert with_flags(f"say {action.dest}={value}, please") == f"say {flag}{after}, please"
