// The forward of a Llama-like decoder: one call runs all layers.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "weight.hpp"

namespace loci {

enum Linear { kQ, kK, kV, kO, kGate, kUp, kDown, kLinears };
enum Vector {
  kInputNorm, kPostNorm, kQBias, kKBias, kVBias, kOBias, kQNorm, kKNorm, kVectors
};

struct Shape {
  int64_t layers, hidden, heads, kv_heads, size, ffn, vocab;
  int64_t window;        // 0 where there is none
  float eps, norm_offset, embed_scale, scale;
  bool gelu;
  const float* frequencies;  // [size / 2]
};

// A product of low rank beside a weight: adapters and edits. Rank 0 where there is none.
struct Thin {
  const float* left = nullptr;   // [rank, outputs]
  const float* right = nullptr;  // [rank, inputs]
  int64_t rank = 0;
};

struct Layer {
  std::array<Packed, kLinears> linear;
  std::array<Thin, kLinears> thin{};
  std::array<const float*, kVectors> vector{};  // null where the model has none
};

// A piece of a matrix whose rows are vocabulary.
struct VocabTile {
  int64_t first;
  Packed weight;
};

// Stored tokens of one head of one layer, one behind the other: as they are, or coded.
struct Span {
  void *k, *v;
  int64_t token;         // elements from one token to the next
  int64_t count;
  bool half = false;
  enum { kExact, kCoded, kLevels, kLatent } kind = kExact;
  Coded codes = {};
  Levels levels = {};
  const int16_t* order = nullptr;  // [size] the channels the keys are stored in, or null
  Latent latent = {};              // of all heads of the layer, which is why every head has it
};

// What one row holds where layers or heads hold it differently. The last span of each takes the
// next token, which has room there; it may be empty until then.
struct Spans {
  Spans(int64_t layers, int64_t heads) : heads(heads), of(layers * heads) {}

  const std::vector<Span>& at(int64_t layer, int64_t head) const { return of[layer * heads + head]; }
  void grow() {
    for (auto& list : of) ++list.back().count;
  }
  int64_t most_tokens() const {
    int64_t most = 0;
    for (const auto& list : of) {
      int64_t total = 0;
      for (const Span& span : list) total += span.count;
      most = std::max(most, total);
    }
    return most;
  }

  const int64_t heads;
  std::vector<std::vector<Span>> of;  // by layer and head
};

constexpr int kMaxSpans = 6;  // of one head: first tokens, coded, and what the next token joins

// What is kept of one row of the batch: token s, head h of layer l at l * layer + h * head +
// s * token elements behind `keys` and `values`.
struct Past {
  void* keys;
  void* values;
  int64_t layer, head, token;
  bool half;
  int64_t count;         // tokens there already
  int64_t position;      // of the next one
  const Spans* spans;    // instead of all of the above but the position, or null
};

struct Work {
  float *hidden, *normed, *qkv, *mixed, *gate_up, *rope, *prepared, *parts;
  int64_t parts_floats;
  Arena arena;
};

enum Logits { kNone, kLast, kAll };
enum Status : int64_t { kDone = 0, kBadId = 1, kNotFinite = 2 };  // + layer

struct Step {
  const int64_t* ids;    // [rows, tokens]
  int64_t rows, tokens;
  std::vector<Past> past;
  Logits logits;
  float* out;            // [rows or rows * tokens, vocab]
  float largest;         // what a kept key or value may be
};

// One layer's half, for callers that keep keys and values themselves.
struct Half {
  int64_t layer, rows, tokens;
  const int64_t* positions;  // [rows, tokens]; negative is padding and turns like 0
  float* q;              // [rows, heads, tokens, size]: rotated queries out, or what they read in
  float* k;              // [rows, kv heads, tokens, size] rotated
};

class Decoder {
 public:
  Decoder(const Shape& shape, const Work& work) : shape(shape), work(work), layers(shape.layers) {}

  int64_t step(const Step& step);
  int64_t layer(int64_t index, const Step& step);  // hidden -> hidden; no ids, no logits
  void before(const Half& half);  // hidden -> queries, keys, values
  void after(const Half& half);   // what the queries read -> hidden

  const Shape shape;
  const Work work;
  bool rounded = false;  // products of few rows read x in whole numbers of 8 bits
  std::vector<Layer> layers;
  std::vector<VocabTile> embedding, head;
  const float* norm = nullptr;

 private:
  struct Pass;
};

int64_t arena_floats(const Shape& shape);  // the least a decoder of many rows works in

}  // namespace loci
