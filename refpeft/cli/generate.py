"""``refpeft generate``: a model's continuation of prompts, each with the adapter that it names, over one base."""

from __future__ import annotations

import sys

import click

from refpeft.cli._options import pairs, quantised, require_text
from refpeft.cli._output import as_json, report


@click.command("generate")
@click.argument("model")
@click.option(
    "--prompt", "prompts", multiple=True, required=True, metavar="[NAME=]TEXT", help="With that adapter, or none."
)
@click.option("--adapter", "adapters", multiple=True, metavar="NAME=DIR", help="As refpeft train leaves one, or peft.")
@click.option("--chat", is_flag=True, help="Put each prompt as a user's, in the model's own template.")
@click.option("--tokens", type=int, default=64, show_default=True, help="At most so many follow each prompt.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-k", type=int, default=0, help="Draw from so many of the likeliest only.")
@click.option("--top-p", type=float, default=1.0, help="Draw from the likeliest that reach this probability.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--backend", default="cpu", show_default=True)
@quantised
@as_json
def command(model, prompts, adapters, chat, tokens, seed, backend, quantise, as_json, **sampling):
    """What MODEL, a Hugging Face folder or a GGUF file of Llama's or GPT-2's type, writes behind each prompt.

    The base is in memory once, however many adapters there are: a prompt that begins with the name of one and an equals sign is
    continued with it.
    """
    from refpeft.errors import AttributeValueError
    from refpeft.formats import adapters as files
    from refpeft.models import chat as templates
    from refpeft.models import load
    from refpeft.models import tokens as texts
    from refpeft.models.generate import Sampling, generate

    if tokens < 1:
        raise AttributeValueError(f"--tokens must be at least 1, but {tokens} came.")
    chosen = Sampling(**sampling)
    loaded = {name: files.load(folder) for name, folder in pairs("--adapter", adapters).items()}
    tokenizer, ending = texts.tokenizer(model), texts.ending(model)
    models = {"": load(model, backend=backend, quantise=quantise)}
    for name, adapter in loaded.items():
        models[name] = models[""].twin()
        files.attach(models[name], adapter)
    rows, alone = [], len(prompts) == 1 and not as_json
    for number, prompt in enumerate(prompts):
        name, equals, rest = prompt.partition("=")
        name, text = (name, rest) if equals and name in loaded else ("", prompt)
        require_text("--prompt", text)
        asked = templates.ask(model, text) if chat else text
        ids = tokenizer.encode(asked, add_special_tokens=not chat).ids
        random = _random(seed, number)
        following = generate(models[name], ids, count=tokens, sampling=chosen, random=random, ending=ending)
        found = list(_spoken(tokenizer, following) if alone else following)
        rows.append({"adapter": name, "prompt": text, "text": tokenizer.decode(found), "tokens": len(found)})
    if not alone:
        report(rows, ("adapter", "prompt", "text"), as_json)


def _random(seed: int, number: int):
    """What a prompt draws from, whatever prompts there are beside it."""
    import numpy as np

    return np.random.default_rng([seed, number])


def _spoken(tokenizer, following):
    """The tokens, each written to standard output as it comes; half a character waits for its other half."""
    found, written = [], ""
    for token in following:
        yield token
        found.append(token)
        text = tokenizer.decode(found).rstrip("\ufffd")
        sys.stdout.write(text[len(written) :])
        sys.stdout.flush()
        written = text
    sys.stdout.write(tokenizer.decode(found)[len(written) :] + "\n")
