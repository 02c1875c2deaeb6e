"""Prompts as peft has them: its model around one that gives its embedded input back, and its encoders alone."""

import functools

import peft
import torch
from peft.tuners.cpt.model import CPTEmbedding
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel

from refpeft_hf.declared import implements
from refpeft_hf.layers import ADAPTER, one_batch

TASK = "CAUSAL_LM"


def some(name):
    """At least one virtual token."""
    return lambda shapes, attributes: "" if shapes[name][0] else "peft takes no prompt without a token"


class Echo(PreTrainedModel, GenerationMixin):
    """A model whose answer is its embedded input."""

    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.embedding = torch.nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(self, inputs_embeds, past_key_values=None, **ignored):
        """The embeddings, or the keys and values that came with them."""
        return inputs_embeds if past_key_values is None else past_key_values


@functools.lru_cache(maxsize=256)
def around_echo(config: str, dtype, width: int, **options):
    """peft's model of such a prompt; layers and heads are of none."""
    echo = Echo(PretrainedConfig(vocab_size=2, hidden_size=width, num_hidden_layers=1, num_attention_heads=1))
    how = getattr(peft, config)(
        task_type=TASK, **{n: list(v) if n.startswith("cpt") else v for n, v in options.items()}
    )
    return peft.get_peft_model(echo, how, autocast_adapter_dtype=False).to(dtype).eval().requires_grad_(False)


def in_front(model, x, tensors, **keywords):
    """The model's embedded input with the prompt in front."""
    named = {f"prompt_encoder.{ADAPTER}.{name}": tensor for name, tensor in tensors.items()}
    y = torch.func.functional_call(model, named, (), {"inputs_embeds": one_batch(x, 2)} | keywords)
    return y.reshape(*x.shape[:-2], *y.shape[1:])


@implements("prompt.embed", some("prompt"))
def embed(x, prompt):
    """``peft.PeftModelForCausalLM`` with ``peft.PromptEmbedding``."""
    model = around_echo("PromptTuningConfig", x.dtype, x.shape[-1], num_virtual_tokens=len(prompt))
    return in_front(model, x, {"embedding.weight": prompt})


@implements("multitask_prompt.embed", some("prompt"))
def of_tasks(task, x, prompt, u, v):
    """The same with ``peft.tuners.multitask_prompt_tuning``'s embedding."""
    how = {"num_virtual_tokens": len(prompt), "num_tasks": len(u), "num_ranks": v.shape[1]}
    model = around_echo("MultitaskPromptTuningConfig", x.dtype, x.shape[-1], **how)
    tensors = {"embedding.weight": prompt, "prefix_task_cols": u, "prefix_task_rows": v}
    return in_front(model, x, tensors, task_ids=task)


@implements("prefix.cut")
def cut(flat, *, l, g, d):  # noqa: E741
    """``peft.PeftModelForCausalLM`` with a flat prefix: the keys and values of each layer, of a batch of one."""
    how = {"num_virtual_tokens": len(flat), "num_layers": l, "num_attention_heads": g, "token_dim": g * d}
    model = around_echo("PrefixTuningConfig", flat.dtype, 1, **how)
    tensors = {f"prompt_encoder.{ADAPTER}.embedding.weight": flat}
    given = {"inputs_embeds": flat.new_zeros(1, 1, 1)}
    layers = torch.func.functional_call(model, tensors, (), given).layers
    return tuple(torch.stack([getattr(layer, part)[0] for layer in layers]) for part in ("keys", "values"))


@functools.lru_cache(maxsize=256)
def encoder_of(kind: str, dtype, tokens: int, width: int, **options):
    """One of peft's encoders of a prompt."""
    config, encoder = {
        "prompt": (peft.PromptEncoderConfig, peft.PromptEncoder),
        "prefix": (peft.PrefixTuningConfig, peft.PrefixEncoder),
    }[kind]
    how = config(
        task_type=TASK,
        num_virtual_tokens=tokens,
        token_dim=width,
        num_transformer_submodules=1,
        num_layers=1,
        **options,
    )
    return encoder(how).to(dtype).requires_grad_(False)


