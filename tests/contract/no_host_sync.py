"""A stand-in, without a GPU, for what a captured step forbids: reading a tensor on the host, shapes that depend on data."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

FORBIDDEN = (
    "_local_scalar_dense", "nonzero", "masked_select", "unique", "_linalg_svd", "linalg_svd", "is_nonzero", "equal",
)  # fmt: skip


class HostSync(AssertionError):
    pass


class NoHostSync(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith(FORBIDDEN) and not name.startswith("equal_"):
            raise HostSync(f"{name} waits for the device")
        if name in ("index", "index_put", "index_put_"):
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    raise HostSync("a boolean index has a shape that depends on data")
        return func(*args, **(kwargs or {}))
