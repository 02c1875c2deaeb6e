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
// One thread writes DOWN elements of a column, so that each element of right is read once for all of them; left's elements are the
// same for neighbouring threads. The sum over r, 8 to 64 terms, is short: the whole is bound by reading base and writing the result.
// base joins in the wide format, so that the result is rounded once. That is not correct rounding: the sum itself was rounded on
// the way.

#include "refpeft.cuh"

const int DOWN = 8;

extern "C" __global__ void lora_update(
    const STORAGE* base, const wide* summed, const STORAGE* left, const STORAGE* right, const STORAGE* inner_bias,
    const STORAGE* bias, const bool* kept, STORAGE* result, long long rows, long long r, long long columns, int right_turned,
    double scaling, double keep
) {
    const long long row = blockIdx.x * (long long)DOWN, m = blockIdx.y * (long long)blockDim.x + threadIdx.x;
    if (m >= columns) return;
    const int count = rows - row < DOWN ? (int)(rows - row) : DOWN;
    wide sum[DOWN] = {};
    for (long long l = 0; l < r; l++) {
        const wide factor = widen(right[right_turned ? m * r + l : l * columns + m]);
        #pragma unroll
        for (int n = 0; n < DOWN; n++)
            if (n < count) sum[n] = multiply_add(widen(left[(row + n) * r + l]), factor, sum[n]);
    }
    #pragma unroll
    for (int n = 0; n < DOWN; n++) {
        if (n >= count) continue;
        const long long at = (row + n) * columns + m;
        wide total = inner_bias ? sum[n] + widen(inner_bias[m]) : sum[n];
        total *= (wide)scaling;
        if (kept) total = kept[at] ? total / (wide)keep : (wide)0;
        if (base) total += widen(base[at]);
        if (summed) total += summed[at];
        if (bias) total += widen(bias[m]);
        result[at] = narrowed<STORAGE>(total);
    }
}
