"""peft: of WaveFT's wavelets, coif4 and coif5 are none, db3 has twelve digits, and most of the names have no filter."""

import peft
import torch
from peft.tuners.waveft.constants import WAVELET_REDUCTIONS
from peft.tuners.waveft.wavelet import Wavelet


def missing(name):
    """Whether a name that the configuration takes has no filter."""
    try:
        return not Wavelet(name)
    except ValueError:
        return True


def off(name):
    """How far the filter is from orthonormal to its shifts by two."""
    low = Wavelet(name).rec_lo
    sums = [sum(a * b for a, b in zip(low, low[shift:])) - (shift == 0) for shift in range(0, len(low), 2)]
    return max(map(abs, sums))


for name in ("db3", "coif3", "coif4", "coif5"):
    print(f"{name}: {len(Wavelet(name).rec_lo)} taps, off orthonormal by {off(name):.1g}")
model = torch.nn.Sequential(torch.nn.Linear(64, 64))
layer = peft.get_peft_model(
    model, peft.WaveFTConfig(target_modules=["0"], n_frequency=9, wavelet_family="coif5")
).base_model.model[0]
print("coif5: the update of a 64 by 64 weight is", tuple(layer.get_delta_weight("default").shape))
lost = [name for name in WAVELET_REDUCTIONS if missing(name)]
peft.WaveFTConfig(wavelet_family=lost[0])
print(
    f"{len(lost)} of {len(WAVELET_REDUCTIONS)} names that the configuration takes have no filter, {lost[0]} the first"
)
