"""The example that fine-tunes LLaMA-65B's shape layer by layer, at a tiny size, without a GPU."""

import importlib.util
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from refpeft import plugins
from refpeft.cli import main
from refpeft.formats.four_bit import Quantised, dequantise
from refpeft.memory.decoder import Decoder
from refpeft.memory.models import PRESETS
from refpeft.methods import LoRA
from refpeft.models import LanguageModel

FILE = Path(__file__).parents[2] / "examples" / "llama65b_layerwise.py"
SHAPE = Decoder(name="tiny", width=16, layers=3, heads=2, kv_heads=2, head_size=8, inner=24, vocabulary=19)
IDS = np.random.default_rng(2).integers(0, 19, (2, 21))


@pytest.fixture(scope="module")
def example():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("llama65b_layerwise", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shaken(model, backend):
    """It, with a B that is not zero."""
    random = np.random.default_rng(3)
    for array in model.trained.values():
        array += backend.asarray(random.normal(size=array.shape).astype(np.float32) / 3, model.device)
    return model


def near(found, wanted):
    """Within some roundings of float32 of the largest gradient of its array."""
    assert found.keys() == wanted.keys() != set()
    for name, gradient in wanted.items():
        assert np.any(gradient)
        np.testing.assert_allclose(found[name], gradient, rtol=0, atol=2.0**-17 * np.abs(gradient).max())


def ordinary(example):
    """Loss and gradients of the model that holds its matrices decoded and all that a block computes."""
    weights, reference = example.Weights(SHAPE), plugins.backend("reference")
    dense = {name: dequantise(w) if isinstance(w, Quantised) else w for name, w in weights.items()}
    model = LanguageModel(SHAPE, dense, eps=1e-6, backend=reference)
    arrays = example.begin(SHAPE, 4, reference, "cpu").arrays()
    model.attach(",".join(weights.matrices), LoRA(rank=4, alpha=4), arrays=arrays)
    return shaken(model, reference).loss(IDS)


def test_gradients_are_those_of_the_ordinary_model(example):
    """In NumPy."""
    reference = plugins.backend("reference")
    loss, gradients = shaken(example.begin(SHAPE, 4, reference, "cpu"), reference).loss(IDS, checkpointing=True)
    wanted, ordinarily = ordinary(example)
    assert loss == pytest.approx(wanted, rel=2.0**-18)
    near(gradients, ordinarily)


@pytest.mark.shim
def test_gradients_on_cupys_arrays_are_those_of_the_ordinary_model(example, backend):
    """By the kernels, on the host shim; and a paged step moves every A and B."""
    model = shaken(example.begin(SHAPE, 4, backend, "cuda:0"), backend)
    loss, gradients = model.loss(IDS, checkpointing=True)
    wanted, ordinarily = ordinary(example)
    assert loss == pytest.approx(wanted, rel=2.0**-18)
    near({name: g.get() for name, g in gradients.items()}, ordinarily)
    before = {name: p.get() for name, p in model.trained.items()}
    example.step(model, 20, backend, "cuda:0")
    assert all(np.any(p.get() != before[name]) for name, p in model.trained.items())


def test_the_host_keeps_no_matrix_that_the_device_has(example, backend, monkeypatch):
    """Each is gone before the next but one is drawn."""
    drawn, alive = [], []

    def drawing(*arguments):
        alive.append(sum(its() is not None for its in drawn))
        matrix = in_four_bits(*arguments)
        drawn.append(weakref.ref(matrix.packed))
        return matrix

    in_four_bits = example.in_four_bits
    monkeypatch.setattr(example, "in_four_bits", drawing)
    example.begin(SHAPE, 4, backend, "cuda:0")
    assert len(drawn) == 7 * SHAPE.layers and max(alive) <= 1


def test_what_is_planned_is_what_refpeft_memory_counts(example, capsys):
    """For the command that the example names, with the budget in place of the paged state; it fits the device."""
    command = example.__doc__.split("    refpeft ")[-1].split("\n")[0].split()
    counted = json.loads(CliRunner().invoke(main, [*command, "--json"], catch_exceptions=False).stdout)
    planned = example.planned(PRESETS["llama-65b"], 16, 512)
    assert planned == counted["bytes"] - counted["paged"] + example.BUDGET < counted["gpu"] == example.GPU
    example.report(SHAPE, 4, 20, plugins.backend("reference"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny, 3 layers: 7,248 parameters, 2,976 trained")
    assert [line.split()[0] for line in lines[1:]] == ["loss", "peak", "planned", "device"]
