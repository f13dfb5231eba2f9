// Layers of a decoder, or half of one, in a single parallel region.
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

// What one layer's work needs, and where it lies. Layers use the same memory one after the other, as
// do their halves.
struct Plan {
  size_t bytes;
  AttentionWork attention;
  ExpertsWork mixed;
  Routing routing;
  float *scores, *weights;
  int64_t* chosen;
};

int64_t width(const Block& b) { return b.q ? b.q->cols : b.gate->cols; }

Status check(const Isa& s, const Block& b) {
  const Linear* all[] = {b.q, b.k, b.v, b.o, b.gate, b.up, b.down};
  for (const Linear* w : all)
    if (w && !usable(s, *w)) return kUnknown;
  if (supers(b.k) != supers(b.q) || supers(b.v) != supers(b.q) || supers(b.up) != supers(b.gate))
    return kBadShape;
  if (b.experts &&
      (!usable(s, *b.experts) || !plain_bytes(b.router->scores->type) ||
       b.router->scores->rows != b.experts->count || b.router->top_k > b.experts->count))
    return kBadShape;
  if (b.gate && rows_apart(*b.gate) != rows_apart(*b.up)) return kBadShape;
  return kOk;
}

Plan plan(const Isa& s, const Block& b, const Attention* at, const Step& step, int threads) {
  const int64_t T = step.T;
  Plan out{};
  if (b.q) {
    size_t attend_bytes = 0;
    out.attention = measure(*at, step.seqs, T, threads, attend_bytes);
    out.bytes = floats(T * b.q->rows) + floats(T * b.k->rows) + floats(T * b.v->rows) +
                floats(T * b.o->cols) + activation_bytes(s, T, b.o->cols) + attend_bytes;
  }
  size_t other = 0;
  if (b.gate) other = floats(T * b.down->cols) + activation_bytes(s, T, b.down->cols);
  if (b.experts) {
    const int64_t top_k = b.router->top_k;
    other = floats(T * b.experts->count) + floats(T * top_k) + aligned(sizeof(int64_t) * T * top_k) +
            aligned(experts_bytes(s, *b.experts, T, top_k));
  }
  out.bytes = other > out.bytes ? other : out.bytes;
  return out;
}

void place_mixture(const Isa& s, const Block& b, int64_t T, Memory memory, Plan& plan) {
  const int64_t top_k = b.router->top_k;
  plan.scores = memory.take<float>(T * b.experts->count);
  plan.weights = memory.take<float>(T * top_k);
  plan.chosen = memory.take<int64_t>(T * top_k);
  plan.routing = {top_k, plan.chosen, plan.weights};
  plan.mixed = place_experts(s, *b.experts, T, top_k, memory.p);
}

// The input of a half, normalized where it has a norm, rounded where weights ask.
void enter(Team& team, const Isa& isa, const float* h, int64_t hidden, const float* norm, double eps,
           float* normed, Activations& a, int64_t T, int super) {
  if (norm) {
#pragma omp for schedule(static) nowait
    for (int64_t t = 0; t < T; t++)
      isa.norm(h + t * hidden, norm, float(eps), hidden, normed + t * hidden);
    team.meet();
    h = normed;
  }
  quantize(team, isa, h, hidden, a, T, super);
}

// Projections, rotation, what goes into the cache, attention over it.
void attend(Team& team, const Isa& s, const Block& b, const Attention& at, const Step& step,
            Plan& plan, Activations a, float* normed, Memory memory, const float* h, float* out) {
  const int64_t T = step.T, hidden = width(b);
  const int64_t H = at.num_heads, KVH = at.num_kv_heads, D = at.head_dim, VD = at.v_head_dim;
  float* q = memory.take<float>(T * b.q->rows);
  float* k = memory.take<float>(T * b.k->rows);
  float* v = memory.take<float>(T * b.v->rows);
  float* attended = memory.take<float>(T * b.o->cols);
  Activations c = place(s, memory.take<uint8_t>(activation_bytes(s, T, b.o->cols)), T, b.o->cols);
#pragma omp single nowait
  prepare(plan.attention, at, step.seqs, T, memory.p);  // read after the meetings below
  enter(team, s, h, hidden, b.attn_norm, b.attn_eps, normed, a, T, supers(b.q));
  const Product qkv[] = {{b.q, q, b.q->rows, nullptr},
                         {b.k, k, b.k->rows, nullptr},
                         {b.v, v, b.v->rows, nullptr}};
  multiply(team, s, qkv, 3, a, T);
  const int64_t bs = at.block_size, bytes = kv_bytes(at);
#pragma omp for schedule(static) nowait
  for (int64_t n = 0; n < T * (H + KVH); n++) {
    const int64_t t = n / (H + KVH), i = n % (H + KVH);
    const bool key = i >= H;
    const int64_t head = key ? i - H : i;
    float* x = key ? k + (t * KVH + head) * D : q + (t * H + head) * D;
    const float* norm = key ? b.k_norm : b.q_norm;
    if (norm) s.norm(x, norm, float(key ? b.k_eps : b.q_eps), D, x);
    if (step.cos)
      s.rotate(x, step.cos + t * step.rotary_dim, step.sin + t * step.rotary_dim,
               int(step.rotary_dim), step.adjacent);
    if (!key) continue;
    const int64_t place = (step.slots[t] / bs * KVH + head) * bs + step.slots[t] % bs;
    const int kind = int(at.kv_dtype);
    s.store(kind, x, at.k + place * D * bytes, at.k_scales + place, D);
    s.store(kind, v + (t * KVH + head) * VD, at.v + place * VD * bytes, at.v_scales + place, VD);
  }
  team.meet();
  attend_all(team, s, at, step.seqs, plan.attention, q, T, attended);
  quantize(team, s, attended, b.o->cols, c, T, supers(b.o));
  const Product o = {b.o, out, hidden, b.residual ? h : nullptr};
  multiply(team, s, &o, 1, c, T);
}

