// A matrix plus an update of low rank: what LoRA (arXiv:2106.09685) does to a weight, to a layer's outputs and to its gradient.
//
//     merged = W + s B A                                      lora.merge; lora.unmerge with -s; lora.delta without W
//     y      = x Wᵀ + s (h Bᵀ + lora_bias) + bias             the layer, where the batch is large and x Wᵀ is there already
//     dx     = dy W + drop(dh A)                              its gradient, dh = s dy B
//
// All are result = base + drop(s (left right + inner_bias)) + bias, with base, the biases and the mask `kept` null where there is none.
// A product comes as `summed`, not rounded yet, in the place of base. `right_turned` says that right lies in memory transposed, as B
// does for y.
//
// One thread writes one element. With a rank of 8 to 64 the sum over r is short, and the whole is bound by reading base and writing
// the result; left's row is the same for neighbouring threads, and right stays in cache. base joins in the wide format, so that the
// result is rounded once. That is not correct rounding: the sum itself was rounded on the way.

#include "refpeft.cuh"

extern "C" __global__ void lora_update(
    const STORAGE* base, const wide* summed, const STORAGE* left, const STORAGE* right, const STORAGE* inner_bias, const STORAGE* bias,
    const bool* kept, STORAGE* result, long long rows, long long r, long long columns, int right_turned, double scaling, double keep
) {
    const long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (at >= rows * columns) return;
    const long long n = at / columns, m = at % columns;
    wide sum = 0;
    for (long long l = 0; l < r; l++)
        sum = multiply_add(widen(left[n * r + l]), widen(right[right_turned ? m * r + l : l * columns + m]), sum);
    if (inner_bias) sum += widen(inner_bias[m]);
    sum *= (wide)scaling;
    if (kept) sum = kept[at] ? sum / (wide)keep : (wide)0;
    if (base) sum += widen(base[at]);
    if (summed) sum += summed[at];
    if (bias) sum += widen(bias[m]);
    result[at] = narrowed<STORAGE>(sum);
}
