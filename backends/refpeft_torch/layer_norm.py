"""Layer normalisation in torch.

The backward of ``F.layer_norm`` on the CPU adds the gradients to weight and bias up in the input's own dtype. bfloat16 and
float16 are therefore normalised in float32.
"""

import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.precision import widened


@implements("nn.layer_norm")
def layer_norm(x, weight=None, bias=None, *, eps=1e-5):
    """``torch.nn.functional.layer_norm``."""
    wide, weight, bias = widened(x, weight, bias)
    return F.layer_norm(wide, x.shape[-1:], weight, bias, eps).to(x.dtype)
