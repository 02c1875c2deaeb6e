// NF4 dequantisation (QLoRA, arXiv:2305.14314, equation 2): y = f32(codebook[code] absmax), rounded once more to STORAGE.
//
// A thread takes four bytes, which are eight weights of one block, and writes them at once. The kernel is bound by memory, and most of
// it is what is written: neighbouring threads write neighbouring weights, whole sectors at a time.
//
// The product is one rounding, the conversion another. An odd n leaves the last half byte without a weight: it is not written.

#include "eight.cuh"
#include "nf4.cuh"

extern "C" __global__ void nf4_dequantize(
    const unsigned char* packed, const float* absmax, STORAGE* y, long long n, int log2_blocksize
) {
    __shared__ float codeword[16];
    if (threadIdx.x < 16) codeword[threadIdx.x] = nf4_codeword(threadIdx.x);
    __syncthreads();

    const long long first = 8 * (blockIdx.x * (long long)blockDim.x + threadIdx.x);
    STORAGE weights[8];
    nf4_decode(packed, absmax, codeword, log2_blocksize, first, n - first, weights);
    store_eight(y + first, n - first, weights);
}
