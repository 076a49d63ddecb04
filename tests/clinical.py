"""A folder of the NIfTI files that clinics have: one phantom in every storage, odd headers, damaged and false files.

Made of nibabel's header classes, numpy, struct and gzip, and of nothing from the package that is tested.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SHAPE = (20, 16, 12)
AFFINE = np.array([[2.0, 0, 0, -14], [0, 2.5, 0, -40], [0, 0, 3.0, 10], [0, 0, 0, 1]])  # RAS+
ATOL = 0.55  # integers are rounded from the phantom; float32 header fields move a point by 1e-4 mm at most

# byte offsets in a NIfTI-1 header
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE = 40, 70, 76, 108, 112
UNITS, CODES, QUATERN, SROW, MAGIC = 123, 252, 256, 280, 344

_PARTS = (  # centre in mm RAS+, semi-axes in mm, value: a pair that tells left from right, and a ball near a corner
    ((-4.0, -20.0, 24.0), (7.0, 14.0, 10.0), 40.0),
    ((14.0, -18.0, 28.0), (5.0, 9.0, 11.0), 80.0),
    ((4.0, -9.0, 37.0), (4.0, 4.0, 4.0), 120.0),
)


@dataclass(frozen=True, eq=False)
class Specimen:
    """One file of the folder.

    Args:
        name: what is odd about it.
        path: the file.
        verdict: ``"same"``: to be read without a word; ``"warned"``: read, with a warning; ``"refused"``.
        word: what the warning or the error must say.
        shape: voxels along the three axes; None if it is refused.
        affine_mm: (4, 4), voxel index to RAS+ mm; None if it is refused.
        trailing: axes of 1 after the third.
        values: ``"phantom"``: :func:`phantom` within ``atol``; ``"linear"``: but for shift and scale; or ``"other"``.
        alike: whether the reference has the same points, so that a tool's answer must be the same in world space
            where ``values`` is ``"phantom"``.
        atol: how far voxels may be from the phantom.
    """

    name: str
    path: Path
    verdict: str = "same"
    word: str = ""
    shape: tuple[int, ...] | None = SHAPE
    affine_mm: np.ndarray | None = field(default_factory=AFFINE.copy)
    trailing: int = 0
    values: str = "phantom"
    alike: bool = True
    atol: float = ATOL


Add = Callable[..., None]


def phantom(points_mm: np.ndarray) -> np.ndarray:
    """The phantom's value, 0 to 120, at points ``(..., 3)`` of world space, RAS+ mm; edges are about 2 mm wide."""
    value = np.zeros(np.shape(points_mm)[:-1])
    for centre, axes, peak in _PARTS:
        inside = 1 - np.linalg.norm((points_mm - np.array(centre)) / axes, axis=-1)
        value = np.maximum(value, peak * np.clip(0.5 + inside * min(axes) / 2, 0, 1))
    return value


