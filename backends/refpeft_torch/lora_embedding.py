"""LoRA on an embedding table in torch.

The backward of ``F.embedding`` on the CPU adds rows up in the table's own dtype. The tables are looked up in float32, so that a
token's gradients are summed there and rounded once, as bfloat16 and float16 sums are everywhere else.
"""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("lora.embedding")
def embedding(ids, weight, a, b, *, scaling):
    """Two look-ups, the second in the transposed A."""
    return _rows(ids, weight) + scaling * F.linear(_rows(ids, a.T), b)


def _rows(ids, table):
    return F.embedding(ids, table.to(torch.promote_types(table.dtype, torch.float32))).to(table.dtype)