void gated(Team& team, const Isa& s, const Block& b, int64_t T, Activations a, float* normed,
           Memory memory, const float* x, float* out) {
  const int64_t hidden = width(b);
  float* middle = memory.take<float>(T * b.down->cols);
  Activations c =
      place(s, memory.take<uint8_t>(activation_bytes(s, T, b.down->cols)), T, b.down->cols);
  enter(team, s, x, hidden, b.mlp_norm, b.mlp_eps, normed, a, T, supers(b.gate));
  multiply_gated(team, s, *b.gate, *b.up, int(b.act), middle, b.down->cols, a, T);
  quantize(team, s, middle, b.down->cols, c, T, supers(b.down));
  const Product down = {b.down, out, hidden, b.residual ? x : nullptr};
  multiply(team, s, &down, 1, c, T);
}

void mixture(Team& team, const Isa& s, const Block& b, int64_t T, Plan& plan, Activations a,
             float* normed, float* out) {
  enter(team, s, out, width(b), b.mlp_norm, b.mlp_eps, normed, a, T, 0);
  route_all(team, s, *b.router, a, T, plan.scores, plan.chosen, plan.weights);
#pragma omp single nowait
  sort_pairs(*b.experts, plan.routing, plan.mixed);  // the router names none that there is not
  team.meet();
  experts_all(team, s, *b.experts, plan.routing, plan.mixed, normed, b.residual ? out : nullptr, T,
              out);
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

// `count` layers one after the other, each with its part of the cache, or null where it has no
// attention. `h` and `out` are [T, hidden] and must not overlap.
EXPORT int64_t tmk_blocks(const Block* const* blocks, const Attention* const* attentions,
                          int64_t count, const Step* step, const float* h, float* out,
                          int32_t threads) {
  const Isa& s = isa();
  const int64_t T = step->T, hidden = width(*blocks[0]);
  size_t most = 0;
  for (int64_t i = 0; i < count; i++) {
    if (const Status status = check(s, *blocks[i])) return status;
    if (width(*blocks[i]) != hidden) return kBadShape;
    const Plan one = plan(s, *blocks[i], attentions[i], *step, threads);
    most = one.bytes > most ? one.bytes : most;
  }
  const size_t entered_bytes = activation_bytes(s, T, hidden);
  Memory memory{scratch.get(aligned(sizeof(Plan) * count) + 2 * floats(T * hidden) +
                            aligned(entered_bytes) + most + 64)};
  if (!memory.p) return kNoMemory;
  Plan* plans = memory.take<Plan>(count);
  float* other = memory.take<float>(T * hidden);  // layers write to it and to `out` by turns
  float* normed = memory.take<float>(T * hidden);
  const Activations entered = place(s, memory.take<uint8_t>(entered_bytes), T, hidden);
  for (int64_t i = 0; i < count; i++) {
    plans[i] = plan(s, *blocks[i], attentions[i], *step, threads);
    if (blocks[i]->experts) place_mixture(s, *blocks[i], T, memory, plans[i]);
  }

  Team team;
#pragma omp parallel num_threads(threads)
  {
    const float* from = h;
    for (int64_t i = 0; i < count; i++) {
      const Block& b = *blocks[i];
      float* to = (count - i) % 2 ? out : other;
      if (b.q) attend(team, s, b, *attentions[i], *step, plans[i], entered, normed, memory, from, to);
      if (b.gate) gated(team, s, b, T, entered, normed, memory, b.q ? to : from, to);
      if (b.experts) mixture(team, s, b, T, plans[i], entered, normed, to);
      from = to;
    }
  }
  return kOk;
}
