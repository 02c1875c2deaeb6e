"""Steps of bitsandbytes' optimizers on the CPU, on copies: they write over what they are given."""

import bitsandbytes.functional as F

from refpeft_hf.declared import implements, only
from refpeft_hf.quantization.nf4 import reading


def decay_from_zero(shapes, attributes):
    """What it takes of decays."""
    return "" if attributes["decay"] >= 0 else "bitsandbytes leaves out a decay below zero"


IN_FLOAT32 = {"float64": "bitsandbytes steps in float32 whatever it is given"}
BEFORE = "on the CPU bitsandbytes decays before the update"
NO_NESTEROV = "bitsandbytes has no Nesterov momentum"


@implements("adam.step", lacks=IN_FLOAT32)
def adam(p, grad, m, v, *, lr, step, beta1=0.9, beta2=0.999, eps=1e-8):
    """``optimizer_update_32bit`` without decay."""
    return adamw(p, grad, m, v, lr=lr, step=step, beta1=beta1, beta2=beta2, eps=eps, decay=0.0, variant="before")


@implements("adamw.step", only("variant", "before", BEFORE), decay_from_zero, lacks=IN_FLOAT32)
def adamw(p, grad, m, v, *, lr, step, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.01, variant="before"):
    """``optimizer_update_32bit``."""
    p, m, v = (x.detach().clone() for x in (p, m, v))
    F.optimizer_update_32bit("adam", grad, p, m, beta1, eps, step, lr, v, beta2, weight_decay=decay)
    return p, m, v


@implements("lion.step", decay_from_zero, lacks=IN_FLOAT32)
def lion(p, grad, m, *, lr, beta1=0.9, beta2=0.99, decay=0.0):
    """``optimizer_update_32bit``, which has one state of Lion."""
    p, m = p.detach().clone(), m.detach().clone()
    F.optimizer_update_32bit("lion", grad, p, m, beta1, 0.0, 2, lr, None, beta2, weight_decay=decay)
    return p, m


@implements("sgd.step", only("nesterov", False, NO_NESTEROV), decay_from_zero, lacks=IN_FLOAT32)
def sgd(p, grad, buffer, *, lr, momentum=0.0, decay=0.0, nesterov=False):
    """``optimizer_update_32bit`` of a later step: in the first it takes the gradient for what is remembered."""
    p, buffer = p.detach().clone(), buffer.detach().clone()
    F.optimizer_update_32bit("momentum", grad, p, buffer, momentum, 0.0, 2, lr, weight_decay=decay)
    return p, buffer


@implements("adam8bit.step", reading, decay_from_zero)
def adam8bit(p, grad, m, v, m_absmax, v_absmax, *, lr, step, beta1, beta2, eps, decay, variant):
    """``optimizer_update_8bit_blockwise``."""
    p, m, v, m_absmax, v_absmax = (x.detach().clone() for x in (p, m, v, m_absmax, v_absmax))
    maps = F.create_dynamic_map(True), F.create_dynamic_map(False)
    F.optimizer_update_8bit_blockwise(
        "adam", grad, p, m, v, beta1, beta2, 0.0, 0.0, eps, step, lr, *maps, m_absmax, v_absmax, weight_decay=decay
    )
    return p, m, v, m_absmax, v_absmax
