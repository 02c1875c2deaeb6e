"""MTL-LoRA as AdapterHub has it: an adapter for each task, all with the same A and B, and the problem's scale."""

from adapters.composition import MultiTask

from refpeft_hf.adapterhub_layers import around_linear, called
from refpeft_hf.declared import implements, only
from refpeft_hf.layers import one_batch

diagonal = only("form", "diagonal", "adapters' full matrices raise: docs/findings/adapters-mtl-lora.md")


@implements("mtl_lora.linear", diagonal)
def linear(x, weight, a, b, core, mixing, task, bias=None, *, scaling, sharpness, form="diagonal"):
    """``LoRALinear`` with ``MTLLoRA``, composed by ``MultiTask``."""
    names, options = tuple(map(str, range(len(core)))), (("n_up_projection", len(b)), ("r", len(a)))
    layer = around_linear(*weight.shape, bias is not None, weight.dtype, "MTLLoRAConfig", options, names, MultiTask)
    tensors = {}
    for name, own, weights in zip(names, core, mixing):
        layer.loras[name].scaling, layer.loras[name].weights_sharpness = scaling, sharpness
        of_task = {"lora_A": a, "lora_B": b, "task_specific.values": own[0], "weights": weights}
        tensors |= {f"loras.{name}.{n}": tensor for n, tensor in of_task.items()}
    y = called(layer, one_batch(x, 2), weight, bias, tensors, task_ids=task.reshape(-1))
    return y.reshape(*x.shape[:-1], len(weight))