def sampled(shape: tuple[int, ...], affine_mm: np.ndarray) -> np.ndarray:
    """The phantom on a grid, float64."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return phantom(index @ affine_mm[:3, :3].T + affine_mm[:3, 3])


def write_clinical_folder(folder: Path) -> list[Specimen]:
    """Write all files into a folder, and tell what each one is; the first is the plain reference."""
    folder.mkdir(parents=True, exist_ok=True)
    specimens: list[Specimen] = []

    def add(name: str, content: bytes | None, verdict: str = "same", word: str = "", **rest: Any) -> None:
        file = rest.pop("file", f"{name.replace(' ', '_')}.nii.gz")
        if content is not None:
            (folder / file).write_bytes(content)
        if verdict == "refused":
            rest |= {"shape": None, "affine_mm": None, "values": "other", "alike": False}
        specimens.append(Specimen(name, folder / file, verdict, word, **rest))

    add("reference", packed(nifti()))
    for group in (_orientations, _types, _containers, _geometries, _grids, _odd_values, _damaged, _no_images):
        group(add)
    _wrong_headers(add)
    _wrong_fields(add)
    (folder / "folder.nii.gz").mkdir()
    add("folder", None, "refused", "folder")
    (folder / "broken_link.nii.gz").symlink_to(folder / "gone.nii.gz")
    add("broken link", None, "refused", "link")
    return specimens


def nifti(
    affine: np.ndarray = AFFINE,
    shape: tuple[int, ...] = SHAPE,
    dtype: str = "<i2",
    values: np.ndarray | None = None,
    kind: type[nib.Nifti1Header] = nib.Nifti1Header,
) -> bytes:
    """A whole file, not compressed: the phantom on a grid, qform and sform alike with code 1, mm."""
    stored, header = np.dtype(dtype), kind(endianness=dtype[0])
    header.set_data_shape(shape)
    header.set_data_dtype(stored)
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm", "sec")
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = 1, 0, kind.single_vox_offset
    values = sampled(shape[:3], affine) if values is None else values
    values = np.rint(values) if stored.kind in "iu" and values.dtype.kind == "f" else values
    return header.binaryblock + bytes(4) + values.astype(stored).tobytes("F")


def packed(raw: bytes, level: int = 1) -> bytes:
    """Gzip, the same bytes each time."""
    return gzip.compress(raw, level, mtime=0)


def patched(raw: bytes, *patches: tuple[int, str, Any]) -> bytes:
    """A copy with other values at byte offsets, little-endian, formats as in struct."""
    copy = bytearray(raw)
    for offset, form, value in patches:
        struct.pack_into(f"<{form}", copy, offset, *np.atleast_1d(value).tolist())
    return bytes(copy)


def _orientations(add: Add) -> None:
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        turn = np.diag([0.0, 0, 0, 1])
        for new, (old, sign) in enumerate(zip(order, signs)):
            turn[old, new], turn[old, 3] = sign, turn[old, 3] + (SHAPE[old] - 1) * (sign < 0)
        affine, shape = AFFINE @ turn, tuple(SHAPE[old] for old in order)
        name = "axes " + "".join(("LR", "PA", "IS")[old][sign > 0] for old, sign in zip(order, signs))
        add(name, packed(nifti(affine, shape)), shape=shape, affine_mm=affine)


def _types(add: Add) -> None:
    for code in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"):
        add(f"type {np.dtype(code).name}", packed(nifti(dtype=f"<{code}")))
    for code in ("i2", "f4", "f8"):
        add(f"big endian {np.dtype(code).name}", packed(nifti(dtype=f">{code}")))
    plain = sampled(SHAPE, AFFINE)
    for slope, inter, atol in ((2, 10, 1.1), (0.5, -10, ATOL), (-1, 130, ATOL)):
        raw = patched(nifti(values=(plain - inter) / slope), (SLOPE, "2f", (slope, inter)))
        add(f"slope {slope} inter {inter}", packed(raw), atol=atol)
    for slope, inter in ((0.0, 0), (0.0, 5), (np.nan, 0), (np.nan, np.nan)):  # none: as stored
        add(f"slope {slope} inter {inter}", packed(patched(nifti(), (SLOPE, "2f", (slope, inter)))))
    add("nifti-2", packed(nifti(kind=nib.Nifti2Header)))
    add("nifti-2 big endian", packed(nifti(dtype=">i2", kind=nib.Nifti2Header)))


def _containers(add: Add) -> None:
    raw = nifti()
    add("plain", raw, file="plain.nii")
    add("members", b"".join(packed(raw[i : i + 1000]) for i in range(0, len(raw), 1000)))
    extension = struct.pack("<4B2i8s", 1, 0, 0, 0, 16, 6, b"comment ")
    add("extension", packed(patched(raw, (VOX_OFFSET, "f", 368))[:348] + extension + raw[352:]))
    add("not compressed", raw, "warned", "compressed")
    add("compressed", packed(raw), "warned", "gzip", file="compressed.nii")
    add("unicode", packed(raw), file="Köpfchen 脳 (1).nii.gz")
    add("dots", packed(raw), file="sub-01.v1.2.T1w.nii.gz")
    add("upper case", packed(raw), file="UPPER.NII.GZ")
    for count in (1, 2):
        add(f"trailing {count}", packed(nifti(shape=(*SHAPE, *(1,) * count))), trailing=count)
    add("bytes after", packed(raw + bytes(100)), "warned", "after")
    add("offset 0", packed(patched(raw, (VOX_OFFSET, "f", 0))), "warned", "vox_offset")
    add("bitpix", packed(patched(raw, (DATATYPE, "2h", (4, 8)))), "warned", "bitpix")


def _geometries(add: Add) -> None:
    raw = nifti()
    add("qform only", packed(patched(raw, (CODES, "2h", (1, 0)), (SROW, "12f", np.zeros(12)))))
    add("sform only", packed(patched(raw, (CODES, "2h", (0, 1)), (QUATERN, "6f", np.zeros(6)))))
    add("codes 4 and 3", packed(patched(raw, (CODES, "2h", (4, 3)))))
    add("forms disagree", packed(patched(raw, (QUATERN + 12, "3f", (50, 0, 0)))), "warned", "sform and qform")
    add("bad quaternion", packed(patched(raw, (QUATERN, "3f", (1, 1, 1)))), "warned", "quaternion")
    add("nan quaternion", packed(patched(raw, (QUATERN, "3f", [np.nan] * 3))), "warned", "quaternion")
    for code, unit, factor in ((1, "metre", 1e-3), (3, "micron", 1e3)):
        affine = np.diag([factor, factor, factor, 1]) @ AFFINE
        scaled = patched(nifti(affine, values=sampled(SHAPE, AFFINE)), (UNITS, "B", code))
        add(unit, packed(scaled), "warned", unit)
    add("no units", packed(patched(raw, (UNITS, "B", 0))))
    for name, patch in {"codes 0": (0, 0), "quaternion alone bad": (1, 0)}.items():
        content = patched(raw, (CODES, "2h", patch), (QUATERN, "3f", (1, 1, 1)))
        elsewhere = nib.Nifti1Header(raw[:348]).get_base_affine()
        add(name, packed(content), "warned", "sform or qform", affine_mm=elsewhere, values="other", alike=False)


def _grids(add: Add) -> None:
    turn = nib.eulerangles.euler2mat(*np.deg2rad([20, 10, -20]))
    centre = AFFINE @ [*(np.array(SHAPE) - 1) / 2, 1]

    def own(name: str, shape: tuple[int, ...], axes: np.ndarray, *verdict: str, form: int = 1) -> None:
        affine = nib.affines.from_matvec(axes, centre[:3] - axes @ (np.array(shape) - 1) / 2)
        content = packed(patched(nifti(affine, shape), (CODES, "h", form)))
        add(name, content, *verdict, shape=shape, affine_mm=affine, alike=False)

    own("oblique", SHAPE, turn @ AFFINE[:3, :3])
    own("oblique left-handed", SHAPE, turn @ np.diag([-2.0, 2.5, 3]))
    own("sheared", SHAPE, AFFINE[:3, :3] + [[0, 0, 0], [0, 0, 1.2], [0, 0, 0]], "warned", "shear", form=0)
    own("thick slices", (80, 80, 6), np.diag([0.5, 0.5, 6]))
    own("one slice", (20, 16, 1), np.diag([2.0, 2.5, 3]))
    own("one voxel wide", (1, 16, 12), np.diag([2.0, 2.5, 3]))
    own("small", (5, 6, 7), np.diag([8.0, 7, 5]))


def _odd_values(add: Add) -> None:
    plain = sampled(SHAPE, AFFINE)
    add("constant", packed(nifti(values=np.full(SHAPE, 7.0))), "warned", "one value", values="other", alike=False)
    add("zeros", packed(nifti(values=np.zeros(SHAPE))), "warned", "0", values="other", alike=False)
    holes, ends = plain.copy(), plain.copy()
    holes[plain == 0] = np.where(np.arange((plain == 0).sum()) % 7, 0, np.nan)  # background, the smallest value
    ends[0, 0, 0], ends[plain == plain.max()] = -np.inf, np.inf
    ends[np.unravel_index(plain.argmax(), SHAPE)] = plain.max()
    add("nan voxels", packed(nifti(dtype="<f4", values=holes)), "warned", "finite")
    add("inf voxels", packed(nifti(dtype="<f4", values=ends)), "warned", "finite")
    offset = np.rint(plain).astype(np.int64) + 2**40
    add("int64 offset", packed(nifti(dtype="<i8", values=offset)), "warned", "float32", values="linear")
    add("float64 huge", packed(nifti(dtype="<f8", values=plain * 1e200)), "warned", "float32", values="linear")


def _damaged(add: Add) -> None:
    raw = nifti()
    stored, whole = bytearray(packed(raw, 0)), packed(raw)
    stored[2000] ^= 4  # a voxel; stored without compression, so that only the checksum tells
    add("truncated gzip", whole[: len(whole) // 2], "refused", "truncated")
    add("truncated in its checksum", whole[:-3], "refused", "truncated")
    add("truncated before it was packed", packed(raw[:3000]), "refused", "truncated")
    add("truncated plain", raw[:3000], "refused", "truncated", file="truncated.nii")
    add("truncated header", raw[:200], "refused", "truncated", file="header.nii")
    add("flipped bit", bytes(stored), "refused", "CRC")
    add("wrong checksum", whole[:-8] + bytes(4) + whole[-4:], "refused", "CRC")
    add("garbage after", whole + b"garbage", "refused", "follow")
    sides = patched(raw, (DIM, "4h", (3, 32767, 32767, 32767)))
    add("sides of 32767", packed(sides), "refused", "32767")
    add("sides of 32767 plain", sides, "refused", "32767", file="sides.nii")
    packer = zlib.compressobj(1, wbits=31)
    bomb = packer.compress(raw) + b"".join(packer.compress(bytes(2**20)) for _ in range(200)) + packer.flush()
    add("bomb", bomb, "refused", "follow")


def _no_images(add: Add) -> None:
    raw = nifti()
    add("empty", b"", "refused", "empty")
    add("empty gzip", packed(b""), "refused", "NIfTI")
    add("text", b"path,label\na.nii.gz,1\n" * 40, "refused", "text", file="text.nii")
    add("web page", b"<!DOCTYPE html><html><body>Please log in.</body></html>" * 20, "refused", "web page")
    add("jpeg", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(range(256)) * 4, "refused", "NIfTI")
    add("git lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "refused", "git lfs pull")
    add("packed twice", packed(packed(raw)), "refused", "twice")
    add("magic", packed(patched(raw, (MAGIC, "4s", b"x+1\0"))), "refused", "magic")
    add("analyze", packed(patched(raw, (MAGIC, "4s", bytes(4)))), "refused", "Analyze")
    add("pair", packed(patched(raw, (MAGIC, "4s", b"ni1\0"))), "refused", "pair")


def _wrong_headers(add: Add) -> None:
    raw, (h, w, d) = nifti(), SHAPE
    for count in (0, 8, -3):
        add(f"dim {count}", packed(patched(raw, (DIM, "h", count))), "refused", "dim[0]")
    for side in (-w, 0):
        add(f"side of {side}", packed(patched(raw, (DIM, "4h", (3, h, side, d)))), "refused", "shape")
    for dim in ((1, h * w * d), (2, h * w, d), (4, h, w, 4, 3), (5, h, w, 4, 1, 3)):
        full = patched(raw, (DIM, f"{len(dim)}h", dim))
        add(f"{dim[0]}D", packed(full), "refused", f"{dim[0]}D")
    codes = {"RGB": (128, 24), "RGBA": (2304, 32), "complex64": (32, 64), "complex128": (1792, 128)}
    codes |= {"float128": (1536, 128), "code 0": (0, 0), "code 1": (1, 1), "code 9999": (9999, 16)}
    for word, (code, bits) in codes.items():
        full = patched(raw, (DATATYPE, "2h", (code, bits)))[:352] + bytes(h * w * d * bits // 8)
        add(f"type {word}", packed(full), "refused", word)


def _wrong_fields(add: Add) -> None:
    raw = nifti()
    for size in (0, -2.5, np.nan, np.inf):
        add(f"pixdim {size}", packed(patched(raw, (PIXDIM + 8, "f", size))), "refused", "pixdim")
    for value in (np.nan, np.inf):
        add(f"sform {value}", packed(patched(raw, (SROW + 4, "f", value))), "refused", "finite")
        add(f"sform shift {value}", packed(patched(raw, (SROW + 12, "f", value))), "refused", "finite")
    add("sform singular", packed(patched(raw, (SROW, "12f", [*AFFINE[0], *AFFINE[0], *AFFINE[2]]))), "refused", "plane")
    for offset in (np.nan, np.inf, -352, 100, 352.5):
        add(f"offset {offset}", packed(patched(raw, (VOX_OFFSET, "f", offset))), "refused", "vox_offset")
    add("offset 1e6", patched(raw, (VOX_OFFSET, "f", 1e6)), "refused", "truncated", file="offset_1e6.nii")
    add("inter nan", packed(patched(raw, (SLOPE, "2f", (2, np.nan)))), "refused", "scl_inter")
    add("all nan", packed(nifti(dtype="<f4", values=np.full(SHAPE, np.nan))), "refused", "finite")
