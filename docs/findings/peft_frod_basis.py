"""peft: of a FRoD adapter it loads V, but keeps the U that belongs to a V of its own."""

import copy

import peft
import torch
from peft.tuners.frod import model as frod

config = peft.FrodConfig(target_modules=["0"], progressbar=False)
torch.manual_seed(0)
base = torch.nn.Sequential(torch.nn.Linear(6, 8))
x = torch.randn(4, 6)
own = frod._projection_from_weights


def turned(*args):
    """An eigenvector the other way round: as right as before, and as another library may have it."""
    v = own(*args)
    v[:, 0] = -v[:, 0]
    return v


def start(basis):
    frod._projection_from_weights = basis
    return peft.get_peft_model(copy.deepcopy(base), config)


def off(model):
    return float(torch.linalg.norm(model(x) - base(x)) / torch.linalg.norm(base(x)))


elsewhere, here = start(turned), start(own)
print(f"at the start y is off by {off(elsewhere):.0e} there, by {off(here):.0e} here")
peft.set_peft_model_state_dict(here, peft.get_peft_model_state_dict(elsewhere))
print(f"what was saved there, loaded here: y is off by {off(here):.2f} of its norm")
