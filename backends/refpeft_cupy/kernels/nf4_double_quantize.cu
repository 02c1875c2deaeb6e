// Double quantisation (QLoRA, arXiv:2305.14314, section 3): the block maxima of NF4 to 8 bits, as the float32 steps of
// `nf4.double_quantize`.
//
// For each block of 256 consecutive maxima, with d = f32(absmax - offset):
//
//     absmax2 = max |d|
//     v       = f32(d f32(1 / max(absmax2, f32(1e-38))))
//     code    = the number of midpoints of the dynamic map below v
//
// By bins (the variant bitsandbytes-cpu) v is clipped to [-1, 1] and rounded to one of 65536 bins -1 + 2 j / 65535 first, the floor
// of the divisor is left out, and a block of zeros gets codes 0. Code c is then reached from the first bin above midpoint c - 1.
//
// One block of 256 threads takes one block of maxima, a thread each. A thread also computes one of the 255 boundaries, in shared
// memory, among which all then search. The maximum goes round each warp by shuffles and between the warps through shared memory.

#include "dynamic_map.cuh"

extern "C" __global__ void nf4_double_quantize(
    const float* absmax, const float* offset, unsigned char* codes, float* absmax2, long long m, int by_bins
) {
    __shared__ float midpoint[255], of_warp[8];
    const int t = threadIdx.x;
    if (t < 255) midpoint[t] = (dynamic_codeword(t) + dynamic_codeword(t + 1)) * 0.5f;

    const long long k = blockIdx.x * 256LL + t;
    const float d = k < m ? absmax[k] - offset[0] : 0.0f;
    float largest = fabsf(d);
    for (int distance = 16; distance; distance /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, distance));
    if (t % 32 == 0) of_warp[t / 32] = largest;
    __syncthreads();
    for (int warp = 0; warp < 8; warp++) largest = fmaxf(largest, of_warp[warp]);
    if (t == 0) absmax2[blockIdx.x] = largest;
    if (k >= m) return;

    float v = d * (1.0f / (by_bins ? largest : fmaxf(largest, 1e-38f)));
    if (by_bins) v = (float)(((fminf(fmaxf(v, -1.0f), 1.0f) + 1.0f) * 0.5f) * 65535.0 + 0.5);
    int code = 0;
    for (int step = 128; step; step /= 2) {
        const float boundary = midpoint[code + step - 1];
        const bool above = by_bins ? v >= (float)((long long)((boundary + 1.0) / 2 * 65535) + 1) : v > boundary;
        code += above ? step : 0;
    }
    codes[k] = (unsigned char)(by_bins && largest == 0.0f ? 0 : code);
}
