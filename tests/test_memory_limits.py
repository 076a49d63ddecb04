"""Limits of containers, batch systems and shells, from files as Linux has them."""

import subprocess
import sys

import pytest

from monai_vit3d.memory_limits import available_bytes, cgroup_bytes, slurm_bytes

MIB = 2**20


def group(root, place, limit, used, cached=0, version=2):
    """A control group's files."""
    folder = root / "sys/fs/cgroup" / place
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    total = "" if version == 2 else "total_"
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\nfile 7\n{total}active_file {cached}\n{total}inactive_file 0\n")


def process(root, groups, mounts):
    """What the kernel tells a process of its groups."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text(mounts)


MOUNT2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNT1 = "33 25 0:29 {inside} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
CPU1 = "34 25 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"


def test_groups_around_ones_own_count(tmp_path):
    process(tmp_path, "0::/slurm/job/step\n", MOUNT2)
    group(tmp_path, "slurm", 1000, 900, cached=50)
    group(tmp_path, "slurm/job", "max", 300)
    group(tmp_path, "slurm/job/step", 700, 300, cached=20)
    assert sorted(cgroup_bytes(tmp_path)) == [150, 420]


@pytest.mark.parametrize("own", ["/", "/docker/0123", "/../.."])
def test_a_container_that_sees_its_group_as_the_root(tmp_path, own):
    process(tmp_path, f"0::{own}\n", MOUNT2)
    group(tmp_path, "", 1000, 900, cached=600)
    assert list(cgroup_bytes(tmp_path)) == [700]


@pytest.mark.parametrize(("inside", "own"), [("/", "/user/me"), ("/docker/01", "/docker/01/user/me")])
def test_version_1(tmp_path, inside, own):
    groups = f"12:cpu:/else\n4:memory:{own}\n0::/unified\n"
    process(tmp_path, groups, CPU1 + MOUNT1.format(inside=inside) + MOUNT2.replace("cgroup rw", "cgroup/unified rw"))
    group(tmp_path, "memory", 9223372036854771712, 100, version=1)
    group(tmp_path, "memory/user/me", 500, 100, cached=10, version=1)
    assert min(cgroup_bytes(tmp_path)) == 410


@pytest.mark.parametrize(
    ("groups", "mounts"), [("", ""), ("nonsense", "more nonsense"), ("0::/a\n", MOUNT2), ("\xff:\n", " - cgroup2")]
)
def test_nothing_that_can_be_read_is_no_limit(tmp_path, groups, mounts):
    process(tmp_path, groups, mounts)
    assert list(cgroup_bytes(tmp_path)) == []
    assert list(cgroup_bytes(tmp_path / "nowhere")) == []


@pytest.mark.parametrize(
    ("environment", "mib"),
    [
        ({"SLURM_MEM_PER_NODE": "4096"}, 4096),
        ({"SLURM_MEM_PER_NODE": "0"}, None),
        ({"SLURM_MEM_PER_CPU": "2000", "SLURM_CPUS_ON_NODE": "4"}, 8000),
        ({"SLURM_MEM_PER_CPU": "2000"}, None),
        ({"SLURM_MEM_PER_GPU": "9000", "SLURM_GPUS_ON_NODE": "2", "SLURM_MEM_PER_NODE": "5000"}, 5000),
        ({"SLURM_MEM_PER_NODE": "4G"}, None),
        ({"SLURM_MEM_PER_NODE": "9" * 500}, None),
        ({}, None),
    ],
)
def test_slurm(environment, mib):
    assert slurm_bytes({"SLURM_JOB_ID": "7", **environment}) == (None if mib is None else mib * MIB)
    assert slurm_bytes(environment) is None  # what a login shell was left with


def test_a_job_of_slurm_sees_its_limit(monkeypatch):
    free = available_bytes()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", str(free // MIB // 2))
    assert available_bytes() < free * 0.6


def test_a_limit_on_the_process_counts():
    code = (
        "import resource; from monai_vit3d.memory_limits import available_bytes as free\n"
        "before, three = free(), 3 * 2**30\n"
        "resource.setrlimit(resource.RLIMIT_AS, (three, three))\n"
        "print(before, free())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = map(int, out.split())
    assert after <= min(before, 3 * 2**30)
    assert after > 2**30
