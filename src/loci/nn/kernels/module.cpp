// What Python sees; loci.nn.native gives it types. Addresses come as integers, sizes in elements.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "decoder.hpp"
#include "sample.hpp"

namespace py = pybind11;
using namespace loci;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

struct Weight {
  Packed packed;
};

Weight make_weight(int kind, uintptr_t codes, uintptr_t scales, uintptr_t mins, int64_t out,
                   int64_t inner, int bits, int group, bool half) {
  const bool is_packed = Kind(kind) == Kind::kCodes;
  if (is_packed && (bits < 1 || bits > 8 || group < 1 || inner % group != 0))
    throw std::invalid_argument("a packed weight of this form cannot be read");
  return {packed(Kind(kind), at<void>(codes), at<void>(scales), at<void>(mins), out, inner, bits,
                 group, half)};
}

std::vector<Product> products_of(const std::vector<const Weight*>& weights,
                                 const std::vector<uintptr_t>& outs,
                                 const std::vector<int64_t>& strides) {
  std::vector<Product> list;
  for (size_t i = 0; i < weights.size(); ++i)
    list.push_back({&weights[i]->packed, at<float>(outs[i]), strides[i], false});
  return list;
}

void few_rows(uintptr_t x, int rows, const std::vector<const Weight*>& weights,
              const std::vector<uintptr_t>& outs, const std::vector<int64_t>& strides,
              bool rounded) {
  if (rows < 1 || rows > kMaxRows) throw std::invalid_argument("1 to 16 rows");
  py::gil_scoped_release release;
  const std::vector<Product> list = products_of(weights, outs, strides);
  std::vector<const Packed*> wanted;
  for (const Product& p : list) wanted.push_back(p.weight);
  std::vector<Rows> prepared;
  prepare(wanted, at<float>(x), wanted[0]->inner, rows, rounded,
          floats(prepared_floats(wanted, rows, rounded)), prepared);
  products(list, prepared);
}

void many_rows(uintptr_t x, int64_t x_stride, int64_t rows,
               const std::vector<const Weight*>& weights, const std::vector<uintptr_t>& outs,
               const std::vector<int64_t>& strides, uintptr_t arena, int64_t arena_floats) {
  py::gil_scoped_release release;
  const std::vector<Product> list = products_of(weights, outs, strides);
  if (arena_floats < kernels().gemm_floats(list[0].weight->inner))
    throw std::invalid_argument("the arena is too small");
  gemm(list, at<float>(x), x_stride, rows, {at<float>(arena), arena_floats});
}

void dequantise(const Weight& w, int64_t first, int64_t last, uintptr_t to) {
  py::gil_scoped_release release;
  const Kernels& k = kernels();
  share(last - first, 16, [&](int64_t from, int64_t end, int) {
    uint8_t* bytes = scratch(scratch_bytes(w.packed));
    for (int64_t n = from; n < end; ++n)
      k.dequantise(w.packed, first + n, at<float>(to) + n * w.packed.inner, bytes);
  });
}

void rows(const Weight& w, uintptr_t ids, int64_t count, uintptr_t to) {
  py::gil_scoped_release release;
  for (int64_t i = 0; i < count; ++i)
    kernels().dequantise(w.packed, at<const int64_t>(ids)[i], at<float>(to) + i * w.packed.inner,
                         scratch(scratch_bytes(w.packed)));
}

// Calls each(i) for every row, in all threads when there are more than `few`.
template <class Body>
void over_rows(int64_t count, int64_t few, Body&& each) {
  py::gil_scoped_release release;
  if (count <= few) {
    for (int64_t i = 0; i < count; ++i) each(i);
    return;
  }
  share(count, std::clamp<int64_t>(count / (4 * crew_size()), 1, 64),
        [&](int64_t from, int64_t to, int) {
          for (int64_t i = from; i < to; ++i) each(i);
        });
}

