// LoRA's update as a matrix, and put into the base weight (arXiv:2106.09685, section 4.1): W + s B A.
//
// One thread writes one element of the result. With a rank of 8 to 64 the sum over r is short, and the whole is bound by reading and
// writing weights; neighbouring threads read neighbouring elements of A, and the same one of B. W joins in the wide format, so that
// the result is rounded once; that is not correct rounding, as the sum itself was rounded on the way.
//
// Without W it is lora.delta; with -s it is lora.unmerge.

#include "refpeft.cuh"

extern "C" __global__ void lora_merge(
    const STORAGE* weight, const STORAGE* a, const STORAGE* b, STORAGE* merged, long long o, long long r, long long i, double scaling
) {
    const long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (at >= o * i) return;
    const long long k = at / i, j = at % i;
    wide sum = 0;
    for (long long l = 0; l < r; l++) sum = multiply_add(widen(b[k * r + l]), widen(a[l * i + j]), sum);
    const wide update = (wide)scaling * sum;
    merged[at] = narrowed<STORAGE>(weight ? widen(weight[at]) + update : update);
}
