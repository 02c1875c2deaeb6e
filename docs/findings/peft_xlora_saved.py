"""peft: an X-LoRA that is saved and loaded again has another classifier."""

import tempfile

import peft
import torch
import transformers
from safetensors.torch import load_file

torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, use_cache=False
)
base = transformers.LlamaForCausalLM(config).eval()
weights = {name: 4 * tensor for name, tensor in base.state_dict().items()}
ids = torch.arange(12)[None]


def plain():
    model = transformers.LlamaForCausalLM(config).eval()
    model.load_state_dict(weights)
    return model


with tempfile.TemporaryDirectory() as folder:
    places = {str(k): f"{folder}/adapter{k}" for k in range(2)}
    for place in places.values():
        lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, r=2, lora_alpha=16)
        peft.get_peft_model(plain(), lora).save_pretrained(place)
    mixed = peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters=places)
    model = peft.get_peft_model(plain(), mixed).eval()
    for parameter in model.base_model.internal_xlora_classifier.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(f"{folder}/saved")
    names = list(load_file(f"{folder}/saved/adapter_model.safetensors"))
    under = [name for name in load_file(f"{folder}/saved/0/adapter_model.safetensors") if "classifier" in name]
    print(f"saved: {names}; under 0: {under}")
    again = peft.PeftModel.from_pretrained(plain(), f"{folder}/saved").eval()
    with torch.no_grad():
        expected, got = model(input_ids=ids).logits, again(input_ids=ids).logits
    print(f"loaded again, the logits are off by {float((got - expected).norm() / expected.norm()):.1f} of their norm")
