"""A question as a model's own template puts it, by the ``jinja2`` package, sandboxed: templates come with models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from refpeft.errors import CapabilityError, FormatError
from refpeft.files import read_json
from refpeft.formats import gguf
from refpeft.models import tokens


def ask(model: str | os.PathLike[str], question: str) -> str:
    """The text that a model goes on from when a user has asked something.

    Parameters
    ----------
    model : path-like
        A Hugging Face folder or a GGUF file.
    question : str

    Raises
    ------
    FormatError
        If the model has no template, or one that cannot be rendered.
    CapabilityError
        If ``jinja2`` is not installed.
    """
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise CapabilityError(
            "Chat templates need the jinja2 package, which is not installed: run pip install 'refpeft[train]'."
        ) from None
    template, special = _template(Path(model))
    if not isinstance(template, str):
        raise FormatError(
            f"{model} has no chat template; it was not trained to answer, or its template was left behind."
        )

    def refuse(message):
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    messages = [{"role": "user", "content": question}]
    try:
        compiled = environment.from_string(template)
        return compiled.render(messages=messages, add_generation_prompt=True, raise_exception=refuse, **special)
    except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise FormatError(f"{model}: its chat template cannot be rendered: {error}.") from error


def _template(path: Path) -> tuple[Any, dict[str, str]]:
    """The template, and the special tokens that it may name."""
    if not path.is_dir():
        found = gguf.scan(path).metadata
        named = {name: found["tokenizer.ggml.tokens"][i] for name, i in tokens.special(path).items()}
        return found.get("tokenizer.chat_template"), named
    config = read_json(path / "tokenizer_config.json") if (path / "tokenizer_config.json").is_file() else {}
    special = {name: config.get(name) for name in ("bos_token", "eos_token")}
    beside = path / "chat_template.jinja"
    template = beside.read_text("utf-8") if beside.is_file() else config.get("chat_template")
    if isinstance(template, list):
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    return template, {n: str(t.get("content")) if isinstance(t, dict) else t for n, t in special.items() if t}
