"""CRD's bank, read through a product with the whole of it, against a transcription that gathers every row compared.

One step: scores, loss, gradients of the embeddings, rows moved; the drawing of negatives is in neither.

python benchmarks/contrast.py [--device cpu] [--json PATH] [--quick]
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.shared.measure import arguments, finish, ratio, seconds, take_turns
from fastkd.toolbox.memory_bank import PairedBank
from tests.unit.gathered_rows import scores_by_gathered_rows

SAMPLES, BATCH, NEGATIVES, WIDTH = 50_000, 64, 16_384, 128
CONTESTANTS = ("product", "gathered")


def loss(s_BM: Tensor, t_BM: Tensor) -> Tensor:
    c = NEGATIVES / SAMPLES
    sides = [(x[:, :1] / (x[:, :1] + c)).log().sum() + (c / (x[:, 1:] + c)).log().sum() for x in (s_BM, t_BM)]
    return -torch.stack(sides).sum() / BATCH


def steps(contestant: str, where: torch.device) -> Callable[[], None]:
    made = torch.Generator().manual_seed(0)
    bank = PairedBank(SAMPLES, WIDTH, 0.07, 0.5, made).to(where)
    rows = torch.randint(SAMPLES, (BATCH, 1 + NEGATIVES), generator=made).to(where)
    s, t = F.normalize(torch.randn(2, BATCH, WIDTH, generator=made).to(where), dim=-1)

    def step() -> None:
        embeddings = s.clone().requires_grad_(), t.clone().requires_grad_()
        if contestant == "product":
            value = bank.contrast(*embeddings, rows, lambda means: means, loss)
        else:
            value = loss(*scores_by_gathered_rows(bank, *embeddings, rows))
        value.backward()
        bank.move(rows[:, 0], s, t)
        if where.type == "cuda":
            torch.cuda.synchronize()

    return step


def peak_mebibytes(contestant: str, device: str) -> float:
    """What one step takes beyond the bank, in a process of its own."""
    where = torch.device(device)
    step = steps(contestant, where)
    if where.type == "cuda":
        step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    F.normalize(torch.randn(64, 64)) @ torch.randn(64, 64)  # the libraries' own buffers
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    made = arguments(__doc__ or "")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    space = made.parse_args()
    where = torch.device(space.device)
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as alone:
        memory = {name: alone.submit(peak_mebibytes, name, space.device).result() for name in CONTESTANTS}
    ready = {name: steps(name, where) for name in CONTESTANTS}
    samples = take_turns(
        {name: lambda step=step: seconds(step) for name, step in ready.items()}, 2 if space.quick else 11
    )
    print(
        f"{NEGATIVES} negatives of {SAMPLES}, batch {BATCH}, width {WIDTH}, {where}, {torch.get_num_threads()} threads"
    )
    for name, value in memory.items():
        print(f"{name:<28} peak {value:,.0f} MiB")
    ratios = {
        "time, gathered over product": ratio(samples["gathered"], samples["product"]),
        "peak memory, gathered over product": memory["gathered"] / memory["product"],
    }
    finish(space, samples, ratios, "s/step")


if __name__ == "__main__":
    main()
