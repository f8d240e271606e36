// Which experts the next MoE layer will probably ask for, learnt from which experts followed which; and how
// often that was right. Knows neither MLX nor Python, and nothing of slots, files and reads.
//
// One thread calls, layer by layer in the order in which a forward pass visits the MoE layers:
//
//     predictor.observe(l, ids);                      // the routes of layer l are known
//     n = predictor.guess(l, ids, ranked, present, out);  // worth prefetching for the layer after l
//
// Layers are counted 0 … layers - 1 in visiting order, whatever their index in the model is. The layer after the
// last one is layer 0 of the next token.
//
// For every expert a of a layer and b of the next there is an estimate of the chance that b follows a: a number of
// 16 bits that moves by 1/64 of the way to 1 or to 0 at each use of a. The experts of a pass vote with it. Each
// candidate belongs to a class, by its mean chance or by its place in somebody else's ranking, and for each layer
// and class it is counted how many of the candidates were then asked for: only classes in which at least
// half were are worth a read, because a wrong read can keep a needed one waiting for as long as a right one
// saves. All candidates are judged, given out or not, so a class opens again by itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace lme::stream {

class Predictor {
 public:
  // What came of one layer's candidates since the start.
  struct Score {
    uint64_t judged, judged_used;  // all, and those of them that the layer's next pass asked for
    uint64_t given, given_used;    // those that were written into `out`
    bool open;                     // whether every pass is looked at
  };

  static constexpr uint64_t kMostBytes = uint64_t{64} << 20;
  static constexpr size_t kMostIds = 64;      // a pass with more distinct experts is passed over
  static constexpr size_t kCandidates = 16;   // of each kind judged for each pass, at most
  static constexpr size_t kChanceClasses = 16, kRankClasses = kCandidates;
  static constexpr uint32_t kWindow = 256;    // candidates of a class after which the earlier ones count half
  static constexpr uint32_t kLeast = 16;      // candidates that a class must have had
  static constexpr uint32_t kPatience = 256;   // after so many passes without a candidate worth a read,
  static constexpr uint32_t kRest = 8;        // one pass in so many is looked at, until there is one again

  // Bytes of the estimates, layers × experts × experts × 2, and of all else that grows with the shape.
  static uint64_t bytes(uint32_t layers, uint32_t experts);

  // Throws std::invalid_argument for a shape of nothing, or of more experts than 65,536 or more bytes than
  // `most_bytes`; whoever asks for a predictor then goes without one and says so.
  Predictor(uint32_t layers, uint32_t experts, uint64_t most_bytes = kMostBytes);

  // The routes of one pass of `layer`, repeated or not, each below `experts` (the caller has checked that).
  // Judges the candidates for this layer, and learns which experts followed those of the layer before, if
  // that was the last one observed. A pass of more than kMostIds distinct ids is neither: in a batch of tokens
  // everything follows everything.
  void observe(uint32_t layer, std::span<const uint32_t> ids);

  // Writes into `out` experts of the layer after `layer`, and returns how many: those that are worth a read, none
  // that `present` marks. A pass asks once.
  //
  // `ids`: as given to `observe`; what has followed them is one kind of candidates; empty for none of these.
  // `ranked` (distinct): the likeliest first by somebody else's reckoning, such as the next layer's router applied
  // to the present state: the other kind, and the first to be given; empty for none. Who is a candidate of both
  // kinds is judged as both, and given once. `present`: a byte per expert of the layer after, not 0 where it is in
  // memory; empty for none.
  size_t guess(uint32_t layer, std::span<const uint32_t> ids, std::span<const uint32_t> ranked,
               std::span<const uint8_t> present, std::span<uint32_t> out);

  // An unfinished pass was given up: what comes next follows nothing, and its candidates are not judged.
  void forget_pass();

  Score score(uint32_t layer) const;

 private:
  static constexpr size_t kClasses = kChanceClasses + kRankClasses;
  struct Tally {
    uint32_t named, used;
    bool open() const { return named >= kLeast && 2 * used >= named; }
  };
  struct Candidate {
    uint32_t expert;
    uint16_t tally;  // its class
    bool given;
  };

  uint32_t after(uint32_t layer) const { return layer + 1 == layers_ ? 0 : layer + 1; }
  uint16_t* follows(uint32_t layer, uint32_t expert);
  bool keep_distinct(std::span<const uint32_t> ids, std::vector<uint32_t>& distinct);
  void judge(uint32_t layer);
  void learn(uint32_t layer);
  bool resting(uint32_t layer);
  void name_followers(uint32_t layer, std::span<const uint32_t> ids, std::span<const uint8_t> present);
  size_t give(uint32_t layer, std::span<uint32_t> out);

  uint32_t layers_, experts_;
  std::vector<uint16_t> follows_;   // [layers, experts, experts]: the chance, of 65,536, that the last follows
  std::vector<Tally> tallies_;      // [layers, kClasses]
  std::vector<Score> scores_;       // [layers]
  std::vector<uint32_t> barren_;    // [layers]: passes since a candidate was worth a read
  std::vector<uint8_t> asked_;      // [experts]: scratch, all 0 between calls
  std::vector<uint32_t> votes_;     // [experts]: scratch
  std::vector<uint32_t> now_, before_;  // distinct experts of this pass's layer and of the one before
  std::vector<Candidate> candidates_;   // for the layer after the one observed last
  bool connected_ = false;              // whether `before_` and `candidates_` are of the layer just before
  uint32_t last_ = 0;                   // the layer observed last
};

}  // namespace lme::stream
