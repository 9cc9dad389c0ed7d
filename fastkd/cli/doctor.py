"""fastkd doctor: what works on this machine, and why the rest does not."""

from __future__ import annotations

import importlib
import json
import os

from fastkd import __version__
from fastkd.cli.flags import Parser

# package -> (what it is for, how to get it)
EXTRAS = {
    "torchvision": ("ImageNet nets and fast JPEG decoding", "pip install 'fastkd[vision]'"),
    "nvidia.dali": ("--dali cpu|gpu", "pip install 'fastkd[dali]'"),
    "ffcv": ("--loader ffcv", "pip install 'fastkd[ffcv]'"),
    "pycocotools": ("MS-COCO", "pip install 'fastkd[coco]'"),
    "timm": ("timm:NAME nets", "pip install 'fastkd[timm]'"),
    "wandb": ("logging to Weights & Biases", "pip install 'fastkd[wandb]'"),
}


def findings() -> dict[str, dict[str, str]]:
    import torch

    from fastkd.engine import machine

    machines = {
        "cpu": f"{machine.cpu_name()}, {len(os.sched_getaffinity(0))} cores, torch uses {torch.get_num_threads()}"
    }
    native = [flag for flag in ("avx512_bf16", "amx_bf16") if machine.cpu_has(flag)]
    machines["cpu bfloat16"] = (
        f"yes ({', '.join(native)})" if native else "no: --amp auto trains in float32 on this CPU"
    )
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    machines["gpu"] = ", ".join(gpus) if gpus else f"none found (torch {torch.__version__})"
    loaders = {
        "device": "works: the data set in memory, for cifar10, cifar100 and shapes",
        "torch": "works: worker processes, for every data set",
        "ffcv": "not part of this version yet",
        "dali": "not part of this version yet",
    }
    extras = {name: _extra(name, *about) for name, about in EXTRAS.items()}
    versions = {"fastkd": __version__, **machine.versions()}
    return {"versions": versions, "devices": machines, "loaders": loaders, "extras": extras}


def _extra(name: str, use: str, how: str) -> str:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return f"not installed ({use}): {how}"
    except Exception as error:  # an extra may fail in any way on import; say how and go on
        return f"installed but does not load ({use}): {type(error).__name__}: {str(error).splitlines()[0]}"
    return f"works ({use})"


def main(arguments: list[str]) -> int:
    made = Parser(
        prog="fastkd doctor", description="Versions, devices, and which loaders and extras work here."
    )
    made.add_argument("--json", action="store_true", help="as one json object")
    space = made.parse_args(arguments)
    found = findings()
    if space.json:
        print(json.dumps(found, indent=1))
        return 0
    for title, rows in found.items():
        print(title)
        for name, text in rows.items():
            print(f"  {name:<14} {text}")
    return 0
