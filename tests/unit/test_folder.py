"""Folders of pictures: what is listed, how it is decoded, what is refused."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loaders.errors import UserError
from loaders.folder import FolderSplit, load

DRAWS = np.random.default_rng(0)


def picture(height: int = 6, width: int = 8) -> Image.Image:
    return Image.fromarray(DRAWS.integers(0, 256, (height, width, 3), np.uint8))


def put(path: Path, image: Image.Image | None = None, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture()).save(path, **options)  # type: ignore[arg-type]


def small(root: Path) -> Path:
    for part in ("train", "val"):
        for name in ("cat", "ant"):
            put(root / part / name / "a.png")
    return root


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_classes_and_pictures_are_numbered_in_order(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for name in ("b/2.jpg", "b/10.JPEG", "b/1.Png", "B/x.bmp", "a b/x.webp", "a b/y.ppm", "a b/z.JPG"):
        put(root / "train" / name)
    for name in ("b/v.jpeg", "B/v.tif", "a b/v.pgm"):
        put(root / "val" / name)
    for stray in ("train/b/notes.txt", "train/b/._1.Png", "train/list.csv", "val/.cache/x"):
        (root / stray).parent.mkdir(exist_ok=True)
        (root / stray).touch()
    train, val = load(root)
    assert (train.name, val.name) == ("pets/train", "pets/val")
    assert train.class_names == val.class_names == ("B", "a b", "b")
    names = ["B/x.bmp", "a b/x.webp", "a b/y.ppm", "a b/z.JPG", "b/1.Png", "b/10.JPEG", "b/2.jpg"]
    assert [train.where(i) for i in range(len(train))] == [str(root / "train" / name) for name in names]
    assert train.labels.tolist() == [0, 1, 1, 1, 2, 2, 2]
    assert train.labels.dtype == torch.int64
    assert [val.path(i).name for i in range(len(val))] == ["v.tif", "v.pgm", "v.jpeg"]
    assert (train.mean, train.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_folders_within_a_class_are_read_in_the_order_of_walking(tmp_path: Path) -> None:
    small(tmp_path)
    for name in ("a-b/1.png", "a/1.png", "a/b/1.png", "z.png"):
        put(tmp_path / "train" / "ant" / name)
    (tmp_path / "train/ant/a/loop").symlink_to(tmp_path / "train/ant")
    (tmp_path / "train/ant/linked.png").symlink_to(tmp_path / "val/ant/a.png")
    train, _ = load(tmp_path)
    found = [str(train.path(i).relative_to(tmp_path / "train/ant")) for i in range(len(train) - 1)]
    walked = [
        os.path.relpath(os.path.join(folder, file), tmp_path / "train/ant")
        for folder, _, files in sorted(os.walk(tmp_path / "train/ant"))
        for file in sorted(files)
    ]
    assert found == walked == ["a.png", "linked.png", "z.png", "a/1.png", "a-b/1.png", "a/b/1.png"]


def test_test_stands_in_for_val_and_val_goes_first(tmp_path: Path) -> None:
    (small(tmp_path) / "val").rename(tmp_path / "test")
    assert load(tmp_path)[1].name == f"{tmp_path.name}/test"
    (tmp_path / "val").mkdir()
    assert refusal(tmp_path).startswith(f"{tmp_path / 'val'} has no class folders")


def test_every_kind_of_picture_becomes_rgb(tmp_path: Path) -> None:
    small(tmp_path)
    folder, image = tmp_path / "train/ant", picture()
    palette = image.quantize(8)
    palette.info["transparency"] = bytes(range(8))
    kinds = {"L": image.convert("L"), "P": palette, "RGBA": image.convert("RGBA"), "1": image.convert("1")}
    for kind, kept in kinds.items():
        put(folder / f"{kind}.png", kept)
    put(folder / "CMYK.jpg", image.convert("CMYK"))
    train, _ = load(tmp_path)
    read = {train.path(i).name: train.read(i) for i in range(len(train))}
    assert {(r.shape, r.dtype) for r in read.values()} == {((6, 8, 3), np.dtype(np.uint8))}
    grey = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(read["L.png"], np.stack([grey] * 3, axis=2))
    np.testing.assert_array_equal(read["RGBA.png"], np.asarray(image))
    np.testing.assert_array_equal(read["P.png"], np.asarray(image.quantize(8).convert("RGB")))
    assert set(np.unique(read["1.png"])) <= {0, 255}
    with Image.open(folder / "CMYK.jpg") as opened:
        np.testing.assert_array_equal(read["CMYK.jpg"], np.asarray(opened.convert("RGB")))


def test_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    put(small(tmp_path) / "train/ant/a.png", exif=exif)
    train, _ = load(tmp_path)
    assert train.read(0).shape == (6, 8, 3)


def test_a_split_travels_small_and_whole(tmp_path: Path) -> None:
    root = small(tmp_path)
    for n in range(300):
        (root / "train/cat" / f"{n}.png").hardlink_to(root / "train/cat/a.png")
    train, _ = load(root, image_size=160)
    sent = pickle.dumps(train)
    assert len(sent) < 10_000
    back: FolderSplit = pickle.loads(sent)
    assert [back.path(i) for i in range(302)] == [train.path(i) for i in range(302)]
    assert (back.image_size, load(root)[0].image_size) == (160, 224)
    np.testing.assert_array_equal(back.read(301), train.read(301))


def jpeg() -> bytes:
    out = io.BytesIO()
    picture(64, 64).save(out, "jpeg")
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no kind of picture Pillow knows"),
        (b"<html>not found</html>", "no kind of picture Pillow knows"),
        (jpeg()[:1500], "image file is truncated"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\x0dIHDR" + b"\0" * 12, "Truncated File Read"),
    ],
)
def test_a_broken_picture_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    small(tmp_path)
    path = tmp_path / "train/ant/b.jpg"
    path.write_bytes(content)
    train, _ = load(tmp_path)
    train.read(0)
    with pytest.raises(UserError) as caught:
        train.read(1)
    assert str(caught.value).startswith(f"cannot read {path}: {reason}")
    assert str(caught.value).endswith("; replace the file or remove it")
    path.unlink()
    with pytest.raises(UserError, match=f"^cannot read {path}: No such file or directory; replace"):
        train.read(1)


WANTED = "give the folder that holds train/<class>/ and val/<class>/ (or test/<class>/)"


def test_missing_folders(tmp_path: Path) -> None:
    root = tmp_path / "data"
    assert refusal(root) == f"folder data set {root} does not exist; {WANTED}"
    root.touch()
    assert refusal(root) == f"folder data set {root} is a file; {WANTED}"
    root.unlink()
    (root / "val").mkdir(parents=True)
    assert refusal(root) == f"folder data set {root} has no train/; {WANTED}"
    (root / "val").rename(root / "train")
    assert refusal(root) == f"folder data set {root} has no val/ or test/; {WANTED}"


def test_folders_without_classes_or_pictures(tmp_path: Path) -> None:
    small(tmp_path)
    for part in ("train", "val"):
        for name in ("cat", "ant"):
            (tmp_path / part / name / "a.png").unlink()
    kinds = "(.jpg .jpeg .png .bmp .webp .ppm .pgm .tif .tiff)"
    empty = tmp_path / "train/ant"
    said = f"class folder {empty} has no pictures {kinds}; fill it or remove the class"
    assert refusal(tmp_path) == said
    put(tmp_path / "train/ant/a.png")
    (tmp_path / "train/cat/a.txt").touch()
    assert refusal(tmp_path) == said.replace(str(empty), str(tmp_path / "train/cat"))
    put(tmp_path / "train/cat/a.png")
    assert refusal(tmp_path) == said.replace(str(empty), str(tmp_path / "val/ant"))
    for name in ("cat", "ant"):
        (tmp_path / "val" / name).rmdir()
    put(tmp_path / "val/loose.png")
    assert refusal(tmp_path) == (
        f"{tmp_path / 'val'} has no class folders; put each class's pictures into one of its own there"
    )


def test_classes_of_one_part_only(tmp_path: Path) -> None:
    train, val = tmp_path / "train", tmp_path / "val"
    put(small(tmp_path) / "val/dog/a.png")
    assert refusal(tmp_path) == f"{val} has class folders that {train} lacks: dog; give both the same classes"
    (val / "dog").rename(train / "dog")
    for name in ("eel", "fox", "gnu", "hen"):
        put(train / name / "a.png")
    assert refusal(tmp_path) == (
        f"{train} has class folders that {val} lacks: dog, eel, fox and 2 more; give both the same classes"
    )


def test_an_impossible_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^image size 0 asked for pictures in .*; give one of at least 1$"):
        load(small(tmp_path), image_size=0)
