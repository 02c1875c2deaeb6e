// A block's share of a product with few rows: the dot products of ROWS rows of one operand with COLUMNS rows of the other.
//
// The block's threads stride over the inner dimension, eight elements each, so that both operands are read along memory; its warps
// then add what they have, in their order. Each element of the right operand (the large one, a weight) is read once for all ROWS
// rows, and each of the left, once it is in the wide format, is used for all COLUMNS. As many loads of the weight are on their way at
// a time, in each of as many warps as an SM holds: fewer would leave the memory idle.
//
// An operand is a function that fills in eight elements: operand(row, j, count, into). It is given how many there are up to the end,
// and those beyond are zero; where the caller says that both are made of whole eights, the count is Whole.

#pragma once

#include "eight.cuh"

const int ROWS = 4, COLUMNS = 4, WARPS = 8, LANES = 32 * WARPS;

// A matrix in memory.
struct Matrix {
    const STORAGE* data;
    long long width;
    template <class Count> __device__ void operator()(long long row, long long j, Count count, wide (&into)[8]) const {
        load_eight(data + row * width + j, count, into);
    }
};

// Adds a thread's eight of each row, from j on, to its sums. Of rows and columns that are not there it reads the last one again.
template <class Left, class Right, class Count>
__device__ inline void add_eight(
    Left left, Right right, long long row, long long rows, long long column, long long columns, long long j, Count count,
    wide (&sum)[ROWS][COLUMNS]
) {
    wide x[ROWS][8], w[COLUMNS][8];
    #pragma unroll
    for (int c = 0; c < COLUMNS; c++) right(column + c < columns ? column + c : columns - 1, j, count, w[c]);
    #pragma unroll
    for (int n = 0; n < ROWS; n++)
        left(row + n < rows ? row + n : rows - 1, j, count, x[n]);
    #pragma unroll
    for (int n = 0; n < ROWS; n++)
        for (int c = 0; c < COLUMNS; c++)
            for (int e = 0; e < 8; e++) sum[n][c] = multiply_add(x[n][e], w[c][e], sum[n][c]);
}

// The sum over j of left(row + n, j) right(column + c, j), to thread n COLUMNS + c of the block; the other threads get 0.
template <class Left, class Right>
__device__ wide dots(
    Left left, Right right, long long row, long long rows, long long column, long long columns, long long inner, bool whole
) {
    __shared__ wide of_warp[WARPS][ROWS * COLUMNS];
    wide sum[ROWS][COLUMNS] = {}, total = 0;
    if (whole)
        for (long long j = 8 * threadIdx.x; j < inner; j += 8 * LANES)
            add_eight(left, right, row, rows, column, columns, j, Whole(), sum);
    else
        for (long long j = 8 * threadIdx.x; j < inner; j += 8 * LANES)
            add_eight(left, right, row, rows, column, columns, j, inner - j, sum);
    #pragma unroll
    for (int n = 0; n < ROWS; n++)
        for (int c = 0; c < COLUMNS; c++) {
            if (row + n >= rows) continue;
            for (int distance = 16; distance; distance /= 2) sum[n][c] += __shfl_xor_sync(0xffffffff, sum[n][c], distance);
            if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32][n * COLUMNS + c] = sum[n][c];
        }
    __syncthreads();
    if (threadIdx.x < ROWS * COLUMNS && row + threadIdx.x / COLUMNS < rows)
        for (int warp = 0; warp < WARPS; warp++) total += of_warp[warp][threadIdx.x];
    return total;
}

// The sum over j of left[j] right[j], by one thread.
__device__ inline wide dot(const STORAGE* left, const STORAGE* right, long long inner) {
    wide sum = 0, x[8], w[8];
    for (long long j = 0; j < inner; j += 8) {
        load_eight(left + j, inner - j, x);
        load_eight(right + j, inner - j, w);
        #pragma unroll
        for (int e = 0; e < 8; e++) sum = multiply_add(x[e], w[e], sum);
    }
    return sum;
}
