// What the kernels of every instruction set offer; one table of functions each.
//
// A weight is codes (a little-endian bit stream a row) with a scale and perhaps a minimum a group,
// or plain numbers. Activations and sums are float32. With the sum of x over each group known,
// minimum and zero point cost one product a group:
//
//     sum_k (q_k * s + m) x_k = s * sum_k q_k x_k + m * sum_k x_k

#pragma once

#include <cstdint>

namespace loci {

enum Level { kPlain = 0, kAvx2 = 1, kAvx512 = 2, kNeon = 3, kVnni = 4, kLevels = 5 };
enum class Kind { kCodes, kFloat32, kFloat16, kBfloat16 };

constexpr int kMaxRows = 16;     // rows of x that a product straight from the codes takes
constexpr int kPad = 16;         // rows of x and of sums are padded with zeros to a multiple
constexpr int kChunkTokens = 128;  // stored tokens that one piece of attention reads

// Which group each lane of a vector belongs to, a vector at a time: lane i of vector b reads the
// scale of group base[b] + index[b * lanes + i].
struct LaneGroups {
  const int32_t* base = nullptr;
  const int32_t* index = nullptr;
};

struct Packed {
  Kind kind;
  const uint8_t* codes;  // or the numbers of a plain weight
  const void* scales;
  const void* mins;      // null for a symmetric grid
  int64_t out, inner, row_bytes;
  int bits, group, groups;
  bool half;             // scales and minima are float16
  LaneGroups nibbles[kLevels], bytes[kLevels];
  LaneGroups quads[kLevels];  // lanes of four codes, for rows of x in whole numbers
};

// Up to kMaxRows rows of x as products straight from the codes read them. Rows come in strips of
// at most `strip`; in a strip the first vector of every row comes first, then the second of every
// row, and so on, padded with zeros.
//
// Or they come rounded: to whole numbers of 8 bits, every eight of them with a step of their own.
// Then products are sums of whole numbers, exact until they are scaled, x ~ step * n:
//
//     sum_k (q_k * s + m) x_k = sum over eights of s * step * sum_k q_k n_k + m * sum_k step * n_k
struct Rows {
  const float* x;        // in order, [rows * whole(inner, kPad)]; or null
  const float* split;    // in the order of 4-bit codes; or null
  const float* sums;     // [rows, sums_stride] sums over groups, padded with zeros to kPad
  int64_t sums_stride;
  int rows;
  const int8_t* numbers = nullptr;  // [rows * number_bytes] where x is rounded
  const float* steps = nullptr;     // [rows * step_floats], one for each lane of its vectors
};

struct Gemm {
  const float* x;
  int64_t x_stride, rows;
  const Packed* weight;
  int64_t first, last;   // columns of y: rows of the weight
  float* y;
  int64_t y_stride;
  bool add;              // y += instead of y =
  float* arena;          // scratch of this thread
  int64_t arena_floats;
};

// Keys and values of one batch row: token s of head h at k + h * k_head + s * k_token elements.
struct Stored {
  const void* k;
  const void* v;
  int64_t k_head, k_token, v_head, v_token;
  bool half;
};

// Keys and values of one head as codes, a bit stream a token, one token behind the other.
//
// Without grids they are block floating point: mantissas biased by 2^(bits - 1), and a power of two
// a block of channels. With grids a code q stands for low + step * q, in float16: of keys, the lows
// of all channels and then the steps are shared by `group` tokens, each of which carries `k_share`
// of these numbers; of values, each token has a low and a step for every `block` channels.
struct Coded {
  const uint8_t *k, *v;
  int bits, block;
  const uint8_t *k_exponents = nullptr, *v_exponents = nullptr;
  const float* powers = nullptr;  // [256], by exponent
  const uint16_t *k_grid = nullptr, *v_grid = nullptr;
  int64_t group = 0, k_share = 0;
};

// Keys and values of one head, turned and rounded to levels, a bit stream a token, one token behind
// the other: x = mean + scale * signs * H level[code], with H a Hadamard matrix of ones. `signs`
// carry the factor that makes the turn orthogonal; H signs is then its own inverse, behind signs.
struct Levels {
  const uint8_t *k, *v;
  const uint16_t *k_scales, *v_scales;  // a token
  const uint16_t *k_mean, *v_mean;      // [size]
  const float *signs;                   // [size]
  const float *k_levels, *v_levels;     // [16], over and over where codes name fewer
  int k_bits, v_bits;                   // at most 4
};

// Keys or values of one layer, all heads side by side, in the directions of that layer:
// x = u ways + mean. Rows of tokens are u in float16; or, with gains, codes of the directions with
// equally many bits in a row: u_i = (q_i - (2^b_i - 1) / 2) * steps[b_i] * size_i * gain.
struct Side {
  const uint8_t* rows;
  int64_t row_bytes;
  const uint16_t* ways;  // [count, width]
  const uint16_t* mean;  // [width]
  int64_t count;
  const uint16_t* gains = nullptr;  // a token
  const float* size = nullptr;      // [count]
  const uint8_t* bits = nullptr;    // [count], falling
};

// Keys are kept without their rotation; token i stands at `position + i`.
struct Latent {
  Side k, v;
  const float* steps;        // [9], by bits
  const float* frequencies;  // [size / 2]
  int64_t width, tokens, position;
};

// Many queries of one batch row against stored tokens. Query t stands at `start + t` and sees the
// tokens from itself backwards, `window` of them; without a window, all.
struct Flash {
  const float* q;
  int64_t q_head, q_token;
  Stored kv;
  float* out;
  int64_t out_head, out_token;
  float* lse;            // [heads, queries], or null
  int64_t queries, stored, start, window;
  int64_t heads, kv_heads, size;
  float scale;
};

struct Kernels {
  const char* name;
  int lanes;             // of a vector of float32
  int lane_codes;        // 4-bit codes a lane holds
  int strip;             // rows of x that share one decoding of a weight