void attend_decode(uintptr_t q, uintptr_t k, uintptr_t v, int64_t k_head, int64_t k_token,
                   int64_t v_head, int64_t v_token, int64_t tokens, int64_t heads,
                   int64_t kv_heads, int64_t size, bool half, float scale, uintptr_t out,
                   uintptr_t lse) {
  py::gil_scoped_release release;
  const Stored kv{at<void>(k), at<void>(v), k_head, k_token, v_head, v_token, half};
  const int64_t groups = heads / kv_heads, chunks = (tokens + kChunkTokens - 1) / kChunkTokens;
  const Kernels& kernel = kernels();
  float* parts = floats(chunks * heads * (size + 2));
  share(chunks * kv_heads, 1, [&](int64_t first, int64_t last, int) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t head = item % kv_heads, from = item / kv_heads * kChunkTokens;
      kernel.attend(at<float>(q) + head * groups * size, size, groups, kv, head, from,
                    std::min<int64_t>(tokens, from + kChunkTokens), size, scale,
                    parts + (item / kv_heads * heads + head * groups) * (size + 2));
    }
  });
  for (int64_t h = 0; h < heads; ++h)
    at<float>(lse)[h] = kernel.merge(parts + h * (size + 2), chunks, heads * (size + 2), size,
                                     at<float>(out) + h * size);
}

// One token's queries, each against chunks of its own: `found` has `many` numbers of them for every
// head, those beyond the last chunk stand for none; and the first tokens of one more chunk, the same
// for all heads of a KV head. Writes zeros and -inf where a head reads nothing.
void attend_chunks(uintptr_t q, uintptr_t k, uintptr_t v, int64_t k_head, int64_t k_token, int64_t v_head,
                   int64_t v_token, int64_t chunk, int64_t chunks, uintptr_t found, int64_t many,
                   uintptr_t filling, uintptr_t filled, int64_t heads, int64_t kv_heads, int64_t size,
                   bool half, float scale, uintptr_t out, uintptr_t lse) {
  py::gil_scoped_release release;
  const Stored kv{at<void>(k), at<void>(v), k_head, k_token, v_head, v_token, half};
  const int64_t groups = heads / kv_heads, wide = size + 2;
  const Kernels& kernel = kernels();
  float* parts = floats((many + 1) * heads * wide);
  share(heads, 1, [&](int64_t first, int64_t last, int) {
    for (int64_t h = first; h < last; ++h) {
      float* own = parts + h * (many + 1) * wide;
      int64_t count = 0;
      const auto read = [&](int64_t from, int64_t tokens) {
        kernel.attend(at<float>(q) + h * size, size, 1, kv, h / groups, from, from + tokens, size, scale,
                      own + count++ * wide);
      };
      for (int64_t i = 0; i < many; ++i) {
        const int64_t number = at<const int64_t>(found)[h * many + i];
        if (number < chunks) read(number * chunk, chunk);
      }
      if (const int64_t tokens = at<const int64_t>(filled)[h / groups]; tokens > 0)
        read(at<const int64_t>(filling)[h / groups] * chunk, tokens);
      float* to = at<float>(out) + h * size;
      if (count > 0) at<float>(lse)[h] = kernel.merge(own, count, wide, size, to);
      else {
        std::fill(to, to + size, 0.0f);
        at<float>(lse)[h] = -std::numeric_limits<float>::infinity();
      }
    }
  });
}

// Every batch row: q and out [heads, queries, size] by strides, keys and values by strides.
void attend_prompt(const std::vector<uintptr_t>& q, const std::vector<uintptr_t>& k,
                   const std::vector<uintptr_t>& v, const std::vector<uintptr_t>& out,
                   const std::vector<uintptr_t>& lse, const std::vector<int64_t>& strides,
                   const std::vector<int64_t>& sizes, bool half, float scale, uintptr_t arena,
                   int64_t arena_floats) {
  const int64_t queries = sizes[0], stored = sizes[1], start = sizes[2], window = sizes[3];
  const int64_t heads = sizes[4], kv_heads = sizes[5], size = sizes[6];
  const Kernels& kernel = kernels();
  const int64_t least = kernel.flash_floats(size, heads / kv_heads);
  if (arena_floats < least) throw std::invalid_argument("the arena is too small");
  py::gil_scoped_release release;
  const int64_t blocks = (queries + kFlashQueries - 1) / kFlashQueries;
  const int64_t batch = int64_t(q.size()), items = batch * kv_heads * blocks;
  const Arena space{at<float>(arena), arena_floats};
  const int workers = workers_of(space, least);
  const auto piece = [&](int64_t first, int64_t last, int worker) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t block = item / (batch * kv_heads);
      const int64_t row = item / kv_heads % batch, head = item % kv_heads;
      const Flash flash{at<float>(q[row]), strides[0], strides[1],
                        {at<void>(k[row]), at<void>(v[row]), strides[2], strides[3], strides[4],
                         strides[5], half},
                        at<float>(out[row]), strides[6], strides[7],
                        lse.empty() ? nullptr : at<float>(lse[row]),
                        queries, stored, start, window, heads, kv_heads, size, scale};
      kernel.flash(flash, head, block * kFlashQueries,
                   std::min(queries, (block + 1) * kFlashQueries), space.of(worker, workers));
    }
  };
  if (workers < crew_size()) piece(0, items, 0);
  else share(items, 1, piece);
}

