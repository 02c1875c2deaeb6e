// The gradient of a bias: the sum of dy over the batch, times scale; for lora_bias scale is s.
//
// One thread sums one column from the first row to the last, so that equal inputs give equal bits; neighbouring threads read
// neighbouring columns. scale is applied to the elements, as s belongs to the cotangent.

#include "refpeft.cuh"

extern "C" __global__ void row_sum(const STORAGE* dy, STORAGE* sum, long long rows, long long columns, double scale) {
    const long long k = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (k >= columns) return;
    wide total = 0;
    for (long long n = 0; n < rows; n++) total += (wide)scale * widen(dy[n * columns + k]);
    sum[k] = narrowed<STORAGE>(total);
}
