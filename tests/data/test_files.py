"""Files that are whole or not there: no planted link, pipe or guessed name gets in between; hashes of what is read."""

import hashlib
import io
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.files import (
    HashedFile,
    following_no_links,
    read_regular,
    remove_parts,
    replacing,
    write_text_atomic,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="links and pipes as POSIX has them")


def part_of(folder):
    """The name of the one temporary file in a folder."""
    (name,) = [name for name in os.listdir(folder) if name.endswith(".part")]
    return name


def test_temporary_names_cannot_be_guessed(tmp_path):
    names = set()
    for _ in range(20):
        with replacing(tmp_path / "run.json", "w") as file:
            file.write("{}")
            names.add(part_of(tmp_path))
    assert len(names) == 20
    assert all(name.startswith(".run.json.") for name in names)
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_planted_link_under_the_temporary_name_is_not_written_through(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)  # as if it could be guessed
    (tmp_path / f".a.txt.{'0' * 16}.part").symlink_to(victim)
    with pytest.raises(FileExistsError, match=r"a\.txt"):
        write_text_atomic("new", tmp_path / "a.txt")
    assert victim.read_text() == "precious"


def test_a_link_at_the_final_name_is_replaced(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "a.txt").symlink_to(victim)
    write_text_atomic("new", tmp_path / "a.txt")
    assert (victim.read_text(), (tmp_path / "a.txt").read_text()) == ("precious", "new")
    assert not (tmp_path / "a.txt").is_symlink()


@pytest.mark.parametrize("deep", ["sub/a.txt", "sub/deeper/a.txt", "made/sub/a.txt"])
def test_links_to_folders_below_out_are_not_followed(tmp_path, deep):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = next(out / part for part in (out / deep).relative_to(out).parents if part.name == "sub")
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere, target_is_directory=True)
    with following_no_links(out), pytest.raises(UsageError, match="links are not followed"):
        write_text_atomic("new", out / deep)
    assert os.listdir(elsewhere) == []
    write_text_atomic("new", out / deep)  # elsewhere, as of a bundle's models folder, links are the user's own
    assert [name for _, _, files in os.walk(elsewhere) for name in files] == ["a.txt"]


def test_out_itself_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    with following_no_links(tmp_path / "out"):
        write_text_atomic("new", tmp_path / "out" / "deep" / "a.txt")
    assert (tmp_path / "real" / "deep" / "a.txt").read_text() == "new"


def test_the_longest_name_that_a_disk_takes_can_be_written(tmp_path):
    name = "é" * 127
    write_text_atomic("new", tmp_path / name)
    assert os.listdir(tmp_path) == [name]


def test_an_error_names_the_file_and_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.txt'"), replacing(tmp_path / "a.txt", "w"):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_text_atomic("x", tmp_path / "a.txt")
    assert str(caught.value) == f"[Errno 21] Is a directory: '{tmp_path / 'a.txt'}'"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    kept = [
        ".a.txt.part",
        ".b.txt.0123456789abcdef.part",
        "a.txt.0123456789abcdef.part",
        ".a.txt.0123456789ABCDEF.part",
    ]
    for name in [*kept, ".a.txt.0123456789abcdef.part", ".a.txt.fedcba9876543210.part"]:
        (tmp_path / name).write_text("half")
    (tmp_path / ".a.txt.00000000000000aa.part").mkdir()
    (tmp_path / ".a.txt.00000000000000ab.part").symlink_to(tmp_path / kept[0])
    remove_parts([tmp_path / "a.txt", tmp_path / "nowhere" / "a.txt"])
    assert sorted(os.listdir(tmp_path)) == sorted(
        [*kept, ".a.txt.00000000000000aa.part", ".a.txt.00000000000000ab.part"]
    )


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    (tmp_path / "to_pipe").symlink_to(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path / "socket", tmp_path / "to_pipe", "/dev/zero", tmp_path):
        with pytest.raises(OSError, match="a file is expected"):
            read_regular(place)
    listener.close()


@given(content=st.binary(max_size=50), limit=st.integers(0, 60))
def test_reading_stops_at_the_limit(tmp_path_factory, content, limit):
    path = tmp_path_factory.mktemp("limit") / "a"
    path.write_bytes(content)
    if len(content) <= limit:
        assert read_regular(path, limit) == content
    else:
        with pytest.raises(OSError, match=f"more than {limit} bytes"):
            read_regular(path, limit)


CONTENT = bytes(range(256)) * 9000  # above a buffer


@given(st.lists(st.tuples(st.sampled_from(["read", "into", "seek", "start"]), st.integers(0, 10**6)), max_size=8))
def test_the_hash_is_the_files_whatever_was_read_of_it(steps):
    plain, hashed = io.BytesIO(CONTENT), HashedFile(io.BytesIO(CONTENT))
    for step, count in steps:
        if step == "read":
            assert hashed.read(count) == plain.read(count)
        elif step == "into":
            found, expected = bytearray(count), bytearray(count)
            assert hashed.readinto(found) == plain.readinto(expected)
            assert found == expected
        elif step == "seek":
            assert hashed.seek(plain.tell() + count) == min(plain.seek(plain.tell() + count), len(CONTENT))
            plain.seek(min(plain.tell(), len(CONTENT)))
        else:
            assert hashed.seek(0) == plain.seek(0)
    assert hashed.sha256() == hashlib.sha256(CONTENT).hexdigest()


def test_no_way_back_into_the_middle():
    hashed = HashedFile(io.BytesIO(CONTENT))
    hashed.read(100)
    for place in ((50,), (0, 2), (5, 1)):
        with pytest.raises(io.UnsupportedOperation):
            hashed.seek(*place)