// Mantissas as a bit stream a row, biased by 2^(bits-1); one exponent byte a block of n, biased by
// 127: value = (mantissa - 2^(bits-1)) * 2^(exponent - 127 - (bits - 2)), zero where that step
// would be no normal float.
const float* bfp_powers(int bits) {
  struct Table {
    float of[9][256];
    Table() {
      for (int bits = 2; bits <= 8; ++bits)
        for (int e = 0; e < 256; ++e) {
          const int place = e - (bits - 2);
          of[bits][e] = place <= 0 ? 0.0f : std::ldexp(1.0f, place - 127);
        }
    }
  };
  static const Table table;
  return table.of[bits];
}

void bfp_dequant(uintptr_t packed, uintptr_t exponents, int bits, int block, int64_t count,
                 int64_t size, int64_t row_bytes, uintptr_t to) {
  const float* powers = bfp_powers(bits);
  over_rows(count, 0, [&](int64_t r) {
    kernels().bfp(at<uint8_t>(packed) + r * row_bytes,
                  at<uint8_t>(exponents) + r * (size / block), powers, bits, block, size,
                  at<float>(to) + r * size, scratch(size + 128));
  });
}

void round_levels(uintptr_t x, int64_t count, int64_t size, uintptr_t levels, int bits, uintptr_t sizes,
                  int tries, uintptr_t codes, uintptr_t scales) {
  const int64_t row = (size * bits + 7) / 8;
  over_rows(count, 0, [&](int64_t r) {
    kernels().round_levels(at<float>(x) + r * size, size, at<float>(levels), bits, at<float>(sizes), tries,
                           at<uint8_t>(codes) + r * row, at<uint16_t>(scales) + r);
  });
}

uint64_t read_all(const std::vector<std::pair<uintptr_t, int64_t>>& pieces) {
  py::gil_scoped_release release;
  // All of them as one stretch, in pieces of which each may touch several.
  std::vector<int64_t> begins{0};
  for (const auto& piece : pieces) begins.push_back(begins.back() + piece.second);
  std::atomic<uint64_t> all{0};
  share(begins.back(), 1 << 18, [&](int64_t from, int64_t to, int) {
    uint64_t mine = 0;
    size_t i = std::upper_bound(begins.begin(), begins.end(), from) - begins.begin() - 1;
    for (; i < pieces.size() && begins[i] < to; ++i) {
      const int64_t first = std::max(from - begins[i], int64_t(0));
      const int64_t last = std::min(to - begins[i], pieces[i].second);
      mine ^= kernels().read(at<uint8_t>(pieces[i].first) + first, last - first);
    }
    all.fetch_xor(mine);
  });
  return all;
}

// -- the decoder ------------------------------------------------------------------------------

Decoder* make_decoder(const std::vector<int64_t>& sizes, float eps, float norm_offset,
                      float embed_scale, float scale, bool gelu, uintptr_t frequencies,
                      const std::vector<uintptr_t>& work, int64_t parts, int64_t arena) {
  const Shape shape{sizes.at(0), sizes.at(1), sizes.at(2), sizes.at(3), sizes.at(4), sizes.at(5),
                    sizes.at(6), sizes.at(7), eps, norm_offset, embed_scale, scale, gelu,
                    at<float>(frequencies)};
  const auto buffer = [&](int i) { return at<float>(work.at(i)); };
  return new Decoder(shape, {buffer(0), buffer(1), buffer(2), buffer(3), buffer(4), buffer(5),
                             buffer(6), buffer(7), parts, {buffer(8), arena}});
}

