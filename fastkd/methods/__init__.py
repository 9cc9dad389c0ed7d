"""The directory is the registry: one method a file. Names are known without importing torch."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from loaders.errors import UserError, nearest

if TYPE_CHECKING:
    from fastkd.method import Method

PLAIN = "vanilla"  # the method that needs no teacher
DEFAULT = "kd"

# the references' other names
ALIASES: dict[str, str] = {
    "none": PLAIN,
    "correlation": "cc",
    "hint": "fitnet",
    "attention": "at",
    "similarity": "sp",
    "factor": "ft",
    "abound": "ab",
}


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def canonical(name: str) -> str:
    """The file's name for what the user wrote. `package.module:Class` names a method from outside the tree."""
    if ":" in name:
        return name
    folded = name.lower().replace("-", "_")
    folded = ALIASES.get(folded, folded)
    if folded not in names():
        raise UserError(f"unknown method '{name}'{nearest(name, [*names(), *ALIASES])}")
    return folded


def load(name: str) -> type[Method]:
    name = canonical(name)
    if ":" not in name:
        found: type[Method] = importlib.import_module(f"{__name__}.{name}").METHOD
        return found
    module_name, _, attribute = name.partition(":")
    try:
        method = importlib.import_module(module_name).__dict__[attribute]
    except ModuleNotFoundError as error:
        raise UserError(f"method '{name}': {error}; is the folder that holds it on PYTHONPATH?") from None
    except KeyError:
        raise UserError(f"method '{name}': module {module_name} has no '{attribute}'") from None
    from fastkd.method import Method

    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(f"method '{name}': {attribute} is not a subclass of fastkd.method.Method")
    return method
