"""Plugins: five pluggy hooks, and a discovery in which one broken plugin harms nobody.

A plugin is a module named by an entry point in the group ``refpeft``. It marks its functions with `hookimpl`:

    from refpeft.plugins import hookimpl

    @hookimpl
    def refpeft_backends():
        return [MyBackend()]
"""

from __future__ import annotations

import functools
import importlib.metadata
from dataclasses import dataclass
from typing import Any

import pluggy

from refpeft.backend import Backend
from refpeft.errors import PluginError

GROUP = "refpeft"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Specification:
    """The hooks that refpeft calls."""

    @hookspec
    def refpeft_backends(self):
        """Return a list of `refpeft.backend.Backend`; making one must not import its array library."""

    @hookspec
    def refpeft_operations(self):
        """Import the modules that declare the plugin's operations; return nothing."""

    @hookspec
    def refpeft_commands(self):
        """Return a list of click commands for the ``refpeft`` program; importing them must be cheap."""

    @hookspec
    def refpeft_diagnose(self, problem, outputs):
        """Return names of faults that explain wrong ``outputs`` (arrays by name) of a `refpeft.problem.Problem`."""

    @hookspec
    def refpeft_certified(self, certificate):
        """A certificate (plain data) has been written; for reporters."""


@dataclass(frozen=True)
class Broken:
    """A plugin that failed to load or to answer.

    Attributes
    ----------
    name, distribution, version, error : str
    """

    name: str
    distribution: str
    version: str
    error: str

    def __str__(self) -> str:
        return f"plugin {self.name!r} of {self.distribution} {self.version} is broken: {self.error}"


_broken: dict[str, Broken] = {}


@functools.cache
def manager() -> pluggy.PluginManager:
    """The plugin manager with every loadable plugin registered; failures go to `broken`."""
    plugins = pluggy.PluginManager(GROUP)
    plugins.add_hookspecs(Specification)
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: e.name):
        if plugins.has_plugin(entry.name):
            continue
        try:
            plugins.register(entry.load(), name=entry.name)
            plugins.check_pending()
        except Exception as error:
            plugins.unregister(name=entry.name) if plugins.has_plugin(entry.name) else None
            _mark(entry.name, error)
    return plugins


def broken() -> list[Broken]:
    """Plugins that failed so far, by name."""
    manager()
    return [_broken[name] for name in sorted(_broken)]


def _mark(name: str, error: BaseException) -> None:
    entries = [e for e in importlib.metadata.entry_points(group=GROUP) if e.name == name]
    found = entries[0].dist if entries else None
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    _broken[name] = Broken(name, found.name if found else "unknown", found.version if found else "unknown", said)


def call(hook: str, **arguments) -> list[tuple[str, Any]]:
    """Call a hook on each plugin by itself; a plugin that raises is marked broken and left out.

    Returns
    -------
    list of (plugin name, result)
    """
    results = []
    for implementation in getattr(manager().hook, hook).get_hookimpls():
        given = {name: arguments[name] for name in implementation.argnames}
        try:
            results.append((implementation.plugin_name, implementation.function(**given)))
        except Exception as error:
            _mark(implementation.plugin_name, error)
    return results


@functools.cache
def load_operations() -> None:
    """Let plugins declare their operations, once."""
    call("refpeft_operations")


@functools.cache
def backends() -> dict[str, Backend]:
    """All backends by name, the first of equal names winning; a plugin that brings something else is marked broken."""
    found: dict[str, Backend] = {}
    for plugin, offered in call("refpeft_backends"):
        for backend in offered or []:
            if not isinstance(backend, Backend):
                _mark(
                    plugin,
                    PluginError(
                        f"refpeft_backends must return refpeft.backend.Backend objects, but returned {backend!r}"
                    ),
                )
            elif backend.name in found:
                _mark(
                    plugin, PluginError(f"it brings a backend {backend.name!r}, a name that another plugin has already")
                )
            else:
                found[backend.name] = backend
    return found


def backend(name: str) -> Backend:
    """The backend called ``name``.

    Raises
    ------
    PluginError
        If there is none: with the broken plugin's error where it has that name.
    """
    known = backends()
    if name not in known:
        if name in _broken:
            raise PluginError(f"{_broken[name]}.")
        raise PluginError(f"there is no backend {name!r}: known are {', '.join(known)}.")
    return known[name]
