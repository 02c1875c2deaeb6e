"""peft: FourierFT transforms in float32, whatever the dtype of the model."""

import peft
import torch

torch.manual_seed(0)
config = peft.FourierFTConfig(target_modules=["0"], n_frequency=5)
model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 4)).double(), config).double().eval()
layer = model.base_model.model[0]
row, column = layer.indices["default"]
spectrum = torch.zeros(4, 6, dtype=torch.float64)
spectrum[row, column] = layer.fourierft_spectrum["default"].detach()
exact = torch.fft.ifft2(spectrum).real * 150
off = (layer.get_delta_weight("default") - exact).abs().max() / exact.abs().max()
print(f"in float64 the update is off by {off.item():.1g} of its largest element")
