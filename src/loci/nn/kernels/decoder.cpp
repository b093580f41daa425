#include "decoder.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <initializer_list>
#include <limits>

namespace loci {
namespace {

// The place of an element of what is kept.
void* at(void* base, int64_t element, bool half) {
  return static_cast<char*>(base) + element * (half ? 2 : 4);
}

// Sums over eight lanes, so that a compiler can keep them in vectors.
float dot(const float* a, const float* b, int64_t count) {
  float sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int lane = 0; lane < 8; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  float sum = 0.0f;
  for (; i < count; ++i) sum += a[i] * b[i];
  for (float part : sums) sum += part;
  return sum;
}

int64_t pieces(int64_t count, int64_t size) { return (count + size - 1) / size; }

}  // namespace

int64_t arena_floats(const Shape& shape) {
  const Kernels& k = kernels();
  const int64_t inner = std::max({shape.hidden, shape.ffn, shape.heads * shape.size});
  return std::max(k.gemm_floats(inner), k.flash_floats(shape.size, shape.heads / shape.kv_heads));
}

// One call. What is little is done by the caller between the shared steps.
struct Decoder::Pass {
  Pass(const Decoder& decoder, int64_t rows, int64_t tokens)
      : d(decoder), s(decoder.shape), w(decoder.work), k(kernels()), rows(rows), tokens(tokens),
        count(rows * tokens), width((s.heads + 2 * s.kv_heads) * s.size) {
    wanted.reserve(16);
    prepared.reserve(16);
  }

  const Decoder& d;
  const Shape& s;
  const Work& w;
  const Kernels& k;
  const int64_t rows, tokens, count;
  const int64_t width;  // of a row of queries, keys and values

  // What the next products read.
  const float* x = nullptr;
  int64_t x_stride = 0, x_rows = 0;
  std::vector<const Packed*> wanted;
  std::vector<Rows> prepared;
  std::array<std::vector<float>, kLinears> seen;  // x in the directions of thin products

  std::atomic<int64_t> bad{std::numeric_limits<int64_t>::max()};
  int64_t chunks = 0, chunk_tokens = 0;  // of attention, when every row brings one token

  float* query(int64_t row) const { return w.qkv + row * width; }
  float* key(int64_t row) const { return query(row) + s.heads * s.size; }
  float* value(int64_t row) const { return key(row) + s.kv_heads * s.size; }
  const float* cos(int64_t row) const { return w.rope + row * s.size; }
  const float* sin(int64_t row) const { return w.rope + (count + row) * s.size; }

  // Calls body(row) for every row of x; few rows are not worth sharing.
  template <class Body>
  void each_row(Body body) {
    if (count <= 4) {
      for (int64_t m = 0; m < count; ++m) body(m);
      return;
    }
    share(count, std::clamp<int64_t>(count / (4 * crew_size()), 1, 32),
          [&](int64_t from, int64_t to, int) {
            for (int64_t m = from; m < to; ++m) body(m);
          });
  }

  // -- products

  bool is_few() const { return x_rows <= kMaxRows; }

  void read(const float* from, int64_t stride, int64_t how_many) {
    x = from;
    x_stride = stride;
    x_rows = how_many;
    if (is_few()) prepare(wanted, x, x_stride, int(x_rows), d.rounded, w.prepared, prepared);
  }

  void read(const float* from, int64_t stride, const Layer& layer,
            std::initializer_list<Linear> which) {
    wanted.clear();
    for (Linear name : which) wanted.push_back(&layer.linear[name]);
    read(from, stride, count);
  }

  void multiply(std::span<const Product> list) {
    if (is_few()) products(list, prepared);
    else gemm(list, x, x_stride, x_rows, w.arena);
  }

  void multiply(std::span<const Product> list, const Layer& layer,
                std::initializer_list<Linear> which) {
    multiply(list);
    size_t i = 0;
    for (Linear name : which) {
      const Product& p = list[i++];
      if (layer.thin[name].rank == 0) continue;
      narrow(layer, name);
      each_row([&](int64_t m) { widen(layer, name, p, m, 0, p.weight->out); });
    }
  }

  // -- thin products

  void narrow(const Layer& layer, Linear name) {
    const Thin& thin = layer.thin[name];
    const int64_t inner = layer.linear[name].inner;
    seen[name].resize(count * thin.rank);
    each_row([&](int64_t m) {
      for (int64_t r = 0; r < thin.rank; ++r)
        seen[name][m * thin.rank + r] = dot(x + m * x_stride, thin.right + r * inner, inner);
    });
  }

