"""The ``refpeft`` program: one file per command, and the commands that plugins bring.

Standard output carries results only. Whatever is wrong with the input is one sentence on standard error.

===========  ====================================================
exit status  meaning
===========  ====================================================
0            done
1            a check failed
2            bad input, or nothing could run, or refpeft has a bug
130, 141     interrupted; the reader of standard output went away
===========  ====================================================
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import click

from refpeft import __version__, plugins
from refpeft.errors import PluginError, RefpeftError

COMMANDS = (
    "operations",
    "methods",
    "memory",
    "convert",
    "model",
    "train",
    "sweep",
    "evaluate",
    "merge",
    "extract",
    "lint",
    "generate",
    "explain",
    "oracle",
    "backends",
    "golden",
)
"""Each is a module of this package with a ``command``; importing one imports nothing but click."""


class Failure(click.ClickException):
    """The one sentence with which the program ends."""

    exit_code = 2

    def show(self, file=None):
        text = " ".join(self.message.split())
        click.echo(f"refpeft: {text}{'' if text.endswith(('.', '?')) else '.'}", file or sys.stderr)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turn what can go wrong into `Failure`, an interruption into its exit status."""
    try:
        yield
    except (KeyboardInterrupt, click.Abort):
        raise click.exceptions.Exit(130) from None
    except BrokenPipeError:
        raise click.exceptions.Exit(141) from None
    except click.ClickException as error:
        raise Failure(error.format_message()) from error
    except RefpeftError as error:
        raise Failure(str(error)) from error
    except MemoryError as error:
        raise Failure(f"the memory of this machine does not suffice: {error or 'nothing is left'}.") from error
    except OSError as error:
        name = "" if error.filename is None else f"{os.fspath(error.filename)}: "
        raise Failure(f"{name}{error.strerror or error}.") from error


class Program(click.Group):
    """A group that finds its commands when they are asked for, and fails in one sentence."""

    def list_commands(self, context):
        return [*COMMANDS, *plugin_commands()]

    def get_command(self, context, name):
        if name in COMMANDS:
            return importlib.import_module(f"refpeft.cli.{name}").command
        return plugin_commands().get(name)

    def resolve_command(self, context, arguments):
        name = arguments[0]
        if self.get_command(context, name) is None and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.list_commands(context), n=1)
            reasons = [f"did you mean {near[0]}?"] if near else _broken() or ["'refpeft --help' lists them."]
            raise click.UsageError(f"there is no command {name!r}: {reasons[0]}", context)
        return super().resolve_command(context, arguments)

    def format_help(self, context, formatter):
        super().format_help(context, formatter)
        for line in _broken():
            click.echo(f"refpeft: {line}", err=True)

    def make_context(self, *args, **keywords):
        with one_sentence():
            return super().make_context(*args, **keywords)

    def invoke(self, context):
        with one_sentence():
            result = super().invoke(context)
            sys.stdout.flush()
            return result

    def main(self, args=None, prog_name=None, complete_var=None, standalone_mode=True, **extra):
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        try:
            return super().main(args, prog_name or "refpeft", complete_var, standalone_mode, **extra)
        except Exception:
            if not standalone_mode:
                raise
            traceback.print_exc()
            sys.exit(2)
        finally:
            _flush()


def _flush() -> None:
    """Write out what is buffered; a reader that went away is no error, now or when Python closes the stream."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _broken() -> list[str]:
    """One line that says which plugins are broken; empty where none is."""
    broken = plugins.broken()
    if len(broken) < 2:
        return [f"{b}." for b in broken]
    return [f"the plugins {', '.join(b.name for b in broken)} are broken: 'refpeft backends' says why."]


@functools.cache
def plugin_commands() -> dict[str, click.Command]:
    """The commands of all plugins by name, sorted; a plugin that brings something else is marked broken."""
    found: dict[str, click.Command] = {}
    for plugin, offered in plugins.commands():
        for command in offered or []:
            if not isinstance(command, click.Command):
                problem = f"refpeft_commands must return click commands, but returned {command!r}"
            elif command.name in found or command.name in COMMANDS:
                problem = f"it brings a command {command.name!r}, a name that is taken"
            else:
                found[str(command.name)] = command
                continue
            plugins._mark(plugin, PluginError(problem))
    return dict(sorted(found.items()))


@click.group(cls=Program, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def main(context):
    """The executable specification of parameter-efficient fine-tuning."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
