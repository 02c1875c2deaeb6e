// NF4 dequantisation (QLoRA, arXiv:2305.14314, equation 2): y = f32(codebook[code] absmax), rounded once more to STORAGE.
//
// One thread writes one weight. The kernel is bound by memory, and most of it is what is written: neighbouring threads write
// neighbouring weights, so that a warp fills whole sectors. The byte that two threads share, and the absmax that a block's threads
// share, are read from memory once and from cache after that.
//
// The product is one rounding, the conversion another: `narrowed` must not see more than float32. An odd n leaves the last half
// byte without a weight, and without a thread.

#include "nf4.cuh"

extern "C" __global__ void nf4_dequantize(
    const unsigned char* packed, const float* absmax, STORAGE* y, long long n, int blocksize
) {
    __shared__ float codeword[16];
    if (threadIdx.x < 16) codeword[threadIdx.x] = nf4_codeword(threadIdx.x);
    __syncthreads();

    const long long k = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (k < n) y[k] = narrowed<STORAGE>(codeword[nf4_code(packed, k)] * absmax[k / blocksize]);
}
