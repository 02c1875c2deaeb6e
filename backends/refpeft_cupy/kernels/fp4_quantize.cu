// FP4 quantisation, as the float32 steps of `fp4.quantize`: of v = w / absmax, the magnitude has as many smaller ones as there are
// midpoints t below |v|, and 8 is added to its code where v < 0.
//
// With `one_order` (the variant bitsandbytes-cpu) v is looked up among all codewords in ascending order instead. A tie below zero
// then goes to the larger magnitude, since that is the smaller codeword; and the two zeros are places of their own, "0" up to
// zero, "-0" from there to t_0: there the sign bit stands at what is positive. The partial block's floor is stored too.
//
// Three questions find the place among 8 magnitudes.

#include "fp4.cuh"

extern "C" __global__ void fp4_quantize(
    const STORAGE* weight, unsigned char* packed, float* absmax, long long n, int log2_blocksize, int one_order
) {
    __shared__ float midpoint[7];
    if (threadIdx.x < 7) midpoint[threadIdx.x] = fp4_midpoint(threadIdx.x);
    __syncthreads();

    quantize_blocks(weight, packed, absmax, n, log2_blocksize, one_order, [&](float v) {
        const float size = fabsf(v);
        const bool negative = v < 0, ties_up = one_order && negative;
        auto beyond = [&](float t) { return ties_up ? size >= t : size > t; };
        int place = beyond(midpoint[3]) ? 4 : 0;
        place += beyond(midpoint[place + 1]) ? 2 : 0;
        place += beyond(midpoint[place]) ? 1 : 0;
        const bool sign = one_order && place == 0 ? v > 0 : negative;
        return fp4_code_of(place) + (sign ? 8 : 0);
    });
}
