// The gradients of LoRA's layer and of QLoRA's. With z = drop(x), h = z Aᵀ and du = s dy:
//
//     dh = du B        dA = dhᵀ z        dB = duᵀ h        dW = dyᵀ x            product
//     dx = dy W + drop(dh A)                                                     lora_dx, qlora_dx
//     dbias = the sum of dy over the batch, dlora_bias that of du                row_sum
//
// `product` is scale left right, either operand transposed, the right one dropped out where there is a mask: all four are that.
// `scale` is applied to left's elements, as s belongs to the cotangent. lora_dx sums both of its products in one place, so that dx is
// written once; qlora_dx decodes W on the way, as the forward pass does, and needs no copy of it. No sum is made by atomics: each
// element belongs to one thread, which sums in a fixed order, so that equal inputs give equal bits.

#include "nf4.cuh"
#include "tile.cuh"

extern "C" __global__ void product(
    const STORAGE* left, const STORAGE* right, const bool* kept, STORAGE* result, long long rows, long long inner,
    long long columns, int left_turned, int right_turned, double scale, double keep
) {
    __shared__ Tiles tiles;
    auto scaled = [&](long long n, long long k) {
        return (wide)scale * widen(left[left_turned ? k * rows + n : n * inner + k]);
    };
    auto dropped = [&](long long k, long long m) {
        const long long at = right_turned ? m * inner + k : k * columns + m;
        if (!kept) return widen(right[at]);
        return kept[at] ? widen(right[at]) / (wide)keep : (wide)0;
    };
    const wide sum = tiled_product(tiles, scaled, left_turned, dropped, right_turned, rows, inner, columns);
    const long long n = tile_row(), m = tile_column();
    if (n < rows && m < columns) result[n * columns + m] = narrowed<STORAGE>(sum);
}

extern "C" __global__ void lora_dx(
    const STORAGE* dy, const STORAGE* weight, const STORAGE* dh, const STORAGE* a, const bool* kept, STORAGE* dx, long long rows,
    long long o, long long r, long long i, double keep
) {
    __shared__ Tiles tiles;
    auto of = [](const STORAGE* data, long long width) {
        return [=](long long n, long long k) { return widen(data[n * width + k]); };
    };
    const wide base = tiled_product(tiles, of(dy, o), 0, of(weight, i), 0, rows, o, i);
    wide update = tiled_product(tiles, of(dh, r), 0, of(a, i), 0, rows, r, i);
    const long long n = tile_row(), j = tile_column();
    if (n >= rows || j >= i) return;
    if (kept) update = kept[n * i + j] ? update / (wide)keep : (wide)0;
    dx[n * i + j] = narrowed<STORAGE>(base + update);
}

extern "C" __global__ void qlora_dx(
    const STORAGE* dy, const unsigned char* packed, const float* absmax, const STORAGE* dh, const STORAGE* a, STORAGE* dx,
    long long rows, long long o, long long r, long long i, int blocksize
) {
    __shared__ Tiles tiles;
    __shared__ float codeword[16];
    if (threadIdx.y == 0) codeword[threadIdx.x] = nf4_codeword(threadIdx.x);
    __syncthreads();
    auto of = [](const STORAGE* data, long long width) {
        return [=](long long n, long long k) { return widen(data[n * width + k]); };
    };
    auto weight = [&](long long k, long long j) {
        const long long at = k * i + j;
        return widen(narrowed<STORAGE>(codeword[nf4_code(packed, at)] * absmax[at / blocksize]));
    };
    const wide base = tiled_product(tiles, of(dy, o), 0, weight, 0, rows, o, i);
    const wide update = tiled_product(tiles, of(dh, r), 0, of(a, i), 0, rows, r, i);
    const long long n = tile_row(), j = tile_column();
    if (n < rows && j < i) dx[n * i + j] = narrowed<STORAGE>(base + update);
}

extern "C" __global__ void row_sum(const STORAGE* dy, STORAGE* sum, long long rows, long long columns, double scale) {
    const long long k = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (k >= columns) return;
    wide total = 0;
    for (long long n = 0; n < rows; n++) total += (wide)scale * widen(dy[n * columns + k]);
    sum[k] = narrowed<STORAGE>(total);
}
