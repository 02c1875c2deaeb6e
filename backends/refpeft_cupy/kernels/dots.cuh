// A warp's share of a product with few rows: for one column, the dot products of ROWS rows with it.
//
// The lanes stride over the inner dimension, so that both operands are read along memory, and each element of the column (the
// large operand, a row of a weight) is read once for all ROWS rows. The lanes' sums then go round the warp: every lane has them all.

#pragma once

#include "refpeft.cuh"

const int ROWS = 4;

// The sum over all lanes, in the same order in each.
__device__ inline wide over_lanes(wide sum) {
    for (int distance = 16; distance; distance /= 2) sum += __shfl_xor_sync(0xffffffff, sum, distance);
    return sum;
}

// sum[n] = the sum over j of left(row + n, j) column(j), for as many of the ROWS rows as there are.
template <class Left, class Column>
__device__ void dots(Left left, Column column, long long row, long long rows, long long inner, wide (&sum)[ROWS]) {
    for (int n = 0; n < ROWS; n++) sum[n] = 0;
    for (long long j = threadIdx.x % 32; j < inner; j += 32) {
        const wide w = column(j);
        for (int n = 0; n < ROWS; n++)
            if (row + n < rows) sum[n] = multiply_add(left(row + n, j), w, sum[n]);
    }
    for (int n = 0; n < ROWS; n++) sum[n] = over_lanes(sum[n]);
}
