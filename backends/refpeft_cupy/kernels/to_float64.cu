// STORAGE as float64, exactly; subnormals too, which CuPy's own cast flushes, as it compiles all of its kernels with -ftz=true.

#include "refpeft.cuh"

extern "C" __global__ void to_float64(const STORAGE* x, double* y, long long n) {
    const long long k = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (k < n) y[k] = widen(x[k]);
}
