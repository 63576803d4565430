// Memory for vector code. Free of torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace zcpipe {

// Zeros at a multiple of 64 bytes.
template <typename T>
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(int64_t size) : storage_(size_t(size) + 64 / sizeof(T) - 1) {}

    T* data() { return aligned(storage_.data()); }
    const T* data() const { return aligned(const_cast<T*>(storage_.data())); }

  private:
    T* aligned(void* start) const {
        size_t space = storage_.size() * sizeof(T);
        return static_cast<T*>(std::align(64, sizeof(T), start, space));
    }

    std::vector<T> storage_;
};

}  // namespace zcpipe
