// A product by tiles: 256 threads share what each of them would otherwise read for itself.
//
//     result = scale left right        (rows, inner) times (inner, columns)
//
// For each step of 16 along the inner dimension, the block copies 16 by 16 elements of either operand into shared memory and
// waits; each thread adds 16 products to its own element, and all wait again before the tiles are overwritten. Beyond the
// matrices' edges the tiles hold zeros. The second index has one place more than it needs, so that a column lies in 16 different
// banks. Sums are carried in the wide format, in one order: equal inputs give equal bits.
//
// A turned operand lies in memory transposed; threads copy along memory, whichever way it lies. With z = drop(x), h = z Aᵀ and
// du = s dy, the gradients of LoRA's layer (arXiv:2106.09685) that have a side of length r are
//
//     dh = du B        dA = dhᵀ z        dB = duᵀ h
//
// The result is rounded to STORAGE, or left in the wide format in `summed`: whichever is not null.
//
// `scale` is applied to left's elements, as s belongs to the cotangent; `kept` and `keep` drop out right's, which for dA is x.

#include "refpeft.cuh"

const int TILE = 16;

// Copies the tile whose first element is (row, column) of an operand, a function of these two.
template <class Operand>
__device__ void copy_tile(
    wide (&tile)[TILE][TILE + 1], Operand operand, int turned, long long row, long long column, long long rows, long long columns
) {
    const int r = turned ? threadIdx.x : threadIdx.y, c = turned ? threadIdx.y : threadIdx.x;
    tile[r][c] = row + r < rows && column + c < columns ? operand(row + r, column + c) : (wide)0;
}

extern "C" __global__ void product(
    const STORAGE* left, const STORAGE* right, const bool* kept, STORAGE* result, wide* summed, long long rows,
    long long inner, long long columns, int left_turned, int right_turned, double scale, double keep
) {
    __shared__ wide left_tile[TILE][TILE + 1], right_tile[TILE][TILE + 1];
    const long long first_row = blockIdx.x * (long long)TILE, first_column = blockIdx.y * (long long)TILE;
    auto scaled = [&](long long n, long long k) {
        return (wide)scale * widen(left[left_turned ? k * rows + n : n * inner + k]);
    };
    auto dropped = [&](long long k, long long m) {
        const long long at = right_turned ? m * inner + k : k * columns + m;
        if (!kept) return widen(right[at]);
        return kept[at] ? widen(right[at]) / (wide)keep : (wide)0;
    };

    wide sum = 0;
    for (long long k = 0; k < inner; k += TILE) {
        copy_tile(left_tile, scaled, left_turned, first_row, k, rows, inner);
        copy_tile(right_tile, dropped, right_turned, k, first_column, inner, columns);
        __syncthreads();
        for (int j = 0; j < TILE; j++) sum = multiply_add(left_tile[threadIdx.y][j], right_tile[j][threadIdx.x], sum);
        __syncthreads();
    }
    const long long n = first_row + threadIdx.y, m = first_column + threadIdx.x;
    if (n >= rows || m >= columns) return;
    if (result) result[n * columns + m] = narrowed<STORAGE>(sum);
    if (summed) summed[n * columns + m] = sum;
}
