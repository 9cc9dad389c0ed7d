"""From what the user wrote to a RunConfig: defaults < data-set recipe < method recipe < yaml file < flags."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fastkd import config, methods, models
from fastkd.config import RunConfig
from loaders.errors import UserError, nearest

PACKAGE = Path(__file__).parent
FOLDER = next(p for p in (PACKAGE / "configs", PACKAGE.parent / "configs") if p.is_dir())


class Request(NamedTuple):
    config: RunConfig
    # method.* keys given by a flag that serves several methods: one the chosen method lacks is a warning, no error
    shared_method_keys: frozenset[str]


@dataclass(frozen=True)
class Row:
    """A special case as data: where `when` matches, `set` holds unless the user says otherwise."""

    when: Mapping[str, str]  # dotted key -> patterns, | between them
    set: Mapping[str, Any]  # dotted keys
    why: str
    source: str

    def matches(self, current: Mapping[str, Any]) -> bool:
        values = config.flat(current)
        return all(
            any(fnmatch.fnmatchcase(str(values.get(key, "")).lower(), p.strip()) for p in patterns.split("|"))
            for key, patterns in self.when.items()
        )


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no such configuration file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not plain yaml: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold key: value sections, found a {type(content).__name__}")
    try:
        config.flat(content)
    except RecursionError:
        raise UserError(f"{path}: a section holds itself (&name .. *name); write it out") from None
    return content


def datasets() -> list[str]:
    return sorted(p.stem for p in (FOLDER / "datasets").glob("*.yaml"))


def rows(kind: str, name: str) -> list[Row]:
    """A data set's or a method's special cases, in order."""
    path = FOLDER / kind / f"{name}.yaml"
    if not path.is_file():
        return []
    source = f"configs/{kind}/{path.name}"
    return [
        Row(row.get("when", {}), config.flat(row["set"]), row.get("why", ""), source)
        for row in read_yaml(path)["rows"]
    ]


def pairs(words: Iterable[str]) -> dict[str, str]:
    """KEY VALUE KEY VALUE .. or KEY=VALUE .."""
    out = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if "=" in word:
            key, _, value = word.partition("=")
        elif waiting:
            key, value = word, waiting.pop(0)
        else:
            raise UserError(f"'{word}' is neither a flag nor KEY VALUE; --help lists the flags")
        out[key] = value
    return out


def resolve(kind: str, asked: Mapping[str, Any], shared: Iterable[str] = ()) -> Request:
    """`asked`: dotted keys, from yaml and flags together. A teacher is a student of nobody: the plain method."""
    asked = {key: value for key, value in asked.items() if key not in ("applied", "kind")}
    for section in ("data", "student", "teacher", "method", "optim", "run"):
        if asked.get(section) is not None:
            found = asked[section]
            raise UserError(f"{section} must be a section of key: value lines, found {found!r}")
    user = config.nested({key: value for key, value in asked.items() if value is not None or "." in key})
    dataset = str(asked.get("data.dataset", RunConfig().data.dataset)).lower()
    if dataset not in datasets():
        raise UserError(f"unknown data set '{dataset}'{nearest(dataset, datasets())}")
    method = methods.PLAIN if kind == "teacher" else str(asked.get("method.name", methods.DEFAULT))
    canonical = methods.canonical(method)
    if ":" in canonical and not all(part.isidentifier() for part in canonical.replace(":", ".").split(".")):
        raise UserError(f"method '{canonical}' must be a name or package.module:Class")
    user = config.merge(user, {"data": {"dataset": dataset}, "method": {"name": canonical}})
    for role in ("student", "teacher"):
        name = asked.get(f"{role}.model")
        if name:
            user = config.merge(user, {role: {"model": models.canonical(str(name))}})
    # a RunConfig's own defaults, so that rows may ask about any key
    current = config.merge(config.tree(RunConfig()), {"kind": kind})
    applied = []
    for row in [*rows("datasets", dataset), *rows("methods", canonical)]:
        if not row.matches(config.merge(current, user)):
            continue
        current = config.merge(current, config.nested(row.set))
        given = config.flat(user)
        kept = {key: value for key, value in row.set.items() if key not in given}
        if row.why and kept:
            values = ", ".join(f"{key}={value}" for key, value in kept.items())
            applied.append(f"{row.source}: {values} because {row.why}")
    whole = config.merge(current, user) | {"applied": applied}
    return Request(config.build(RunConfig, whole, ""), frozenset(shared))
