// LoRA's layer (arXiv:2106.09685, equation 3) for a small batch, the update fused into the base product.
//
//     h = drop(x) Aᵀ                                          lora_down
//     y = x Wᵀ + s (h Bᵀ + lora_bias) + bias                  lora_linear
//
// Done by parts, y is written and read again for the update, and once more for the bias. Here one warp computes ROWS elements of a
// column of y: it sums x Wᵀ along a row of W and h Bᵀ along a row of B, and writes each element once. With few rows what counts is
// that W is read once. Many rows are better served by cuBLAS and lora_update.
//
// h is rounded to STORAGE, as are x and W; both sums are carried in the wide format, s (h Bᵀ + lora_bias) joins the sum there, and
// the result is rounded once. The mask selects: what dropout does not keep is zero, even where it was NaN.
//
// Absent arrays (bias, lora_bias, kept) are null. With r = 0 nothing is summed and the update is s lora_bias.

#include "dots.cuh"

extern "C" __global__ void lora_down(
    const STORAGE* x, const bool* kept, const STORAGE* a, STORAGE* h, long long rows, long long i, long long r, double keep
) {
    const int lane = threadIdx.x % 32;
    const long long row = blockIdx.x * (long long)ROWS, k = blockIdx.y * (long long)(blockDim.x / 32) + threadIdx.x / 32;
    if (k >= r) return;
    wide sum[ROWS];
    auto dropped = [&](long long n, long long j, long long count, wide (&into)[8]) {
        const long long at = n * i + j;
        load_eight(x + at, count, into);
        if (!kept) return;
        #pragma unroll
        for (int e = 0; e < 8; e++)
            if (e < count) into[e] = kept[at + e] ? into[e] / (wide)keep : (wide)0;
    };
    dots(dropped, Row{a + k * i}, row, rows, i, sum);
    #pragma unroll
    for (int n = 0; n < ROWS; n++)
        if (lane == n && row + n < rows) h[(row + n) * r + k] = narrowed<STORAGE>(sum[n]);
}

extern "C" __global__ void lora_linear(
    const STORAGE* x, const STORAGE* weight, const STORAGE* h, const STORAGE* b, const STORAGE* bias, const STORAGE* lora_bias,
    STORAGE* y, long long rows, long long i, long long o, long long r, double scaling
) {
    const int lane = threadIdx.x % 32;
    const long long row = blockIdx.x * (long long)ROWS, k = blockIdx.y * (long long)(blockDim.x / 32) + threadIdx.x / 32;
    if (k >= o) return;
    wide base[ROWS], update[ROWS];
    dots(Matrix{x, i}, Row{weight + k * i}, row, rows, i, base);
    dots(Matrix{h, r}, Row{b + k * r}, row, rows, r, update);
    #pragma unroll
    for (int n = 0; n < ROWS; n++) {
        if (lane != n || row + n >= rows) continue;
        const wide inner = lora_bias ? update[n] + widen(lora_bias[k]) : update[n];
        const wide sum = base[n] + (wide)scaling * inner;
        y[(row + n) * o + k] = narrowed<STORAGE>(bias ? sum + widen(bias[k]) : sum);
    }
}
