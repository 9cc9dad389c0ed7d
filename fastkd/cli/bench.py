"""fastkd bench: the loader and the training step of a run's own flags, in images/s, and which of them bounds the run."""

from __future__ import annotations

import json

from fastkd.cli import flags
from fastkd.recipes import resolve

BOUND_BY_DATA = 0.8  # share of the loader's own speed from which on a faster loader would show


def main(arguments: list[str]) -> int:
    asked = flags.read("student", "fastkd bench", [word for word in arguments if word != "--json"])
    request = resolve("student", asked.values, asked.shared_method_keys)
    from fastkd.engine import bench

    found = bench.measure(request)
    if "--json" in arguments:
        print(json.dumps(found, indent=1))
        return 0
    print("{student}, {method}, batch {batch_size}, {precision} on {device}".format(**found))
    print("loader alone ({loader})  {loader_images_per_second:10,.0f} images/s".format(**found))
    print("training with it{training_images_per_second:22,.0f} images/s".format(**found))
    if found["data_share"] > BOUND_BY_DATA:
        print("bound by the data: a faster loader would help")
    else:
        print("bound by computing: a faster loader would not help")
    return 0
