"""What a run leaves on disk. Only the first rank writes; a full disk costs a checkpoint, never the run."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastkd import files
from fastkd.engine.console import Console
from fastkd.engine.events import Events
from fastkd.engine.rundir import BEST, LAST, NAN
from loaders.errors import UserError


class Recorder:
    def __init__(self, folder: Path, console: Console, save_freq: int, *, writes: bool) -> None:
        self.folder, self.console, self.save_freq, self.writes = folder, console, save_freq, writes
        self._events: Events | None = None
        self._failed = ""
        self._owed: dict[str, Mapping[str, Any]] = {}  # weights that are yet to be written, by file

    def begin(self, env: Mapping[str, Any], history: list[dict[str, Any]]) -> None:
        """metrics.jsonl is written anew from the checkpoint's rows: a line of an epoch that was lost goes with it."""
        if not self.writes:
            return
        self._try(functools.partial(self._begin, env, history))
        self._insist()

    def _begin(self, env: Mapping[str, Any], history: list[dict[str, Any]]) -> None:
        files.write_json(self.folder / "env.json", env)
        self._write_metrics(history)
        self._events = Events(self.folder / "events", len(history) + 1)

    def save_epoch(self, state: Mapping[str, Any], about: Mapping[str, Any], is_best: bool) -> None:
        """best.pt before last.pt: killed between the two, the run repeats the epoch and finds the same best. What
        cannot be written is kept in memory and owed, and until it is paid last.pt stays where it was."""
        if not self.writes:
            return
        weights = {"about": about, "model": state["model"]}
        if "method" in about:
            weights["method"] = state["method"]
        if is_best:
            self._owed[BEST] = weights
        if self.save_freq and about["epoch"] % self.save_freq == 0:
            self._owed[f"epoch_{about['epoch']}.pt"] = weights
        self._try(functools.partial(self._save_epoch, state))
        if self._warn_if_failed():
            self._owed = copy.deepcopy(self._owed)  # training goes on in the tensors themselves

    def save_phase(self, state: Mapping[str, Any]) -> None:
        if self.writes:
            self._try(functools.partial(self._save_state, state))
            self._warn_if_failed()

    def _warn_if_failed(self) -> bool:
        if self._failed:
            self.console.warn(
                f"{self._failed}; training goes on, what was saved before stays, the next epoch tries again"
            )
        return bool(self._failed)

    def _save_state(self, state: Mapping[str, Any]) -> None:
        for name in list(self._owed):
            files.write_tensors(self.folder / name, self._owed[name])
            del self._owed[name]
        files.write_tensors(self.folder / LAST, state)

    def _save_epoch(self, state: Mapping[str, Any]) -> None:
        self._save_state(state)
        history = state["position"]["history"]
        self._write_metrics(history)
        assert self._events is not None
        scalars = {key: value for key, value in history[-1].items() if key != "epoch"}
        self._events.add(history[-1]["epoch"], scalars)

    def _write_metrics(self, history: list[dict[str, Any]]) -> None:
        files.write_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history))

    def save_last(self, state: Mapping[str, Any]) -> None:
        if self.writes:
            self._try(functools.partial(self._save_state, state))
            self._insist()

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
            self._failed = ""
        except OSError as error:
            self._failed = f"cannot write in {self.folder}: {error.strerror}"

    def _insist(self) -> None:
        if self._failed:
            raise UserError(f"{self._failed}; make room and go on with --resume auto")

    def save_evidence(self, evidence: Mapping[str, Any]) -> str:
        """Where it is, in words."""
        path = self.folder / NAN
        if self.writes:
            self._try(lambda: files.write_tensors(path, evidence))
        return self._failed or f"what led there is in {path}"

    def finish(self, summary: dict[str, Any]) -> dict[str, Any]:
        if self.writes:
            self._insist()
            self._try(lambda: files.write_json(self.folder / "summary.json", summary))
            self._insist()
        self.close()
        return summary

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None
