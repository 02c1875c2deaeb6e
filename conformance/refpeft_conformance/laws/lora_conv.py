"""Laws of LoRA on a convolution."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law


@law("lora.conv2d", "a zero a and a zero b both leave the base layer", regime="exact")
def _(subject, problem, observed):
    plain = problem.replace(inputs={n: x for n, x in problem.inputs.items() if n != "lora_bias"}, cotangents={})
    without = [plain.replace(inputs=plain.inputs | {n: np.zeros_like(plain.inputs[n])}) for n in ("a", "b")]
    equal("zero a against zero b", subject.run(without[0])["y"], subject.run(without[1])["y"], observed)


@law("lora.conv2d", "images of a batch do not meet", regime="exact")
def _(subject, problem, observed):
    whole = problem.replace(cotangents={})
    first = {n: x[:1] if n in ("x", "mask") else x for n, x in whole.inputs.items()}
    equal("first image alone", subject.run(whole.replace(inputs=first))["y"], subject.run(whole)["y"][:1], observed)
