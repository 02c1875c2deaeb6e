// A warp's share of a product with few rows: for one column, the dot products of ROWS rows with it.
//
// The lanes stride over the inner dimension, eight elements each, so that both operands are read along memory, and each element of
// the column (the large operand, a row of a weight) is read once for all ROWS rows. The lanes' sums then go round the warp: every
// lane has them all.
//
// An operand is a function that fills in eight elements: left(row, j, count, into), column(j, count, into). It is given how many
// there are up to the end; those beyond are zero.

#pragma once

#include "eight.cuh"

const int ROWS = 4;

// The rows of a matrix in memory.
struct Matrix {
    const STORAGE* data;
    long long width;
    __device__ void operator()(long long row, long long j, long long count, wide (&into)[8]) const {
        load_eight(data + row * width + j, count, into);
    }
};

// One row of a matrix.
struct Row {
    const STORAGE* data;
    __device__ void operator()(long long j, long long count, wide (&into)[8]) const { load_eight(data + j, count, into); }
};

// sum[n] = the sum over j of left(row + n, j) column(j), for as many of the ROWS rows as there are.
template <class Left, class Column>
__device__ void dots(Left left, Column column, long long row, long long rows, long long inner, wide (&sum)[ROWS]) {
    #pragma unroll
    for (int n = 0; n < ROWS; n++) sum[n] = 0;
    for (long long j = 8 * (threadIdx.x % 32); j < inner; j += 8 * 32) {
        wide x[8], w[8];
        column(j, inner - j, w);
        #pragma unroll
        for (int n = 0; n < ROWS; n++) {
            if (row + n >= rows) continue;
            left(row + n, j, inner - j, x);
            #pragma unroll
            for (int e = 0; e < 8; e++) sum[n] = multiply_add(x[e], w[e], sum[n]);
        }
    }
    #pragma unroll
    for (int n = 0; n < ROWS; n++)
        for (int distance = 16; distance; distance /= 2) sum[n] += __shfl_xor_sync(0xffffffff, sum[n], distance);
}
