"""CIFAR files of every published form, and every way their content can be wrong."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from loaders.cifar import facts, load
from loaders.cifar_files import SOURCES
from loaders.errors import UserError
from tests.unit.made_cifar import FORMS, NAMES, SMALL, Made, dumped, md5


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SMALL)
def test_every_published_form_reads_the_same(tmp_path: Path, name: str, form: str, inside: bool) -> None:
    made = Made(name, form)
    folder = tmp_path / made.archive.folder
    made.put(folder)
    for part, split in zip(
        ("train", "test"), load(name, folder if inside else tmp_path, sources=made.sources()), strict=True
    ):
        assert split.name == f"{name}/{part}"
        assert split.images.flags["C_CONTIGUOUS"]
        assert split.images.flags["WRITEABLE"]
        assert split.images.dtype == np.uint8
        planes = made.pixels[part].reshape(-1, 3, 32, 32)
        for row, column in ((0, 0), (5, 17), (31, 30)):
            np.testing.assert_array_equal(split.images[:, row, column], planes[:, :, row, column])
        assert split.images.shape[1:] == (32, 32, 3)
        assert split.labels.dtype == torch.int64
        assert split.labels.tolist() == made.labels[part]
        assert split.class_names == tuple(n.decode() for n in NAMES)
        assert (split.mean, split.std) == (SOURCES[name].mean, SOURCES[name].std)


def test_each_set_has_its_own_statistics_and_counts() -> None:
    ten, hundred = facts("cifar10"), facts("cifar100")
    assert (ten.num_classes, hundred.num_classes) == (10, 100)
    assert {(f.num_train, f.num_test, f.image_size) for f in (ten, hundred)} == {(50000, 10000, 32)}
    assert ten.mean == (0.4914, 0.4822, 0.4465)
    assert ten.std == (0.2470, 0.2435, 0.2616)
    assert hundred.mean == (0.5071, 0.4867, 0.4408)
    assert hundred.std == (0.2675, 0.2565, 0.2761)
    for source in SOURCES.values():
        pickled, binary = source.archives
        assert set(pickled.md5s) == {*pickled.train, *pickled.test, pickled.names}
        assert not binary.md5s


def test_unknown_name_offers_the_nearest() -> None:
    for ask in (facts, lambda name: load(name, Path())):
        with pytest.raises(UserError, match=r"^unknown data set 'cifar-100'; did you mean 'cifar100'\?$"):
            ask("cifar-100")


def test_the_published_tables_refuse_other_files(tmp_path: Path) -> None:
    made = Made("cifar100", "python2")
    made.put(tmp_path / "cifar-100-python")
    with pytest.raises(UserError, match="not the published 7973b15100ade9c7d40fb424638fde48"):
        load("cifar100", tmp_path)


AGAIN = "it is damaged or not the original: delete {0}/ and unpack {0}.tar.gz again"


@pytest.mark.parametrize("file", ["train", "test", "meta"])
@pytest.mark.parametrize("damage", [lambda c: c[:-7], lambda c: c[:50] + b"\0" + c[51:]])
def test_wrong_checksum(tmp_path: Path, file: str, damage) -> None:
    made = Made("cifar100", "python2")
    folder = tmp_path / "cifar-100-python"
    made.put(folder)
    content = damage(made.files[file])
    (folder / file).write_bytes(content)
    size, found, wanted = len(content), md5(content), md5(made.files[file])
    again = AGAIN.format("cifar-100-python")
    assert made.refusal(tmp_path) == (
        f"cifar100: {folder / file} ({size} bytes) has md5 {found}, not the published {wanted}; {again}"
    )
    assert (folder / file).read_bytes() == content


RIGHT = np.zeros((10, 3072), np.uint8)
EVEN = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({b"data": RIGHT, b"fine_labels": [*EVEN[:9], 5]},
         "has label 5 at picture 9, not one of 0 to 4"),
        ({b"data": RIGHT, b"fine_labels": [0, -1, *EVEN[2:]]},
         "has label -1 at picture 1, not one of 0 to 4"),
        ({b"data": RIGHT, b"fine_labels": [*EVEN[:9], 0]},
         "train: has 3 pictures of class 0 'apple', not 2"),
        ({b"data": RIGHT, b"fine_labels": EVEN[:9]}, "has no list of 10 numbers 'fine_labels'"),
        ({b"data": RIGHT, b"coarse_labels": EVEN}, "has no list of 10 numbers 'fine_labels'"),
        ({b"data": RIGHT, b"fine_labels": [*EVEN[:9], b"4"]}, "has no list of 10 numbers 'fine_labels'"),
        ({b"data": RIGHT[:9], b"fine_labels": EVEN}, "has 'data' uint8 (9, 3072), not uint8 (10, 3072)"),
        ({b"fine_labels": EVEN}, "has 'data' NoneType, not uint8 (10, 3072)"),
        ([1], "holds a list, not a dict"),
    ],
)  # fmt: skip
def test_pickles_with_wrong_content(tmp_path: Path, content: object, found: str) -> None:
    made = Made("cifar100", "python2")
    made.files["train"] = dumped(content)
    made.put(tmp_path / "cifar-100-python")
    again = AGAIN.format("cifar-100-python")
    assert made.refusal(tmp_path) == f"cifar100: {tmp_path / 'cifar-100-python/train'} {found}; {again}"


@pytest.mark.parametrize(
    ("file", "change", "found"),
    [
        ("train.bin", lambda c: c[:-1], "has 30739 bytes, not 30740"),
        ("test.bin", lambda c: c + b"\0", "has 15371 bytes, not 15370"),
        ("train.bin", lambda c: c[:3075] + b"\x05" + c[3076:], "has label 5 at picture 1, not one of 0 to 4"),
        ("test.bin", lambda c: c[:1] + b"\x03" + c[2:],
         "test: has 2 pictures of class 3 'dolphin', not 1"),
        ("fine_label_names.txt", lambda c: b"apple\nbear\n", "names 2 classes, not 5"),
    ],
)  # fmt: skip
def test_binary_files_with_wrong_content(tmp_path: Path, file: str, change, found: str) -> None:
    made = Made("cifar100", "binary")
    made.files[file] = change(made.files[file])
    made.put(tmp_path / "cifar-100-binary")
    again = AGAIN.format("cifar-100-binary")
    assert made.refusal(tmp_path) == f"cifar100: {tmp_path / 'cifar-100-binary' / file} {found}; {again}"


def test_imbalance_over_several_files_names_their_folder(tmp_path: Path) -> None:
    made = Made("cifar10", "binary")
    made.files["data_batch_3.bin"] = b"\0" + made.files["data_batch_3.bin"][1:]
    made.put(tmp_path / "cifar-10-batches-bin")
    folder = tmp_path / "cifar-10-batches-bin"
    found = f"cifar10: {folder} train: has 3 pictures of class 0 'apple', not 2; it is"
    assert made.refusal(tmp_path).startswith(found)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return eval, (f"__import__('os').mkdir({str(self.mark)!r})",)


@pytest.mark.parametrize("file", ["train", "meta"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_names_something_else_is_not_run(tmp_path: Path, file: str, protocol: int) -> None:
    made, mark = Made("cifar100", "python2"), tmp_path / "ran"
    made.files[file] = pickle.dumps({b"data": Evil(mark)}, protocol=protocol)
    made.put(tmp_path / "cifar-100-python")
    path = tmp_path / "cifar-100-python" / file
    module = "__builtin__" if protocol == 2 else "builtins"
    assert made.refusal(tmp_path) == (
        f"{path} refers to {module}.eval, which no CIFAR file does; it was not run: delete it"
    )
    assert not mark.exists()
    pickle.loads(made.files[file])  # the test's own check: it would have run
    assert mark.exists()


def test_a_garbled_pickle(tmp_path: Path) -> None:
    made = Made("cifar100", "python2")
    made.files["train"] = made.files["train"][:-40]
    made.put(tmp_path / "cifar-100-python")
    found = f"cifar100: {tmp_path / 'cifar-100-python/train'} is no readable pickle: UnpicklingError("
    assert made.refusal(tmp_path).startswith(found)
