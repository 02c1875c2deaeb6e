"""Steps of optimizers, by torch.optim's own functions where it has them."""

import torch
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from refpeft_torch.autograd import implements


def _copies(*tensors):
    """What torch.optim may change, contiguous and without a history."""
    return [t.detach().clone(memory_format=torch.contiguous_format) for t in tensors]


@implements("sgd.step")
def sgd_step(p, grad, buffer, *, lr, momentum=0.0, decay=0.0, nesterov=False):
    """torch.optim.SGD, which knows no Nesterov momentum of zero, and without momentum keeps no buffer."""
    p, grad, buffer = _copies(p, grad, buffer)
    if momentum == 0:
        buffer = 0 * buffer + grad.add(p, alpha=decay)
        nesterov = False
    options = {"lr": lr, "momentum": momentum, "weight_decay": decay, "nesterov": nesterov}
    sgd([p], [grad], [buffer], foreach=False, dampening=0.0, maximize=False, **options)
    return p, buffer


@implements("adam.step")
def adam_step(p, grad, m, v, *, lr, step, beta1=0.9, beta2=0.999, eps=1e-8):
    """torch.optim.Adam."""
    return _adam(p, grad, m, v, lr, step, beta1, beta2, eps, decay=0.0)


@implements("adamw.step")
def adamw_step(p, grad, m, v, *, lr, step, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.01, variant="before"):
    """torch.optim.AdamW, or torch.optim.Adam and then the decay."""
    if variant == "before":
        return _adam(p, grad, m, v, lr, step, beta1, beta2, eps, decay)
    p, m, v = _adam(p, grad, m, v, lr, step, beta1, beta2, eps, decay=0.0)
    return p * (1 - lr * decay), m, v


def _adam(p, grad, m, v, lr, step, beta1, beta2, eps, decay):
    """torch counts the step itself, from the one before."""
    p, grad, m, v = _copies(p, grad, m, v)
    options = {"amsgrad": False, "maximize": False, "foreach": False, "decoupled_weight_decay": True}
    numbers = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": decay}
    adam([p], [grad], [m], [v], [], [torch.tensor(step - 1.0)], **options, **numbers)
    return p, m, v


@implements("lion.step")
def lion_step(p, grad, m, *, lr, beta1=0.9, beta2=0.99, decay=0.0):
    """The paper's program: two interpolations and a sign."""
    direction = torch.lerp(grad, m, beta1).sign()
    return p - lr * (direction + decay * p), torch.lerp(grad, m, beta2)


@implements("clip.global_norm")
def clip_global_norm(grad, *, max_norm, eps=0.0):
    """torch.nn.utils, which sets eps to 1e-6; for another one its parts."""
    norm = torch.nn.utils.get_total_norm([grad.detach()])
    if eps == 1e-6:
        holder = torch.nn.Parameter(torch.empty_like(grad))
        holder.grad = grad.detach().clone()
        torch.nn.utils.clip_grads_with_norm_([holder], max_norm, norm, foreach=False)
        return holder.grad, norm
    return grad * (max_norm / (norm + eps)).clamp(max=1.0), norm
