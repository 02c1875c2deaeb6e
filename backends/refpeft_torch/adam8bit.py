"""8-bit Adam in torch: codes to moments, torch.optim's step, moments to codes."""

from refpeft_torch.autograd import implements
from refpeft_torch.blocks import decode
from refpeft_torch.dynamic8 import dynamic_map, encode
from refpeft_torch.optimizers import adamw_step

BLOCK = 256


@implements("adam8bit.step")
def adam8bit_step(
    p, grad, m, v, m_absmax, v_absmax, *, lr, step, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.0, variant="paper"
):
    """torch.optim.AdamW on decoded moments."""
    m = decode(dynamic_map(True, p.device), m, m_absmax, BLOCK)
    v = decode(dynamic_map(False, p.device), v, v_absmax, BLOCK)
    p, m, v = adamw_step(p, grad, m, v, lr=lr, step=step, beta1=beta1, beta2=beta2, eps=eps, decay=decay)
    (m, m_absmax), (v, v_absmax) = encode(m, BLOCK, True, variant), encode(v, BLOCK, False, variant)
    return p, m, v, m_absmax, v_absmax
