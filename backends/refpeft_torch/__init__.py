"""The torch backend: every operation in idiomatic torch, its gradient by ``torch.autograd``, on CPU or CUDA.

It shares nothing with the reference's hand-derived gradients, which is what makes its agreement worth something.
Importing this package, or listing backends, never imports torch.
"""

from refpeft.plugins import hookimpl


@hookimpl
def refpeft_backends():
    """The torch backend's light description."""
    from refpeft_torch.backend import TorchBackend

    return [TorchBackend()]
