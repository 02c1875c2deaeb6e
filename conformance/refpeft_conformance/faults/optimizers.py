"""Mistakes with the steps of optimizers, and with clipping."""

from __future__ import annotations

import numpy as np

from refpeft.ops.adam8bit import BLOCK
from refpeft.ops.dynamic8 import dynamic_map
from refpeft_conformance.faults import fault, wide, with_attributes, with_inputs


def mistake(name: str, *needs: str, operations: str, **options):
    """A fault of this family."""
    return fault("optimizers", name, *needs, operations=operations, **options)


@mistake("the step climbs", "lr=", operations="*.step")
def _(problem, run):
    return run(problem) | {"next_p": run(with_attributes(problem, lr=-problem.attributes["lr"]))["next_p"]}


@mistake("the gradient joins the state after the step", "next_p", "grad", operations="*.step")
def _(problem, run):
    """p moves as if the gradient were zero."""
    before = run(with_inputs(problem, grad=np.zeros_like(problem.inputs["grad"])))
    return run(problem) | {"next_p": before["next_p"]}


@mistake("the two betas of a step swapped", "beta1=", "beta2=", operations="*.step")
def _(problem, run):
    beta1, beta2 = (problem.attributes[n] for n in ("beta1", "beta2"))
    return run(with_attributes(problem, beta1=beta2, beta2=beta1))


@mistake("weight decay forgotten", "decay=", operations="*.step")
def _(problem, run):
    return run(with_attributes(problem, decay=0.0))


@mistake("weight decay with the other sign", "decay=", operations="*.step")
def _(problem, run):
    return run(with_attributes(problem, decay=-problem.attributes["decay"]))


@mistake("weight decay among the gradient", "decay=", operations="adam*.step")
@mistake("weight decay among the momentum", "decay=", operations="lion.step")
def _(problem, run):
    coupled = wide(problem.inputs["grad"]) + problem.attributes["decay"] * wide(problem.inputs["p"])
    return run(with_attributes(with_inputs(problem, grad=coupled), decay=0.0))


@mistake("weight decay past the momentum", "decay=", "buffer", operations="sgd.step")
def _(problem, run):
    results = run(with_attributes(problem, decay=0.0))
    lost = problem.attributes["lr"] * problem.attributes["decay"] * wide(problem.inputs["p"])
    return results | {"next_p": wide(results["next_p"]) - lost}


@mistake("weight decay without the learning rate", "decay=", "beta2=", operations="*.step")
def _(problem, run):
    return run(with_attributes(problem, decay=problem.attributes["decay"] / problem.attributes["lr"]))


@mistake("weight decay in the other order", "decay=", "variant=", operations="adamw.step")
def _(problem, run):
    other = {"before": "after", "after": "before"}[problem.attributes["variant"]]
    return run(with_attributes(problem, variant=other))


@mistake("Nesterov forgotten", "nesterov=", operations="sgd.step")
def _(problem, run):
    return run(with_attributes(problem, nesterov=False))


@mistake("the gradient dampened by the momentum", "momentum=", operations="sgd.step")
def _(problem, run):
    kept, grad = (1 - problem.attributes["momentum"], wide(problem.inputs["grad"]))
    return run(with_inputs(problem, grad=kept * grad))


@mistake("the learning rate inside the momentum", "momentum=", operations="sgd.step")
def _(problem, run):
    """Which steps alike only while the learning rate stays."""
    a, i, results = problem.attributes, {n: wide(x) for n, x in problem.inputs.items()}, run(problem)
    buffer = a["momentum"] * i["buffer"] + a["lr"] * (i["grad"] + a["decay"] * i["p"])
    return results | {"next_p": i["p"] - buffer, "next_buffer": buffer}


