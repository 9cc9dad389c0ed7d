"""Where CIFAR is looked for, unpacked from and downloaded to, and what is refused on the way."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from loaders.cifar import load
from loaders.errors import UserError
from tests.unit.made_cifar import NO_MD5, Made, listing, md5


@pytest.mark.parametrize("form", ["python2", "binary"])
def test_an_archive_is_unpacked_once_and_whole(tmp_path: Path, form: str) -> None:
    made = Made("cifar10", form)
    packed = made.pack(tmp_path)
    sources = made.sources(packed)
    train, _ = load("cifar10", tmp_path, sources=sources)
    assert train.labels.tolist() == made.labels["train"]
    folder = made.archive.folder
    assert listing(tmp_path) == {packed.name, folder, *(f"{folder}/{file}" for file in made.files)}
    packed.write_bytes(b"no longer read")
    load("cifar10", tmp_path, sources=sources)


def test_a_half_unpacked_folder(tmp_path: Path) -> None:
    made = Made("cifar100", "python2")
    folder = tmp_path / "cifar-100-python"
    del made.files["test"], made.files["meta"]
    made.put(folder)
    said = (
        f"cifar100: {folder} lacks test, meta; it is half unpacked: delete the folder and unpack "
        "cifar-100-python.tar.gz again"
    )
    packed = Made("cifar100", "python2").pack(tmp_path)  # even beside the archive: nothing is replaced
    before = listing(tmp_path)
    assert made.refusal(tmp_path, packed, download=True) == said
    assert made.refusal(folder) == said
    assert listing(tmp_path) == before


def test_a_whole_binary_folder_beside_a_half_pickled_one_is_read(tmp_path: Path) -> None:
    made = Made("cifar100", "binary")
    made.put(tmp_path / "cifar-100-binary")
    (tmp_path / "cifar-100-python").mkdir()
    load("cifar100", tmp_path, sources=made.sources())


def test_nothing_there(tmp_path: Path) -> None:
    made = Made("cifar100", "python2")
    (tmp_path / "train").mkdir()  # a folder of class folders is no CIFAR file
    for root in (tmp_path, tmp_path / "absent"):
        assert made.refusal(root) == (
            f"cifar100 is not in {root}: it has none of cifar-100-python/, cifar-100-binary/, "
            "cifar-100-python.tar.gz, cifar-100-binary.tar.gz; put one of them there, or add "
            "--download to fetch it (http://127.0.0.1:9/cifar-100-python.tar.gz)"
        )
    file = tmp_path / "cifar-100-python.tar.gz"
    file.touch()
    assert made.refusal(file) == f"cifar100: {file} is a file; give the folder it lies in"


def test_an_archive_with_a_wrong_checksum(tmp_path: Path) -> None:
    made = Made("cifar100", "python2")
    packed = made.pack(tmp_path)
    size, found = packed.stat().st_size, md5(packed.read_bytes())
    assert made.refusal(tmp_path) == (
        f"{packed} ({size} bytes) has md5 {found}, not the published {NO_MD5}; it is incomplete or not the "
        "original: delete it and fetch it again"
    )
    assert listing(tmp_path) == {packed.name}


@pytest.mark.parametrize(
    ("name", "kind", "word"),
    [
        ("cifar-100-python/link", tarfile.SYMTYPE, "link"),
        ("cifar-100-python/link", tarfile.LNKTYPE, "link"),
        ("cifar-100-python/pipe", tarfile.FIFOTYPE, "entry"),
        ("cifar-100-python/../../escaped", tarfile.REGTYPE, "entry"),
        ("cifar-100-python/..", tarfile.REGTYPE, "entry"),
        ("cifar-100-python/deeper/train", tarfile.REGTYPE, "entry"),
        ("cifar-100-python", tarfile.REGTYPE, "entry"),
        ("../escaped", tarfile.REGTYPE, "entry"),
        ("/tmp/escaped", tarfile.REGTYPE, "entry"),
        ("escaped", tarfile.REGTYPE, "entry"),
        ("elsewhere", tarfile.DIRTYPE, "entry"),
    ],
)
def test_an_archive_that_reaches_elsewhere(tmp_path: Path, name: str, kind: bytes, word: str) -> None:
    made, root = Made("cifar100", "python2"), tmp_path / "root"
    root.mkdir()
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, "/etc/passwd"
    packed = made.pack(root, (entry, b""))
    assert made.refusal(root, packed) == (
        f"{packed} holds the {word} '{name}', not a file in cifar-100-python/; nothing was unpacked: delete "
        "it and fetch the original"
    )
    assert listing(tmp_path) == {"root", f"root/{packed.name}"}


def test_an_archive_that_is_none_or_lacks_files(tmp_path: Path) -> None:
    made = Made("cifar100", "python2")
    packed = made.pack(tmp_path)
    packed.write_bytes(packed.read_bytes()[:2000])
    said = made.refusal(tmp_path, packed)
    assert said.startswith(f"cannot unpack {packed}: ")
    assert said.endswith(f"; unpack it by hand into {tmp_path}")
    assert listing(tmp_path) == {packed.name}
    del made.files["meta"]
    made.pack(tmp_path)
    said = made.refusal(tmp_path, packed)
    assert said.startswith(f"cifar100: {tmp_path / 'cifar-100-python'} lacks meta; it is half unpacked")


def test_download(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made, there, root = Made("cifar100", "python2"), tmp_path / "there", tmp_path / "deep" / "root"
    there.mkdir()
    packed = made.pack(there)
    sources = {"cifar100": replace(made.sources(packed)["cifar100"], address=f"{there.as_uri()}/")}
    train, _ = load("cifar100", root, download=True, sources=sources)
    assert train.labels.tolist() == made.labels["train"]
    assert {path.name for path in root.iterdir()} == {packed.name, "cifar-100-python"}
    assert (root / packed.name).read_bytes() == packed.read_bytes()
    assert capfd.readouterr() == ("", "")  # no bar where there is no terminal
    packed.unlink()
    load("cifar100", root, download=True, sources=sources)  # what is there is not asked for again


def test_download_of_something_else(tmp_path: Path) -> None:
    made, there, root = Made("cifar100", "python2"), tmp_path / "there", tmp_path / "root"
    there.mkdir()
    packed = made.pack(there)
    url = f"{there.as_uri()}/{packed.name}"
    sources = {"cifar100": replace(made.sources()["cifar100"], address=f"{there.as_uri()}/")}
    with pytest.raises(UserError) as caught:
        load("cifar100", root, download=True, sources=sources)
    content = packed.read_bytes()
    assert str(caught.value) == (
        f"{url} gave {len(content)} bytes with md5 {md5(content)}, not the published {NO_MD5}; "
        f"try again, or fetch it by other means and put it at {root / packed.name}"
    )
    assert listing(root) == set()


def test_download_without_a_network(tmp_path: Path) -> None:
    made = Made("cifar100", "python2")
    said = made.refusal(tmp_path, download=True)
    url = "http://127.0.0.1:9/cifar-100-python.tar.gz"
    assert said.startswith(f"cannot download {url} to {tmp_path}: ")
    assert "refused" in said
    assert said.endswith(f"; fetch it by other means and put it at {tmp_path / 'cifar-100-python.tar.gz'}")
    assert listing(tmp_path) == set()
