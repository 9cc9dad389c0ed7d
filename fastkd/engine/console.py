"""What a person sees of a run: a bar of at most 80 columns on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import math
import shutil
import sys
import warnings
from typing import Any

from tqdm import tqdm


def clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def count(number: float) -> str:
    return (
        f"{number:.0f}"
        if number < 1000
        else f"{number / 1000:.1f}k"
        if number < 100_000
        else f"{number / 1000:.0f}k"
    )


def percent(number: float | None) -> str:
    """A dash where nothing was counted."""
    return "    -" if number is None or math.isnan(number) else f"{number:5.2f}"


class Console:
    """Quiet on every rank but the first."""

    def __init__(self, speaks: bool = True, live: bool | None = None) -> None:
        self.speaks = speaks
        self.live = sys.stderr.isatty() if live is None else live
        self._bar: Any = None
        self._name = ""

    def say(self, line: str) -> None:
        if self.speaks:
            tqdm.write(line)
            sys.stdout.flush()

    def warn(self, line: str) -> None:
        self.say(f"warning: {line}")

    def begin_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        if self.speaks and self.live:
            self._name = f"{epoch}/{epochs}"
            self._bar = tqdm(
                total=steps,
                initial=done,
                desc=self._name,
                leave=False,
                ncols=min(80, shutil.get_terminal_size().columns),
                bar_format="{desc} |{bar}|",
            )

    def progress(self, done: int, loss: float, top1: float, speed: float, wait: float, left: float) -> None:
        if self._bar is not None:
            self._bar.n = done
            self._bar.set_description_str(
                f"{self._name} loss {loss:.3f} acc {percent(top1)} {count(speed)} img/s wait {100 * wait:.0f}% ETA {clock(left)}"
            )

    def end_epoch(self, epochs: int, row: dict[str, Any], best: float, left: float) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self.say(
            f"{row['epoch']:>{len(str(epochs))}}/{epochs} loss {row['train_loss']:.3f} acc {percent(row.get('train_top1'))}"
            f" test {row['test_top1']:5.2f} (best {best:5.2f}) {count(row['images_per_second'])} img/s"
            f" wait {100 * row['data_wait']:.0f}% ETA {clock(left)}"
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def show_warnings_as_lines(console: Console) -> None:
    """Python's warnings as one line each, without file names and source."""
    warnings.showwarning = lambda message, *_rest, **_more: console.warn(str(message))
