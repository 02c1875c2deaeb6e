// LoRA's layer (arXiv:2106.09685, equation 3) for a small batch, the update fused into the base product.
//
//     h = drop(x) Aᵀ                                          lora_down
//     y = x Wᵀ + s (h Bᵀ + lora_bias) + bias                  lora_linear
//
// Done by parts, y is written and read again for the update, and once more for the bias. Here a block computes ROWS by COLUMNS
// elements of y: a thread for each sums h Bᵀ along a row of B, all threads together sum x Wᵀ along rows of W, and each element is
// written once. With few rows what counts is that W is read once. Many rows are better served by cuBLAS and lora_update.
//
// h is rounded to STORAGE, as are x and W; both sums are carried in the wide format, s (h Bᵀ + lora_bias) joins the sum there, and
// the result is rounded once. The mask selects: what dropout does not keep is zero, even where it was NaN.
//
// Absent arrays (bias, lora_bias, kept) are null. With r = 0 nothing is summed and the update is s lora_bias.

#include "dots.cuh"

extern "C" __global__ void lora_down(
    const STORAGE* x, const bool* kept, const STORAGE* a, STORAGE* h, long long rows, long long i, long long r, double keep
) {
    const long long row = blockIdx.x * (long long)ROWS, column = blockIdx.y * (long long)COLUMNS;
    auto dropped = [&](long long n, long long j, auto count, wide (&into)[8]) {
        const long long at = n * i + j;
        load_eight(x + at, count, into);
        if (!kept) return;
        #pragma unroll
        for (int e = 0; e < 8; e++)
            if (e < count) into[e] = kept[at + e] ? into[e] / (wide)keep : (wide)0;
    };
    const bool whole = in_eights(x, i) && in_eights(a, i);
    const wide total = dots(dropped, Matrix{a, i}, row, rows, column, r, i, whole);
    const int n = threadIdx.x / COLUMNS, c = threadIdx.x % COLUMNS;
    if (n >= ROWS || row + n >= rows || column + c >= r) return;
    h[(row + n) * r + column + c] = narrowed<STORAGE>(total);
}

extern "C" __global__ void lora_linear(
    const STORAGE* x, const STORAGE* weight, const STORAGE* h, const STORAGE* b, const STORAGE* bias, const STORAGE* lora_bias,
    STORAGE* y, long long rows, long long i, long long o, long long r, double scaling
) {
    const long long row = blockIdx.x * (long long)ROWS, column = blockIdx.y * (long long)COLUMNS;
    const long long n = row + threadIdx.x / COLUMNS, k = column + threadIdx.x % COLUMNS;
    const bool writes = threadIdx.x < ROWS * COLUMNS && n < rows && k < o, whole = in_eights(x, i) && in_eights(weight, i);
    const wide update = writes ? dot(h + n * r, b + k * r, r) : 0;
    const wide base = dots(Matrix{x, i}, Matrix{weight, i}, row, rows, column, o, i, whole);
    if (!writes) return;
    const wide sum = base + (wide)scaling * (lora_bias ? update + widen(lora_bias[k]) : update);
    y[n * o + k] = narrowed<STORAGE>(bias ? sum + widen(bias[k]) : sum);
}