  bool (*splits)(const Packed&);  // whether products read x in the order of 4-bit codes
  // Rows of x, `stride` apart, in strips; `split` puts them in the order of 4-bit codes.
  void (*arrange)(const float* x, int64_t stride, int rows, int64_t inner, bool split, float* to);
  void (*sum_groups)(const float* x, int64_t inner, int64_t group, float* to);
  bool (*rounds)(const Packed&);  // whether products can read rows of x in whole numbers
  int64_t (*number_bytes)(const Packed&);
  int64_t (*step_floats)(const Packed&);
  // Rounds rows of x, `stride` apart, in strips; sums over groups are of what it was rounded to.
  void (*round_rows)(const Packed&, const float* x, int64_t stride, int rows, int8_t* numbers,
                     float* steps, float* sums, int64_t sums_stride, uint8_t* scratch);
  // y[m * stride + n] = or += row n of the weight times row m of x.
  void (*product)(const Packed&, const Rows&, int64_t first, int64_t last, float* y,
                  int64_t stride, bool add, uint8_t* bytes);
  void (*dequantise)(const Packed&, int64_t row, float* to, uint8_t* bytes);
  int64_t (*gemm_floats)(int64_t inner);  // the least arena that gemm works in
  void (*gemm)(const Gemm&);

  void (*rms)(const float* x, const float* weight, float eps, float offset, int64_t size,
              float* out);
  void (*silu)(float* gate, const float* up, int64_t count);
  void (*gelu)(float* gate, const float* up, int64_t count);
  void (*rope)(const float* x, const float* cos, const float* sin, int64_t size, float* out);
  void (*add)(float* to, const float* from, int64_t count);
  void (*to_half)(const float* from, int64_t count, uint16_t* to);
  int64_t (*argmax)(const float* x, int64_t count);

  // One query a head of one KV head against tokens first..last: writes a row a head, the sum of
  // weighted values [size], then the largest score and the sum of weights.
  void (*attend)(const float* q, int64_t q_head, int64_t groups, const Stored&, int64_t kv_head,
                 int64_t first, int64_t last, int64_t size, float scale, float* part);
  // The same of coded tokens; `bytes` is scratch of coded_bytes(size).
  void (*attend_codes)(const float* q, int64_t q_head, int64_t groups, const Coded&, int64_t first,
                       int64_t last, int64_t size, float scale, float* part, uint8_t* bytes);
  // The same of turned tokens; `size` is a power of two, and whole vectors.
  void (*attend_levels)(const float* q, int64_t q_head, int64_t groups, const Levels&, int64_t first,
                        int64_t last, int64_t size, float scale, float* part, uint8_t* bytes);
  // One row of whole vectors to codes of at most 4 bits, a bit stream, and a scale in float16; tried
  // are so many sizes of its root mean square.
  void (*round_levels)(const float* x, int64_t size, const float* levels, int bits,
                       const float* sizes, int tries, uint8_t* codes, uint16_t* scale);
  // The same of tokens in directions, for all query heads [heads, size] and into as many rows of
  // `part`; `bytes` is scratch of latent_bytes.
  void (*attend_latent)(const float* q, int64_t groups, int64_t kv_heads, const Latent&, int64_t first,
                        int64_t last, int64_t size, float scale, float* part, uint8_t* bytes);
  // Parts of one query head, `stride` apart, into one row; returns the log-sum-exp.
  float (*merge)(const float* parts, int64_t count, int64_t stride, int64_t size, float* out);
  int64_t (*flash_floats)(int64_t size, int64_t groups);
  void (*flash)(const Flash&, int64_t kv_head, int64_t first, int64_t last, float* arena);

  void (*bfp)(const uint8_t* packed, const uint8_t* exponents, const float* powers, int bits,
              int block, int64_t size, float* to, uint8_t* bytes);
  uint64_t (*read)(const uint8_t* from, int64_t count);  // every byte once: the limit of decoding
};

// A chunk of mantissas, of numbers and of weights, one more of each than asked for.
constexpr int64_t coded_bytes(int64_t size) { return kChunkTokens * (size + 4 * size + 64) + 1024; }

// Both sides' numbers of a chunk, keys, ways of keys, sums of every head, and what codes need.
constexpr int64_t latent_bytes(const Latent& l, int64_t heads) {
  const int64_t k = (l.k.count + kPad - 1) / kPad * kPad, v = (l.v.count + kPad - 1) / kPad * kPad;
  const int64_t floats = kChunkTokens * (k + v + l.width) + l.k.count * l.width + heads * v + 2 * (k + v);
  return 4 * floats + k + v + 4096;
}

constexpr int kFlashQueries = 48;  // queries of one head that flash takes at once

extern const Kernels plain_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
extern const Kernels vnni_kernels;  // the same, with products of whole numbers in one instruction
bool has_vbmi();
#endif
#if defined(__aarch64__)
extern const Kernels neon_kernels;
#endif

}  // namespace loci
