"""What torch computes in where its kernels, or autograd's sums, would stay in 16 bits."""

import torch

NARROW = (torch.float16, torch.bfloat16)


def wide(tensor):
    """A tensor of 16 bits as float32, on any device."""
    return tensor.float() if tensor is not None and tensor.dtype in NARROW else tensor


def widened(*tensors):
    """Tensors of 16 bits as float32.

    torch and its autograd add gradients up in 16 bits, and a convolution in them lets a NaN reach outputs beside its window.
    """
    return tuple(map(wide, tensors))


def divided(tensor, number):
    """tensor / number, correctly rounded: on CUDA torch multiplies by the reciprocal of what is a number of Python."""
    return tensor / tensor.new_tensor(number)


def keep_promises() -> None:
    """Turn off what torch does on CUDA unasked: TF32 in convolutions and LSTMs, partial sums of products stored in 16 bits."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
