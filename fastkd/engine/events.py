"""Scalars for TensorBoard, written at once and by nobody else: a full disk is an OSError here and now.

torch's SummaryWriter writes in a thread of its own, which dies of a full disk with a page of traceback.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Events:
    """One file a sitting. TensorBoard forgets what earlier files hold of `first_epoch` and later ones."""

    def __init__(self, folder: Path, first_epoch: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._out = (folder / name).open("xb", buffering=0)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=first_epoch, session_log=SessionLog(status=SessionLog.START)))

    def add(self, epoch: int, scalars: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(self._event(step=epoch, summary=self._summary(value=values)))

    def _write(self, event: Any) -> None:
        """A whole record or none: readers stop at a broken one."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        position = self._out.tell()
        try:
            if self._out.write(record.getvalue()) != len(record.getvalue()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                self._out.seek(position)
                self._out.truncate()
            raise

    def close(self) -> None:
        self._out.close()
