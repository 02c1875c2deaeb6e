"""Training: optimizers whose state is paged, so that it may be larger than the device and outlives the process."""

from refpeft.training.paged import PagedAdam, PagedAdam8bit, PagedAdamW, PagedLion, PagedSGD

__all__ = ["PagedAdam", "PagedAdam8bit", "PagedAdamW", "PagedLion", "PagedSGD"]
