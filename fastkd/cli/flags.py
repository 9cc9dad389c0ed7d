"""Every flag of train_teacher.py and train_student.py, as rows: spellings, the configuration key, what it means.

No flag has a default here: what is not given is left to the recipes, and `--dry-run` prints what that comes to.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from fastkd import methods, recipes
from fastkd.config import flat
from loaders.errors import UserError, nearest

BOTH, TEACHER, STUDENT = ("teacher", "student"), ("teacher",), ("student",)


class Flag(NamedTuple):
    names: str
    key: str
    help: str
    metavar: str = ""  # '' = a switch
    scripts: tuple[str, ...] = BOTH


# Given for several methods by the references' scripts: one that the chosen method lacks is a warning, not an error.
SHARED_METHOD_FLAGS = (
    Flag("--feat-dim", "method.feat_dim", "width of the embeddings (crd, rrd)", "N", STUDENT),
    Flag("--nce-k", "method.nce_k", "stored keys, or negatives a sample", "N", STUDENT),
    Flag("--nce-t", "method.nce_t", "temperature of the contrastive scores", "T", STUDENT),
    Flag("--nce-m", "method.nce_m", "momentum of the memory bank", "M", STUDENT),
    Flag("--nce-t-s", "method.nce_t_s", "student's temperature", "T", STUDENT),
    Flag("--nce-t-t", "method.nce_t_t", "teacher's temperature", "T", STUDENT),
    Flag("--memory-type", "method.memory_type", "fifo or momentum", "KIND", STUDENT),
    Flag("--mode", "method.mode", "exact or relax", "MODE", STUDENT),
    Flag("--hint-layer", "method.hint_layer", "which feature is the hint", "N", STUDENT),
    Flag("-f --factor", "method.factor", "width divisor of the projector", "N", STUDENT),
    Flag("-s --soft", "method.soft", "temperature of the attention", "T", STUDENT),
    Flag("--init-epochs", "method.init_epochs", "epochs of the first phase", "N", STUDENT),
)

GROUPS: Mapping[str, tuple[Flag, ...]] = {
    "what is trained": (
        Flag("--dataset", "data.dataset", f"one of: {', '.join(recipes.datasets())}", "NAME"),
        Flag("--model", "student.model", "the net (fastkd models lists them)", "NAME", TEACHER),
        Flag("--model-s", "student.model", "the student's net (fastkd models lists them)", "NAME", STUDENT),
        Flag(
            "--model-t",
            "teacher.model",
            "the teacher's net; default: what its file says or fits",
            "NAME",
            STUDENT,
        ),
        Flag("--path-t", "teacher.path", "the teacher: a file or a run directory", "PATH", STUDENT),
        Flag(
            "--distill",
            "method.name",
            f"one of: {', '.join(methods.names())}; or package.module:Class",
            "NAME",
            STUDENT,
        ),
        Flag("--out", "run.out", "run directory; default: a name under save/", "DIR"),
        Flag("--seed", "run.seed", "the run's seed is SEED + TRIAL", "N"),
        Flag("-t --trial", "run.trial", "number of the repetition", "N"),
    ),
    "loss = CLS * cross-entropy + DIV * KL at kd_T + BETA * the method's own terms": (
        Flag("-c --cls -r --gamma", "method.task_weight", "weight of the cross-entropy", "CLS", STUDENT),
        Flag("-d --div -a --alpha", "method.kd_weight", "weight of the soft-label KL", "DIV", STUDENT),
        Flag("-b --beta", "method.weight", "weight of the method's own terms", "BETA", STUDENT),
        Flag("--kd-T", "method.kd_temperature", "temperature of the soft labels", "T", STUDENT),
    ),
    "the method's own numbers (fastkd methods shows who has which)": SHARED_METHOD_FLAGS,
    "data": (
        Flag("--data", "data.root", "folder of the data; default: ./data", "DIR"),
        Flag("--download", "data.download", "fetch the data into --data when it is missing"),
        Flag("--batch-size", "data.batch_size", "over all ranks", "N"),
        Flag("--test-batch-size", "data.test_batch_size", "over all ranks", "N"),
        Flag("--num-workers", "data.num_workers", "over all ranks, for loaders that have workers", "N"),
        Flag("--loader", "data.loader", "auto, device, torch, ffcv or dali", "NAME"),
        Flag("--dali", "data.dali", "none, cpu or gpu", "WHERE"),
    ),
    "optimisation": (
        Flag("--epochs", "optim.epochs", "", "N"),
        Flag("--learning-rate --lr", "optim.lr", "", "LR"),
        Flag(
            "--lr-decay-epochs", "optim.decay_epochs", "the rate falls after these epochs: 150,180,210", "E,E"
        ),
        Flag("--lr-decay-rate", "optim.decay_rate", "by this factor", "X"),
        Flag("--schedule", "optim.schedule", "step or cosine", "NAME"),
        Flag("--warmup-epochs", "optim.warmup_epochs", "linear rise of the rate", "X"),
        Flag(
            "--optimizer",
            "optim.optimizer",
            "sgd, adamw, or dot (momenta of their own for task and distillation)",
            "NAME",
        ),
        Flag("--momentum", "optim.momentum", "", "M"),
        Flag(
            "--dot-delta",
            "optim.dot_delta",
            "dot: how far its two momenta are from --momentum",
            "D",
            STUDENT,
        ),
        Flag("--weight-decay", "optim.weight_decay", "", "W"),
    ),
    "machine": (
        Flag("--device", "run.device", "auto, cuda or cpu", "NAME"),
        Flag("--gpu-id", "run.gpu_id", "which GPUs: 0 or 0,1,2", "IDS"),
        Flag("--threads", "run.threads", "CPU threads of an operation; 0 = torch's choice", "N"),
        Flag("--amp", "run.amp", "auto, off, bf16 or fp16; losses are float32 in each", "NAME"),
        Flag("--channels-last", "run.channels_last", "on or off (default on)", "?"),
        Flag("--deterministic", "run.deterministic", "only deterministic kernels (a CPU run always is)"),
        Flag("--multiprocessing-distributed", "run.distributed", "one process a visible GPU"),
        Flag("--dist-url", "run.dist_url", "where the processes meet", "URL"),
        Flag("--graph", "run.graph", "auto, on or off: replay the step as a CUDA graph", "NAME"),
        Flag("--compile", "run.compile", "off, default or max-autotune", "NAME"),
        Flag(
            "--teacher-cache",
            "run.teacher_cache",
            "off, auto or a folder: look the teacher's answers up",
            "DIR",
            STUDENT,
        ),
        Flag("--cache-dtype", "run.cache_dtype", "fp16 or fp32", "NAME", STUDENT),
        Flag(
            "--cache-views",
            "data.cache_views",
            "recorded views of a picture whose crops are endless",
            "K",
            STUDENT,
        ),
    ),
    "reports": (
        Flag("--print-freq", "run.print_freq", "steps between two reports", "N"),
        Flag("--save-freq", "run.save_freq", "also keep epoch_N.pt every so many epochs; 0 = none", "N"),
        Flag(
            "--skip-validation",
            "run.skip_validation",
            "do not check the teacher on the test set first",
            "",
            STUDENT,
        ),
    ),
}


class Parser(argparse.ArgumentParser):
    """One line on stderr and exit code 2 instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help lists the flags)")


