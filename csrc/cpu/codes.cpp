// Activation codes: the signs of each sample's activations as bits, and how many bits each pair of samples differs in.

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "common/layout.h"
#include "cpu/bits.h"

namespace {

using namespace zcpipe;

constexpr int64_t kGrain = 1 << 15;      // elements or words: less is not worth a second thread
constexpr int64_t kBlockWords = 1 << 9;  // of all codes at a time: those of 128 samples stay in the second cache

// The words of codes, which are int64 in tensors because torch counts better in those.
const uint64_t* words_of(const Tensor& codes) {
    return reinterpret_cast<const uint64_t*>(codes.const_data_ptr<int64_t>());
}

template <typename T>
void write_codes(uint64_t* codes, int64_t words, const T* x, int64_t samples, int64_t channels, int64_t pixels,
                 bool interleaved) {
    const int64_t size = channels * pixels;
    torch::stable::parallel_for(0, samples, kGrain / size + 1, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            if (interleaved)
                write_signs_by_channel(codes + n * words, x + n * size, pixels, channels);
            else
                write_signs(codes + n * words, x + n * size, size);
        }
    });
}

Tensor sign_codes(const Tensor& x_any) {  // [N, ...] of F elements each -> [N, ceil(F / 64)]
    check_float(x_any, "x");
    STD_TORCH_CHECK(x_any.dim() >= 2, "x: got ", x_any.dim(), " dimensions, expected 2 or more");
    const MemoryFormat format = format_of(x_any);
    const Tensor x = torch::stable::contiguous(x_any, format);
    const int64_t samples = x.size(0);
    int64_t size = 1;
    for (int64_t d = 1; d < x.dim(); ++d) size *= x.size(d);
    const int64_t words = (size + 63) / 64;
    Tensor codes = torch::stable::new_zeros(x, {samples, words}, ScalarType::Long);
    if (x.numel() == 0) return codes;
    const bool interleaved = format == MemoryFormat::ChannelsLast;
    const int64_t channels = interleaved ? x.size(1) : 1, pixels = size / channels;
    auto* to = reinterpret_cast<uint64_t*>(codes.mutable_data_ptr<int64_t>());
    if (x.scalar_type() == ScalarType::Float)
        write_codes(to, words, x.const_data_ptr<float>(), samples, channels, pixels, interleaved);
    else
        write_codes(to, words, x.const_data_ptr<double>(), samples, channels, pixels, interleaved);
    return codes;
}

Tensor hamming_distances(const Tensor& codes_any) {  // [N, W] -> [N, N]
    STD_TORCH_CHECK(codes_any.scalar_type() == ScalarType::Long, "codes: got ",
                    torch::headeronly::toString(codes_any.scalar_type()), ", expected int64");
    STD_TORCH_CHECK(codes_any.dim() == 2, "codes: got ", codes_any.dim(), " dimensions, expected 2");
    const Tensor codes = torch::stable::contiguous(codes_any);
    const int64_t samples = codes.size(0), words = codes.size(1);
    Tensor out = torch::stable::new_zeros(codes, {samples, samples}, ScalarType::Long);
    if (codes.numel() == 0) return out;
    const uint64_t* code = words_of(codes);
    int64_t* distances = out.mutable_data_ptr<int64_t>();
    torch::stable::parallel_for(0, samples, kGrain / (samples * words) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t w = 0; w < words; w += kBlockWords) {
            const int64_t n = std::min(kBlockWords, words - w);
            for (int64_t i = begin; i < end; ++i)
                add_distances(distances + i * samples + i, code + i * words + w, code + i * words + w, samples - i,
                              words, n);
        }
    });
    for (int64_t i = 0; i < samples; ++i)
        for (int64_t j = 0; j < i; ++j) distances[i * samples + j] = distances[j * samples + i];
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CPU, m) {
    m.impl("sign_codes", TORCH_BOX(&sign_codes));
    m.impl("hamming_distances", TORCH_BOX(&hamming_distances));
}