  // Adds what one row gives to its outputs from..to.
  void widen(const Layer& layer, Linear name, const Product& p, int64_t m, int64_t from,
             int64_t to) {
    const Thin& thin = layer.thin[name];
    float* out = p.out + m * p.stride;
    for (int64_t r = 0; r < thin.rank; ++r) {
      const float part = seen[name][m * thin.rank + r];
      const float* left = thin.left + r * p.weight->out;
      for (int64_t n = from; n < to; ++n) out[n] += part * left[n];
    }
  }

  // Norms the hidden states, after adding a bias that was left out.
  void norm(const float* weight, const float* bias) {
    each_row([&](int64_t row) {
      float* hidden = w.hidden + row * s.hidden;
      if (bias != nullptr) k.add(hidden, bias, s.hidden);
      k.rms(hidden, weight, s.eps, s.norm_offset, s.hidden, w.normed + row * s.hidden);
    });
  }

  void qkv(const Layer& layer) {
    norm(layer.vector[kInputNorm], nullptr);
    read(w.normed, s.hidden, layer, {kQ, kK, kV});
    const Product list[] = {{&layer.linear[kQ], query(0), width, false},
                            {&layer.linear[kK], key(0), width, false},
                            {&layer.linear[kV], value(0), width, false}};
    multiply(list, layer, {kQ, kK, kV});
  }

  // -- positions

  void embed_row(int64_t id, float* to) {
    const VocabTile& tile = d.embedding[id / d.embedding[0].weight.out];
    k.dequantise(tile.weight, id - tile.first, to, scratch(scratch_bytes(tile.weight)));
    if (s.embed_scale != 1.0f)
      for (int64_t i = 0; i < s.hidden; ++i) to[i] *= s.embed_scale;
  }

  void turn(int64_t row, int64_t position) {
    float* c = w.rope + row * s.size;
    float* n = w.rope + (count + row) * s.size;
    const int64_t half = s.size / 2;
    for (int64_t i = 0; i < half; ++i) {
      const float angle = float(std::max<int64_t>(position, 0)) * s.frequencies[i];
      c[i] = c[i + half] = std::cos(angle);
      n[i] = n[i + half] = std::sin(angle);
    }
  }

  // Bias, norm and rotation of some heads of one row, in place or elsewhere.
  void rotate(const float* from, int64_t heads, const float* bias, const float* weight, int64_t row,
              float* to, int64_t to_head) {
    for (int64_t h = 0; h < heads; ++h) {
      const float* head = from + h * s.size;
      float* y = to + h * to_head;
      if (bias != nullptr || weight != nullptr) {
        if (head != y) std::copy_n(head, s.size, y);
        if (bias != nullptr) k.add(y, bias + h * s.size, s.size);
        if (weight != nullptr) k.rms(y, weight, s.eps, s.norm_offset, s.size, y);
        head = y;
      }
      k.rope(head, cos(row), sin(row), s.size, y);
    }
  }

  // -- keys and values

  void keep(const float* from, void* to, bool half) {
    if (half) k.to_half(from, s.size, static_cast<uint16_t*>(to));
    else std::copy_n(from, s.size, static_cast<float*>(to));
  }

  void note_bad(int64_t index) {
    int64_t known = bad.load();
    while (index < known && !bad.compare_exchange_weak(known, index)) {
    }
  }

  // Rotates the key of a row for one head, and keeps it and its value.
  void keep_head(const Layer& layer, int64_t index, int64_t row, int64_t head, void* keys, void* values,
                 bool half, float largest) {
    const float *kb = layer.vector[kKBias], *vb = layer.vector[kVBias];
    float* k_row = key(row) + head * s.size;
    float* v_row = value(row) + head * s.size;
    rotate(k_row, 1, kb == nullptr ? nullptr : kb + head * s.size, layer.vector[kKNorm], row, k_row,
           s.size);
    if (vb != nullptr) k.add(v_row, vb + head * s.size, s.size);
    for (int64_t i = 0; i < s.size; ++i)
      if (!(std::fabs(k_row[i]) <= largest && std::fabs(v_row[i]) <= largest)) {
        note_bad(index);
        break;
      }
    keep(k_row, keys, half);
    keep(v_row, values, half);
  }

  void keep_head(const Layer& layer, const Past& past, int64_t index, int64_t row, int64_t head,
                 int64_t token, float largest) {
    const int64_t place = index * past.layer + head * past.head + token * past.token;
    keep_head(layer, index, row, head, at(past.keys, place, past.half), at(past.values, place, past.half),
              past.half, largest);
  }