class Asked(NamedTuple):
    values: dict[str, Any]  # dotted keys, as the user wrote them
    shared_method_keys: tuple[str, ...]
    resume: str | None
    dry_run: bool
    unused: tuple[str, ...]  # accepted for the references' sake, without effect


def hyphens(arguments: Iterable[str]) -> list[str]:
    """--kd_T as --kd-T: flags may be written either way."""
    out = []
    for word in arguments:
        name, sign, value = word.partition("=")
        out.append(name.replace("_", "-") + sign + value if name.startswith("--") else word)
    return out


def parser(script: str, prog: str) -> Parser:
    made = Parser(
        prog=prog, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"{prog} [flags] [KEY VALUE ...]",
        description=f"Trains a {script}. Hyphens and underscores in flags are alike; what a flag does not say comes from\n"
        "the recipes in configs/, and --dry-run prints what that amounts to.",
        epilog="defaults < data-set recipe < method recipe < --cfg file < KEY VALUE and --options < flags",
    )  # fmt: skip
    general = made.add_argument_group("configuration")
    general.add_argument("--cfg", "-cfg", metavar="FILE", help="a yaml file; a run's config.yaml is one")
    general.add_argument("--options", nargs="+", metavar="K=V", action="extend", help="configuration keys")
    general.add_argument("--resume", nargs="?", const="auto", metavar="PATH",
                         help="auto: go on where --out stopped, if it did; PATH: go on from that run or checkpoint")  # fmt: skip
    general.add_argument("--dry-run", action="store_true",
                         help="resolve, build and check everything, one step on made-up samples, write nothing")  # fmt: skip
    general.add_argument("--tb-freq", metavar="N", help=argparse.SUPPRESS)
    general.add_argument("words", nargs="*", metavar="KEY VALUE", help="configuration keys and their values")
    for title, flags in GROUPS.items():
        group = made.add_argument_group(title)
        for flag in flags:
            if script not in flag.scripts:
                continue
            spread: dict[str, Any] = {
                "dest": flag.key,
                "default": argparse.SUPPRESS,
                "help": f"{flag.help} [{flag.key}]",
            }
            if flag.metavar == "?":
                spread |= {"nargs": "?", "const": "on", "metavar": "on|off"}
            elif flag.metavar:
                spread |= {"metavar": flag.metavar}
            else:
                spread |= {"action": "store_const", "const": "on"}
            group.add_argument(*flag.names.split(), **spread)
    return made


def read(script: str, prog: str, arguments: Sequence[str]) -> Asked:
    made = parser(script, prog)
    space, unknown = made.parse_known_intermixed_args(hyphens(arguments))
    for word in unknown:
        if word.startswith("-"):
            name = word.split("=")[0]
            known = [n for action in made._actions for n in action.option_strings if n.startswith("--")]
            raise UserError(
                f"unknown flag '{name}'{nearest(name, known)}"
                if name.startswith("--")
                else f"unknown flag '{name}'"
            )
        raise UserError(f"'{word}' is neither a flag nor KEY VALUE; {prog} --help lists the flags")
    given = vars(space)
    keys = {flag.key for flags in GROUPS.values() for flag in flags}
    flags_given = {key: value for key, value in given.items() if key in keys}
    values = flat(recipes.read_yaml(Path(given["cfg"]))) if given["cfg"] else {}
    values |= recipes.pairs([*(given["options"] or ()), *given["words"]])
    shared = {flag.key for flag in SHARED_METHOD_FLAGS} & set(flags_given)
    return Asked(
        values | flags_given,
        tuple(sorted(shared)),
        given["resume"],
        given["dry_run"],
        ("--tb-freq",) if given["tb_freq"] else (),
    )
