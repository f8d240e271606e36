// Which experts the next MoE layer will probably ask for, learnt from which experts followed which; and how
// often that was right. Knows neither MLX nor Python, and nothing of slots, files and reads.
//
// One thread calls, layer by layer in the order in which a forward pass visits the MoE layers:
//
//     predictor.observe(l, ids);                      // the routes of layer l are known
//     n = predictor.predict(l, ids, present, out);    // worth prefetching for the layer after l
//
// Layers are counted 0 … layers - 1 in visiting order, whatever their index in the model is. The layer after the
// last one is layer 0 of the next token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace lme::stream {

class Predictor {
 public:
  // What one layer's proposals came to. Both counts are of shadow proposals, too: those that were made for
  // the measurement alone while the gate was shut.
  struct Score {
    uint64_t proposed;  // experts named for this layer
    uint64_t used;      // those of them that its next pass asked for
    bool open;          // whether proposals for this layer are given out
  };

  static constexpr uint64_t kMostBytes = uint64_t{64} << 20;
  static constexpr size_t kMostIds = 64;

  // Bytes of the counts: layers × experts × experts × 2, and some per layer.
  static uint64_t bytes(uint32_t layers, uint32_t experts);

  // Throws std::invalid_argument for a shape of nothing, or of more experts than 65,536 or more bytes than
  // `most_bytes`; whoever asks for a predictor then goes without one and says so.
  Predictor(uint32_t layers, uint32_t experts, uint64_t most_bytes = kMostBytes);

  // The routes of one pass of `layer`, repeated or not, each below `experts` (the caller has checked that).
  // Judges what was proposed for this layer, and learns which experts followed those of the layer before, if
  // that was the last one observed. A pass of more than kMostIds ids is not learnt from: in a batch of tokens
  // everything follows everything.
  void observe(uint32_t layer, std::span<const uint32_t> ids);

  // Writes into `out` experts of the layer after `layer`, the likeliest first, and returns how many: those that
  // are worth a read, none that `present` marks, and none at all while too few of that layer's were used.
  // `ids`: as given to `observe`. `present`: a byte per expert of the layer after, not 0 where it is in memory;
  // empty for none. Only the size of `out` bounds what is judged: give it the slots that are free for it.
  size_t predict(uint32_t layer, std::span<const uint32_t> ids, std::span<const uint8_t> present,
                 std::span<uint32_t> out);

  // The same choice among `ranked`, the likeliest first by somebody else's reckoning (the next layer's router
  // applied to the present state). A pass asks either this or `predict`.
  size_t propose(uint32_t layer, std::span<const uint32_t> ranked, std::span<const uint8_t> present,
                 std::span<uint32_t> out);

  // An unfinished pass was given up: what comes next follows nothing, and nothing proposed is judged.
  void forget_pass();

  Score score(uint32_t layer) const;

 private:
  uint32_t layers_, experts_;
};

}  // namespace lme::stream
