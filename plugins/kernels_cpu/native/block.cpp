// A layer of a decoder, or half of one, in a single parallel region.
#include <cstring>

#include "attention.h"
#include "experts.h"

namespace tmk {
namespace {

// Where a module is absent its pointers are null. Norm weights are float32.
struct Block {
  const Linear *q, *k, *v, *o;
  const Linear *gate, *up, *down;
  const float *attn_norm, *q_norm, *k_norm, *mlp_norm;
  double attn_eps, q_eps, k_eps, mlp_eps;
  int64_t act;       // of the gated MLP, see gate.inl
  int64_t residual;  // whether what a half computes is added to what enters it
  const Experts* experts;  // in place of the MLP, or null
  const Router* router;
};

// What the layers of one step share.
struct Step {
  int64_t T;
  Sequences seqs;
  const int64_t* slots;
  const float* cos;  // [T, rotary_dim] or null
  const float* sin;
  int64_t rotary_dim;
  int64_t adjacent;  // whether a rotated pair lies side by side
};

int supers(const Linear* w) { return w ? super_columns(w->type) : -1; }

struct Memory {
  uint8_t* p;
  template <class T> T* take(size_t count) {
    T* out = (T*)p;
    p += aligned(sizeof(T) * count);
    return out;
  }
};

size_t floats(int64_t n) { return aligned(sizeof(float) * n); }

// All threads. The input of a half, normalized where it has a norm, rounded where weights ask.
void enter(const Isa& isa, const float* h, int64_t hidden, const float* norm, double eps,
           float* normed, Activations& a, int64_t T, int super) {
  if (norm) {
#pragma omp for schedule(static)
    for (int64_t t = 0; t < T; t++)
      isa.norm(h + t * hidden, norm, float(eps), hidden, normed + t * hidden);
    h = normed;
  }
  quantize(isa, h, hidden, a, T, super);
}

}  // namespace
}  // namespace tmk

using namespace tmk;

// Rows of x [T, n] over their root mean square, times `weight`; `out` may be `x`.
EXPORT int64_t tmk_norm(const float* x, const float* weight, double eps, int64_t n, int64_t T,
                        float* out, int32_t threads) {
  const Isa& s = isa();
#pragma omp parallel for schedule(static) num_threads(threads) if (T > 1)
  for (int64_t t = 0; t < T; t++) s.norm(x + t * n, weight, float(eps), n, out + t * n);
  return kOk;
}

