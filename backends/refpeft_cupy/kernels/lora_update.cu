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
// A block writes DOWN by ACROSS elements of the result, a thread 4 by 8 of them. Along r the block lays DEEP of the rows of left and
// of the columns of right into shared memory at a time; beyond their edges, and beyond r, are zeros. The sum over r, 8 to 64 terms, is
// short: the whole is bound by reading base and writing the result, which is done by eights. Its base is on its way at once.
// All is read before anything is written, since the compiler must take it that a result may lie where something is still to be read.
//
// base joins in the wide format, so that the result is rounded once. That is not correct rounding: the sum itself was rounded on
// the way.

#include "eight.cuh"

const int DOWN = 32, ACROSS = 256, DEEP = 8;

// Four rows of eight elements each, as far as they are there; rows begin `columns` elements after each other.
template <class T>
__device__ inline void load_rows(const T* from, long long rows, long long count, long long columns, wide (&into)[4][8]) {
    if (rows >= 4 && count >= 8 && in_eights(from, columns)) {
        #pragma unroll
        for (int n = 0; n < 4; n++) load_eight(from + n * columns, Whole(), into[n]);
    } else {
        #pragma unroll
        for (int n = 0; n < 4; n++)
            if (n < rows) load_eight(from + n * columns, count, into[n]);
    }
}

extern "C" __global__ void lora_update(
    const STORAGE* base, const wide* summed, const STORAGE* left, const STORAGE* right, const STORAGE* inner_bias,
    const STORAGE* bias, const bool* kept, STORAGE* result, long long rows, long long r, long long columns, int right_turned,
    double scaling, double keep
) {
    __shared__ wide left_tile[DEEP][DOWN], right_tile[DEEP][ACROSS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const long long first_row = blockIdx.x * (long long)DOWN, first_column = blockIdx.y * (long long)ACROSS;
    const long long row = first_row + 4 * warp, column = first_column + 8 * lane, at = row * columns + column;
    const long long down = rows - row, across = columns - column;    // how many there are from the thread's first on

    wide sum[4][8] = {};
    for (long long l = 0; l < r; l += DEEP) {
        wide of_left[8] = {}, of_right[8] = {};
        const long long n = first_row + threadIdx.x, m = first_column + threadIdx.x;
        if (threadIdx.x < DOWN && n < rows) load_eight(left + n * r + l, r - l, of_left);
        if (right_turned && m < columns) load_eight(right + m * r + l, r - l, of_right);
        if (!right_turned && l + warp < r && across > 0) load_eight(right + (l + warp) * columns + column, across, of_right);
        #pragma unroll
        for (int e = 0; e < 8; e++) {
            if (threadIdx.x < DOWN) left_tile[e][threadIdx.x] = of_left[e];
            if (right_turned) right_tile[e][threadIdx.x] = of_right[e];
            else right_tile[warp][8 * lane + e] = of_right[e];
        }
        __syncthreads();
        #pragma unroll
        for (int e = 0; e < DEEP; e++)
            for (int n = 0; n < 4; n++)
                for (int m = 0; m < 8; m++)
                    sum[n][m] = multiply_add(left_tile[e][4 * warp + n], right_tile[e][8 * lane + m], sum[n][m]);
        __syncthreads();
    }
    if (down <= 0 || across <= 0) return;

    wide addend[4][8] = {}, of_inner_bias[8] = {}, of_bias[8] = {};
    if (base) load_rows(base + at, down, across, columns, addend);
    if (summed) load_rows(summed + at, down, across, columns, addend);
    if (inner_bias) load_eight(inner_bias + column, across, of_inner_bias);
    if (bias) load_eight(bias + column, across, of_bias);
    #pragma unroll
    for (int n = 0; n < 4; n++)
        for (int m = 0; m < 8; m++) {
            wide total = (wide)scaling * (sum[n][m] + of_inner_bias[m]);
            if (kept && n < down && m < across) total = kept[at + n * columns + m] ? total / (wide)keep : (wide)0;
            sum[n][m] = total + addend[n][m] + of_bias[m];
        }
    #pragma unroll
    for (int n = 0; n < 4; n++) {
        STORAGE rounded[8];
        for (int m = 0; m < 8; m++) rounded[m] = narrowed<STORAGE>(sum[n][m]);
        if (n < down) store_eight(result + at + n * columns, across, rounded);
    }
}
