"""A cache's files and its table: nothing wrong is ever read, and nothing sound is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastkd import files, models
from fastkd.engine.distiller import Precision
from fastkd.method import LOGITS, POOLED
from fastkd.outputs import Outputs
from fastkd.teacher import manifest, segments, tidy
from fastkd.teacher.cache import ALWAYS, CachedTeacher, Store, shapes_of
from fastkd.teacher.live import LiveTeacher
from fastkd.teacher.table import Table
from loaders.contract import Batch
from loaders.errors import UserError

CPU = torch.device("cpu")
FACTS = {
    "format": 1, "teacher": {"model": "resnet8", "weights": "ab" * 32}, "data": {"dataset": "d", "train": "cd" * 32},
    "views": {"train": {"name": "v"}}, "preprocessing": {"mean": [0.5]}, "precision": "float32", "dtype": "fp32",
}  # fmt: skip
ID = manifest.identity(FACTS)
SAMPLES, VIEWS, CLASSES = 12, 6, 4


def silent(line: str) -> None:
    raise AssertionError(line)


def answer(count: int, seed: int = 0, scale: float = 1.0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    return Outputs(
        torch.randn(count, CLASSES, generator=generator) * scale,
        torch.randn(count, 3, generator=generator),
        {},
    )


def store(
    folder: Path,
    table: Table | None = None,
    fields: tuple[str, ...] = ALWAYS,
    warn: Any = silent,
    **changes: Any,
) -> Store:
    given: dict[str, Any] = {
        "folder": folder,
        "identity": ID,
        "rows": SAMPLES * VIEWS,
        "fields": fields,
        "dtype": torch.float32,
    }
    return Store(**(given | changes), warn=warn, table=table)


def table(dtype: torch.dtype = torch.float32, fields: tuple[str, ...] = ALWAYS) -> Table:
    shapes = {LOGITS: (CLASSES,), POOLED: (3,)}
    return Table(SAMPLES, VIEWS, {field: shapes[field] for field in fields}, dtype, CPU)


def filled(folder: Path, *groups: list[int]) -> list[Outputs]:
    """One segment a group of rows in each field."""
    out = []
    for seed, rows in enumerate(groups):
        at = store(folder)
        out.append(answer(len(rows), seed))
        at.add(torch.tensor(rows), out[-1])
        at.seal()
    return out


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.seg"))


def test_a_segment_is_what_was_written(tmp_path: Path) -> None:
    rows, values = np.array([5, 2, 9]), np.arange(24, dtype=np.float16).reshape(3, 2, 4)
    path = segments.write(tmp_path / "maps", ID, "maps", rows, values)
    read = segments.read(path, ID)
    assert np.array_equal(read.rows, rows)
    assert read.values.dtype == np.float16
    assert np.array_equal(read.values, values)
    found = segments.rows_of(path)
    assert found is not None
    assert np.array_equal(found, rows)
    assert [p.name for p in (tmp_path / "maps").iterdir()] == [path.name]


def test_any_flipped_bit_and_any_lost_byte_is_noticed(tmp_path: Path) -> None:
    path = segments.write(tmp_path, ID, LOGITS, np.array([1, 2]), np.ones((2, 3), np.float32))
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (0, 7):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(bytes(damaged))
            with pytest.raises(segments.Damaged):
                segments.read(path, ID)
    for length in (0, 10, segments.HEAD, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(segments.Damaged):
            segments.read(path, ID)
    path.write_bytes(whole + b"\0")
    with pytest.raises(segments.Damaged):
        segments.read(path, ID)


def test_a_segment_of_another_cache_is_not_read(tmp_path: Path) -> None:
    path = segments.write(tmp_path, ID, LOGITS, np.array([1]), np.ones((1, 3), np.float32))
    with pytest.raises(segments.Damaged, match="another cache"):
        segments.read(path, "0" * 16)


def test_what_was_added_is_found_by_the_next(tmp_path: Path) -> None:
    said = filled(tmp_path, [3, 70, 4], [9])
    again = table()
    known = store(tmp_path, again).known
    assert np.flatnonzero(known).tolist() == [3, 4, 9, 70]
    assert torch.equal(again.present, torch.from_numpy(known))
    found = again.take(torch.tensor([70, 9]))
    assert torch.equal(found.logits, torch.stack([said[0].logits[1], said[1].logits[0]]))
    assert torch.equal(found.pooled, torch.stack([said[0].pooled[1], said[1].pooled[0]]))


def test_a_row_counts_once_all_fields_that_are_read_are_there(tmp_path: Path) -> None:
    filled(tmp_path, [3, 4])
    for path in (tmp_path / POOLED).iterdir():
        path.unlink()
    assert store(tmp_path, fields=(LOGITS,)).known.sum() == 2
    assert store(tmp_path, fields=(POOLED,)).known.sum() == 0
    assert store(tmp_path).known.sum() == 0


def test_the_first_answer_stays(tmp_path: Path) -> None:
    mine = table()
    here = store(tmp_path, mine)
    first = answer(1, 1)
    here.add(torch.tensor([7]), first)
    filled(tmp_path, [7, 8])  # another process, with another answer
    here.refresh()
    assert torch.equal(mine.take(torch.tensor([7])).logits, first.logits)
    assert mine.present[8]


def test_half_precision_rounds_by_no_more_than_its_last_bit(tmp_path: Path) -> None:
    halves = table(torch.float16)
    here = store(tmp_path, halves, dtype=torch.float16)
    said = answer(50, scale=30)
    here.add(torch.arange(50), said)
    found = halves.take(torch.arange(50))
    assert found.logits.dtype == torch.float32
    relative = (found.logits - said.logits).abs() / said.logits.abs()
    assert 0 < relative.max() <= 2**-11


@pytest.mark.parametrize("bad", [1e5, float("nan")])
def test_what_the_stored_precision_cannot_hold_is_refused(tmp_path: Path, bad: float) -> None:
    here = store(tmp_path, table(torch.float16), dtype=torch.float16)
    said = answer(2)
    said.logits[1, 2] = bad
    with pytest.raises(UserError, match="--cache-dtype fp32"):
        here.add(torch.tensor([0, 1]), said)
    assert not files_of(tmp_path)


def test_a_damaged_segment_costs_its_own_rows(tmp_path: Path) -> None:
    filled(tmp_path, [0, 1], [2, 3], [4, 5])
    path = files_of(tmp_path / LOGITS)[1]
    lost = segments.rows_of(path)
    assert lost is not None
    damaged = bytearray(path.read_bytes())
    damaged[-9] ^= 4
    path.write_bytes(bytes(damaged))
    said: list[str] = []
    here = store(tmp_path, table(), warn=said.append)
    assert sorted(np.flatnonzero(~here.known[:6])) == sorted(lost)
    assert len(said) == 1
    assert str(path) in said[0]
    assert "checksum" in said[0]
    assert path.with_suffix(".damaged").exists()
    here.add(torch.from_numpy(lost.copy()), answer(len(lost), 9))
    here.seal()
    assert store(tmp_path).known[:6].all()  # and nobody is warned again


def failing(code: int) -> Callable[..., None]:
    def write(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return write


def test_a_full_disk_keeps_what_is_there_and_the_run_going(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, [0, 1])
    before = {path: path.read_bytes() for path in files_of(tmp_path)}
    said: list[str] = []
    mine = table()
    here = store(tmp_path, mine, warn=said.append)
    monkeypatch.setattr(files, "write", failing(errno.ENOSPC))
    for row in (2, 3):
        here.add(torch.tensor([row]), answer(1, row))
        here.seal()
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert torch.equal(mine.take(torch.tensor([3])).logits, answer(1, 3).logits)  # from memory
    assert {path: path.read_bytes() for path in files_of(tmp_path)} == before


def test_a_full_disk_leaves_no_half_a_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    said: list[str] = []
    here = store(tmp_path, warn=said.append)
    here.add(torch.tensor([2]), answer(1))
    here.seal()
    assert len(said) == 1
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_many_fill_at_once(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for k in range(6):
            here = store(tmp_path)
            here.add(torch.tensor([number * 8 + k, 60 + k]), answer(2, k))  # some rows are everybody's
            here.seal()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    whole = table()
    here = store(tmp_path, whole)
    assert here.known.sum() == 6 * 6 + 6
    assert torch.equal(whole.take(torch.tensor([60 + 5])).logits, answer(2, 5).logits[1:])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"teacher": {"model": "resnet8", "weights": "77c1" * 16}}, "weights is abababab.. there, 77c177c1.. in this run"),
        ({"teacher": {"model": "resnet20", "weights": "ab" * 32}}, "teacher.model is resnet8 there, resnet20"),
        ({"data": {"dataset": "d", "train": "ef" * 32}}, "pass the --data it was made from"),
        ({"views": {"train": {"name": "w"}}}, "the set of views is another one: views.train.name is v there, w in this run"),
        ({"preprocessing": {"mean": [0.4]}}, "preprocessing.mean is [0.5] there, [0.4]"),
        ({"precision": "bfloat16"}, "precision is float32 there, bfloat16 in this run; pass its --amp"),
        ({"dtype": "fp16"}, "dtype is fp32 there, fp16 in this run; pass its --cache-dtype"),
        ({"format": 2}, "format is 1 there, 2 in this run; use the version"),
        ({"more": 1}, "more differs"),
    ],
)  # fmt: skip
def test_any_difference_is_refused_by_name(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    manifest.settle(tmp_path / "c", FACTS)
    manifest.settle(tmp_path / "c", FACTS)
    with pytest.raises(UserError) as refusal:
        manifest.settle(tmp_path / "c", FACTS | change)
    assert says in str(refusal.value)
    assert manifest.read(tmp_path / "c") == FACTS


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(UserError, match=r"holds thesis\.tex and no cache of ours"):
        manifest.settle(tmp_path, FACTS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_of_many_that_make_a_cache_one_wins_and_all_agree(tmp_path: Path) -> None:
    def work(folder: Path, number: int) -> bool:
        try:
            manifest.settle(folder, FACTS | {"dtype": str(number % 2)})
        except UserError:
            return False
        return True

    for attempt in range(20):
        folder = tmp_path / str(attempt)
        with ThreadPoolExecutor(8) as threads:
            won = list(threads.map(partial(work, folder), range(16)))
        winner = int(manifest.read(folder)["dtype"])
        assert [n % 2 == winner for n in range(16)] == won
        assert [path.name for path in folder.iterdir()] == [manifest.NAME]


@pytest.mark.parametrize("content", ["", "[1]", "{not json"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / manifest.NAME).write_text(content)
    with pytest.raises(UserError, match="build the cache anew"):
        manifest.settle(tmp_path, FACTS)


def test_tidying_merges_and_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    manifest.settle(folder, FACTS)
    filled(folder / "train", [0, 1], [1, 2], [3], [0, 3])
    before = table()
    store(folder / "train", before)
    files_of(folder)[0].with_name(".x.seg.abcdefgh.part").write_bytes(b"half")
    files_of(folder)[0].with_suffix(".damaged").write_bytes(b"old")
    done = tidy.tidy(folder)
    assert (done.leftovers, done.damaged, done.before, done.after) == (2, (), 8, 2)
    assert done.freed > 0
    after = table()
    store(folder / "train", after)
    assert torch.equal(after.present, before.present)
    rows = torch.arange(4)
    assert torch.equal(after.take(rows).logits, before.take(rows).logits)
    assert [(row.part.field, row.segments, row.rows) for row in tidy.content(folder)] == [
        (LOGITS, 1, 4),
        (POOLED, 1, 4),
    ]
    assert tidy.tidy(folder).before == 2  # once tidy it stays as it is


def test_a_row_stays_once_though_its_segments_are_merged_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tidy, "MERGED_BYTES", 1)
    manifest.settle(tmp_path, FACTS)
    filled(tmp_path / "train", [0, 1], [1, 2], [0, 1])
    before = table()
    store(tmp_path / "train", before)
    assert tidy.tidy(tmp_path).after < 6
    read = [segments.rows_of(path) for path in files_of(tmp_path / "train" / LOGITS)]
    assert sorted(np.concatenate([rows for rows in read if rows is not None])) == [0, 1, 2]
    after = table()
    store(tmp_path / "train", after)
    assert torch.equal(after.take(torch.arange(3)).logits, before.take(torch.arange(3)).logits)


def test_tidying_cut_short_has_lost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest.settle(tmp_path, FACTS)
    filled(tmp_path / "train", [0, 1], [1, 2], [3])
    before = table()
    store(tmp_path / "train", before)
    unlink, calls = Path.unlink, []

    def dies(path: Path, missing_ok: bool = False) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", dies)
    with pytest.raises(KeyboardInterrupt):
        tidy.tidy(tmp_path)
    monkeypatch.undo()
    after = table()
    store(tmp_path / "train", after)
    assert torch.equal(after.take(torch.arange(4)).logits, before.take(torch.arange(4)).logits)


def test_a_cache_in_use_is_not_tidied(tmp_path: Path) -> None:
    from fastkd.engine.caches import hold

    manifest.settle(tmp_path, FACTS)
    users = [store(tmp_path / "train") for _ in range(2)]
    for user in users:
        hold(tmp_path, user)
    del user
    with pytest.raises(UserError, match="in use by a run"):
        tidy.tidy(tmp_path)
    users.clear()
    tidy.tidy(tmp_path)


def test_damage_is_found_by_name(tmp_path: Path) -> None:
    manifest.settle(tmp_path, FACTS)
    filled(tmp_path / "train", [0, 1], [2])
    assert tidy.damage(tmp_path) == {}
    path = files_of(tmp_path)[2]
    path.write_bytes(path.read_bytes()[:-20])
    assert list(tidy.damage(tmp_path)) == [path]
    tidied = tidy.tidy(tmp_path)
    assert tidied.damaged == (path,)


def teacher(needs: tuple[str, ...]) -> LiveTeacher:
    torch.manual_seed(0)
    return LiveTeacher(models.build("resnet8", CLASSES, 8), needs, Precision(CPU, torch.float32))


def batch(indices: list[int], number: int) -> Batch:
    at = torch.tensor(indices)
    generator = torch.Generator().manual_seed(number)
    pictures = torch.randn(SAMPLES, 3, 8, 8, generator=generator)
    return Batch(pictures[at], at % CLASSES, at, torch.full_like(at, number))


def seen(live: LiveTeacher) -> list[int]:
    """How many pictures the network gets in each call from now on."""
    sizes: list[int] = []
    forward = live.net.forward
    live.net.forward = lambda images, taps: sizes.append(len(images)) or forward(images, taps)  # type: ignore
    return sizes


NEEDS: list[tuple[str, ...]] = [(LOGITS,), (POOLED,), (LOGITS, "stage2.pre"), ("stem",)]


@pytest.mark.parametrize("needs", NEEDS)
def test_only_what_is_missing_is_asked(tmp_path: Path, needs: tuple[str, ...]) -> None:
    live = teacher(needs)
    sizes = seen(live)
    own = Table(SAMPLES, VIEWS, shapes_of(live, needs), torch.float32, CPU)
    asked = CachedTeacher(live, store(tmp_path, own, needs), own)

    def same(samples: Batch) -> None:
        direct, found = teacher(needs)(samples), asked(samples)
        for field in needs:
            one, two = ({LOGITS: o.logits, POOLED: o.pooled, **o.taps}[field] for o in (direct, found))
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
            if sizes[-1] == len(samples.indices):
                assert torch.equal(one, two)
        assert set(found.taps) == set(needs) - {LOGITS, POOLED}

    same(batch([0, 1, 2, 3], 5))
    same(batch([2, 3, 4, 5], 5))
    same(batch([0, 1], 4))
    same(batch([0, 5, 1], 5))
    assert sizes == [4, 2, 2]
    counts = asked.counts
    assert (counts.forwards, counts.misses, counts.hits) == (8, 8, 5)


def test_a_known_epoch_is_not_looked_through(tmp_path: Path) -> None:
    live, own = teacher((LOGITS,)), table(fields=(LOGITS,))
    asked = CachedTeacher(live, store(tmp_path, own, (LOGITS,)), own)
    samples = batch([0, 1], 3)
    first: Tensor = asked(samples).logits
    asked.expect(samples.indices, samples.aug_ids)
    own.present.zero_()  # whoever looked would now ask the network
    assert torch.equal(asked(samples).logits, first)
    assert asked.counts.forwards == 2
    own.present[3] = True  # row of (0, 3): the other one of the epoch is not there
    asked._all_there = False
    asked.expect(*(part[:1] for part in (samples.indices, samples.aug_ids)))
    assert asked._all_there
