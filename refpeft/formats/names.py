"""What Hugging Face calls the parts of a model, by family.

A part of ours is ``embedding``, ``layers.0.attn.norm`` or ``layers.0.attn.q``, see `refpeft.models.places`; theirs is a module,
``model.layers.0.self_attn.q_proj`` say. Of a model without its head, the first word is missing from the names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from refpeft.errors import FormatError


@dataclass(frozen=True)
class Names:
    """Of one family.

    Attributes
    ----------
    body, blocks : str
        The module that is the model without its head, and the one in it that holds the blocks.
    top : mapping of str to str
        Tables, the last norm and the head, by our name; those in the body begin with its name.
    norms, matrices : mapping of str to str
        Of a block.
    sublayers : mapping of str to str
        Of a block, modules that hold matrices.
    input_first : bool
        Whether matrices are stored as (i, o), as transformers' Conv1D has them; peft calls that ``fan_in_fan_out``.
    task : str
        What peft calls it that the model does; without a head where that is FEATURE_EXTRACTION.
    """

    body: str
    blocks: str
    top: Mapping[str, str]
    norms: Mapping[str, str]
    matrices: Mapping[str, str]
    sublayers: Mapping[str, str] = field(default_factory=dict)
    input_first: bool = False
    task: str = "CAUSAL_LM"

    def module(self, part: str) -> str | None:
        """Their name of a part, if they have it."""
        found = re.fullmatch(r"layers\.(\d+)\.(.+)", part)
        if not found:
            return self.top.get(part)
        within = self._parts.get(found[2])
        return within and f"{self.body}.{self.blocks}.{found[1]}.{within}"

    def adapted(self, site: str) -> str | None:
        """peft's name of the module at a site, if it is a matrix in a block, a norm or the table of tokens."""
        module = self.module(site)
        if module is None or self.site(module) != site:
            return None
        return self.headless(module) if self.task == "FEATURE_EXTRACTION" else module

    def headless(self, name: str) -> str:
        """The name that a module or tensor has in the model without its head."""
        return name.removeprefix(f"{self.body}.")

    def site(self, module: str) -> str | None:
        """Our name of a site in a block, of a norm or of the table of tokens, if the module is one."""
        found = re.fullmatch(rf"{self._prefix}(\d+)\.(.+)", module)
        if not found:
            top = {
                self.headless(theirs): ours for ours, theirs in self.top.items() if ours.endswith(("embedding", "norm"))
            }
            return top.get(self.headless(module))
        ours = next((ours for ours, theirs in self._parts.items() if theirs == found[2]), None)
        return ours and f"layers.{found[1]}.{ours}"

    def require_layers(self, where: Any, tensors: Iterable[str], count: int) -> None:
        """Refuse tensors of more or fewer blocks than a configuration says.

        Raises
        ------
        FormatError
        """
        numbers = (re.match(rf"{self._prefix}(\d{{1,9}})\.", name) for name in tensors)
        found = max((int(number[1]) + 1 for number in numbers if number), default=0)
        if found not in (0, count):
            raise FormatError(f"{where}: it has tensors of {found} layers, but its configuration says {count}.")

    def owns(self, name: str) -> bool:
        """Whether a module or tensor lies in a block of this family, or in its table of tokens."""
        return re.match(self._prefix, name) is not None or f"{name}.".startswith(f"{self.top['embedding']}.")

    @property
    def _parts(self) -> dict[str, str]:
        """Of a block."""
        return {**self.norms, **self.matrices, **self.sublayers}

    @property
    def _prefix(self) -> str:
        return rf"(?:{self.body}\.)?{re.escape(self.blocks)}\."


LLAMA = Names(
    body="model",
    blocks="layers",
    top={"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"},
    norms={"attn.norm": "input_layernorm", "mlp.norm": "post_attention_layernorm"},
    matrices={
        "attn.q": "self_attn.q_proj",
        "attn.k": "self_attn.k_proj",
        "attn.v": "self_attn.v_proj",
        "attn.o": "self_attn.o_proj",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
    },
    sublayers={"attn.prompt": "self_attn"},
)
GPT2 = Names(
    body="transformer",
    blocks="h",
    top={
        "embedding": "transformer.wte",
        "positions": "transformer.wpe",
        "norm": "transformer.ln_f",
        "head": "lm_head",
    },
    norms={"attn.norm": "ln_1", "mlp.norm": "ln_2"},
    matrices={"attn.qkv": "attn.c_attn", "attn.o": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"},
    input_first=True,
)
BERT = Names(
    body="bert",
    blocks="encoder.layer",
    top={
        "embedding": "bert.embeddings.word_embeddings",
        "positions": "bert.embeddings.position_embeddings",
        "segments": "bert.embeddings.token_type_embeddings",
        "embedding.norm": "bert.embeddings.LayerNorm",
    },
    norms={"attn.norm": "attention.output.LayerNorm", "mlp.norm": "output.LayerNorm"},
    matrices={
        "attn.q": "attention.self.query",
        "attn.k": "attention.self.key",
        "attn.v": "attention.self.value",
        "attn.o": "attention.output.dense",
        "mlp.up": "intermediate.dense",
        "mlp.down": "output.dense",
    },
    task="FEATURE_EXTRACTION",
)
FAMILIES = {"llama": LLAMA, "gpt2": GPT2, "bert": BERT, "bert_classifier": replace(BERT, task="SEQ_CLS")}
HEAD = {"pooler": "bert.pooler.dense", "classifier": "classifier"}
"""What is above an encoder in a classifier, by our name."""


def family_of(module: str) -> str | None:
    """The family that a module or tensor of a block, or of a table of tokens, is of."""
    return next((family for family, names in FAMILIES.items() if names.owns(module)), None)


def numbered(count: int) -> tuple[str, ...]:
    """What labels are called that have no names, as in transformers."""
    return tuple(f"LABEL_{i}" for i in range(count))


def listed(id2label: Any) -> tuple[str, ...] | None:
    """The names of a JSON object ``{"0": NAME, ...}`` in their order; None if it is none."""
    if not isinstance(id2label, Mapping) or {*id2label} != {*map(str, range(len(id2label)))}:
        return None
    names = tuple(id2label[str(i)] for i in range(len(id2label)))
    return names if all(isinstance(name, str) for name in names) else None
