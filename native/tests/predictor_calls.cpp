// Makes the calls of standard input on a predictor and prints what each gave, so that
// tests/test_expert_predictor.py can compare them with the Python twin's. The first line is layers, experts
// and bytes at most; then
//     o LAYER IDS…            observe
//     g LAYER MOST IDS… | RANKED… | PRESENT…   guess
//     f                       forget_pass
//     s LAYER                 score
#include <cstdint>
#include <exception>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "predictor.h"

using lme::stream::Predictor;

int main() {
  std::string line;
  std::getline(std::cin, line);
  std::istringstream shape(line);
  uint32_t layers = 0, experts = 0;
  uint64_t most_bytes = 0;
  shape >> layers >> experts >> most_bytes;
  try {
    Predictor predictor(layers, experts, most_bytes);
    while (std::getline(std::cin, line)) {
      std::istringstream words(line);
      char what = 0;
      uint32_t layer = 0;
      size_t most = 0;
      words >> what;
      if (what == 'f') {
        predictor.forget_pass();
        continue;
      }
      words >> layer;
      if (what == 's') {
        const Predictor::Score score = predictor.score(layer);
        std::cout << score.judged << ' ' << score.judged_used << ' ' << score.given << ' '
                  << score.given_used << ' ' << score.open << '\n';
        continue;
      }
      if (what != 'o') words >> most;
      std::vector<uint32_t> ids, ranked, out(most);
      std::vector<uint8_t> present;
      std::string word;
      int bars = 0;
      while (words >> word) {
        if (word == "|") {
          ++bars;
        } else if (bars == 2) {
          present.resize(experts);
          present[std::stoul(word)] = 1;
        } else {
          (bars == 0 ? ids : ranked).push_back(static_cast<uint32_t>(std::stoul(word)));
        }
      }
      if (what == 'o') {
        predictor.observe(layer, ids);
        continue;
      }
      const size_t given = predictor.guess(layer, ids, ranked, present, out);
      for (size_t i = 0; i < given; ++i) std::cout << (i ? " " : "") << out[i];
      std::cout << '\n';
    }
  } catch (const std::exception& error) {
    std::cout << "error: " << error.what() << '\n';
  }
}
