// Random bits, normals, uniform numbers and signs as pure functions of (key, nonce, logical element index).

#include "common/philox.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "common/layout.h"
#include "common/normal.h"
#include "cpu/philox_blocks.h"

namespace {

using namespace zcpipe;

constexpr int64_t kGrain = 1 << 15;  // elements: less is not worth a second thread

// Words 4 first .. 4 (first + blocks) of the stream.
template <typename T>
void words(T* out, StreamId id, uint64_t first, int64_t blocks) {
    uint64_t low[kBatch], high[kBatch];
    for (int64_t done = 0; done < blocks; done += kBatch) {
        const int64_t count = std::min(kBatch, blocks - done);
        philox_blocks(low, high, id, first + uint64_t(done), count);
        for (int64_t i = 0; i < count; ++i, out += 4) {
            out[0] = uint32_t(low[i]);
            out[1] = uint32_t(low[i] >> 32);
            out[2] = uint32_t(high[i]);
            out[3] = uint32_t(high[i] >> 32);
        }
    }
}

// Rounded before they are scaled, as whoever scales a filled tensor does.
template <typename T>
ZCPIPE_INLINE void pairs_of(T* out, const uint64_t* low, const uint64_t* high, T scale, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        const NormalPair pair = normal_pair(low[i], high[i]);
        out[2 * i] = T(pair.first) * scale;
        out[2 * i + 1] = T(pair.second) * scale;
    }
}

ZCPIPE_CLONES void normal_pairs(float* out, const uint64_t* low, const uint64_t* high, float scale, int64_t count) {
    pairs_of(out, low, high, scale, count);
}

ZCPIPE_CLONES void normal_pairs(double* out, const uint64_t* low, const uint64_t* high, double scale, int64_t count) {
    pairs_of(out, low, high, scale, count);
}

// Elements 2 first .. 2 (first + pairs) of the normals.
template <typename T>
void normals(T* out, StreamId id, T scale, uint64_t first, int64_t pairs) {
    uint64_t low[kBatch], high[kBatch];
    for (int64_t done = 0; done < pairs; done += kBatch) {
        const int64_t count = std::min(kBatch, pairs - done);
        philox_blocks(low, high, id, first + uint64_t(done), count);
        normal_pairs(out + 2 * done, low, high, scale, count);
    }
}

// out[p, c] = in[c, p]: one sample from NCHW to NHWC order.
template <typename T>
void transpose(T* out, const T* in, int64_t channels, int64_t pixels) {
    for (int64_t p = 0; p < pixels; ++p)
        for (int64_t c = 0; c < channels; ++c) out[p * channels + c] = in[c * pixels + p];
}

// A run of elements in logical order that starts anywhere, also in the middle of a pair.
template <typename T>
void normal_run(T* out, StreamId id, T scale, int64_t begin, int64_t end) {
    T edge[2];
    if (begin < end && begin % 2 == 1) {
        normals(edge, id, scale, begin / 2, 1);
        *out++ = edge[1];
        ++begin;
    }
    const int64_t pairs = (end - begin) / 2;
    normals(out, id, scale, begin / 2, pairs);
    if ((end - begin) % 2 == 1) {
        normals(edge, id, scale, begin / 2 + pairs, 1);
        out[2 * pairs] = edge[0];
    }
}

template <typename T>
ZCPIPE_INLINE void uniforms_of(T* out, const uint32_t* bits, T scale, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = uniform<T>(bits[i]) * scale;
}

ZCPIPE_CLONES void uniforms(float* out, const uint32_t* bits, float scale, int64_t count) {
    uniforms_of(out, bits, scale, count);
}
ZCPIPE_CLONES void uniforms(double* out, const uint32_t* bits, double scale, int64_t count) {
    uniforms_of(out, bits, scale, count);
}

// A run of elements in logical order that starts anywhere, also in the middle of a block.
template <typename T>
void uniform_run(T* out, StreamId id, T scale, int64_t begin, int64_t end) {
    uint32_t bits[4 * kBatch];
    while (begin < end) {
        const int64_t skip = begin % 4, count = std::min(4 * kBatch - skip, end - begin);
        words(bits, id, begin / 4, (skip + count + 3) / 4);
        uniforms(out, bits + skip, scale, count);
        out += count;
        begin += count;
    }
}