void set_layer(Decoder& d, int64_t index, const std::vector<const Weight*>& linear,
               const std::vector<uintptr_t>& vectors) {
  Layer& layer = d.layers.at(index);
  for (int i = 0; i < kLinears; ++i) layer.linear[i] = linear.at(i)->packed;
  for (int i = 0; i < kVectors; ++i) layer.vector[i] = at<float>(vectors.at(i));
  layer.thin = {};
}

// Beside one weight of a layer: left [rank, outputs] and right [rank, inputs].
void set_thin(Decoder& d, int64_t index, int64_t linear, uintptr_t left, uintptr_t right,
              int64_t rank) {
  d.layers.at(index).thin.at(linear) = {at<float>(left), at<float>(right), rank};
}

std::vector<VocabTile> tiles(const std::vector<const Weight*>& weights) {
  std::vector<VocabTile> found;
  int64_t first = 0;
  for (const Weight* weight : weights) {
    found.push_back({first, weight->packed});
    first += weight->packed.out;
  }
  return found;
}

// Exact tokens of one head behind those it has: keys, values, token, half, count.
void add_exact(Spans& spans, int64_t layer, int64_t head, const std::vector<int64_t>& n) {
  Span span{at<void>(uintptr_t(n.at(0))), at<void>(uintptr_t(n.at(1))), n.at(2), n.at(4)};
  span.half = n.at(3) != 0;
  spans.of.at(layer * spans.heads + head).push_back(span);
}

// Codes with a grid: keys, values, key grid, value grid, bits, block, group, share, order, count.
// Block floating point: keys, values, key exponents, value exponents, bits, block, 0, 0, order,
// count.
void add_coded(Spans& spans, int64_t layer, int64_t head, const std::vector<int64_t>& n) {
  Span span{nullptr, nullptr, 0, n.at(9)};
  span.kind = Span::kCoded;
  span.order = at<int16_t>(uintptr_t(n.at(8)));
  Coded& codes = span.codes;
  codes.k = at<uint8_t>(uintptr_t(n.at(0)));
  codes.v = at<uint8_t>(uintptr_t(n.at(1)));
  codes.bits = int(n.at(4));
  codes.block = int(n.at(5));
  codes.group = n.at(6);
  codes.k_share = n.at(7);
  if (codes.group > 0) {
    codes.k_grid = at<uint16_t>(uintptr_t(n.at(2)));
    codes.v_grid = at<uint16_t>(uintptr_t(n.at(3)));
  } else {
    codes.k_exponents = at<uint8_t>(uintptr_t(n.at(2)));
    codes.v_exponents = at<uint8_t>(uintptr_t(n.at(3)));
    codes.powers = bfp_powers(codes.bits);
  }
  spans.of.at(layer * spans.heads + head).push_back(span);
}

// Turned codes: keys, values, scales of keys, scales of values, mean of keys, mean of values, signs,
// levels of keys, levels of values, bits of keys, bits of values, count.
void add_levels(Spans& spans, int64_t layer, int64_t head, const std::vector<int64_t>& n) {
  Span span{nullptr, nullptr, 0, n.at(11)};
  span.kind = Span::kLevels;
  const auto halves = [&](size_t i) { return at<uint16_t>(uintptr_t(n.at(i))); };
  const auto floats = [&](size_t i) { return at<float>(uintptr_t(n.at(i))); };
  span.levels = {at<uint8_t>(uintptr_t(n.at(0))), at<uint8_t>(uintptr_t(n.at(1))), halves(2), halves(3),
                 halves(4), halves(5), floats(6), floats(7), floats(8), int(n.at(9)), int(n.at(10))};
  spans.of.at(layer * spans.heads + head).push_back(span);
}

