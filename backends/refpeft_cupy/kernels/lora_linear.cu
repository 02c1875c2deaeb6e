// LoRA's layer (arXiv:2106.09685, equation 3) for a small batch, the update fused into the base product.
//
//     h = drop(x) Aᵀ                                          lora_down
//     y = x Wᵀ + s (h Bᵀ + lora_bias) + bias                  lora_linear
//
// Done by parts, y is written and read again for the update, and once more for the bias. Here one warp computes ROWS by COLUMNS
// elements of y: it sums x Wᵀ along rows of W and h Bᵀ along rows of B, and writes each element once. With few rows what counts is
// that W is read once. Many rows are better served by cuBLAS and lora_update.
//
// There are few columns of h, and each is a long sum: a whole block of threads takes ROWS by COLUMNS of them, and adds what its warps
// have, in their order.
//
// h is rounded to STORAGE, as are x and W; both sums are carried in the wide format, s (h Bᵀ + lora_bias) joins the sum there, and
// the result is rounded once. The mask selects: what dropout does not keep is zero, even where it was NaN.
//
// Absent arrays (bias, lora_bias, kept) are null. With r = 0 nothing is summed and the update is s lora_bias.

#include "dots.cuh"

const int WARPS = 8;

extern "C" __global__ void lora_down(
    const STORAGE* x, const bool* kept, const STORAGE* a, STORAGE* h, long long rows, long long i, long long r, double keep
) {
    __shared__ wide of_warp[WARPS][ROWS][COLUMNS];
    const long long row = blockIdx.x * (long long)ROWS, column = blockIdx.y * (long long)COLUMNS;
    wide sum[ROWS][COLUMNS];
    auto dropped = [&](long long n, long long j, long long count, wide (&into)[8]) {
        const long long at = n * i + j;
        load_eight(x + at, count, into);
        if (!kept) return;
        #pragma unroll
        for (int e = 0; e < 8; e++)
            if (e < count) into[e] = kept[at + e] ? into[e] / (wide)keep : (wide)0;
    };
    dots<32 * WARPS>(dropped, Matrix{a, i}, row, rows, column, r, i, sum);
    #pragma unroll
    for (int n = 0; n < ROWS; n++)
        for (int c = 0; c < COLUMNS; c++)
            if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32][n][c] = sum[n][c];
    __syncthreads();
    const int n = threadIdx.x / COLUMNS, c = threadIdx.x % COLUMNS;
    if (n >= ROWS || row + n >= rows || column + c >= r) return;
    wide total = 0;
    for (int warp = 0; warp < WARPS; warp++) total += of_warp[warp][n][c];
    h[(row + n) * r + column + c] = narrowed<STORAGE>(total);
}

extern "C" __global__ void lora_linear(
    const STORAGE* x, const STORAGE* weight, const STORAGE* h, const STORAGE* b, const STORAGE* bias, const STORAGE* lora_bias,
    STORAGE* y, long long rows, long long i, long long o, long long r, double scaling
) {
    const int lane = threadIdx.x % 32;
    const long long row = blockIdx.x * (long long)ROWS;
    const long long column = (blockIdx.y * (long long)(blockDim.x / 32) + threadIdx.x / 32) * COLUMNS;
    if (column >= o) return;
    wide base[ROWS][COLUMNS], update[ROWS][COLUMNS];
    dots<32>(Matrix{x, i}, Matrix{weight, i}, row, rows, column, o, i, base);
    dots<32>(Matrix{h, r}, Matrix{b, r}, row, rows, column, o, r, update);
    #pragma unroll
    for (int n = 0; n < ROWS; n++)
        for (int c = 0; c < COLUMNS; c++) {
            if (lane != n * COLUMNS + c || row + n >= rows || column + c >= o) continue;
            const long long k = column + c;
            const wide inner = lora_bias ? update[n][c] + widen(lora_bias[k]) : update[n][c];
            const wide sum = base[n][c] + (wide)scaling * inner;
            y[(row + n) * o + k] = narrowed<STORAGE>(bias ? sum + widen(bias[k]) : sum);
        }
}
