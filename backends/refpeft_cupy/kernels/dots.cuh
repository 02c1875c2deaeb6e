// A warp's share of a product with few rows: the dot products of ROWS rows of one operand with COLUMNS rows of the other.
//
// The lanes stride over the inner dimension, eight elements each, so that both operands are read along memory. Each element of the
// right operand (the large one, a weight) is read once for all ROWS rows, and each of the left, once it is in the wide format, is
// used for all COLUMNS. As many loads of the weight are on their way at a time: one would leave the memory idle.
//
// An operand is a function that fills in eight elements: operand(row, j, count, into). It is given how many there are up to the end;
// those beyond are zero.

#pragma once

#include "eight.cuh"

const int ROWS = 4, COLUMNS = 4;

// A matrix in memory.
struct Matrix {
    const STORAGE* data;
    long long width;
    __device__ void operator()(long long row, long long j, long long count, wide (&into)[8]) const {
        load_eight(data + row * width + j, count, into);
    }
};

// sum[n][c] = the sum over j of left(row + n, j) right(column + c, j), as far as there are rows; every lane of a warp has it. Of
// columns that are not there it is what the last one gives. Where more than a warp's `lanes` share the inner dimension, it is the
// warp's part of the sum.
template <int lanes, class Left, class Right>
__device__ void dots(
    Left left, Right right, long long row, long long rows, long long column, long long columns, long long inner,
    wide (&sum)[ROWS][COLUMNS]
) {
    #pragma unroll
    for (int n = 0; n < ROWS; n++)
        for (int c = 0; c < COLUMNS; c++) sum[n][c] = 0;
    for (long long j = 8 * (threadIdx.x % lanes); j < inner; j += 8 * lanes) {
        wide x[8], w[COLUMNS][8];
        #pragma unroll
        for (int c = 0; c < COLUMNS; c++) right(column + c < columns ? column + c : columns - 1, j, inner - j, w[c]);
        #pragma unroll
        for (int n = 0; n < ROWS; n++) {
            if (row + n >= rows) continue;
            left(row + n, j, inner - j, x);
            #pragma unroll
            for (int c = 0; c < COLUMNS; c++)
                for (int e = 0; e < 8; e++) sum[n][c] = multiply_add(x[e], w[c][e], sum[n][c]);
        }
    }
    #pragma unroll
    for (int n = 0; n < ROWS; n++) {
        if (row + n >= rows) continue;
        #pragma unroll
        for (int c = 0; c < COLUMNS; c++)
            for (int distance = 16; distance; distance /= 2) sum[n][c] += __shfl_xor_sync(0xffffffff, sum[n][c], distance);
    }
}