def encoded(encoder, embedding, tensors):
    """What it makes of all its tokens."""
    tensors = {"embedding.weight": embedding} | tensors
    return torch.func.functional_call(encoder, tensors, (torch.arange(len(embedding)),))


@implements("prefix.encode")
def prefix(embedding, w1, b1, w2, b2):
    """``peft.PrefixEncoder``; as many columns as the problem has."""
    encoder = encoder_of(
        "prefix",
        embedding.dtype,
        len(embedding),
        embedding.shape[1],
        encoder_hidden_size=len(w1),
        prefix_projection=True,
    )
    top = {"transform.0.weight": w1, "transform.0.bias": b1, "transform.2.weight": w2, "transform.2.bias": b2}
    return encoded(encoder, embedding, top)


@implements("ptuning.mlp")
def mlp(embedding, w1, b1, w2, b2, w3, b3):
    """``peft.PromptEncoder`` with its perceptron."""
    encoder = encoder_of("prompt", embedding.dtype, *embedding.shape, encoder_hidden_size=len(w1))
    layers = {
        f"mlp_head.{2 * j}.{n}": t
        for n, ts in {"weight": (w1, w2, w3), "bias": (b1, b2, b3)}.items()
        for j, t in enumerate(ts)
    }
    return encoded(encoder, embedding, layers)


@implements("ptuning.lstm")
def lstm(embedding, w_1, u_1, b_1, w_2, u_2, b_2, w_3, b_3, w_4, b_4):
    """``peft.PromptEncoder`` with its LSTM, of whose two biases one is zero."""
    how = {"encoder_hidden_size": u_1.shape[2], "encoder_reparameterization_type": "LSTM"}
    encoder = encoder_of("prompt", embedding.dtype, *embedding.shape, **how)
    tensors = {"mlp_head.0.weight": w_3, "mlp_head.0.bias": b_3, "mlp_head.2.weight": w_4, "mlp_head.2.bias": b_4}
    for layer, (w, u, b) in enumerate(((w_1, u_1, b_1), (w_2, u_2, b_2))):
        parts = {"weight_ih": w, "weight_hh": u, "bias_ih": b, "bias_hh": torch.zeros_like(b)}
        for part, both in parts.items():
            tensors |= {f"lstm_head.{part}_l{layer}{end}": t for end, t in zip(("", "_reverse"), both)}
    return encoded(encoder, embedding, tensors)


@functools.lru_cache(maxsize=256)
def context(tokens: int, width: int, dtype):
    """CPT's embedding without the projection, which is an operation of its own."""
    how = peft.CPTConfig(
        task_type=TASK,
        cpt_token_ids=[0] * tokens,
        cpt_mask=[1] * tokens,
        cpt_tokens_type_mask=[2] * tokens,
    )
    how.num_virtual_tokens, how.token_dim = tokens, width
    embedding = CPTEmbedding(how, torch.nn.Embedding(1, width)).to(dtype).requires_grad_(False)
    embedding.get_projection = lambda: embedding.delta_embedding.weight.data
    return embedding


@implements("cpt.embed", some("tokens"))
def of_context(x, tokens, delta):
    """``peft.tuners.cpt.model.CPTEmbedding``, in front as for every prompt."""
    embedding = context(*tokens.shape, x.dtype)
    prompt = encoded(embedding, tokens, {"delta_embedding.weight": delta})
    return torch.cat([prompt.expand(*x.shape[:-2], *prompt.shape), x], dim=-2)


@implements("cpt.project", gradients=False)
def project(delta, epsilon):
    """``get_projection``, with the problem's radii."""
    embedding = CPTEmbedding.__new__(CPTEmbedding)
    torch.nn.Module.__init__(embedding)
    embedding.delta_embedding = torch.nn.Embedding.from_pretrained(delta)
    embedding.get_epsilon = lambda: epsilon
    return embedding.get_projection()