// A run of signs in logical order; `begin` is a multiple of 128, so that blocks are whole.
template <typename T>
ZCPIPE_INLINE void sign_words(T* out, const uint32_t* bits, int64_t count) {
    for (int64_t k = 0; k < count; k += 32) {
        const uint32_t word = bits[k / 32];
        const int64_t width = std::min<int64_t>(32, count - k);
#pragma omp simd
        for (int64_t b = 0; b < width; ++b) out[k + b] = (word & (1u << b)) != 0 ? T(1) : T(-1);
    }
}

// One sample in NHWC order. `bits` begins with the word that holds the sample's first element, `skip` bits in.
// The 32 signs of a channel that belong to 32 neighbouring pixels are gathered into one word (in `lanes`, a channel
// each), so that the innermost loop runs over channels, with one shift for all.
template <typename T>
ZCPIPE_INLINE void sign_sample(T* out, uint32_t* lanes, const uint32_t* bits, int64_t skip, int64_t channels,
                               int64_t pixels) {
    for (int64_t p = 0; p < pixels; p += 32) {
        for (int64_t c = 0; c < channels; ++c) {
            const int64_t at = skip + c * pixels + p;
            const uint64_t two = uint64_t{bits[at / 32 + 1]} << 32 | bits[at / 32];
            lanes[c] = uint32_t(two >> (at % 32));
        }
        const int64_t width = std::min<int64_t>(32, pixels - p);
        for (int64_t b = 0; b < width; ++b) {
            T* row = out + (p + b) * channels;
            const uint32_t mask = 1u << b;
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c) row[c] = (lanes[c] & mask) != 0 ? T(1) : T(-1);
        }
    }
}

ZCPIPE_CLONES void signs(float* out, const uint32_t* bits, int64_t count) { sign_words(out, bits, count); }
ZCPIPE_CLONES void signs(double* out, const uint32_t* bits, int64_t count) { sign_words(out, bits, count); }
ZCPIPE_CLONES void signs_nhwc(float* out, uint32_t* lanes, const uint32_t* bits, int64_t skip, int64_t channels,
                              int64_t pixels) {
    sign_sample(out, lanes, bits, skip, channels, pixels);
}
ZCPIPE_CLONES void signs_nhwc(double* out, uint32_t* lanes, const uint32_t* bits, int64_t skip, int64_t channels,
                              int64_t pixels) {
    sign_sample(out, lanes, bits, skip, channels, pixels);
}

StreamId stream(int64_t key, int64_t nonce) { return {uint64_t(key), uint64_t(nonce)}; }

void check_layout(const Tensor& out) {
    STD_TORCH_CHECK(out.is_contiguous() || is_channels_last(out), "out: got other strides, expected contiguous or ",
                    "channels_last");
}

template <typename T>
using Run = void (*)(T*, StreamId, T, int64_t, int64_t);

// What `run` (normal_run, uniform_run) makes of the stream, in either layout.
template <typename T>
void fill(const Tensor& out, StreamId id, T scale, Run<T> run) {
    T* data = out.mutable_data_ptr<T>();
    if (out.is_contiguous()) {
        torch::stable::parallel_for(0, out.numel(), kGrain,
                                    [&](int64_t begin, int64_t end) { run(data + begin, id, scale, begin, end); });
        return;
    }
    const int64_t channels = out.size(1), pixels = out.size(2) * out.size(3), size = channels * pixels;
    torch::stable::parallel_for(0, out.size(0), kGrain / size + 1, [&](int64_t begin, int64_t end) {
        std::vector<T> sample(size);
        for (int64_t n = begin; n < end; ++n) {
            run(sample.data(), id, scale, n * size, (n + 1) * size);
            transpose(data + n * size, sample.data(), channels, pixels);
        }
    });
}