  Stored stored(const Past& past, int64_t index) const {
    return {at(past.keys, index * past.layer, past.half), at(past.values, index * past.layer, past.half),
            past.head, past.token, past.head, past.token, past.half};
  }

  // -- attention, one token a row

  // Tokens a head reads of a span, the new one included.
  static int64_t tokens_of(const std::vector<Span>& spans, size_t number) {
    return spans[number].count + (number + 1 == spans.size());
  }

  // Chunks of as many tokens as keep the parts in their room. Each span begins a chunk of its own,
  // so a head with n spans has at most n - 1 chunks more than its tokens alone would make.
  void plan_chunks(const Step& step) {
    int64_t most = 1, extra = 0;
    for (const Past& past : step.past) {
      const bool is_plain = past.spans == nullptr;
      most = std::max(most, (is_plain ? past.count : past.spans->most_tokens()) + 1);
      if (!is_plain) extra = kMaxSpans - 1;
    }
    const int64_t room = w.parts_floats / (rows * s.heads * (s.size + 2)) - extra;
    chunk_tokens = kChunkTokens * pieces(pieces(most, kChunkTokens), std::max<int64_t>(1, room));
    chunks = pieces(most, chunk_tokens) + extra;
  }

  int64_t first_seen(const Past& past) const {
    return s.window > 0 ? std::max<int64_t>(0, past.count + 1 - s.window) : 0;
  }

  int64_t chunks_of(const Past& past, int64_t index, int64_t head) const {
    if (past.spans == nullptr) return pieces(past.count + 1 - first_seen(past), chunk_tokens);
    const std::vector<Span>& spans = past.spans->at(index, head);
    int64_t many = 0;
    for (size_t i = 0; i < spans.size(); ++i) many += pieces(tokens_of(spans, i), chunk_tokens);
    return many;
  }

  float* part_of(int64_t row, int64_t chunk, int64_t head) const {
    return w.parts + ((row * chunks + chunk) * s.heads + head) * (s.size + 2);
  }

  // Whoever takes the newest chunk of a KV head also keeps the new key and value.
  void attend_one(const Step& step, const Layer& layer, int64_t index, int64_t item) {
    const int64_t row = item / (s.kv_heads * chunks), head = item / chunks % s.kv_heads;
    const Past& past = step.past[row];
    const int64_t many = chunks_of(past, index, head), chunk = item % chunks;
    if (chunk >= many) return;
    const int64_t groups = s.heads / s.kv_heads, first_head = head * groups;
    const float* bias = layer.vector[kQBias];
    float* turned = floats(2 * groups * s.size);
    const bool is_newest = chunk + 1 == many;
    if (is_newest && past.spans == nullptr)
      keep_head(layer, past, index, row, head, past.count, step.largest);
    rotate(query(row) + first_head * s.size, groups,
           bias == nullptr ? nullptr : bias + first_head * s.size, layer.vector[kQNorm], row, turned,
           s.size);
    float* part = part_of(row, chunk, first_head);
    if (past.spans != nullptr) {
      attend_span(layer, index, row, head, past.spans->at(index, head), chunk, is_newest, turned, part,
                  step.largest);
      return;
    }
    const int64_t from = first_seen(past) + chunk * chunk_tokens;
    k.attend(turned, s.size, groups, stored(past, index), head, from,
             std::min(past.count + 1, from + chunk_tokens), s.size, s.scale, part);
  }

  void attend_span(const Layer& layer, int64_t index, int64_t row, int64_t head,
                   const std::vector<Span>& spans, int64_t chunk, bool is_newest, float* turned,
                   float* part, float largest) {
    size_t number = 0;
    for (int64_t many; chunk >= (many = pieces(tokens_of(spans, number), chunk_tokens)); ++number)
      chunk -= many;
    const Span& span = spans[number];
    const int64_t groups = s.heads / s.kv_heads, size = s.size;
    const int64_t from = chunk * chunk_tokens, count = tokens_of(spans, number);
    const int64_t to = std::min(count, from + chunk_tokens);
    if (span.kind == Span::kLatent) {
      if (head == 0) attend_latent(layer, row, span, chunk * chunk_tokens, chunk_tokens, part);
      return;
    }
    if (is_newest)
      keep_head(layer, index, row, head, at(span.k, span.count * span.token, span.half),
                at(span.v, span.count * span.token, span.half), span.half, largest);
    if (span.order != nullptr) {
      float* ordered = turned + groups * size;
      for (int64_t g = 0; g < groups; ++g)
        for (int64_t d = 0; d < size; ++d) ordered[g * size + d] = turned[g * size + span.order[d]];
      turned = ordered;
    }
    if (span.kind == Span::kCoded) {
      k.attend_codes(turned, size, groups, span.codes, from, to, size, s.scale, part,
                     scratch(coded_bytes(size)));
      return;
    }
    if (span.kind == Span::kLevels) {
      k.attend_levels(turned, size, groups, span.levels, from, to, size, s.scale, part,
                      scratch(coded_bytes(size)));
      return;
    }
    const Stored stored{span.k, span.v, 0, span.token, 0, span.token, span.half};
    k.attend(turned, size, groups, stored, 0, from, to, size, s.scale, part);
  }

