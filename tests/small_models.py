"""Small models that transformers saves, for tests of more than one part."""

from __future__ import annotations

import re

import numpy as np
import pytest


def save(config, folder, kind="AutoModelForCausalLM"):
    """A random model of a configuration, its weights large enough to have opinions, saved."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = getattr(transformers, kind).from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise, gain = (
                torch.randn_like(parameter),
                re.search(r"norm|\bln_", name.lower()) and name.endswith("weight"),
            )
            parameter.copy_(parameter * 8 if parameter.ndim > 1 else bool(gain) + 0.1 * noise)
    model.save_pretrained(folder)
    return folder


def shaken(model, random, by=0.3):
    """It, its trained arrays off their start; one that layers share is still one."""
    moved = {}
    for layer in model.sites.values():
        for name in (name for name in layer.trained if name in layer.arrays):
            key, array = id(layer.arrays[name]), model.host(layer.arrays[name])
            if key not in moved:
                moved[key] = layer.arrays[name], model.asarray(array + by * random.normal(size=array.shape))
            layer.arrays[name] = moved[key][1]
    return model


def dropping(dropout, place, rate):
    """A module of torch that drops what refpeft does at a place, so that both can be compared in training."""
    torch = pytest.importorskip("torch")

    class Known(torch.nn.Module):
        def forward(self, x):
            return x * torch.from_numpy(dropout.at(rate).mask(place, tuple(x.shape))) / (1 - rate)

    return Known()


def by_site(gradients):
    """SITE.ARRAY as site and array."""
    found = {}
    for name, gradient in sorted(gradients.items()):
        site, _, array = name.rpartition(".")
        found.setdefault(site, {})[array] = gradient
    return found


def slopes(trained, gradients, loss, random, h=2.0**-20):
    """Along a direction in all arrays at once: what gradients say, and a difference of losses. The arrays end as they began."""
    along, losses = {name: random.normal(size=g.shape) for name, g in gradients.items()}, []

    def move(step):
        for name, direction in along.items():
            trained[name][...] += step * direction

    for step in (h, -2 * h):
        move(step)
        losses.append(loss())
    move(h)
    return sum(np.sum(g * along[name]) for name, g in gradients.items()), (losses[0] - losses[1]) / (2 * h)