template <typename T>
void rademacher_fill(const Tensor& out, StreamId id) {
    T* data = out.mutable_data_ptr<T>();
    if (out.is_contiguous()) {
        constexpr int64_t kBlocks = 64;  // 8192 signs at a time: their bits stay in the first cache
        const int64_t count = out.numel(), chunk = 128 * kBlocks;
        torch::stable::parallel_for(0, (count + chunk - 1) / chunk, kGrain / chunk, [&](int64_t begin, int64_t end) {
            uint32_t bits[4 * kBlocks];
            for (int64_t k = begin; k < end; ++k) {
                words(bits, id, k * kBlocks, kBlocks);
                signs(data + k * chunk, bits, std::min(chunk, count - k * chunk));
            }
        });
        return;
    }
    const int64_t channels = out.size(1), pixels = out.size(2) * out.size(3), size = channels * pixels;
    torch::stable::parallel_for(0, out.size(0), kGrain / size + 1, [&](int64_t begin, int64_t end) {
        const int64_t most_blocks = size / 128 + 3;  // a partial block at either end, and one word read past the last
        std::vector<uint32_t> bits(4 * most_blocks), lanes(channels);
        for (int64_t n = begin; n < end; ++n) {
            const int64_t first = n * size;
            words(bits.data(), id, first / 128, most_blocks);
            signs_nhwc(data + first, lanes.data(), bits.data(), first % 128, channels, pixels);
        }
    });
}

void philox_bits_(const Tensor& out, int64_t key, int64_t nonce, int64_t first_block) {  // [n] int64
    STD_TORCH_CHECK(out.scalar_type() == ScalarType::Long, "out: got ", torch::headeronly::toString(out.scalar_type()),
                    ", expected int64");
    STD_TORCH_CHECK(out.dim() == 1 && out.is_contiguous(), "out: expected one dimension, contiguous");
    const StreamId id = stream(key, nonce);
    int64_t* data = out.mutable_data_ptr<int64_t>();
    const int64_t count = out.numel(), blocks = count / 4;
    words(data, id, uint64_t(first_block), blocks);
    int64_t last[4];
    words(last, id, uint64_t(first_block) + blocks, 1);
    std::copy_n(last, count % 4, data + 4 * blocks);
}

void fill_any(const Tensor& out, StreamId id, double scale, Run<float> single, Run<double> twice) {  // any shape
    if (out.numel() == 0) return;
    if (out.scalar_type() == ScalarType::Float) return fill<float>(out, id, float(scale), single);
    fill<double>(out, id, scale, twice);
}

void philox_normal_(const Tensor& out, int64_t key, int64_t nonce) {
    check_float(out, "out");
    check_layout(out);
    fill_any(out, stream(key, nonce), 1.0, normal_run, normal_run);
}

void philox_uniform_(const Tensor& out, int64_t key, int64_t nonce) {
    check_float(out, "out");
    check_layout(out);
    fill_any(out, stream(key, nonce), 1.0, uniform_run, uniform_run);
}

// Each tensor from a stream and times a factor of its own.
void philox_fills_(std::vector<Tensor> outs, std::vector<int64_t> keys, std::vector<int64_t> nonces,
                   std::vector<double> scales, bool normal) {
    STD_TORCH_CHECK(keys.size() == outs.size() && nonces.size() == outs.size() && scales.size() == outs.size(),
                    "outs: expected as many tensors as keys, nonces and scales");
    for (const Tensor& out : outs) {
        check_float(out, "outs");
        STD_TORCH_CHECK(out.is_contiguous(), "outs: got other strides, expected contiguous");
    }
    for (size_t k = 0; k < outs.size(); ++k) {
        const StreamId id = stream(keys[k], nonces[k]);
        if (normal)
            fill_any(outs[k], id, scales[k], normal_run, normal_run);
        else
            fill_any(outs[k], id, scales[k], uniform_run, uniform_run);
    }
}

void philox_rademacher_(const Tensor& out, int64_t key, int64_t nonce) {  // any shape
    check_float(out, "out");
    check_layout(out);
    if (out.numel() == 0) return;
    if (out.scalar_type() == ScalarType::Float) return rademacher_fill<float>(out, stream(key, nonce));
    rademacher_fill<double>(out, stream(key, nonce));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CPU, m) {
    m.impl("philox_bits_", TORCH_BOX(&philox_bits_));
    m.impl("philox_normal_", TORCH_BOX(&philox_normal_));
    m.impl("philox_uniform_", TORCH_BOX(&philox_uniform_));
    m.impl("philox_fills_", TORCH_BOX(&philox_fills_));
    m.impl("philox_rademacher_", TORCH_BOX(&philox_rademacher_));
}
