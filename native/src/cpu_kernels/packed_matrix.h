// A weight matrix as MLX packs it, and the layouts in which activations meet it. Knows nothing of arrays,
// threads or instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lme::cpu {

// One row holds `columns` weights. 4-bit words hold eight, 8-bit words four, the lowest bits first.
enum class Packing : uint8_t {
  kAffine4,  // q * scale + bias, q = 0 … 15, a scale and a bias per group
  kAffine8,  // the same with q = 0 … 255
  kMxfp4,    // E2M1 * 2^(scale - 127), groups of 32
  kBfloat16,
  kFloat32,
};

enum class ScaleType : uint8_t { kFloat32, kBfloat16, kExponent };

// The matrices of all slots. Everything of a slot is contiguous; slots are `rows` apart.
struct PackedMatrix {
  Packing packing;
  ScaleType scale_type;  // of scales and biases
  size_t slots, rows, columns;
  size_t group;  // weights per scale: 32, 64 or 128; 0 for plain floats
  const uint8_t* weight;
  const uint8_t* scales;      // null for plain floats
  const uint8_t* biases;      // null for all but the affine packings
  const uint8_t* row_bias;    // added to the product, [slots, rows]; may be null
  ScaleType row_bias_type;

  size_t scale_bytes() const {
    return scale_type == ScaleType::kFloat32 ? 4 : scale_type == ScaleType::kBfloat16 ? 2 : 1;
  }
  size_t weight_row_bytes() const {
    switch (packing) {
      case Packing::kAffine4:
      case Packing::kMxfp4: return columns / 2;
      case Packing::kAffine8: return columns;
      case Packing::kBfloat16: return columns * 2;
      case Packing::kFloat32: return columns * 4;
    }
    return 0;
  }
  size_t groups_per_row() const { return group == 0 ? 0 : columns / group; }
  size_t bytes_per_slot() const {
    const size_t scaling = groups_per_row() * scale_bytes() * (biases != nullptr ? 2 : 1);
    return rows * (weight_row_bytes() + scaling);
  }
};

// Activations are packed before they are multiplied, so that 16 words of weights meet 16 lanes of
// activations without a shuffle. A block is what 16 words (or 16 plain floats) cover; of nibbles and bytes
// vector j of a block holds the activations of digit j of each word, and one more vector holds their sums,
// which the biases are multiplied with. The last block is filled with zeros.
enum class Layout : uint8_t { kNibbles, kBytes, kPlain };

inline Layout layout_of(Packing packing) {
  switch (packing) {
    case Packing::kAffine4:
    case Packing::kMxfp4: return Layout::kNibbles;
    case Packing::kAffine8: return Layout::kBytes;
    default: return Layout::kPlain;
  }
}

constexpr size_t kLanes = 16;

constexpr size_t digits_of(Layout layout) {
  return layout == Layout::kNibbles ? 8 : layout == Layout::kBytes ? 4 : 1;
}
constexpr size_t block_columns(Layout layout) { return kLanes * digits_of(layout); }
constexpr size_t block_floats(Layout layout) {
  return layout == Layout::kPlain ? kLanes : kLanes * (digits_of(layout) + 1);
}
inline size_t packed_floats(Layout layout, size_t columns) {
  return (columns + block_columns(layout) - 1) / block_columns(layout) * block_floats(layout);
}

// Packs `columns` activations from `from` to packed_floats(layout, columns) floats at `to`.
void pack_activations(Layout layout, const float* from, size_t columns, float* to);

}  // namespace lme::cpu