def _adam(name: str):
    """A fault from the size of Adam's step: (m', v', 1 - b1ᵗ, 1 - b2ᵗ, eps) -> u, computed in float64."""

    def declare(size):
        @mistake(name, "beta1=", "beta2=", "step=", "next_v", operations="adam*.step")
        def _(problem, run):
            a = {"decay": 0.0} | problem.attributes
            corrections = (1 - a[beta] ** a["step"] for beta in ("beta1", "beta2"))
            with np.errstate(all="ignore"):
                u = size(*_new_moments(problem), *corrections, a["eps"])
            left, p = 1 - a["lr"] * a["decay"], wide(problem.inputs["p"])
            moved = left * (p - a["lr"] * u) if a.get("variant") == "after" else left * p - a["lr"] * u
            return run(problem) | {"next_p": moved}

    return declare


def _new_moments(problem):
    """m' and v' in float64."""
    a, grad, moments = problem.attributes, wide(problem.inputs["grad"]), []
    for name, beta, new in (("m", a["beta1"], grad), ("v", a["beta2"], grad * grad)):
        moments.append(beta * _decoded(problem, name) + (1 - beta) * new)
    return moments


def _decoded(problem, name):
    """A moment of the problem in float64, from codes where it is kept so."""
    if f"{name}_absmax" not in problem.inputs:
        return wide(problem.inputs[name])
    codes, absmax = problem.inputs[name], wide(problem.inputs[f"{name}_absmax"])
    return dynamic_map(name == "m")[codes] * np.repeat(absmax, BLOCK)[: codes.size]


@_adam("bias correction forgotten")
def _(m, v, c1, c2, eps):
    return m / (np.sqrt(v) + eps)


@_adam("bias correction of the first moment only")
def _(m, v, c1, c2, eps):
    return m / c1 / (np.sqrt(v) + eps)


@_adam("bias correction of the second moment only")
def _(m, v, c1, c2, eps):
    return m / (np.sqrt(v / c2) + eps)


@_adam("bias correction without its root")
def _(m, v, c1, c2, eps):
    return m / c1 / (np.sqrt(v) / c2 + eps)


@_adam("epsilon inside the square root")
def _(m, v, c1, c2, eps):
    return m / c1 / np.sqrt(v / c2 + eps)


@_adam("epsilon added before the bias correction")
def _(m, v, c1, c2, eps):
    return m / c1 / ((np.sqrt(v) + eps) / np.sqrt(c2))


@_adam("epsilon of the step forgotten")
def _(m, v, c1, c2, eps):
    return m / c1 / np.sqrt(v / c2)


@mistake("the step counted from zero", "step=", operations="adam*.step")
def _(problem, run):
    """One behind; the first step divides by zero."""
    step = problem.attributes["step"]
    if step > 1:
        return run(with_attributes(problem, step=step - 1))
    results = run(problem)
    return results | {"next_p": np.full(results["next_p"].shape, np.nan)}


@mistake("the step counted one ahead", "step=", operations="adam*.step")
def _(problem, run):
    return run(with_attributes(problem, step=problem.attributes["step"] + 1))


@mistake("the corrected momentum remembered", "next_m", "next_v", "step=", operations="ada*[mw].step")
def _(problem, run):
    results = run(problem)
    return results | {
        "next_m": wide(results["next_m"]) / (1 - problem.attributes["beta1"] ** problem.attributes["step"])
    }


@mistake("the second moment of magnitudes", "next_v", operations="ada*[mw].step")
def _(problem, run):
    root = np.sqrt(np.abs(wide(problem.inputs["grad"])))
    return run(problem) | {"next_v": run(with_inputs(problem, grad=root))["next_v"]}


@mistake("the second moment on the signed map", "v_absmax", operations="adam8bit.step")
def _(problem, run):
    """Read so: its codes are those of the nearest codewords without sign to what the signed map says."""
    signed = np.abs(dynamic_map(True)[problem.inputs["v"]])
    nearest = np.abs(signed[:, None] - dynamic_map(False)).argmin(axis=1).astype(np.uint8)
    return run(problem.replace(inputs=problem.inputs | {"v": nearest}))


@mistake("moments under the maxima of the step before", "m_absmax", "v_absmax", operations="adam8bit.step")
def _(problem, run):
    return run(problem) | {f"next_{n}": problem.inputs[n] for n in ("m_absmax", "v_absmax")}