// Tokens in directions, for every head of a layer. Numbers of each side: rows, bytes of a row, ways,
// mean, how many; gains, sizes and bits, or zeros.
void add_latent(Spans& spans, int64_t layer, const std::vector<int64_t>& keys,
                const std::vector<int64_t>& values, uintptr_t steps, uintptr_t frequencies, int64_t width,
                int64_t position, int64_t count) {
  const auto side = [](const std::vector<int64_t>& n) {
    return Side{at<uint8_t>(uintptr_t(n.at(0))), n.at(1), at<uint16_t>(uintptr_t(n.at(2))),
                at<uint16_t>(uintptr_t(n.at(3))), n.at(4), at<uint16_t>(uintptr_t(n.at(5))),
                at<float>(uintptr_t(n.at(6))), at<uint8_t>(uintptr_t(n.at(7)))};
  };
  Span span{nullptr, nullptr, 0, count};
  span.kind = Span::kLatent;
  span.latent = {side(keys), side(values), at<float>(steps), at<float>(frequencies), width, count, position};
  for (int64_t head = 0; head < spans.heads; ++head) spans.of.at(layer * spans.heads + head).push_back(span);
}

// Numbers of each row: keys, values, layer, head, token, half, count, position; then its spans, or
// none.
constexpr size_t kPastNumbers = 8;
Step make_step(int64_t tokens, const std::vector<int64_t>& past,
               const std::vector<const Spans*>& spans, float largest) {
  const size_t rows = past.size() / kPastNumbers;
  if (spans.size() != rows) throw std::invalid_argument("rows and spans differ in number");
  Step step{nullptr, int64_t(rows), tokens, {}, kNone, nullptr, largest};
  for (size_t i = 0; i < rows; ++i) {
    const int64_t* p = past.data() + i * kPastNumbers;
    if (spans[i] != nullptr && tokens != 1)
      throw std::invalid_argument("spans take one token at a time");
    step.past.push_back({at<void>(uintptr_t(p[0])), at<void>(uintptr_t(p[1])), p[2], p[3], p[4],
                         p[5] != 0, p[6], p[7], spans[i]});
  }
  return step;
}

int64_t step(Decoder& d, uintptr_t ids, int64_t tokens, const std::vector<int64_t>& past,
             const std::vector<const Spans*>& spans, int logits, uintptr_t out, float largest) {
  py::gil_scoped_release release;
  Step step = make_step(tokens, past, spans, largest);
  step.ids = at<int64_t>(ids);
  step.logits = Logits(logits);
  step.out = at<float>(out);
  return d.step(step);
}

