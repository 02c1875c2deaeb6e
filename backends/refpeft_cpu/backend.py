"""What refpeft is told about the CPU backend."""

from __future__ import annotations

import functools

import numpy as np

from refpeft.backend import Backend, Implementation


class CpuBackend(Backend):
    """Tuned NumPy, threads included."""

    name = "cpu"
    summary = "NumPy tuned for speed, with threads"
    training = True

    def versions(self):
        return {"numpy": np.__version__}

    @functools.cached_property
    def _implementations(self):
        from refpeft_cpu import (
            adam,
            adam8bit,
            adapter,
            attention,
            codebook,
            decoder,
            dora,
            dynamic8,
            fp4,
            gelu,
            gguf,
            ia3,
            linear,
            llm_int8,
            llm_int8_linear,
            lm_loss,
            mxfp4,
            nf4,
            nf4_double,
            norms,
            nvfp4,
            optimizers,
            prefix,
            prompt,
            ptuning,
            qlora,
            swiglu,
            tanh,
        )

        return {
            "adam.step": Implementation(adam.step),
            "adamw.step": Implementation(adam.decayed_step),
            "adam8bit.step": Implementation(adam8bit.step),
            "nn.linear": Implementation(linear.plain, linear.plain_vjp),
            "nn.rms_norm": Implementation(norms.rms_norm, norms.vjp),
            "nn.layer_norm": Implementation(norms.layer_norm, norms.vjp),
            "nn.gelu": Implementation(gelu.gelu, gelu.gelu_vjp),
            "nn.tanh": Implementation(tanh.tanh, tanh.vjp),
            "nn.rope": Implementation(decoder.rope, decoder.rope_vjp),
            "nn.swiglu": Implementation(swiglu.swiglu, swiglu.vjp),
            "nn.embedding": Implementation(decoder.embedding, decoder.embedding_vjp),
            "nn.cross_entropy": Implementation(decoder.cross_entropy, decoder.cross_entropy_vjp),
            "nn.lm_loss": Implementation(lm_loss.lm_loss, lm_loss.vjp),
            "nn.attention": Implementation(attention.attention, attention.attention_vjp),
            "lora.linear": Implementation(linear.lora, linear.lora_vjp),
            "dora.linear": Implementation(dora.linear, dora.vjp),
            "ia3.linear": Implementation(ia3.linear, ia3.vjp),
            "adapter.bottleneck": Implementation(adapter.bottleneck, adapter.vjp),
            "prefix.attention": Implementation(prefix.attention, prefix.attention_vjp),
            "prefix.encode": Implementation(prefix.encode, prefix.encode_vjp),
            "prefix.cut": Implementation(prefix.cut, prefix.cut_vjp),
            "prompt.embed": Implementation(prompt.embed, prompt.embed_vjp),
            "ptuning.mlp": Implementation(ptuning.mlp, ptuning.mlp_vjp),
            "sgd.step": Implementation(optimizers.sgd),
            "lion.step": Implementation(optimizers.lion),
            "clip.global_norm": Implementation(optimizers.clip),
            "dynamic8.quantize": Implementation(dynamic8.quantize),
            "dynamic8.dequantize": Implementation(dynamic8.dequantize),
            "fp4.quantize": Implementation(fp4.quantize),
            "fp4.dequantize": Implementation(fp4.dequantize),
            "mxfp4.quantize": Implementation(mxfp4.quantize),
            "mxfp4.dequantize": Implementation(mxfp4.dequantize),
            "nvfp4.scale": Implementation(nvfp4.scale),
            "nvfp4.quantize": Implementation(nvfp4.quantize),
            "nvfp4.dequantize": Implementation(nvfp4.dequantize),
            "q4_0.quantize": Implementation(gguf.quantize_q4_0),
            "q4_0.dequantize": Implementation(gguf.dequantize_q4_0),
            "q4_1.quantize": Implementation(gguf.quantize_q4_1),
            "q4_1.dequantize": Implementation(gguf.dequantize_q4_1),
            "q8_0.quantize": Implementation(gguf.quantize_q8_0),
            "q8_0.dequantize": Implementation(gguf.dequantize_q8_0),
            "llm_int8.quantize": Implementation(llm_int8.quantize),
            "llm_int8.dequantize": Implementation(llm_int8.dequantize),
            "llm_int8.linear": Implementation(llm_int8_linear.linear, llm_int8_linear.vjp),
            "codebook.quantize": Implementation(codebook.quantize),
            "codebook.dequantize": Implementation(codebook.dequantize),
            "nf4.quantize": Implementation(nf4.quantize),
            "nf4.dequantize": Implementation(nf4.dequantize),
            "nf4.offset": Implementation(nf4_double.offset),
            "nf4.double_quantize": Implementation(nf4_double.quantize),
            "nf4.double_dequantize": Implementation(nf4_double.dequantize),
            "qlora.linear": Implementation(qlora.linear, qlora.vjp),
        }

    @property
    def shards(self):
        from refpeft_cpu import threads

        return threads.count()

    def together(self, tasks):
        from refpeft_cpu import memory, threads

        memory.keep_freed()
        return threads.together(tasks)

    def operations(self):
        return self._implementations

    def asarray(self, array, device):
        return array

    def to_numpy(self, array):
        return array
