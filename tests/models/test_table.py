"""Trained rows of the table of tokens, in front of a model and behind it: against peft, whose layers share them too."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from small_models import save

from refpeft.cli import main
from refpeft.errors import CapabilityError
from refpeft.formats import adapters, peft
from refpeft.formats.adapter import Adapter
from refpeft.methods import LoRA, PromptTuning, TrainableTokens
from refpeft.models import load

IDS = np.random.default_rng(0).integers(0, 97, (3, 9))
TOKENS = (int(IDS[0, 0]), int(IDS[1, 4]), 96)


@pytest.fixture(scope="module", params=["llama", "gpt2", "untied"])
def folder(request, saved_folder, tmp_path_factory):
    """A random model whose head is the table, or which has one of its own."""
    transformers = pytest.importorskip("transformers")
    if request.param == "untied":
        return saved_folder
    tied = {
        "llama": transformers.LlamaConfig(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            tie_word_embeddings=True,
        ),
        "gpt2": transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=24),
    }[request.param]  # fmt: skip
    return save(tied, tmp_path_factory.mktemp("tied"))


def attached(folder, **more):
    """The model with rows off their start."""
    model, random = load(folder, **more), np.random.default_rng(1)
    model.attach("embedding", TrainableTokens(tokens=TOKENS), random)
    rows = model.host(model.sites["embedding"].arrays["trained"])
    model.sites["embedding"].arrays["trained"][...] = np.float32(rows + random.normal(size=rows.shape))
    return model


@pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`|Found missing adapter keys"
)  # the rows are shared
def test_loss_gradient_and_merge_are_pefts(folder, tmp_path):
    """In float64: what reaches the rows from both ends is added up; merged, transformers has the rows at both ends."""
    torch, hf, transformers = (pytest.importorskip(n) for n in ("torch", "peft", "transformers"))
    model = attached(folder, dtype="float64", backend="reference")
    loss, gradients = model.loss(IDS)
    assert list(gradients) == ["embedding.trained"]
    family = model.shape.family
    peft.save(tmp_path, Adapter(TrainableTokens(tokens=TOKENS), model.arrays(), family=family), base=str(folder))
    other = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    other = hf.PeftModel.from_pretrained(other, tmp_path, is_trainable=True, autocast_adapter_dtype=False).double()
    ids = torch.from_numpy(IDS)
    expected = torch.nn.functional.cross_entropy(other(ids).logits[:, :-1].reshape(-1, 97), ids[:, 1:].reshape(-1))
    expected.backward()
    unit = 2.0**-40 if family == "gpt2" else 2.0**-21  # transformers turns queries and keys in float32
    assert abs(expected.item() - loss) < unit
    (trained,) = (p for p in other.parameters() if p.requires_grad)
    np.testing.assert_allclose(gradients["embedding.trained"], trained.grad.numpy(), rtol=0, atol=unit)
    merge = ["merge", folder, "--adapter", tmp_path, "--out", tmp_path / "merged"]
    done = CliRunner().invoke(main, [*map(str, merge)])
    assert done.exit_code == 0, done.output
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits.detach().numpy()
    logits = model.logits(IDS)
    np.testing.assert_allclose(whole, logits, rtol=0, atol=2.0**-16 * np.abs(logits).max())


def test_a_step_moves_both_ends_and_stands_beside_other_methods(folder, tmp_path):
    """They are trained once; with a prompt and LoRA too, gradients are differences, and rows read back equal."""
    model = attached(folder, dtype="float64", backend="reference")
    model.attach("prompt", PromptTuning(tokens=2), np.random.default_rng(2))
    model.attach("layers.1.attn.*", LoRA(rank=2, alpha=4), np.random.default_rng(3))
    loss, gradients = model.loss(IDS)
    again, others = model.loss(IDS, checkpointing=True)
    assert again == loss
    assert all(np.array_equal(others[name], gradient) for name, gradient in gradients.items())
    rows, step = model.trained["embedding.trained"], 2.0**-12
    along = np.random.default_rng(4).normal(size=rows.shape)
    sides = []
    for sign in (1, -1):
        rows += sign * step * along
        sides.append(model.score(IDS))
        rows -= sign * step * along
    assert abs((sides[0] - sides[1]) / (2 * step) - np.sum(along * gradients["embedding.trained"])) < 2.0**-20
    for name, array in model.trained.items():
        array -= 0.1 * gradients[name]
    assert model.score(IDS) < loss
    kept = {"embedding": model.arrays()["embedding"]}
    adapters.save(tmp_path, Adapter(TrainableTokens(tokens=TOKENS), kept, family=model.shape.family))
    alone, read = load(folder, dtype="float64", backend="reference"), adapters.load(tmp_path)
    adapters.attach(alone, read)
    np.testing.assert_array_equal(alone.arrays()["embedding"]["trained"], rows)


def test_a_tied_table_and_head_have_one_method(folder):
    """What would take the rows from the other end is refused, in either order; a head of its own is free."""
    tokens, lora = ("embedding", TrainableTokens(tokens=TOKENS)), ("head", LoRA(rank=2, alpha=4))
    for (first, one), (second, other) in ((tokens, lora), (lora, tokens)):
        model = load(folder)
        model.attach(first, one, np.random.default_rng(0))
        if not model.shape.tied:
            model.attach(second, other, np.random.default_rng(0))
            continue
        with pytest.raises(
            CapabilityError, match=f"{second} is {first}'s matrix in .*, where {type(one).__name__} stands"
        ):
            model.attach(second, other, np.random.default_rng(0))
