// From logits to tokens.
//
//   logits: [batch, vocab]    random, out: [batch]    ids: int32
//
// sample: logits are divided by the temperature. Of the tokens it keeps first those with fewer than
// top_k (0: all) larger logits; of these the ones for which all more probable ones together have a
// probability below top_p (Holtzman et al. 2020), as long as top_p is below 1; of these the ones at
// least min_p times as probable as the most probable one (Nguyen et al. 2024). Equal logits are
// kept or left out together. out is the first id at which the summed weight of the kept tokens
// exceeds random times its total. Temperature 0 takes the largest logit, the lowest id of equals.
//
// A row with a NaN, with +inf or with nothing above -inf gives id -1, which the op turns into an
// error on the CPU, and returns on another device, which nobody waits for.
//
// penalize: the logits of the ids seen, each once, are divided by penalty where they are positive,
// else multiplied by it, in place (Keskar et al. 2019).
//
// softcap: logits = cap * tanh(logits / cap), in place (Gemma Team 2024).
//
// token_logprobs: out = logits[ids] - log(sum of exp(logits)).
//
// top_continuations: prompts have `beams` texts each, with scores [prompts, beams], and logits
// [prompts * beams, vocab] say what may follow them. Of each prompt, the `count` continuations with
// the largest sums of a text's score and a token's log-probability, the largest first, of equals
// the first text's and then the lowest id: their sums, the rows of logits that they continue, and
// their ids, [prompts, count]. A row's banned ids are left out, but count in its probabilities. A
// prompt with fewer continuations above -inf ends with -inf, its first row and id 0; a row with a
// NaN, +inf or nothing above -inf, or whose score is NaN or -inf, has none. On the CPU only: what
// searches over its results is there.
//
// Logits have any floating dtype on a device other than the CPU, random numbers and
// log-probabilities are float32. Ids are checked before anything is read: on the CPU a wrong one is
// an error, elsewhere it is passed over by penalize and gets NaN from token_logprobs.
#pragma once

#include "core/tensor.h"

namespace softgate {

template <class T>
struct SampleArgs {
  const T* logits;
  const float* random;
  std::int32_t* out;
  std::int64_t batch, vocab;
  std::int64_t stride;  // elements between rows
  float temperature;
  std::int64_t top_k;
  double top_p, min_p;
};

template <class T>
struct PenalizeArgs {
  T* logits;
  const std::int32_t *ids, *cu_ids;
  std::int64_t batch, vocab, num_ids;
  std::int64_t stride;
  float penalty;
};

template <class T>
struct SoftcapArgs {
  T* logits;
  std::int64_t rows, vocab;
  std::int64_t stride;
  float cap;
};

template <class T>
struct TokenLogprobsArgs {
  const T* logits;
  const std::int32_t* ids;
  float* out;
  std::int64_t rows, vocab;
  std::int64_t stride;
};

struct TopContinuationsArgs {
  const float *logits, *scores;
  const std::int32_t *banned, *cu_banned;  // of row r: banned[cu_banned[r]] to cu_banned[r + 1]
  float* sums;
  std::int32_t *rows, *ids;
  std::int64_t prompts, beams, vocab, count;
  std::int64_t logits_stride, scores_stride;
};

struct Sampling {
  double temperature = 1;
  std::int64_t top_k = 0;
  double top_p = 1;
  double min_p = 0;
};

Tensor sample(const Tensor& logits, const Tensor& random, const Sampling& sampling);

void penalize(const Tensor& logits, const Tensor& ids, const Tensor& cu_ids, double penalty);

void softcap(const Tensor& logits, double cap);

Tensor token_logprobs(const Tensor& logits, const Tensor& ids);

struct Continuations {
  Tensor sums, rows, ids;
};

Continuations top_continuations(const Tensor& logits, const Tensor& scores, std::int64_t count,
                                const Tensor& banned, const Tensor& cu_banned);

}  // namespace softgate