@mistake("the maximum of the first block for all", "m_absmax", operations="adam8bit.step")
def _(problem, run):
    first = problem.inputs["m_absmax"][:1]
    return run(problem.replace(inputs=problem.inputs | {"m_absmax": np.repeat(first, problem.inputs["m_absmax"].size)}))


@mistake("codes of moments one too high", "m_absmax", operations="adam8bit.step")
def _(problem, run):
    results = run(problem)
    return results | {"next_m": np.minimum(results["next_m"], 254).astype(np.uint8) + np.uint8(1)}


@mistake("the step from moments encoded before", "m_absmax", "v_absmax", operations="adam8bit.step")
def _(problem, run):
    """p moves by what the new codes say, not by the new moments."""
    a, results = problem.attributes, run(problem)
    held = {n: results[f"next_{n}"].astype(problem.inputs[n].dtype) for n in ("m", "v", "m_absmax", "v_absmax")}
    m, v = (_decoded(problem.replace(inputs=problem.inputs | held), name) for name in ("m", "v"))
    u = m / (1 - a["beta1"] ** a["step"]) / (np.sqrt(v / (1 - a["beta2"] ** a["step"])) + a["eps"])
    left = 1 - a["lr"] * a.get("decay", 0.0)
    return results | {"next_p": left * wide(problem.inputs["p"]) - a["lr"] * u}


@mistake("moments encoded in the other way", "variant=", "m_absmax", operations="adam8bit.step")
def _(problem, run):
    other = {"paper": "bitsandbytes-cpu", "bitsandbytes-cpu": "paper"}[problem.attributes["variant"]]
    return run(with_attributes(problem, variant=other))


@mistake("the sign forgotten", "beta1=", operations="lion.step")
def _(problem, run):
    a, i = problem.attributes, {n: wide(x) for n, x in problem.inputs.items()}
    c = a["beta1"] * i["m"] + (1 - a["beta1"]) * i["grad"]
    return run(problem) | {"next_p": i["p"] - a["lr"] * (c + a["decay"] * i["p"])}


@mistake("the sign of the gradient alone", "beta1=", operations="lion.step")
def _(problem, run):
    return run(problem) | {"next_p": run(with_attributes(problem, beta1=0.0))["next_p"]}


@mistake("the step from the new momentum", "beta1=", "beta2=", operations="lion.step")
def _(problem, run):
    return run(with_attributes(problem, beta1=problem.attributes["beta2"]))


@mistake("zero has a sign", "beta1=", operations="lion.step")
def _(problem, run):
    a, i, results = problem.attributes, {n: wide(x) for n, x in problem.inputs.items()}, run(problem)
    none = a["beta1"] * i["m"] + (1 - a["beta1"]) * i["grad"] == 0
    return results | {"next_p": wide(results["next_p"]) - np.where(none, a["lr"], 0.0)}


def _clipped(name: str):
    """A fault from other factors on the gradient: (grad, max_norm) -> the clipped one, in float64."""

    def declare(change):
        @mistake(name, "max_norm=", operations="clip.global_norm")
        def _(problem, run):
            with np.errstate(all="ignore"):
                changed = change(wide(problem.inputs["grad"]), problem.attributes["max_norm"])
            return run(problem) | {"clipped": changed}

    return declare


@_clipped("small gradients brought up to the norm")
def _(grad, size):
    return grad * (size / np.linalg.norm(grad))


@_clipped("elements clipped, not the norm")
def _(grad, size):
    return np.clip(grad, -size, size)


@_clipped("each part clipped by its own norm")
def _(grad, size):
    parts = np.array_split(grad, 2)
    return np.concatenate([part * min(1.0, size / (np.linalg.norm(part) or size)) for part in parts])


@_clipped("clipped by the square of the norm")
def _(grad, size):
    return grad * min(1.0, size / (np.sum(grad**2) or size))


@mistake("the norm after clipping", "max_norm=", operations="clip.global_norm")
def _(problem, run):
    results = run(problem)
    return results | {"norm": np.asarray(np.linalg.norm(wide(results["clipped"])))}