  // All heads at once, by whoever takes the chunk of the first.
  void attend_latent(const Layer& layer, int64_t row, const Span& span, int64_t from, int64_t many,
                     float* part) {
    float* turned = floats(s.heads * s.size);
    rotate(query(row), s.heads, layer.vector[kQBias], layer.vector[kQNorm], row, turned, s.size);
    k.attend_latent(turned, s.heads / s.kv_heads, s.kv_heads, span.latent, from,
                    std::min(span.count, from + many), s.size, s.scale, part,
                    scratch(latent_bytes(span.latent, s.heads)));
  }

  void attend_ones(const Step& step, const Layer& layer, int64_t index) {
    share(rows * s.kv_heads * chunks, 1, [&](int64_t from, int64_t to, int) {
      for (int64_t item = from; item < to; ++item) attend_one(step, layer, index, item);
    });
    const int64_t groups = s.heads / s.kv_heads;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t head = 0; head < s.heads; ++head)
        k.merge(part_of(row, 0, head), chunks_of(step.past[row], index, head / groups),
                s.heads * (s.size + 2), s.size, w.mixed + (row * s.heads + head) * s.size);
  }

  // -- attention, many tokens a row

  void attend_many(const Step& step, const Layer& layer, int64_t index) {
    each_row([&](int64_t m) {
      const Past& past = step.past[m / tokens];
      rotate(query(m), s.heads, layer.vector[kQBias], layer.vector[kQNorm], m, query(m), s.size);
      for (int64_t head = 0; head < s.kv_heads; ++head)
        keep_head(layer, past, index, m, head, past.count + m % tokens, step.largest);
    });
    const int64_t least = k.flash_floats(s.size, s.heads / s.kv_heads);
    const int workers = workers_of(w.arena, least);
    const int64_t blocks = pieces(tokens, kFlashQueries), items = rows * s.kv_heads * blocks;
    const auto piece = [&](int64_t from, int64_t to, int worker) {
      for (int64_t item = from; item < to; ++item) {
        const int64_t block = item / (rows * s.kv_heads);
        const int64_t row = item / s.kv_heads % rows, head = item % s.kv_heads;
        const Past& past = step.past[row];
        const Flash flash{query(row * tokens), s.size, width, stored(past, index),
                          w.mixed + row * tokens * s.heads * s.size, s.size, s.heads * s.size,
                          nullptr, tokens, past.count + tokens, past.count, s.window, s.heads,
                          s.kv_heads, s.size, s.scale};
        k.flash(flash, head, block * kFlashQueries, std::min(tokens, (block + 1) * kFlashQueries),
                w.arena.of(worker, workers));
      }
    };
    if (workers < crew_size()) piece(0, items, 0);
    else share(items, 1, piece);
  }

  // -- the second half of a layer

  // From what the queries read, in `mixed`, to the hidden states after the layer.
  void finish(const Layer& layer) {
    read(w.mixed, s.heads * s.size, layer, {kO});
    const Product o{&layer.linear[kO], w.hidden, s.hidden, true};
    multiply({&o, 1}, layer, {kO});
    norm(layer.vector[kPostNorm], layer.vector[kOBias]);
    read(w.normed, s.hidden, layer, {kGate, kUp});
    gates(layer);
    read(w.gate_up, s.ffn, layer, {kDown});
    const Product down{&layer.linear[kDown], w.hidden, s.hidden, true};
    multiply({&down, 1}, layer, {kDown});
  }

