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
// of the columns of right into shared memory at a time; beyond their edges, and beyond r, are zeros. The fours of a thread's eight
// columns lie in two halves there, so that lanes read what is beside each other.
//
// The sum over r, 8 to 64 terms, is short: the whole is bound by reading base and writing the result, which is done by eights, all of a
// thread's base on its way at once. All is read before anything is written, since the compiler must take it that a result may lie
// where something is still to be read.
//
// base joins in the wide format, so that the result is rounded once. That is not correct rounding: the sum itself was rounded on
// the way.

#include "eight.cuh"

const int DOWN = 32, ACROSS = 256, DEEP = 8;

// Adds four rows of eight elements each, as far as they are there; rows begin `columns` elements after each other.
template <class T>
__device__ inline void add_rows(const T* from, int rows, int count, long long columns, wide (&to)[4][8]) {
    if (rows == 4 && count == 8 && in_eights(from, columns)) {
        wide loaded[4][8];
        #pragma unroll
        for (int n = 0; n < 4; n++) load_eight(from + n * columns, Whole(), loaded[n]);
        #pragma unroll
        for (int n = 0; n < 4; n++)
            for (int m = 0; m < 8; m++) to[n][m] += loaded[n][m];
    } else {
        #pragma unroll
        for (int n = 0; n < 4; n++)
            for (int m = 0; m < 8; m++)
                if (n < rows && m < count) to[n][m] += widen(from[n * columns + m]);
    }
}

// Adds eight elements, as far as they are there, to each of four rows.
__device__ inline void add_to_all(const STORAGE* from, int count, wide (&to)[4][8]) {
    wide loaded[8];
    load_eight(from, count, loaded);
    #pragma unroll
    for (int n = 0; n < 4; n++)
        for (int m = 0; m < 8; m++) to[n][m] += loaded[m];
}

extern "C" __launch_bounds__(256, sizeof(wide) == 4 ? 3 : 1) __global__ void lora_update(
    const STORAGE* base, const wide* summed, const STORAGE* left, const STORAGE* right, const STORAGE* inner_bias,
    const STORAGE* bias, const bool* kept, STORAGE* result, long long rows, long long r, long long columns, int right_turned,
    double scaling, double keep
) {
    __shared__ wide left_tile[DEEP][DOWN], right_tile[DEEP][2][ACROSS / 2];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const long long first_row = blockIdx.x * (long long)DOWN, first_column = blockIdx.y * (long long)ACROSS;
    const long long column = first_column + 8 * lane;

    wide sum[4][8] = {};
    for (long long l = 0; l < r; l += DEEP) {
        wide of_left[8] = {}, of_right[8] = {};
        const long long n = first_row + threadIdx.x, m = first_column + threadIdx.x;
        if (threadIdx.x < DOWN && n < rows) load_eight(left + n * r + l, r - l, of_left);
        if (right_turned && m < columns) load_eight(right + m * r + l, r - l, of_right);
        if (!right_turned && l + warp < r && column < columns)
            load_eight(right + (l + warp) * columns + column, columns - column, of_right);
        #pragma unroll
        for (int e = 0; e < 8; e++) {
            if (threadIdx.x < DOWN) left_tile[e][threadIdx.x] = of_left[e];
            if (right_turned) right_tile[e][threadIdx.x / 4 % 2][threadIdx.x / 8 * 4 + threadIdx.x % 4] = of_right[e];
            else right_tile[warp][e / 4][4 * lane + e % 4] = of_right[e];
        }
        __syncthreads();
        #pragma unroll 4
        for (int e = 0; e < DEEP; e++)
            #pragma unroll
            for (int n = 0; n < 4; n++)
                for (int m = 0; m < 8; m++)
                    sum[n][m] = multiply_add(left_tile[e][4 * warp + n], right_tile[e][m / 4][4 * lane + m % 4], sum[n][m]);
        __syncthreads();
    }

    const long long row = first_row + 4 * warp, at = row * columns + column;
    if (row >= rows || column >= columns) return;
    const int down = (int)(rows - row < 4 ? rows - row : 4), across = (int)(columns - column < 8 ? columns - column : 8);

    if (inner_bias) add_to_all(inner_bias + column, across, sum);
    #pragma unroll
    for (int n = 0; n < 4; n++)
        for (int m = 0; m < 8; m++) {
            sum[n][m] *= (wide)scaling;
            if (kept && n < down && m < across) sum[n][m] = kept[at + n * columns + m] ? sum[n][m] / (wide)keep : (wide)0;
        }
    if (base) add_rows(base + at, down, across, columns, sum);
    if (summed) add_rows(summed + at, down, across, columns, sum);
    if (bias) add_to_all(bias + column, across, sum);
    #pragma unroll
    for (int n = 0; n < 4; n++) {
        STORAGE rounded[8];
        for (int m = 0; m < 8; m++) rounded[m] = narrowed<STORAGE>(sum[n][m]);
        if (n < down) store_eight(result + at + n * columns, across, rounded);
    }
}
