"""The shapes of a decoder: every matrix, vector and table of a model, as data.

Three families are described. *Llama*: RMSNorm, separate q, k and v over grouped heads, rotary positions, a gated feed-forward
block, down (act(gate x) up x). *GPT-2*: LayerNorm with bias, q, k and v fused into one matrix, a table of
positions, a plain feed-forward block, every matrix with a bias. *BERT*, which is no decoder but of the same parts: as GPT-2, but
with q, k and v apart, norms behind sublayers, a table of segments, and no head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from refpeft.errors import AttributeValueError, DomainError

ATTENTION_INPUT = ("q", "k", "v", "qkv")
"""The sites that read the first norm's output."""

FEED_FORWARD_INPUT = ("gate", "up")
"""The sites that read the second norm's output."""

NAMES = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "c_attn": "qkv",
    "attn.c_proj": "o",
    "c_fc": "up",
    "mlp.c_proj": "down",
    "c_proj": "o down",
}
"""What Hugging Face calls the sites; one name may be of two."""


class Matrix(NamedTuple):
    """One weight (o, i) of a block, where it stands, and whether it has a bias (o,)."""

    site: str
    o: int
    i: int
    bias: bool

    @property
    def elements(self) -> int:
        """o i, which a 4-bit format can hold; a bias stays as it is."""
        return self.o * self.i


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A decoder-only model.

    Attributes
    ----------
    name : str
    width, layers, heads, vocabulary : int
    kv_heads : int
        Heads of keys and values, each shared by heads / kv_heads of the queries'.
    head_size : int
        Elements of a head; heads * head_size need not be the width.
    inner : int
        Width of the feed-forward block.
    positions : int
        Rows of the table of positions, 0 where they are rotary.
    context : int
        Tokens that a model of rotary positions is for, 0 where nothing says it.
    segments : int
        Rows of the table of segments, 0 where there is none.
    fused : bool
        Whether q, k and v are one matrix.
    gated : bool
        Whether the feed-forward block is gated.
    centred : bool
        Whether norms are LayerNorm, with a bias and a mean, rather than RMSNorm.
    post : bool
        Whether norms stand behind sublayers and what they are added to, rather than in front.
    causal : bool
        Whether tokens see those before them only; else the model is an encoder.
    biased : frozenset of str
        The sites whose matrix has a bias.
    tied : bool
        Whether the head is the table of embeddings.
    dropout : bool
        Whether it is trained with dropout on embeddings, attention and both sublayers.
    family : str
        What its parts are called in files, see `refpeft.formats.names`.
    """

    name: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    vocabulary: int
    positions: int = 0
    context: int = 0
    segments: int = 0
    fused: bool = False
    gated: bool = True
    centred: bool = False
    post: bool = False
    causal: bool = True
    biased: frozenset[str] = frozenset()
    tied: bool = False
    dropout: bool = False
    family: str = "llama"

    def matrices(self) -> tuple[Matrix, ...]:
        """The matrices of one block, in the order of the forward pass."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        if self.fused:
            attention = [("qkv", queries + 2 * keys, self.width)]
        else:
            attention = [("q", queries, self.width), ("k", keys, self.width), ("v", keys, self.width)]
        gate = [("gate", self.inner, self.width)] if self.gated else []
        rest = [("o", self.width, queries), *gate, ("up", self.inner, self.width), ("down", self.width, self.inner)]
        return tuple(Matrix(site, o, i, site in self.biased) for site, o, i in attention + rest)

    def linear(self) -> int:
        """Elements of all blocks' matrices: what a 4-bit format holds."""
        return self.layers * sum(m.elements for m in self.matrices())

    def parameters(self) -> int:
        """All parameters: V w + P w + S w + L (sum of o i + biases + 2 norms) + a norm + the head's V w, if it is not tied."""
        norm = self.width * (2 if self.centred else 1)
        biases = sum(m.o for m in self.matrices() if m.bias)
        tables = self.vocabulary * (1 if self.tied or not self.causal else 2) + self.positions + self.segments
        return tables * self.width + self.linear() + self.layers * (biases + 2 * norm) + norm

    def require_positions(self, tokens: int, virtual: int = 0) -> None:
        """Refuse more tokens than the model has positions for, or is for, those of a prompt or a prefix among them.

        Raises
        ------
        DomainError
        """
        most = self.positions or self.context
        if 0 < most < tokens + virtual:
            among = f", {virtual} of them virtual" if virtual else ""
            raise DomainError(f"{self.name} has positions for {most} tokens, but {tokens + virtual} came{among}.")

    def select(self, targets: str) -> tuple[Matrix, ...]:
        """The matrices of a block that ``targets`` names: ``all-linear``, or sites as ``q,v`` or ``q_proj,v_proj``; empty, those
        that peft adapts where nothing is said, q and v, or all of qkv where they are one.

        Raises
        ------
        AttributeValueError
            If a block has no such matrix.
        """
        matrices = self.matrices()
        sites = [m.site for m in matrices]
        if targets == "all-linear":
            return matrices
        named = targets or ("qkv" if self.fused else "q,v")
        asked = {site for name in named.split(",") for site in NAMES.get(name.strip(), name.strip()).split(" ")}
        unknown = sorted(asked - set(sites))
        if unknown:
            raise AttributeValueError(
                f"targets: a block of {self.name} has no matrix {unknown[0]!r}, expected some of {', '.join(sites)}, "
                "with commas between, or all-linear."
            )
        return tuple(m for m in matrices if m.site in asked)
