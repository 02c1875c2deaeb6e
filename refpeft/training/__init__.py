"""Training: optimizers whose state is paged, so that it may be larger than the device and outlives the process."""

from refpeft.training.paged import PagedAdam, PagedAdamW, PagedLion, PagedSGD

__all__ = ["PagedAdam", "PagedAdamW", "PagedLion", "PagedSGD"]
