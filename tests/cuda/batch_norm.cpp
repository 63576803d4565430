// batch_norm_train on the shim, against two passes in double precision over one channel at a time.

#include "cuda/batch_norm.cuh"

#include "proof.h"

namespace {

using namespace zcpipe;
using gpu::Images;
using Doubles = std::vector<double>;

constexpr double kEps = 1e-5;
constexpr gpu::NormTuning kTuning = {.grain = 40, .most_blocks = 64, .threads = 64};  // small batches in pieces

struct Options {
    bool affine, relu, total;
};

template <typename T>
struct Batch {
    Images g;
    std::vector<T> x, total, grad, weight, bias;  // x and grad from their element `skip` on
    int64_t skip;

    Batch(const Images& g, int64_t skip, double mean)
        : g(g),
          x(proof::normals<T>(g.numel() + skip, 1, mean)),
          total(proof::normals<T>(g.numel(), 2)),
          grad(proof::normals<T>(g.numel() + skip, 3)),
          weight(proof::normals<T>(g.channels, 4)),
          bias(proof::normals<T>(g.channels, 5)),
          skip(skip) {}
};

struct Forward {
    Doubles y, mean, invstd;
};
struct Backward {
    Doubles x, weight, bias;
};

template <typename T>
Forward forward(const Batch<T>& b, const Options& o) {
    Forward f = {Doubles(b.g.numel()), Doubles(b.g.channels), Doubles(b.g.channels)};
    const double count = double(b.g.samples * b.g.pixels());
    for (int64_t c = 0; c < b.g.channels; ++c) {
        const auto each = [&](const auto& visit) {
            for (int64_t n = 0; n < b.g.samples; ++n)
                for (int64_t p = 0; p < b.g.pixels(); ++p) visit(proof::at(b.g, n, c, p));
        };
        double sum = 0, square = 0;
        each([&](int64_t i) { sum += double(b.x[i + b.skip]); });
        f.mean[c] = sum / count;
        each([&](int64_t i) { square += std::pow(double(b.x[i + b.skip]) - f.mean[c], 2); });
        f.invstd[c] = 1 / std::sqrt(square / count + kEps);
        each([&](int64_t i) {
            double y = (double(b.x[i + b.skip]) - f.mean[c]) * f.invstd[c];
            if (o.affine) y = y * double(b.weight[c]) + double(b.bias[c]);
            if (o.relu) y = std::max(y, 0.0);
            f.y[i] = o.total ? y + double(b.total[i]) : y;
        });
    }
    return f;
}

// From the definition of the derivative: x_hat's gradient without the parts along 1 and along x_hat.
template <typename T>
Backward backward(const Batch<T>& b, const Forward& f, const Options& o) {
    Backward r = {Doubles(b.g.numel()), Doubles(b.g.channels), Doubles(b.g.channels)};
    const double count = double(b.g.samples * b.g.pixels());
    for (int64_t c = 0; c < b.g.channels; ++c) {
        const double weight = o.affine ? double(b.weight[c]) : 1, bias = o.affine ? double(b.bias[c]) : 0;
        Doubles hat, grad;
        std::vector<int64_t> places;
        for (int64_t n = 0; n < b.g.samples; ++n)
            for (int64_t p = 0; p < b.g.pixels(); ++p) {
                const int64_t i = proof::at(b.g, n, c, p);
                places.push_back(i);
                hat.push_back((double(b.x[i + b.skip]) - f.mean[c]) * f.invstd[c]);
                grad.push_back(o.relu && hat.back() * weight + bias <= 0 ? 0 : double(b.grad[i + b.skip]));
            }
        for (size_t k = 0; k < hat.size(); ++k) {
            r.weight[c] += grad[k] * hat[k];
            r.bias[c] += grad[k];
        }
        for (size_t k = 0; k < hat.size(); ++k)
            r.x[places[k]] = weight * f.invstd[c] * (grad[k] - r.bias[c] / count - hat[k] * r.weight[c] / count);
    }
    return r;
}

template <typename T>
void equals_reference(const Images& g, int64_t skip, const Options& o, double mean,
                      const gpu::NormTuning& tuning = kTuning) {
    const Batch<T> b(g, skip, mean);
    const std::string name = proof::name(g) + (sizeof(T) == 4 ? " float" : " double") + " skip " +
                             std::to_string(skip) + (o.affine ? " affine" : "") + (o.relu ? " relu" : "") +
                             (o.total ? " total" : "");
    const T *weight = o.affine ? b.weight.data() : nullptr, *bias = o.affine ? b.bias.data() : nullptr;
    std::vector<T> y = proof::unwritten<T>(g.numel());
    Doubles means = proof::unwritten<double>(g.channels), invstd = means;
    Doubles scratch = proof::unwritten<double>(gpu::batch_norm_scratch(g, tuning));
    const T* const x = b.x.data() + skip;
    proof::counters = {};
    gpu::batch_norm_train(y.data(), means.data(), invstd.data(), scratch.data(), x, weight, bias,
                          o.total ? b.total.data() : nullptr, kEps, o.relu, g, nullptr, tuning);

    const double small = sizeof(T) == 4 ? 4e-6 : 1e-13 * (1 + std::abs(mean));
    const Forward f = forward(b, o);
    double off = proof::distance(y, f.y);
    EXPECT(off < small * (1 + std::abs(mean)), "y off by %g, %s", off, name.c_str());
    off = proof::distance(means, f.mean);
    EXPECT(off < 1e-14 * (1 + std::abs(mean)), "mean off by %g, %s", off, name.c_str());
    off = proof::distance(invstd, f.invstd);
    EXPECT(off < 1e-11, "invstd off by %g, %s", off, name.c_str());

    const int64_t run = g.channels_last ? g.channels : g.pixels();
    const bool wide = skip == 0 && run % gpu::kWidest<T> == 0;
    const int64_t vectors = g.numel() / (wide ? gpu::kWidest<T> : 1);
    EXPECT(proof::counters.launches == 3, "%s", name.c_str());
    EXPECT(proof::counters.events[gpu::kSumVectors] == vectors, "%s", name.c_str());
    EXPECT(proof::counters.events[gpu::kApplyVectors] == vectors, "%s", name.c_str());

    std::vector<T> grad_x = proof::unwritten<T>(g.numel()), grad_weight = proof::unwritten<T>(g.channels),
                   grad_bias = grad_weight;
    std::fill(scratch.begin(), scratch.end(), NAN);
    proof::counters = {};
    gpu::batch_norm_train_backward(grad_x.data(), grad_weight.data(), grad_bias.data(), scratch.data(),
                                   b.grad.data() + skip, x, gpu::Channels<T>{means.data(), invstd.data(), weight, bias},
                                   o.relu, g, nullptr, tuning);
    const Backward r = backward(b, f, o);
    const double steep = *std::max_element(f.invstd.begin(), f.invstd.end());
    off = proof::distance(grad_x, r.x);
    EXPECT(off < 4 * small * steep * (1 + std::abs(mean)), "grad_x off by %g, %s", off, name.c_str());
    off = proof::distance(grad_weight, r.weight);
    EXPECT(off < 4 * small * double(g.numel()), "grad_weight off by %g, %s", off, name.c_str());
    off = proof::distance(grad_bias, r.bias);
    EXPECT(off < 4 * small * double(g.numel()), "grad_bias off by %g, %s", off, name.c_str());
    EXPECT(proof::counters.launches == 3 && proof::counters.events[gpu::kSumVectors] == vectors &&
               proof::counters.events[gpu::kApplyVectors] == vectors,
           "%s", name.c_str());
}

// So many pieces that a lane of `fold` has four at a time and one more, and so few that a thread of `sums` has.
void many_and_few_pieces() {
    equals_reference<double>({1, 1, 83, 80, false}, 0, {true, true, true}, 0,
                             {.grain = 40, .most_blocks = 166, .threads = 32});
    equals_reference<float>({5, 8, 9, 9, true}, 0, {true, true, true}, 0,
                            {.grain = 4096, .most_blocks = 1, .threads = 32});
    equals_reference<double>({3, 2, 17, 10, false}, 0, {true, true, false}, 0,
                             {.grain = 4096, .most_blocks = 1, .threads = 32});
}

void not_a_number_stays() {
    const Images g = {2, 3, 2, 2, true};
    Batch<float> b(g, 0, 0);
    b.x[4] = NAN;  // channel 1
    std::vector<float> y = proof::unwritten<float>(g.numel());
    Doubles mean(3), invstd(3), scratch(gpu::batch_norm_scratch(g));
    gpu::batch_norm_train<float>(y.data(), mean.data(), invstd.data(), scratch.data(), b.x.data(), nullptr, nullptr,
                                 nullptr, kEps, true, g, nullptr);
    for (int64_t i = 0; i < g.numel(); ++i) EXPECT(std::isnan(y[i]) == (i % 3 == 1), "element %ld", long(i));
}

void cases() {
    const int64_t shapes[][4] = {{2, 3, 5, 7}, {3, 8, 4, 4}, {1, 17, 2, 3}, {4, 5, 1, 1}, {2, 4, 2, 6}, {1, 132, 1, 2}};
    const Options options[] = {{true, true, true}, {false, false, false}, {true, false, true}, {false, true, false}};
    int turn = 0;
    for (const auto& s : shapes)
        for (const bool last : {false, true})
            for (const int64_t skip : {0, 1}) {
                const Images g = {s[0], s[1], s[2], s[3], last};
                equals_reference<float>(g, skip, options[turn % 4], 0);
                equals_reference<double>(g, skip, options[(turn + 1) % 4], turn % 3 == 0 ? 1000 : 0);
                turn += 1;
            }
    many_and_few_pieces();
    not_a_number_stays();
}

}  // namespace

int main(int argc, char** argv) { return proof::run(argc, argv, cases); }