int64_t layer(Decoder& d, int64_t index, int64_t tokens, const std::vector<int64_t>& past,
              const std::vector<const Spans*>& spans, float largest) {
  py::gil_scoped_release release;
  return d.layer(index, make_step(tokens, past, spans, largest));
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Kernels for packed weights; use them through loci.nn.native.";
  py::class_<Weight>(m, "Weight").def(py::init(&make_weight));
  m.def("gemv", &few_rows);
  m.def("gemm", &many_rows);
  m.def("gemm_floats", [](int64_t inner) { return kernels().gemm_floats(inner); });
  m.def("dequantise", &dequantise);
  m.def("rows", &rows);
  m.def("rmsnorm", [](uintptr_t x, uintptr_t weight, float eps, float offset, int64_t count,
                      int64_t size, uintptr_t out) {
    over_rows(count, 16, [&](int64_t i) {
      kernels().rms(at<float>(x) + i * size, at<float>(weight), eps, offset, size,
                    at<float>(out) + i * size);
    });
  });
  m.def("silu_mul", [](uintptr_t gate, uintptr_t up, int64_t count, int64_t size) {
    over_rows(count, 16, [&](int64_t i) {
      kernels().silu(at<float>(gate) + i * size, at<float>(up) + i * size, size);
    });
  });
  m.def("gelu_tanh_mul", [](uintptr_t gate, uintptr_t up, int64_t count, int64_t size) {
    over_rows(count, 16, [&](int64_t i) {
      kernels().gelu(at<float>(gate) + i * size, at<float>(up) + i * size, size);
    });
  });
  m.def("rope", [](uintptr_t x, uintptr_t cos, uintptr_t sin, int64_t count, int64_t heads,
                   int64_t size, uintptr_t out) {
    over_rows(count, 64, [&](int64_t i) {
      for (int64_t h = i * heads; h < (i + 1) * heads; ++h)
        kernels().rope(at<float>(x) + h * size, at<float>(cos) + i * size, at<float>(sin) + i * size,
                       size, at<float>(out) + h * size);
    });
  });
  m.def("attend_decode", &attend_decode);
  m.def("attend_chunks", &attend_chunks);
  m.def("attend_prompt", &attend_prompt);
  m.def("attend_floats", [](int64_t size, int64_t groups) { return kernels().flash_floats(size, groups); });
  m.def("bfp_dequant", &bfp_dequant);
  m.def("round_levels", &round_levels);
  m.def("to_half", [](uintptr_t from, int64_t count, uintptr_t to) {
    kernels().to_half(at<float>(from), count, at<uint16_t>(to));
  });
  m.def("argmax", [](uintptr_t x, int64_t count) { return kernels().argmax(at<float>(x), count); });
  m.def("sample", [](uintptr_t logits, int64_t count, double temperature, int64_t top_k, double top_p,
                     double uniform) {
    py::gil_scoped_release release;
    return sample(at<float>(logits), count, temperature, top_k, top_p, uniform);
  });
  m.def("read_all", &read_all);
  py::class_<Spans>(m, "Spans")
      .def(py::init<int64_t, int64_t>())
      .def("add_exact", &add_exact)
      .def("add_coded", &add_coded)
      .def("add_levels", &add_levels)
      .def("add_latent", &add_latent)
      .def("grow", &Spans::grow);
  py::class_<Decoder>(m, "Decoder")
      .def(py::init(&make_decoder))
      .def("set_rounded", [](Decoder& d, bool rounded) { d.rounded = rounded; })
      .def("set_layer", &set_layer)
      .def("set_thin", &set_thin)
      .def("set_vocabulary", [](Decoder& d, const std::vector<const Weight*>& embedding,
                                const std::vector<const Weight*>& head, uintptr_t norm) {
        d.embedding = tiles(embedding);
        d.head = tiles(head);
        d.norm = at<float>(norm);
      })
      .def("step", &step)
      .def("layer", &layer)
      .def("before", [](Decoder& d, int64_t layer, int64_t rows, int64_t tokens, uintptr_t positions,
                        uintptr_t q, uintptr_t k) {
        py::gil_scoped_release release;
        d.before({layer, rows, tokens, at<int64_t>(positions), at<float>(q), at<float>(k)});
      })
      .def("after", [](Decoder& d, int64_t layer, int64_t rows, int64_t tokens, uintptr_t o) {
        py::gil_scoped_release release;
        d.after({layer, rows, tokens, nullptr, at<float>(o), nullptr});
      });
  m.def("decoder_floats", [](int64_t hidden, int64_t heads, int64_t kv_heads, int64_t size, int64_t ffn) {
    Shape shape{};
    shape.hidden = hidden;
    shape.heads = heads;
    shape.kv_heads = kv_heads;
    shape.size = size;
    shape.ffn = ffn;
    return arena_floats(shape);
  });
  m.def("prepared_floats", [](const std::vector<const Weight*>& weights, int rows, bool rounded) {
    std::vector<const Packed*> list;
    for (const Weight* weight : weights) list.push_back(&weight->packed);
    return prepared_floats(list, rows, rounded);
  });
  m.def("set_threads", &set_crew_size);
  m.def("threads", &crew_size);
  m.def("level", [] { return kernels().name; });
  m.def("levels", [] {
    std::vector<std::string> found;
    for (int i = 0; i < kLevels; ++i)
      if (has_level(i)) {
        const int before = level();
        set_level(i);
        found.push_back(kernels().name);
        set_level(before);
      }
    return found;
  });
  m.def("set_level", [](const std::string& name) {
    const int before = level();
    for (int i = 0; i < kLevels; ++i) {
      if (!has_level(i)) continue;
      set_level(i);
      if (kernels().name == name) return;
    }
    set_level(before);
    throw std::invalid_argument("this machine does not have those instructions");
  });
}
