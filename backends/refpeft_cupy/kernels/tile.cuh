// A product by tiles: 256 threads share what each of them would otherwise read for itself.
//
// For each step of 16 along the inner dimension, the block copies 16 by 16 elements of either operand into shared memory and
// waits; each thread adds 16 products to its own element, and all wait again before the tiles are overwritten. Beyond the
// matrices' edges the tiles hold zeros. The second index has one place more than it needs, so that a column lies in 16 different
// banks.
//
// An operand is a function (row, column) -> wide: a matrix, its transpose, one that is decoded or masked on the way. `along`
// says in which direction it lies in memory: 0 if neighbouring columns are neighbours, 1 if neighbouring rows are. Threads then
// copy along it.

#pragma once

#include "refpeft.cuh"

const int TILE = 16;
struct Tiles { wide left[TILE][TILE + 1], right[TILE][TILE + 1]; };

// Which element of the result this thread computes.
__device__ inline long long tile_row() { return blockIdx.x * (long long)TILE + threadIdx.y; }
__device__ inline long long tile_column() { return blockIdx.y * (long long)TILE + threadIdx.x; }

// Copies the tile whose first element is (row, column).
template <class Operand>
__device__ void copy_tile(
    wide (&tile)[TILE][TILE + 1], Operand operand, int along, long long row, long long column, long long rows, long long columns
) {
    const int r = along ? threadIdx.x : threadIdx.y, c = along ? threadIdx.y : threadIdx.x;
    tile[r][c] = row + r < rows && column + c < columns ? operand(row + r, column + c) : (wide)0;
}

// This thread's element of left (rows, inner) times right (inner, columns).
template <class Left, class Right>
__device__ wide tiled_product(
    Tiles& tiles, Left left, int left_along, Right right, int right_along, long long rows, long long inner, long long columns
) {
    wide sum = 0;
    for (long long k = 0; k < inner; k += TILE) {
        copy_tile(tiles.left, left, left_along, blockIdx.x * (long long)TILE, k, rows, inner);
        copy_tile(tiles.right, right, right_along, k, blockIdx.y * (long long)TILE, inner, columns);
        __syncthreads();
        for (int j = 0; j < TILE; j++) sum = multiply_add(tiles.left[threadIdx.y][j], tiles.right[j][threadIdx.x], sum);
        __syncthreads();
    }
    return sum;
}
