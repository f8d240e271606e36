#include "weight_arrays.h"

#include "lazy_operation.h"

namespace mx = mlx::core;

namespace lme {
namespace {

using cpu::Packing;
using cpu::ScaleType;

const uint8_t* bytes_of(const mx::array& array, const std::string& name) {
  // Not evaluated here: a lazy array may belong to a stream of another thread.
  if (!array.is_available()) refuse(name, " is not evaluated: call mx.eval on it first");
  if (!array.flags().row_contiguous || array.data_size() < array.size()) {
    refuse(name, " is not row-contiguous: make it with mx.contiguous and mx.eval");
  }
  return array.data<uint8_t>();
}

void check_shape(const mx::array& array, const mx::Shape& wanted, const std::string& name) {
  if (array.shape() != wanted) refuse(name, " has the shape ", array.shape(), ", not ", wanted);
}

ScaleType float_type(const mx::array& array, const std::string& name) {
  if (array.dtype() == mx::float32) return ScaleType::kFloat32;
  if (array.dtype() == mx::bfloat16) return ScaleType::kBfloat16;
  refuse(name, " is ", array.dtype(), ": the kernels take float32 and bfloat16");
}

}  // namespace

cpu::PackedMatrix WeightArrays::check(const std::string& name) const {
  if (weight.ndim() != 3 || weight.size() == 0) {
    refuse(name, ".weight has the shape ", weight.shape(), ", not [slots, rows, …] without a zero");
  }
  cpu::PackedMatrix m{};
  m.slots = static_cast<size_t>(weight.shape(0));
  m.rows = static_cast<size_t>(weight.shape(1));
  const auto last = static_cast<size_t>(weight.shape(2));
  if (mode.empty()) {
    if (scales || biases) refuse(name, " has scales or biases, but no mode");
    m.packing = float_type(weight, name + ".weight") == ScaleType::kFloat32 ? Packing::kFloat32
                                                                              : Packing::kBfloat16;
    m.columns = last;
  } else {
    const bool affine = mode == "affine" && (bits == 4 || bits == 8) &&
                        (group_size == 32 || group_size == 64 || group_size == 128);
    if (!affine && !(mode == "mxfp4" && bits == 4 && group_size == 32)) {
      refuse(name, " is packed with mode ", mode, ", ", bits, " bits, groups of ", group_size,
             ": the kernels take affine with 4 or 8 bits and groups of 32, 64 or 128, and mxfp4");
    }
    m.packing = !affine ? Packing::kMxfp4 : bits == 4 ? Packing::kAffine4 : Packing::kAffine8;
    m.group = static_cast<size_t>(group_size);
    m.columns = last * (32 / static_cast<size_t>(bits));
    if (weight.dtype() != mx::uint32) refuse(name, ".weight is ", weight.dtype(), ", not uint32");
    if (m.columns % m.group != 0) {
      refuse(name, ".weight has ", m.columns, " columns, not a multiple of the group size ", m.group);
    }
    if (!scales) refuse(name, ".scales is missing");
    const mx::Shape groups{weight.shape(0), weight.shape(1), static_cast<int>(m.columns / m.group)};
    check_shape(*scales, groups, name + ".scales");
    if (affine) {
      m.scale_type = float_type(*scales, name + ".scales");
      if (!biases) refuse(name, ".biases is missing");
      check_shape(*biases, groups, name + ".biases");
      if (biases->dtype() != scales->dtype()) {
        refuse(name, ".biases is ", biases->dtype(), " and .scales is ", scales->dtype());
      }
      m.biases = bytes_of(*biases, name + ".biases");
    } else {
      if (scales->dtype() != mx::uint8) refuse(name, ".scales is ", scales->dtype(), ", not uint8");
      if (biases) refuse(name, " has biases, which mxfp4 has not");
      m.scale_type = ScaleType::kExponent;
    }
    m.scales = bytes_of(*scales, name + ".scales");
  }
  m.weight = bytes_of(weight, name + ".weight");
  if (bias) {
    check_shape(*bias, {weight.shape(0), weight.shape(1)}, name + ".bias");
    m.row_bias_type = float_type(*bias, name + ".bias");
    m.row_bias = bytes_of(*bias, name + ".bias");
  }
  return m;
}

}  // namespace lme
