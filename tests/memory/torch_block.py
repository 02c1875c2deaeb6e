"""A decoder's block in torch, to see what autograd keeps of its forward pass."""

from __future__ import annotations

import torch
from torch.nn import functional


class RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x**2)) gain, which keeps x and one number a row; torch's own keeps two of these on a CPU."""

    @staticmethod
    def forward(context, x, gain):
        inverse = x.square().mean(-1, keepdim=True).rsqrt()
        context.save_for_backward(x, inverse, gain)
        return x * inverse * gain


class SwiGLU(torch.autograd.Function):
    """silu(gate) up, which keeps both; as two functions it would keep silu(gate) besides."""

    @staticmethod
    def forward(context, gate, up):
        context.save_for_backward(gate, up)
        return functional.silu(gate) * up


class Block:
    """A block of a `refpeft.memory.decoder.Decoder` with LoRA or everything trained; one sequence, rotary positions left out."""

    def __init__(self, decoder, trained):
        self.decoder = decoder
        random = torch.Generator().manual_seed(0)

        def weight(*shape, trained):
            return torch.randn(*shape, generator=random).requires_grad_(trained)

        adapted = {} if trained.everything else trained.inputs
        rank = trained.hidden // max(len(adapted), 1)
        matrices = decoder.matrices()
        self.weights = {m.site: weight(m.o, m.i, trained=trained.everything) for m in matrices}
        self.down = {m.site: weight(rank, m.i, trained=True) for m in matrices if m.site in adapted}
        self.up = {m.site: weight(m.o, rank, trained=True) for m in matrices if m.site in adapted}
        self.gains = [weight(decoder.width, trained=trained.everything) for _ in range(2)]

    def parameters(self):
        """All of them, frozen and trained."""
        return [*self.weights.values(), *self.down.values(), *self.up.values(), *self.gains]

    def linear(self, site, x):
        y = functional.linear(x, self.weights[site])
        return y + functional.linear(functional.linear(x, self.down[site]), self.up[site]) if site in self.down else y

    def norm(self, x, gain):
        return functional.layer_norm(x, x.shape[-1:], gain) if self.decoder.centred else RMSNorm.apply(x, gain)

    def attention(self, x):
        """The query heads that share a key head are one matrix of rows for it."""
        s, d, groups = len(x), self.decoder.head_size, self.decoder.kv_heads
        q, k, v = (self.linear(site, x).view(s, -1, d).transpose(0, 1) for site in "qkv")
        q = q.reshape(groups, -1, d)
        mask = torch.full((s, s), -torch.inf).triu(1).repeat(q.shape[1] // s, 1)
        probabilities = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=d**-0.5).softmax(-1)
        mixed = torch.bmm(probabilities, v).view(-1, s, d).transpose(0, 1).reshape(s, -1)
        return self.linear("o", mixed)

    def feed_forward(self, x):
        up = self.linear("up", x)
        inner = SwiGLU.apply(self.linear("gate", x), up) if self.decoder.gated else functional.gelu(up)
        return self.linear("down", inner)

    def __call__(self, x):
        x = x + self.attention(self.norm(x, self.gains[0]))
        return x + self.feed_forward(self.norm(x, self.gains[1]))


def bytes_kept(decoder, trained, s: int) -> int:
    """Bytes of all that autograd saves in a block's forward pass over s tokens, parameters left out."""
    block = Block(decoder, trained)
    parameters = {p.untyped_storage().data_ptr() for p in block.parameters()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    x = torch.randn(s, decoder.width, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(x)
    return sum(size for size, _ in saved.values())
