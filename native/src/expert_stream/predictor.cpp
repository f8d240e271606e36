#include "predictor.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace lme::stream {

namespace {

constexpr int kShift = 6;  // an estimate moves by 1 / 2^kShift of the way
// With this step an estimate comes to rest below 65,536: 65,535 - (65,535 >> 6) + 1,023 is 65,535.
constexpr uint16_t kStep = (65'536 >> kShift) - 1;

}  // namespace

uint64_t Predictor::bytes(uint32_t layers, uint32_t experts) {
  const uint64_t estimates = uint64_t{layers} * experts * experts * sizeof(uint16_t);
  const uint64_t per_layer = kClasses * sizeof(Tally) + sizeof(Score) + sizeof(uint32_t);
  return estimates + layers * per_layer + experts * (sizeof(uint8_t) + sizeof(uint32_t));
}

Predictor::Predictor(uint32_t layers, uint32_t experts, uint64_t most_bytes)
    : layers_(layers), experts_(experts) {
  if (layers == 0 || experts == 0) throw std::invalid_argument("a predictor needs a layer and an expert");
  // Both bounds keep the product below in 64 bits.
  if (layers > 65'536 || experts > 65'536 || bytes(layers, experts) > most_bytes) {
    throw std::invalid_argument("a predictor of " + std::to_string(layers) + " layers of " +
                                std::to_string(experts) + " experts takes more than " +
                                std::to_string(most_bytes) + " bytes");
  }
  follows_.resize(size_t{layers} * experts * experts);
  tallies_.resize(layers * kClasses);
  scores_.resize(layers);
  barren_.resize(layers);
  asked_.resize(experts);
  votes_.resize(experts);
  now_.reserve(kMostIds);
  before_.reserve(kMostIds);
  candidates_.reserve(2 * kCandidates);
}

uint16_t* Predictor::follows(uint32_t layer, uint32_t expert) {
  return follows_.data() + (size_t{layer} * experts_ + expert) * experts_;
}

bool Predictor::keep_distinct(std::span<const uint32_t> ids, std::vector<uint32_t>& distinct) {
  distinct.clear();
  bool few = true;
  for (const uint32_t id : ids) {
    if (asked_[id]) continue;
    if (distinct.size() == kMostIds) {
      few = false;
      break;
    }
    asked_[id] = 1;
    distinct.push_back(id);
  }
  for (const uint32_t id : distinct) asked_[id] = 0;
  return few && !distinct.empty();
}

void Predictor::observe(uint32_t layer, std::span<const uint32_t> ids) {
  const bool follows_on = connected_ && after(last_) == layer;
  if (!keep_distinct(ids, now_)) {
    forget_pass();
    return;
  }
  if (follows_on) {
    judge(layer);
    learn(last_);
  }
  candidates_.clear();
  std::swap(now_, before_);
  last_ = layer;
  connected_ = true;
}

void Predictor::judge(uint32_t layer) {
  for (const uint32_t id : now_) asked_[id] = 1;
  Score& score = scores_[layer];
  for (const Candidate& candidate : candidates_) {
    const bool used = asked_[candidate.expert] != 0;
    Tally& tally = tallies_[layer * kClasses + candidate.tally];
    if (tally.named == kWindow) {
      tally.named /= 2;
      tally.used /= 2;
    }
    ++tally.named;
    tally.used += used;
    ++score.judged;
    score.judged_used += used;
    score.given += candidate.given;
    score.given_used += candidate.given && used;
  }
  for (const uint32_t id : now_) asked_[id] = 0;
}

void Predictor::learn(uint32_t layer) {
  for (const uint32_t source : before_) {
    uint16_t* chance = follows(layer, source);
    for (uint32_t e = 0; e < experts_; ++e) {
      chance[e] = static_cast<uint16_t>(chance[e] - (chance[e] >> kShift));
    }
    for (const uint32_t id : now_) chance[id] = static_cast<uint16_t>(chance[id] + kStep);
  }
}

bool Predictor::resting(uint32_t layer) {
  return barren_[layer] >= kPatience && ++barren_[layer] % kRest != 0;
}

size_t Predictor::guess(uint32_t layer, std::span<const uint32_t> ids, std::span<const uint32_t> ranked,
                        std::span<const uint8_t> present, std::span<uint32_t> out) {
  candidates_.clear();
  const uint32_t next = after(layer);
  if (resting(next)) return 0;
  for (size_t rank = 0; rank < std::min(ranked.size(), kRankClasses); ++rank) {
    if (!present.empty() && present[ranked[rank]]) continue;
    candidates_.push_back({ranked[rank], static_cast<uint16_t>(kChanceClasses + rank), false});
  }
  if (keep_distinct(ids, now_)) name_followers(layer, now_, present);
  return give(next, out);
}

// Adds the candidates with the most votes of `ids` (distinct).
void Predictor::name_followers(uint32_t layer, std::span<const uint32_t> ids, std::span<const uint8_t> present) {
  std::fill(votes_.begin(), votes_.end(), 0);
  for (const uint32_t source : ids) {
    const uint16_t* chance = follows(layer, source);
    for (uint32_t e = 0; e < experts_; ++e) votes_[e] += chance[e];
  }
  const auto sources = static_cast<uint32_t>(ids.size());
  const auto first = static_cast<std::ptrdiff_t>(candidates_.size());
  for (uint32_t e = 0; e < experts_; ++e) {
    const uint32_t votes = votes_[e];
    if (votes == 0 || (!present.empty() && present[e])) continue;
    const bool full = candidates_.size() == static_cast<size_t>(first) + kCandidates;
    if (full && votes <= votes_[candidates_.back().expert]) continue;
    if (full) candidates_.pop_back();
    // Of equal votes the lower expert stays in front.
    const auto place = std::find_if(candidates_.begin() + first, candidates_.end(),
                                    [&](const Candidate& other) { return votes_[other.expert] < votes; });
    const uint32_t chance_class = votes / sources * uint32_t{kChanceClasses} >> 16;
    candidates_.insert(place, {e, static_cast<uint16_t>(chance_class), false});
  }
}

size_t Predictor::give(uint32_t layer, std::span<uint32_t> out) {
  size_t given = 0;
  bool any = false;
  for (Candidate& candidate : candidates_) {
    if (!tallies_[layer * kClasses + candidate.tally].open()) continue;
    any = true;
    const auto so_far = out.first(given);
    if (std::find(so_far.begin(), so_far.end(), candidate.expert) != so_far.end()) continue;
    if (given == out.size()) break;
    candidate.given = true;
    out[given++] = candidate.expert;
  }
  if (any) {
    barren_[layer] = 0;
  } else if (barren_[layer] < kPatience) {
    ++barren_[layer];
  }
  return given;
}

void Predictor::forget_pass() {
  connected_ = false;
  candidates_.clear();
}

Predictor::Score Predictor::score(uint32_t layer) const {
  Score score = scores_[layer];
  score.open = barren_[layer] < kPatience;
  return score;
}

}  // namespace lme::stream
