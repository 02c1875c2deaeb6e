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
// One thread writes DOWN elements of a column, so that each element of right is read once for all of them. Those of left are the same
// for all threads of a block, which lays them into shared memory, DEEP of each row at a time; beyond r they are zero. The sum over r,
// 8 to 64 terms, is short: the whole is bound by reading base and writing the result. All is read before anything is written,
// since the compiler must take it that a result may lie where something is still to be read.
//
// base joins in the wide format, so that the result is rounded once. That is not correct rounding: the sum itself was rounded on
// the way.

#include "eight.cuh"

const int DOWN = 16, DEEP = 8;

extern "C" __global__ void lora_update(
    const STORAGE* base, const wide* summed, const STORAGE* left, const STORAGE* right, const STORAGE* inner_bias,
    const STORAGE* bias, const bool* kept, STORAGE* result, long long rows, long long r, long long columns, int right_turned,
    double scaling, double keep
) {
    __shared__ wide tile[DOWN][DEEP];
    const long long row = blockIdx.x * (long long)DOWN, m = blockIdx.y * (long long)blockDim.x + threadIdx.x;
    const int count = rows - row < DOWN ? (int)(rows - row) : DOWN;
    wide sum[DOWN] = {};
    for (long long l = 0; l < r; l += DEEP) {
        for (int t = threadIdx.x; t < DOWN * DEEP; t += blockDim.x) {
            const int n = t / DEEP, e = t % DEEP;
            tile[n][e] = n < count && l + e < r ? widen(left[(row + n) * r + l + e]) : (wide)0;
        }
        __syncthreads();
        if (m < columns) {
            wide factor[DEEP];
            if (right_turned) load_eight(right + m * r + l, r - l, factor);
            #pragma unroll
            for (int e = 0; e < DEEP; e++)
                if (!right_turned) factor[e] = l + e < r ? widen(right[(l + e) * columns + m]) : (wide)0;
            #pragma unroll
            for (int n = 0; n < DOWN; n++)
                for (int e = 0; e < DEEP; e++) sum[n] = multiply_add(tile[n][e], factor[e], sum[n]);
        }
        __syncthreads();
    }
    if (m >= columns) return;
    #pragma unroll
    for (int n = 0; n < DOWN; n++) {
        if (n >= count) continue;
        const long long at = (row + n) * columns + m;
        wide total = inner_bias ? sum[n] + widen(inner_bias[m]) : sum[n];
        total *= (wide)scaling;
        if (kept) total = kept[at] ? total / (wide)keep : (wide)0;
        if (base) total += widen(base[at]);
        if (summed) total += summed[at];
        sum[n] = bias ? total + widen(bias[m]) : total;
    }
    #pragma unroll
    for (int n = 0; n < DOWN; n++)
        if (n < count) result[(row + n) * columns + m] = narrowed<STORAGE>(sum[n]);
}