  // Both products and the activation of the same outputs, by the same thread.
  void gates(const Layer& layer) {
    float *gate = w.gate_up, *up = w.gate_up + count * s.ffn;
    const Product list[] = {{&layer.linear[kGate], gate, s.ffn, false},
                            {&layer.linear[kUp], up, s.ffn, false}};
    const int workers = is_few() ? crew_size() : workers_of(w.arena, k.gemm_floats(s.hidden));
    for (Linear name : {kGate, kUp})
      if (layer.thin[name].rank > 0) narrow(layer, name);
    const auto piece = [&](int64_t from, int64_t to, int worker) {
      for (int i = 0; i < 2; ++i) {
        if (is_few()) product_piece(list[i], prepared[i], from, to);
        else gemm_piece(list[i], x, x_stride, x_rows, from, to, w.arena.of(worker, workers),
                        w.arena.count / workers);
        const Linear name = i == 0 ? kGate : kUp;
        if (layer.thin[name].rank > 0)
          for (int64_t m = 0; m < count; ++m) widen(layer, name, list[i], m, from, to);
      }
      for (int64_t m = 0; m < count; ++m)
        (s.gelu ? k.gelu : k.silu)(gate + m * s.ffn + from, up + m * s.ffn + from, to - from);
    };
    if (workers < crew_size()) piece(0, s.ffn, 0);
    else share(s.ffn, is_few() ? product_step(layer.linear[kGate], s.ffn) : gemm_step(s.ffn), piece);
  }

  // -- everything

  void begin(const Step& step) {
    each_row([&](int64_t m) { turn(m, step.past[m / tokens].position + m % tokens); });
    if (tokens == 1) plan_chunks(step);
  }

  void layer(const Step& step, int64_t index) {
    const Layer& layer = d.layers[index];
    qkv(layer);
    if (tokens == 1) attend_ones(step, layer, index);
    else attend_many(step, layer, index);
    finish(layer);
  }

  void head(const Step& step) {
    const int64_t asked = step.logits == kLast ? rows : count;
    for (int64_t m = 0; m < asked; ++m) {
      const int64_t from = step.logits == kLast ? (m + 1) * tokens - 1 : m;
      k.rms(w.hidden + from * s.hidden, d.norm, s.eps, s.norm_offset, s.hidden,
            w.normed + m * s.hidden);
    }
    wanted.clear();
    std::vector<Product> list;
    for (const VocabTile& tile : d.head) {
      wanted.push_back(&tile.weight);
      list.push_back({&tile.weight, step.out + tile.first, s.vocab, false});
    }
    read(w.normed, s.hidden, asked);
    multiply(list);
  }

  int64_t status() const {
    const int64_t index = bad.load();
    return index == std::numeric_limits<int64_t>::max() ? kDone : kNotFinite + index;
  }
};

int64_t Decoder::step(const Step& step) {
  for (int64_t i = 0; i < step.rows * step.tokens; ++i)
    if (step.ids[i] < 0 || step.ids[i] >= shape.vocab) return kBadId;
  Pass pass(*this, step.rows, step.tokens);
  pass.each_row([&](int64_t m) { pass.embed_row(step.ids[m], work.hidden + m * shape.hidden); });
  pass.begin(step);
  for (int64_t index = 0; index < shape.layers; ++index) pass.layer(step, index);
  if (step.logits != kNone) pass.head(step);
  return pass.status();
}

int64_t Decoder::layer(int64_t index, const Step& step) {
  Pass pass(*this, step.rows, step.tokens);
  pass.begin(step);
  pass.layer(step, index);
  return pass.status();
}

void Decoder::before(const Half& half) {
  Pass pass(*this, half.rows, half.tokens);
  const Layer& layer = layers[half.layer];
  const int64_t tokens = half.tokens, size = shape.size;
  pass.qkv(layer);
  pass.each_row([&](int64_t m) {
    const int64_t row = m / tokens, token = m % tokens;
    pass.turn(m, half.positions[m]);
    pass.rotate(pass.query(m), shape.heads, layer.vector[kQBias], layer.vector[kQNorm], m,
                half.q + (row * shape.heads * tokens + token) * size, tokens * size);
    pass.rotate(pass.key(m), shape.kv_heads, layer.vector[kKBias], layer.vector[kKNorm], m,
                half.k + (row * shape.kv_heads * tokens + token) * size, tokens * size);
    const float* bias = layer.vector[kVBias];
    if (bias != nullptr) pass.k.add(pass.value(m), bias, shape.kv_heads * size);
  });
}

void Decoder::after(const Half& half) {
  Pass pass(*this, half.rows, half.tokens);
  const int64_t tokens = half.tokens, size = shape.size;
  pass.each_row([&](int64_t m) {
    for (int64_t head = 0; head < shape.heads; ++head)
      std::copy_n(half.q + ((m / tokens * shape.heads + head) * tokens + m % tokens) * size, size,
                  work.mixed + (m * shape.heads + head) * size);
  });
  pass.finish(layers[half.layer]);
}

}  // namespace loci
