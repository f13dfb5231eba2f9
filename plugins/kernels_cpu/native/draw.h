// Drawing tokens by the logits of a vocabulary.
#pragma once
#include <cstdint>

namespace tmk {

// How one row is drawn. Doubles throughout, as they come from Python.
struct Drawing {
  double temperature;
  double top_k;    // tokens that stay, the most likely ones
  double top_p;    // probability that stays; above 1: all
  double min_p;    // share of the highest probability that a token exceeds; 0: all stay
  double uniform;  // in [0, 1): what is drawn is a function of it
};

// A token that may be drawn, and e^((its logit - the highest) / temperature).
struct Candidate {
  float weight;
  int32_t token;
};

}  // namespace tmk
