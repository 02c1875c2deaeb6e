"""Options that commands share, and how those are read that come as ``NAME=VALUE`` or as a size."""

from __future__ import annotations

import functools
import re

import click
from click.core import ParameterSource

_UNITS = {"": 1, "B": 1, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def pairs(option: str, texts) -> dict[str, str]:
    """Values by name, each given once."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{option} needs NAME=VALUE, but {text!r} came.")
        if name in found:
            raise click.UsageError(f"{option} {name} is given twice.")
        found[name] = value
    return found


options_of_method = click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any of the method's options: tokens=3,17; repeatable.",
)


def as_bytes(option: str, text: str) -> int:
    """Bytes from 48GB (10**9 bytes each), 47.5GiB (2**30) or a number alone."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([A-Za-z]*)", text.strip(), re.ASCII)
    bytes = int(float(found[1]) * _UNITS[found[2]]) if found is not None and found[2] in _UNITS else 0
    if not bytes:
        raise click.UsageError(f"{option} needs a size as 48GB or 47.5GiB, but {text!r} came.")
    return bytes


def _given(option: str, text: str | None) -> str:
    """A text that is not empty, or an empty one where none was asked for."""
    if text == "":
        raise click.UsageError(f"{option} needs a text, but an empty one came.")
    return require_text(option, text or "")


def require_text(option: str, text: str) -> str:
    """A text as it is, unless bytes came that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise click.UsageError(f"{option} must be UTF-8, but {text[error.start : error.end]!r} came.") from None
    return text


def names(option: str, text: str) -> tuple[str, ...]:
    """Names between commas."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found):
        raise click.UsageError(f"{option} needs names with commas between, but {text!r} came.")
    return found


def integers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers between commas."""
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise click.UsageError(f"{option} needs whole numbers as 1,2,4, but {text!r} came.") from None


NEEDS = {
    "rank": "has a rank",
    "alpha": "has an alpha",
    "tokens": "has tokens",
    "reduction": "has a reduction",
    "targets": "stands at matrices",
}
"""Options that say something to some methods, and to which."""


def require_taken(*methods: str) -> None:
    """Refuse one of `NEEDS` that was asked for where it says nothing to any method of these names.

    Raises
    ------
    click.UsageError
    """
    from refpeft.training import choice

    context = click.get_current_context()
    for option in context.command.params:
        name, value = option.opts[0].removeprefix("--"), context.params.get(str(option.name))
        asked = name in NEEDS and context.get_parameter_source(str(option.name)) is not ParameterSource.DEFAULT
        if asked and not any(choice.takes(method, name) for method in methods):
            raise click.UsageError(
                f"--{name} {value} needs a method that {NEEDS[name]}, but {', '.join(methods)} came."
            )


def quantised(command):
    """The options ``--quantize`` and ``--double-quant``; the command gets ``quantise``, None for a model as it is."""

    @click.option("--quantize", metavar="FORMAT", help="Keep the model's matrices in 4 bits: nf4 or fp4.")
    @click.option("--double-quant", is_flag=True, help="Quantise the blocks' maxima as well.")
    @functools.wraps(command)
    def given(*, quantize, double_quant, **others):
        from refpeft.convert.quantise import Settings

        if double_quant and quantize is None:
            raise click.UsageError("--double-quant needs --quantize nf4 or fp4.")
        return command(
            quantise=Settings(kind=quantize, double=double_quant) if quantize is not None else None, **others
        )

    return given


def configured(command):
    """The option ``--config``: a TOML file with the other options, by their names; what is on the command line goes before."""
    help = "A TOML file of options, as rank = 8; those of the command line go before."
    return click.option("--config", metavar="FILE", is_eager=True, expose_value=False, callback=_read, help=help)(
        command
    )


def _read(context: click.Context, _, path: str | None) -> None:
    """Make what the file says the options' defaults."""
    import tomllib

    if path is None:
        return
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--config {path} must be a TOML file of options: {error}") from error
    options = [p for p in context.command.params if isinstance(p, click.Option) and p.name != "config"]
    known = {name.removeprefix("--"): option.name for option in options for name in option.opts}
    if strange := found.keys() - known:
        raise click.UsageError(f"--config {path} has {min(strange)!r}, expected one of {', '.join(sorted(known))}.")
    by_name = {option.name: option for option in options}
    context.default_map = {known[n]: _stated(path, n, value, by_name[known[n]]) for n, value in found.items()}


def _stated(path: str, name: str, value, option: click.Option):
    """A value of a TOML file as the command line would state it."""
    values = value if option.multiple and isinstance(value, list) else [value]
    wanted = "true or false" if option.is_flag else "values in a list" if option.multiple else "one value"
    if any(isinstance(one, dict | list) or "\0" in str(one) for one in values) or (
        option.is_flag and not isinstance(value, bool)
    ):
        raise click.UsageError(f"--config {path}: {name} must be {wanted}, but {value!r} came.")
    if option.is_flag:
        return value
    return [str(one) for one in values] if option.multiple else str(value)


_TRAINING = (
    click.option("--alpha", type=float, default=16.0, show_default=True),
    click.option("--tokens", type=int, default=20, show_default=True, help="Virtual ones, of a prompt or prefix."),
    click.option("--reduction", type=int, default=16, show_default=True, help="The width over an adapter's."),
    click.option(
        "--targets",
        default="",
        show_default="q,v, or c_attn in GPT-2",
        help="Of a method at matrices: which of every layer, or all-linear.",
    ),
    click.option("--steps", type=int, default=200, show_default=True),
    click.option("--batch", type=int, default=4, show_default=True, help="Rows of text in a step."),
    click.option("--sequence", type=int, default=128, show_default=True, help="Tokens that a row predicts."),
    click.option("--lr", type=float, default=1e-3, show_default=True),
    click.option("--schedule", default="cosine", show_default=True, help="constant, linear or cosine."),
    click.option("--warmup", type=int, default=0, show_default=True, help="Steps."),
    click.option(
        "--optimizer", default="adamw", show_default=True, help="As 'refpeft memory' has them; paged-adamw, for one."
    ),
    click.option(
        "--state-budget",
        "budget",
        default="16MiB",
        show_default=True,
        callback=lambda context, option, text: as_bytes("--state-budget", text),
        help="Of a paged optimizer's state in memory.",
    ),
    click.option("--decay", type=float, default=0.0, show_default=True),
    click.option(
        "--start-batches",
        type=int,
        default=8,
        show_default=True,
        help="Seen before by eva, corda and lora_ga, to start from.",
    ),
    click.option(
        "--start-text",
        metavar="TEXT",
        callback=lambda context, option, text: _given("--start-text", text),
        help="What a prompt or a prefix starts from.",
    ),
    click.option("--checkpointing", is_flag=True, help="Compute blocks again on the way back, to keep less of them."),
    click.option("--dropout", type=float, default=0.0, show_default=True, help="Of what enters LoRA's A."),
    click.option("--backend", default="cpu", show_default=True, help="torch has every method."),
)


def training(command):
    """What is trained and how, but for method, rank and seed: options of ``refpeft train`` and ``refpeft sweep``."""
    command = quantised(command)
    for option in reversed(_TRAINING):
        command = option(command)
    return configured(command)
