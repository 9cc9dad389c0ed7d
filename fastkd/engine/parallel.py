"""Ranks: one process a GPU (gloo on the CPU), by torchrun or by --multiprocessing-distributed. The only user of
torch.distributed."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastkd.config import RunConfig
from loaders.errors import UserError


class Ranks(NamedTuple):
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0


def launch(work: Callable[[], None], config: RunConfig) -> None:
    """Calls `work` in this process, or once in each of as many new ones as there are GPUs."""
    if not config.run.distributed or "WORLD_SIZE" in os.environ:
        work()
        return
    world = torch.cuda.device_count()
    if world == 0:
        raise UserError(
            "--multiprocessing-distributed starts one process a GPU, and there is none; on CPUs use "
            "`torchrun --nproc-per-node N train_student.py ...`"
        )
    # torch.multiprocessing re-exports both names below without saying so to a type checker
    context = torch.multiprocessing.start_processes(  # type: ignore[attr-defined,no-untyped-call]
        _child, args=(work, world, config.run.dist_url), nprocs=world, join=False, start_method="spawn"
    )
    try:
        while not context.join():
            pass
    except torch.multiprocessing.ProcessExitedException as ended:  # type: ignore[attr-defined]
        raise SystemExit(ended.exit_code) from None  # the rank that failed has said why


def _child(rank: int, work: Callable[[], None], world: int, url: str) -> None:
    address, _, port = url.removeprefix("tcp://").rpartition(":")
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        "MASTER_ADDR": address, "MASTER_PORT": port,
    }  # fmt: skip
    try:
        work()
    except UserError as error:
        sys.stderr.write(f"{sys.argv[0]}: error: {error}\n")
        sys.exit(2)


def join(device: torch.device) -> Ranks:
    """Meets the other ranks when the environment names any."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=30))
    return Ranks(dist.get_rank(), world)


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What is refused on one rank ends all of them, and the first rank says it once."""
    refusal = ""
    try:
        yield
    except UserError as error:
        refusal = str(error)
    if dist.is_initialized():
        refusals: list[str] = [""] * dist.get_world_size()
        dist.all_gather_object(refusals, refusal)
        refusal = next(filter(None, refusals), "")
        if refusal and dist.get_rank():
            raise SystemExit(2)
    if refusal:
        raise UserError(refusal)


def leave() -> None:
    if dist.is_initialized():
        gc.collect()  # DDP refers to itself in a circle, and would keep its connections open past the end
        dist.destroy_process_group()


def gather(rows: Tensor) -> Tensor:
    """The rows of every rank in rank order, without gradient; the rows themselves when alone."""
    if not dist.is_initialized():
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def total(values: Tensor) -> Tensor:
    """The sum over ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """For a backward that DDP does not see."""
    if dist.is_initialized():
        for parameter in module.parameters():
            if parameter.grad is not None:
                total(parameter.grad).div_(dist.get_world_size())


def any_rank(flag: bool, device: torch.device) -> bool:
    if not dist.is_initialized():
        return flag
    return bool(total(torch.tensor(float(flag), device=device)))


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Batch norms are local to a rank while training; before evaluation and saving their statistics become one."""
    if not dist.is_initialized():
        return
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for buffer in part.buffers(recurse=False):
                if buffer.is_floating_point():
                    total(buffer).div_(dist.get_world_size())


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def synchronised(module: nn.Module, device: torch.device, trains_all: bool = True) -> nn.Module:
    """Gradients averaged over ranks, everything trained in one module. Batch norms stay local to a rank."""
    if not dist.is_initialized() or not any(p.requires_grad for p in module.parameters()):
        return module
    ids = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        # torch 2.13 would have its successor used, which synchronises buffers once and older versions lack
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
        return nn.parallel.DistributedDataParallel(
            module, device_ids=ids, broadcast_buffers=False, find_unused_parameters=not trains_all
        )
