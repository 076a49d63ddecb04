"""Each block of code of README.md and docs/ runs in an environment with what its first line installs, and no more."""

import re
import shutil
import subprocess

import nibabel as nib
import pytest
from nilearn.datasets import load_mni152_template

from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.weights import save_backbone
from tests.dicom import MR, base, save
from tests.fresh_environment import environment_variables, make_environment, missing
from tests.helpers import BUNDLES, HANG, ONE_THREAD, phantom
from tests.planning.toy_data import write_toy
from tests.test_documents import PAGES
from tests.training.tiny_bundle import write_tiny

pytestmark = pytest.mark.slow

# lines that a test cannot run as they stand, and what does instead
NOT_RUN = {
    r"pip install|make (demo|test)": "downloads gigabytes; CI runs `make test`",
    r"--model colipri( --maps --resume)?$|--pretrained colipri": "fetches weights; tests/pipeline, tests/planning",
    r"convert IN OUT": "of 350 MB; tests/weights/convert",
    r"OWNER/NAME": "a place for a name; tests/bundle/test_hub_bundle.py",
    r"monai\.bundle run": "trains for many minutes; tests/bundles run each with few epochs",
    r"^cd (bundles|\.\.)/": "goes before such a line",
}
FROM_THE_HUB = "pretrained=True"  # Python that fetches weights; tests/weights
SMALL = "--set epochs=1 --set folds=2 --set repeats=1 --set embed_dim=24 --set num_heads=2 --set depth=3"
INSTALLS = re.compile(r"^# pip install (.+)$", re.MULTILINE)


def blocks_of(page):
    """What installs and what runs, of each block of bash or Python, in order."""
    for language, text in re.findall(r"```(bash|python)\n(.*?)```", page.read_text(), re.DOTALL):
        lines = text.replace("\\\n", " ").splitlines()
        code = [line if language == "python" else line.partition(" #")[0].rstrip() for line in lines]
        runs = [line for line in code if not any(re.search(one, line) for one in NOT_RUN)]
        installs = INSTALLS.search(text)
        if language == "python" and FROM_THE_HUB in text:
            continue
        yield language, tuple(installs[1].split() if installs else ()), "\n".join(runs)


def is_code(text):
    return any(line.strip() and not line.startswith(("#", "import ", "from ")) for line in text.splitlines())


def blocks_of_pages():
    """Blocks of code by page; what stands on two pages is run on the first."""
    seen, found = set(), {}
    for page in PAGES:
        found[page.stem] = [one for one in blocks_of(page) if is_code(one[2]) and one not in seen]
        seen |= {*found[page.stem]}
    return found


BLOCKS = blocks_of_pages()


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Environments by what was installed, each made once."""
    made = {}

    def get(installs):
        if installs not in made:
            made[installs] = make_environment(tmp_path_factory.mktemp("environment") / "venv", installs)
        return made[installs]

    return get


@pytest.fixture(scope="module")
def head():
    return load_mni152_template(resolution=2)


def write_study(image, folder):
    """The head as an MR series, a sagittal file for each slice."""
    image, uids = nib.as_closest_canonical(image), ("1.2.3", "1.2.3.1", "1.2.3.2")
    folder.mkdir()
    values = (image.get_fdata() * 1000).astype("<i2")
    for k in range(values.shape[2]):
        dataset = base(MR)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = uids
        dataset.InstanceNumber, dataset.PixelSpacing, dataset.SliceThickness = k + 1, [2, 2], 2
        dataset.ImagePositionPatient = list(-image.affine[:2, 3]) + [image.affine[2, 3] + 2 * k]
        dataset.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
        dataset.Rows, dataset.Columns = values.shape[1::-1]
        dataset.PixelData = values[:, :, k].T.tobytes()
        save(dataset, folder / f"{k}.dcm")


def write_features(folder):
    """Vectors of scans as ``vit3d embed`` writes them, and the ages of their subjects, which the first number tells."""
    (folder / "out").mkdir()
    rows = [f"case{k},sub-{k},1,{k},{k % 3}\n" for k in range(20)]
    (folder / "out" / "features.csv").write_text("name,subject,windows,f0,f1\n" + "".join(rows))
    (folder / "labels.csv").write_text("subject,age\n" + "".join(f"sub-{k},{40 + k}\n" for k in range(20)))


def furnish(code, head, folder):
    """Put there what a reader of the block has: scans as its bundle takes them, data, a bundle, weights."""
    shutil.rmtree(folder / "scans", ignore_errors=True)
    is_crop = "head_hippocampus" not in code
    for name in ("scans", "heads"):
        (folder / name).mkdir(exist_ok=True)
        (phantom(0)[0] if is_crop else head).to_filename(folder / name / "case.nii.gz")
    head.to_filename(folder / "head.nii.gz")
    if "DATA" in code and not (folder / "DATA").exists():
        (folder / "toy").mkdir()
        write_toy(folder / "toy", "nnunet_v2", cases=5, testing=1).rename(folder / "DATA")
    if "--bundle mybundle" in code:
        shutil.rmtree(folder / "scans")
        shutil.copytree(folder / "DATA" / "imagesTs", folder / "scans")
    if "train mybundle" in code and "vit3d init" not in code and not (folder / "mybundle").exists():
        write_tiny(folder / "tiny").rename(folder / "mybundle")
    if "study" in code:
        write_study(head, folder / "study")
    if "FILE" in code:
        save_backbone(VisionTransformer3D((32, 32, 32), 16, embed_dim=24, depth=2, num_heads=2), folder / "FILE")
    if "probe" in code:
        write_features(folder)
    if "models/model.pt" in code:
        shutil.copytree(BUNDLES / "hippocampus_segmentation", folder, dirs_exist_ok=True)


def as_a_small_plan(code):
    """``vit3d init`` plans one epoch of a small network; all that follows is as it stands."""
    return re.sub(r"(vit3d init DATA -o \w+)", rf"\1 {SMALL}", code)


GIVEN = """import nibabel, numpy
_crop = nibabel.load("scans/case.nii.gz")
voxels, affine = numpy.asarray(_crop.dataobj), _crop.affine
"""
CHECKED = """
assert {1, 2, 3, 4} <= set(numpy.unique(labels.dataobj))
"""


@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if blocks])
def test_the_blocks_of_a_page_run_in_turn(page, environment, head, tmp_path):
    for language, installs, code in BLOCKS[page]:
        if lacking := missing(installs):
            pytest.skip(f"{', '.join(lacking)} of `pip install {' '.join(installs)}` is not installed here")
        furnish(code, head, tmp_path)
        programs = environment(installs)
        if language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", as_a_small_plan(code)]
        else:
            command = [programs / "python", "-c", GIVEN + code + (CHECKED if "head.nii.gz" in code else "")]
        variables = environment_variables(programs, **ONE_THREAD, SLURM_ARRAY_TASK_ID="1", HF_HUB_OFFLINE="1")
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=HANG,
                              stdin=subprocess.DEVNULL)  # fmt: skip
        assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def test_what_is_not_run_is_there():
    text = "\n".join(page.read_text() for page in PAGES).replace("\\\n", " ")
    lines = [line.partition(" #")[0].rstrip() for line in text.splitlines()]
    assert [one for one in NOT_RUN if not any(re.search(one, line) for line in lines)] == []
