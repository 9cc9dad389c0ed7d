"""fastkd methods, fastkd models."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from fastkd import methods, models
from fastkd.cli.flags import Parser


def list_methods(arguments: list[str]) -> int:
    made = Parser(
        prog="fastkd methods", description="Every --distill name, with its numbers and their defaults."
    )
    form = made.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as one json list")
    form.add_argument(
        "--markdown", action="store_true", help="as METHODS.md: what each reads, trains and costs too"
    )
    space = made.parse_args(arguments)
    if space.markdown:
        from fastkd.cli import catalogue  # here: it loads torch and the engine

        print(catalogue.page(), end="")
        return 0
    rows = [_method(name) for name in methods.names()]
    if space.json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        also = f" (also {', '.join(row['aliases'])})" if row["aliases"] else ""
        print(f"{row['name']}{also}\n    {row['summary']}")
        print("    " + "  ".join(f"{key}={value}" for key, value in row["numbers"].items()))
    return 0


def _method(name: str) -> dict[str, Any]:
    cls = methods.load(name)
    return {
        "name": name,
        "aliases": sorted(alias for alias, target in methods.ALIASES.items() if target == name),
        "summary": (cls.__doc__ or "").strip().splitlines()[0],
        "numbers": dataclasses.asdict(cls.Config()),
    }


def list_models(arguments: list[str]) -> int:
    made = Parser(
        prog="fastkd models", description="Every net, with its parameters and the shapes of its taps."
    )
    made.add_argument("--json", action="store_true", help="as one json list")
    made.add_argument(
        "--num-classes", type=int, default=100, metavar="K", help="size of the head (default 100)"
    )
    space = made.parse_args(arguments)
    import torch

    rows: list[dict[str, Any]] = []
    for name in models.names():
        with torch.device("meta"):
            net = models.build(name, space.num_classes)
        taps = {tap: list(shape) for tap, shape in net.taps.items()}
        rows.append(
            {
                "name": name,
                "parameters": sum(p.numel() for p in net.parameters()),
                "pooled": net.pooled_width,
                "taps": taps,
            }
        )
    if space.json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        maps = " ".join(
            f"{tap} {c}@{h}" for tap, (c, h, _) in row["taps"].items() if not tap.endswith(".pre")
        )
        print(f"{row['name']:<14}{row['parameters'] / 1e6:7.3f} M   {maps}   pooled {row['pooled']}")
    return 0


ENTRIES = {"methods": list_methods, "models": list_models}
