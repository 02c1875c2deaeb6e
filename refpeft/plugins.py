"""Plugins: five pluggy hooks, and a discovery in which one broken plugin harms nobody.

A plugin is a module named by an entry point in the group ``refpeft``. It marks its functions with `hookimpl`:

    from refpeft.plugins import hookimpl

    @hookimpl
    def refpeft_backends():
        return [MyBackend()]

Whatever a plugin raises, when it is imported or called, even SystemExit, is caught and listed by `broken`. refpeft's
own plugins and operations come first, so that no other can take their names. What a plugin prints goes to standard error:
standard output belongs to the answer.

Importing importlib.metadata takes a quarter of the time in which the catalogue is imported. It is done where an installed
package's entry points name the group at all. Where none does, the program's commands are known without any plugin but the kit.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.machinery
import os
import pkgutil
import reprlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from refpeft.errors import PluginError

if TYPE_CHECKING:
    from refpeft.backend import Backend

GROUP = "refpeft"
OWN = {
    "conformance": "refpeft_conformance.hooks",
    "cpu": "refpeft_cpu",
    "cupy": "refpeft_cupy",
    "peft": "refpeft_hf",
    "process": "refpeft_process",
    "reference": "refpeft.reference",
    "torch": "refpeft_torch",
}
"""Modules of refpeft's own plugins, by the plugin's name."""

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


@dataclass(frozen=True)
class Entry:
    """A plugin that can be loaded, and the distribution that brings it."""

    name: str
    distribution: str
    version: str
    load: Callable[[], Any]


_broken: dict[tuple[str, str], Broken] = {}
_entries: dict[str, Entry] = {}
_brought_by: dict[str, str] = {}
_loading = False


@functools.cache
def manager() -> pluggy.PluginManager:
    """The plugin manager with every loadable plugin registered; failures go to `broken`.

    Raises
    ------
    PluginError
        To a plugin that asks for plugins, backends or the catalogue while it is being imported.
    """
    global _loading
    if _loading:
        raise PluginError("plugins, backends and the catalogue can be asked for within a hook, not during import")
    _loading = True
    try:
        plugins = pluggy.PluginManager(GROUP)
        plugins.add_hookspecs(Specification)
        _import_own_operations()
        for entry in [*_own(), *_third_parties()]:
            with _guarded(entry):
                _register(plugins, entry)
        return plugins
    finally:
        _loading = False


def _import_own_operations() -> None:
    from refpeft import ops

    for module in pkgutil.iter_modules(ops.__path__):
        importlib.import_module(f"{ops.__name__}.{module.name}")


def _own() -> list[Entry]:
    from refpeft import __version__

    return [
        Entry(name, "refpeft", __version__, functools.partial(importlib.import_module, module))
        for name, module in OWN.items()
    ]


def _third_parties() -> list[Entry]:
    """Plugins that other distributions name in their entry points, by name; an older refpeft named its own there, too."""
    if not _is_group_named():
        return []
    import importlib.metadata

    found = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name)
    return [Entry(e.name, e.dist.name, e.dist.version, e.load) for e in found if e.dist and e.dist.name != "refpeft"]


def _is_group_named() -> bool:
    """Whether an entry_points.txt on the path names the group, or one may that only importlib.metadata finds."""
    if any(hasattr(f, "find_distributions") and f is not importlib.machinery.PathFinder for f in sys.meta_path):
        return True
    for folder in map(os.path.abspath, sys.path):
        if os.path.isfile(folder):
            return True
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            if name.lower().endswith("-info"):
                with contextlib.suppress(OSError), open(f"{folder}/{name}/entry_points.txt", "rb") as file:
                    if f"[{GROUP}]".encode() in file.read():
                        return True
    return False


def _register(plugins: pluggy.PluginManager, entry: Entry) -> None:
    if plugins.has_plugin(entry.name):
        raise PluginError("another distribution brings a plugin of the same name")
    plugin = entry.load()
    try:
        plugins.register(plugin, name=entry.name)
        plugins.check_pending()
        if not plugins.get_hookcallers(plugin):
            raise PluginError("it has no hook; each is a function marked with refpeft.plugins.hookimpl")
    except BaseException:
        if plugins.has_plugin(entry.name):
            plugins.unregister(name=entry.name)
        raise
    _entries[entry.name] = entry


def commands() -> list[tuple[str, Any]]:
    """What plugins bring to the ``refpeft`` program, as `call` gives it; the kit's take neither NumPy nor the catalogue."""
    if not _third_parties():
        with contextlib.suppress(Exception):
            return [("conformance", importlib.import_module(OWN["conformance"]).refpeft_commands())]
    return call("refpeft_commands")


def broken() -> list[Broken]:
    """Plugins that failed so far, by name: to be imported, or to answer."""
    return [_broken[key] for key in sorted(_broken)]


@contextlib.contextmanager
def _guarded(entry: Entry) -> Iterator[None]:
    """Mark the plugin as broken if the block raises anything but the user's interrupt, and carry on."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        _broken[entry.name, entry.distribution] = Broken(entry.name, entry.distribution, entry.version, said)


def _mark(plugin: str, error: BaseException) -> None:
    """Mark a registered plugin as broken."""
    with _guarded(_entries[plugin]):
        raise error


def call(hook: str, **arguments) -> list[tuple[str, Any]]:
    """Call a hook on each plugin by itself; one that raises, or returns no list, is marked broken and left out.

    Returns
    -------
    list of (plugin name, list, tuple or None)
        In the order in which the plugins were registered.
    """
    results = []
    implementations = {i.plugin_name: i for i in getattr(manager().hook, hook).get_hookimpls()}
    for plugin in [name for name in _entries if name in implementations]:
        with _guarded(_entries[plugin]):
            implementation = implementations[plugin]
            result = implementation.function(**{name: arguments[name] for name in implementation.argnames})
            if not isinstance(result, list | tuple | None):
                raise PluginError(f"{hook} must return a list, but returned {reprlib.repr(result)}")
            results.append((plugin, result))
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
        for backend in offered or ():
            with _guarded(_entries[plugin]):
                _admit(found, backend)
                _brought_by[backend.name] = plugin
    return found


def distribution(backend: str) -> str | None:
    """Name and version of the distribution that brings a backend, where its plugin has one."""
    backends()
    plugin = _brought_by.get(backend)
    return f"{_entries[plugin].distribution} {_entries[plugin].version}" if plugin else None


def _admit(found: dict[str, Backend], backend) -> None:
    from refpeft.backend import Backend

    if not isinstance(backend, Backend):
        raise PluginError(
            f"refpeft_backends must return refpeft.backend.Backend objects, but returned {reprlib.repr(backend)}"
        )
    name = backend.name
    if not isinstance(name, str) or not name:
        raise PluginError(f"the name of its backend must be a string that is not empty, but is {reprlib.repr(name)}")
    if name in found:
        raise PluginError(f"it brings a backend {name!r}, a name that another plugin has already")
    found[name] = backend


def backend(name: str | Backend) -> Backend:
    """The backend called ``name``; one that is handed in, as it is.

    Raises
    ------
    PluginError
        If there is none: with the broken plugin's error where it has that name.
    """
    from refpeft.backend import Backend

    if isinstance(name, Backend):
        return name
    known = backends()
    if name not in known:
        for failed in broken():
            if failed.name == name:
                raise PluginError(f"{failed}.")
        raise PluginError(f"there is no backend {name!r}: known are {', '.join(known)}.")
    return known[name]
