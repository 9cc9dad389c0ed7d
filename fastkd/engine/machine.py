"""The device, the precision and the threads of a run, and a record of the machine it ran on."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fastkd import __version__
from fastkd.config import RunConfig
from fastkd.engine import parallel
from loaders.errors import UserError

DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def limit_gpus(config: RunConfig) -> list[str]:
    """--gpu-id, before CUDA starts. Returns warnings."""
    if not config.run.gpu_id:
        return []
    os.environ["CUDA_VISIBLE_DEVICES"] = config.run.gpu_id
    if torch.cuda.is_available():
        return []
    return [f"--gpu-id {config.run.gpu_id}: there is no such GPU here; this run uses the CPU"]


def device(config: RunConfig) -> torch.device:
    has_gpu = torch.cuda.is_available()
    for flag, wanted in (
        ("--device cuda", config.run.device == "cuda"),
        ("--dali gpu", config.data.dali == "gpu"),
    ):
        if wanted and not has_gpu:
            raise UserError(
                f"{flag}: no CUDA GPU was found on this machine; use --device cpu --dali none, or a GPU machine"
            )
    if config.run.device == "cpu" or not has_gpu:
        return torch.device("cpu")
    torch.cuda.set_device(parallel.local_rank())
    return torch.device("cuda", parallel.local_rank())


def cpu_has(flag: str) -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and flag in info.read_text().partition("flags")[2].partition("\n")[0].split()


def dtype(config: RunConfig, where: torch.device) -> torch.dtype:
    """auto: bfloat16 where the hardware multiplies in it, else float16 on GPUs, else float32."""
    if config.run.amp != "auto":
        return DTYPES[config.run.amp]
    if where.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(where) >= (8, 0) else torch.float16
    return torch.bfloat16 if cpu_has("avx512_bf16") or cpu_has("amx_bf16") else torch.float32


def settle(config: RunConfig) -> None:
    """Process-wide switches."""
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not config.run.deterministic


def free_memory() -> int:
    """Bytes of host memory that can be had without swapping, within the limit of a container."""
    info, limits = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if info.exists():
        free = 1024 * int(info.read_text().partition("MemAvailable:")[2].split()[0])
    with contextlib.suppress(OSError, ValueError):  # no container, or "max"
        limit = int((limits / "memory.max").read_text())
        free = min(free, limit - int((limits / "memory.current").read_text()))
    return free


def git_commit() -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
            capture_output=True, text=True, check=False, timeout=5,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "numba"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def record(where: torch.device, precision: torch.dtype) -> dict[str, Any]:
    return versions() | {
        "fastkd": __version__, "git": git_commit(), "platform": platform.platform(), "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads(), "device": where.type,
        "device_name": torch.cuda.get_device_name(where) if where.type == "cuda" else cpu_name(),
        "precision": str(precision).removeprefix("torch."), "command": " ".join(sys.argv),
    }  # fmt: skip