// `h` and `out` are [T, hidden] and must not overlap.
EXPORT int64_t tmk_block(const Block* b, const Attention* at, const Step* step, const float* h,
                         float* out, int32_t threads) {
  const Isa& s = isa();
  const int64_t T = step->T;
  const bool attention = b->q, mlp = b->gate, experts = b->experts;
  const int64_t hidden = attention ? b->q->cols : b->gate->cols;
  const int64_t top_k = experts ? b->router->top_k : 0;
  const Linear* all[] = {b->q, b->k, b->v, b->o, b->gate, b->up, b->down};
  for (const Linear* w : all)
    if (w && !usable(s, *w)) return kUnknown;
  const int qkv_super = supers(b->q), gate_super = supers(b->gate);
  if (supers(b->k) != qkv_super || supers(b->v) != qkv_super || supers(b->up) != gate_super)
    return kBadShape;
  if (experts && (!usable(s, *b->experts) || !plain_bytes(b->router->scores->type) ||
                  b->router->scores->rows != b->experts->count || top_k > b->experts->count))
    return kBadShape;
  if (b->gate && rows_apart(*b->gate) != rows_apart(*b->up)) return kBadShape;

  // The halves use the same memory one after the other.
  size_t half = 0, attend_bytes = 0;
  AttentionWork work{};
  if (attention) {
    work = measure(*at, step->seqs, T, threads, attend_bytes);
    half = floats(T * b->q->rows) + floats(T * b->k->rows) + floats(T * b->v->rows) +
           floats(T * b->o->cols) + activation_bytes(s, T, b->o->cols) + attend_bytes;
  }
  if (mlp) {
    const size_t other = floats(T * b->down->cols) + activation_bytes(s, T, b->down->cols);
    half = other > half ? other : half;
  }
  const size_t mixture = experts ? experts_bytes(s, *b->experts, T, top_k) : 0;
  if (experts) {
    const size_t other = floats(T * b->experts->count) + floats(T * top_k) +
                         aligned(sizeof(int64_t) * T * top_k) + aligned(mixture);
    half = other > half ? other : half;
  }
  const size_t entrance = floats(T * hidden) + activation_bytes(s, T, hidden) + 64;
  Memory memory{scratch.get(entrance + half + 64)};
  if (!memory.p) return kNoMemory;
  float* normed = memory.take<float>(T * hidden);
  const Activations entered = place(s, memory.take<uint8_t>(activation_bytes(s, T, hidden)), T, hidden);

  // The second half's memory, seen alike by all threads.
  Memory second = memory;
  ExpertsWork mixed{};
  Routing routing{top_k, nullptr, nullptr};
  float *scores = nullptr, *weights = nullptr;
  int64_t* chosen = nullptr;
  if (experts) {
    scores = second.take<float>(T * b->experts->count);
    routing.weights = weights = second.take<float>(T * top_k);
    routing.chosen = chosen = second.take<int64_t>(T * top_k);
    mixed = place_experts(s, *b->experts, T, top_k, second.p);
  }

#pragma omp parallel num_threads(threads)
  {
    Memory rest = memory;
    Activations a = entered;
    if (attention) {
      const int64_t H = at->num_heads, KVH = at->num_kv_heads, D = at->head_dim;
      const int64_t VD = at->v_head_dim;
      float* q = rest.take<float>(T * b->q->rows);
      float* k = rest.take<float>(T * b->k->rows);
      float* v = rest.take<float>(T * b->v->rows);
      float* attended = rest.take<float>(T * b->o->cols);
      Activations c = place(s, rest.take<uint8_t>(activation_bytes(s, T, b->o->cols)), T, b->o->cols);
#pragma omp single nowait
      prepare(work, *at, step->seqs, T, rest.p);  // read after the barriers below
      enter(s, h, hidden, b->attn_norm, b->attn_eps, normed, a, T, qkv_super);
      const Product qkv[] = {{b->q, q, b->q->rows, nullptr},
                             {b->k, k, b->k->rows, nullptr},
                             {b->v, v, b->v->rows, nullptr}};
      multiply(s, qkv, 3, a, T);
      const int64_t bs = at->block_size, bytes = kv_bytes(*at);
#pragma omp for schedule(static)
      for (int64_t n = 0; n < T * (H + KVH); n++) {
        const int64_t t = n / (H + KVH), i = n % (H + KVH);
        const bool key = i >= H;
        const int64_t head = key ? i - H : i;
        float* x = key ? k + (t * KVH + head) * D : q + (t * H + head) * D;
        const float* norm = key ? b->k_norm : b->q_norm;
        if (norm) s.norm(x, norm, float(key ? b->k_eps : b->q_eps), D, x);
        if (step->cos)
          s.rotate(x, step->cos + t * step->rotary_dim, step->sin + t * step->rotary_dim,
                   int(step->rotary_dim), step->adjacent);
        if (!key) continue;
        const int64_t place = (step->slots[t] / bs * KVH + head) * bs + step->slots[t] % bs;
        const int kind = int(at->kv_dtype);
        s.store(kind, x, at->k + place * D * bytes, at->k_scales + place, D);
        s.store(kind, v + (t * KVH + head) * VD, at->v + place * VD * bytes, at->v_scales + place, VD);
      }
      attend_all(s, *at, step->seqs, work, q, T, attended);
      quantize(s, attended, b->o->cols, c, T, supers(b->o));
      const Product o = {b->o, out, hidden, b->residual ? h : nullptr};
      multiply(s, &o, 1, c, T);
    }
    if (mlp) {
      rest = memory;
      a = entered;
      float* middle = rest.take<float>(T * b->down->cols);
      Activations c =
          place(s, rest.take<uint8_t>(activation_bytes(s, T, b->down->cols)), T, b->down->cols);
      const float* x = attention ? out : h;
      enter(s, x, hidden, b->mlp_norm, b->mlp_eps, normed, a, T, gate_super);
      multiply_gated(s, *b->gate, *b->up, int(b->act), middle, b->down->cols, a, T);
      quantize(s, middle, b->down->cols, c, T, supers(b->down));
      const Product down = {b->down, out, hidden, b->residual ? x : nullptr};
      multiply(s, &down, 1, c, T);
    }
    if (experts) {
      a = entered;
      enter(s, out, hidden, b->mlp_norm, b->mlp_eps, normed, a, T, 0);
      route_all(s, *b->router, a, T, scores, chosen, weights);
#pragma omp single
      sort_pairs(*b->experts, routing, mixed);  // the router names none that there is not
      experts_all(s, *b->experts, routing, mixed, normed, b->residual ? out : nullptr, T, out);
    }
  }
  return kOk;
}
