"""Finds destinations: every module of this package that has a `definition`. Nothing is registered by hand.

Vendor libraries are imported inside `connect`, so that listing costs no more than the modules themselves.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from pkgutil import walk_packages
from types import MappingProxyType, ModuleType
from typing import Any

import destinations
from destinations.contract import Definition
from schemas.errors import ConfigError


@cache
def definitions() -> Mapping[str, Definition[Any, Any]]:
    """Every destination by its name, sorted. ConfigError when two modules claim one name."""
    return MappingProxyType(collect(_modules()))


def definition(name: str) -> Definition[Any, Any]:
    """The destination called `name`. ConfigError lists what there is when there is none."""
    known = definitions()
    try:
        return known[name]
    except KeyError:
        raise ConfigError(f"destination type {name!r} does not exist; choose one of: {', '.join(known)}") from None


def collect(modules: Iterable[ModuleType]) -> dict[str, Definition[Any, Any]]:
    """The definitions of `modules` by name, sorted."""
    found: dict[str, tuple[str, Definition[Any, Any]]] = {}
    for module in modules:
        one = vars(module).get("definition")
        if not isinstance(one, Definition):
            continue
        if one.name in found:
            raise ConfigError(
                f"destination {one.name!r} is defined twice: in {found[one.name][0]} and {module.__name__}"
            )
        found[one.name] = (module.__name__, one)
    return {name: found[name][1] for name in sorted(found)}


def _modules() -> Iterable[ModuleType]:
    for info in walk_packages(destinations.__path__, f"{destinations.__name__}.", onerror=_fail):
        if not info.ispkg and info.name != __name__:
            yield import_module(info.name)


def _fail(name: str) -> None:
    """A sub-package that cannot be imported is a fault of the installation, not a destination fewer."""
    raise ConfigError(f"destination package {name} cannot be imported; reinstall Millrace")
