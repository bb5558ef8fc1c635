/* Train on a CPU in fp32: compute what comes between the matrix products, each in one pass over memory. See fused.py.

   Loops are simple, so that compilers vectorise them; only the small product `micro` uses vector types. Threads share
   the work in parts, and the sums of the parts are added in a fixed order, so equal runs give equal bits. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
int omp_get_thread_num(void);
#else
static int omp_get_thread_num(void) { return 0; }
#endif

enum { LAYER_NORM, RMS_NORM };
enum { ALONE = 1 << 15 }; /* up to this many numbers, one thread is as fast as several */
enum { ROWS = 6, WIDE = 16, DEEP = 24 }; /* rows and columns of `micro`; queries in a tile of the backward pass */

/* P(normal number < x), given bell = e^(-x^2 / 2). Abramowitz and Stegun, 7.1.26; accurate to 1e-7. */
static inline float below(float x, float bell)
{
    float size = fabsf(x) * 0.70710678f, t = 1 / (1 + 0.3275911f * size);
    float series = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    float tail = 0.5f * series * bell;
    return x < 0 ? tail : 1 - tail;
}

static inline float logistic(float x) { return 1 / (1 + fast_exp(-x)); }

static inline float inner_tanh(float x) { return 1.59576912f * (x + 0.044715f * x * x * x); } /* 2 sqrt(2 / pi) (..) */

/* EXPONENTIALS: replace each x of [rows, width], fp32 or bf16, by e^(x - the row's largest). largest, sums: [rows]. */
static inline float shifted(float x, float most) { return x - most < -87 ? 0 : fast_exp(x - most); }

#define EXPONENTIALS(NAME, NUMBER, READ, WRITE)                                                                        \
    void NAME(NUMBER *logits, float *largest, float *sums, long rows, long width, int threads)                         \
    {                                                                                                                  \
        _Pragma("omp parallel for num_threads(threads) schedule(static) if (rows * width > ALONE)")                    \
        for (long r = 0; r < rows; r++) {                                                                              \
            NUMBER *row = logits + r * width;                                                                          \
            float most = READ(row[0]), total = 0;                                                                      \
            _Pragma("omp simd reduction(max : most)")                                                                  \
            for (long i = 1; i < width; i++) {                                                                         \
                float x = READ(row[i]);                                                                                \
                most = x > most ? x : most;                                                                            \
            }                                                                                                          \
            _Pragma("omp simd reduction(+ : total)")                                                                   \
            for (long i = 0; i < width; i++) {                                                                         \
                row[i] = WRITE(shifted(READ(row[i]), most));                                                           \
                total += READ(row[i]);                                                                                 \
            }                                                                                                          \
            largest[r] = most, sums[r] = total;                                                                        \
        }                                                                                                              \
    }
EXPONENTIALS(exponentials, float, , )
EXPONENTIALS(exponentials_bf16, uint16_t, from_bf16, to_bf16)

/* x [rows, H], or [rows, 2 H] for a gated activation -> y [rows, H]. slope, of the shape of x, gets dy/dx. */
void activate(const float *x, float *y, float *slope, long rows, long H, int kind, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * H > ALONE)
    for (long r = 0; r < rows; r++) {
        const float *restrict in = x + r * H * (kind == SWIGLU ? 2 : 1);
        float *restrict out = y + r * H, *restrict rise = slope + r * H * (kind == SWIGLU ? 2 : 1);
        if (kind == GELU)
            for (long i = 0; i < H; i++) {
                float bell = fast_exp(-0.5f * in[i] * in[i]), part = below(in[i], bell);
                out[i] = in[i] * part;
                rise[i] = part + 0.39894228f * in[i] * bell;
            }
        else if (kind == GELU_TANH)
            for (long i = 0; i < H; i++) {
                float gate = logistic(inner_tanh(in[i])), steep = 1.59576912f * (1 + 0.134145f * in[i] * in[i]);
                out[i] = in[i] * gate;
                rise[i] = gate * (1 + in[i] * (1 - gate) * steep);
            }
        else if (kind == SWIGLU)
            for (long i = 0; i < H; i++) {
                float gate = logistic(in[i]), silu = in[i] * gate, hidden = in[H + i];
                out[i] = silu * hidden;
                rise[i] = hidden * gate * (1 + in[i] - silu);
                rise[H + i] = silu;
            }
    }
}

/* y = (x - mean) / deviation * weight + bias. bias may be NULL; for RMS_NORM mean is 0. Returns 1 / deviation. */
static inline float norm_row(const float *x, const float *weight, const float *bias, float *y, long n, int kind,
                             float eps, float *mean)
{
    float total = 0, squares = 0;
    if (kind == LAYER_NORM)
        for (long i = 0; i < n; i++)
            total += x[i];
    float middle = total / n;
    for (long i = 0; i < n; i++)
        squares += (x[i] - middle) * (x[i] - middle);
    float scale = 1 / sqrtf(squares / n + eps);
    if (bias)
        for (long i = 0; i < n; i++)
            y[i] = (x[i] - middle) * scale * weight[i] + bias[i];
    else
        for (long i = 0; i < n; i++)
            y[i] = (x[i] - middle) * scale * weight[i];
    *mean = middle;
    return scale;
}

/* Compute dx from dy; both may be the same memory. Add to dweight and dbias (NULL: no bias). */
static inline void norm_row_back(const float *x, const float *weight, const float *dy, float *dx, float *dweight,
                                 float *dbias, long n, int kind, float mean, float scale)
{
    float along = 0, total = 0;
    for (long i = 0; i < n; i++) {
        float d = dy[i] * weight[i];
        along += d * (x[i] - mean);
        total += d;
    }
    along *= scale * scale / n;
    total = kind == LAYER_NORM ? total / n : 0;
    for (long i = 0; i < n; i++)
        dweight[i] += dy[i] * (x[i] - mean) * scale;
    if (dbias)
        for (long i = 0; i < n; i++)
            dbias[i] += dy[i];
    for (long i = 0; i < n; i++)
        dx[i] = scale * (dy[i] * weight[i] - total - (x[i] - mean) * along);
}

/* Normalise rows. kept [rows, 2] gets mean and 1 / deviation. */
void norm(const float *x, const float *weight, const float *bias, float *y, float *kept, long rows, long n, int kind,
          float eps, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * n > ALONE)
    for (long r = 0; r < rows; r++)
        kept[2 * r + 1] = norm_row(x + r * n, weight, bias, y + r * n, n, kind, eps, kept + 2 * r);
}

/* Split the rows into `parts` parts. Each part adds to its own dweight [n] and dbias [n] (NULL: no bias), which are
   zero at first. */
void norm_back(const float *x, const float *weight, const float *kept, const float *dy, float *dx, float *dweight,
               float *dbias, long parts, long rows, long n, int kind, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * n > ALONE)
    for (long part = 0; part < parts; part++)
        for (long r = rows * part / parts; r < rows * (part + 1) / parts; r++)
            norm_row_back(x + r * n, weight, dy + r * n, dx + r * n, dweight + part * n,
                          dbias ? dbias + part * n : NULL, n, kind, kept[2 * r], kept[2 * r + 1]);
}

typedef float vec __attribute__((vector_size(32)));
typedef float loose __attribute__((vector_size(32), aligned(4), may_alias));

/* C [6, 16] = A [6, P] B [P, 16]; C += A B if `add`. row and column: distances in A from one row, or column, to the
   next; b and c: distances from row to row in B and C. */
static inline __attribute__((always_inline)) void micro(long P, const float *A, long row, long column, const float *B,
                                                        long b, float *C, long c, int add)
{
    vec sum[ROWS][2];
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < 2; j++)
            if (add)
                sum[i][j] = *(const loose *)(C + i * c + 8 * j);
            else
                sum[i][j] = (vec){0};
    for (long p = 0; p < P; p++, A += column, B += b) {
        vec left = *(const loose *)B, right = *(const loose *)(B + 8);
        for (int i = 0; i < ROWS; i++) {
            float a = A[i * row];
            sum[i][0] += a * left;
            sum[i][1] += a * right;
        }
    }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < 2; j++)
            *(loose *)(C + i * c + 8 * j) = sum[i][j];
}

/* Queries, keys and values of all heads, as the linear layer computes them, and the operations before attention. */
typedef struct {
    const float *qkv;             /* [B, T, (heads + 2 groups) D] */
    const float *cos, *sin;       /* [T, D], or NULL */
    const float *q_norm, *k_norm; /* [D] weights, or NULL */
    const float *q_bias, *k_bias; /* [D], or NULL */
    long B, T, heads, groups, D;
    int kind, threads; /* kind of the norms */
    float eps, dropout;
    uint32_t key; /* seed of dropout */
} Heads;

static inline long up_to(long size, long step) { return (size + step - 1) / step * step; }

/* Copy one head [T, D] out of qkv to rows [T, wide]: normalised, rotated and scaled. */
static void take(const Heads *h, const float *x, const float *weight, const float *bias, int turned, float scale,
                 float *rows, long wide)
{
    const long D = h->D, step = (h->heads + 2 * h->groups) * D, half = D / 2;
    float mean;
    for (long t = 0; t < h->T; t++) {
        const float *in = x + t * step, *c = h->cos + t * D, *s = h->sin + t * D;
        float *out = rows + t * wide;
        if (weight)
            norm_row(in, weight, bias, out, D, h->kind, h->eps, &mean);
        else
            memcpy(out, in, D * sizeof *out);
        if (turned && h->cos)
            for (long i = 0; i < half; i++) {
                float first = out[i], second = out[half + i];
                out[i] = first * c[i] - second * s[i];
                out[half + i] = second * c[i] + first * s[i];
            }
        for (long i = 0; i < D; i++)
            out[i] *= scale;
    }
}

/* Backward of `take`: gradients of rows [T, wide] -> dx, one head of the gradient of qkv. Add to dweight and dbias. */
static void give(const Heads *h, const float *x, const float *weight, float *dweight, float *dbias, int turned,
                 float scale, float *rows, long wide, float *dx)
{
    const long D = h->D, step = (h->heads + 2 * h->groups) * D, half = D / 2;
    for (long t = 0; t < h->T; t++) {
        const float *c = h->cos + t * D, *s = h->sin + t * D;
        float *d = rows + t * wide;
        for (long i = 0; i < D; i++)
            d[i] *= scale;
        if (turned && h->cos)
            for (long i = 0; i < half; i++) {
                float first = d[i], second = d[half + i];
                d[i] = first * c[i] + second * s[i];
                d[half + i] = second * c[i] - first * s[i];
            }
        if (weight) {
            const float *in = x + t * step;
            float total = 0, squares = 0;
            if (h->kind == LAYER_NORM)
                for (long i = 0; i < D; i++)
                    total += in[i];
            float mean = total / D;
            for (long i = 0; i < D; i++)
                squares += (in[i] - mean) * (in[i] - mean);
            norm_row_back(in, weight, d, d, dweight, dbias, D, h->kind, mean, 1 / sqrtf(squares / D + h->eps));
        }
        memcpy(dx + t * step, d, D * sizeof *d);
    }
}

/* rows [T, wide] -> panels [T / 16][wide][16]: the transpose, in the order in which `micro` reads it. */
static void panels(const float *rows, float *out, long T, long wide)
{
    for (long t = 0; t < T; t += WIDE)
        for (long d = 0; d < wide; d++)
            for (long j = 0; j < WIDE; j++)
                out[t * wide + d * WIDE + j] = rows[(t + j) * wide + d];
}

/* Multiply each number by 0 or 1 / (1 - dropout). A hash (murmur3's) of its place and the key decides which, so the
   forward and the backward pass drop the same numbers. */
static inline void drop(const Heads *h, float *row, uint32_t place, long n)
{
    const uint32_t limit = (uint32_t)(h->dropout * 2147483648.0f), key = h->key;
    const float kept = 1 / (1 - h->dropout);
    for (long j = 0; j < n; j++) {
        uint32_t bits = (place + (uint32_t)j + key) * 2654435769u;
        bits = (bits ^ (bits >> 16)) * 2246822507u;
        bits = (bits ^ (bits >> 13)) * 3266489909u;
        bits = (bits ^ (bits >> 16)) & 0x7fffffffu;
        row[j] *= bits >= limit ? kept : 0;
    }
}

/* Attention forward -> out [B, T, heads D] and sums [B, heads, T], the log of the sum of each query's exponentials.
   Returns 1 if there is no memory, else 0. */
int attend(const Heads *h, float *out, float *sums)
{
    const long T = h->T, D = h->D, heads = h->heads, groups = h->groups, all = heads + 2 * groups, share = heads / groups;
    const long wide = up_to(D, WIDE), long_ = up_to(T + WIDE, 48), each = long_ * wide * 4 + ROWS * (long_ + wide);
    float *rooms = calloc(h->threads * each, sizeof *rooms); /* the padding after T and D stays zero */
    if (!rooms)
        return 1;
#pragma omp parallel for num_threads(h->threads) schedule(static) if (h->B * T * all * D > ALONE)
    for (long unit = 0; unit < h->B * groups; unit++) {
        const long b = unit / groups, g = unit % groups;
        float *keys = rooms + omp_get_thread_num() * each, *q = keys + long_ * wide, *v = q + long_ * wide, *kp = v + long_ * wide;
        float *s = kp + long_ * wide, *o = s + ROWS * long_;
        const float *x = h->qkv + b * T * all * D;
        take(h, x + (heads + g) * D, h->k_norm, h->k_bias, 1, 1, keys, wide);
        take(h, x + (heads + groups + g) * D, NULL, NULL, 0, 1, v, wide);
        panels(keys, kp, up_to(T, WIDE), wide);
        for (long head = g * share; head < (g + 1) * share; head++) {
            take(h, x + head * D, h->q_norm, h->q_bias, 1, 1 / sqrtf(D), q, wide);
            for (long i = 0; i < T; i += ROWS) {
                const long end = i + ROWS;
                float sum[ROWS];
                for (long j = 0; j < end && j < T; j += WIDE)
                    micro(D, q + i * wide, wide, 1, kp + j * wide, WIDE, s + j, long_, 0);
                for (long r = 0; r < ROWS; r++) {
                    float *row = s + r * long_, most = row[0], total = 0;
                    const long n = i + r < T ? i + r + 1 : T;
                    for (long j = 1; j < n; j++)
                        most = row[j] > most ? row[j] : most;
                    for (long j = 0; j < n; j++)
                        total += row[j] = fast_exp(row[j] - most);
                    for (long j = n; j < end; j++)
                        row[j] = 0;
                    sum[r] = total;
                    if (i + r < T)
                        sums[(b * heads + head) * T + i + r] = most + logf(total);
                    if (h->dropout > 0)
                        drop(h, row, (uint32_t)(((b * heads + head) * T + i + r) * T), n);
                }
                for (long d = 0; d < D; d += WIDE)
                    micro(end, s, long_, 1, v + d, wide, o + d, wide, 0);
                for (long r = 0; r < ROWS && i + r < T; r++)
                    for (long d = 0; d < D; d++)
                        out[((b * T + i + r) * heads + head) * D + d] = o[r * wide + d] / sum[r];
            }
        }
    }
    free(rooms);
    return 0;
}

/* For the DEEP queries from i on: compute the attention weights p and the gradients ds of the scores, [DEEP, long_]. */
static void scores_back(const Heads *h, const float *q, const float *grad, const float *kp, const float *vp,
                        const float *sums, const float *alongs, float *p, float *ds, long i, long place, long wide,
                        long long_)
{
    const long T = h->T, D = h->D;
    for (long at = i; at < i + DEEP && at < T; at += ROWS) {
        float *weights = p + (at - i) * long_, *d = ds + (at - i) * long_;
        for (long j = 0; j < at + ROWS && j < T; j += WIDE) {
            micro(D, q + at * wide, wide, 1, kp + j * wide, WIDE, weights + j, long_, 0);
            micro(D, grad + at * wide, wide, 1, vp + j * wide, WIDE, d + j, long_, 0);
        }
        for (long r = 0; r < ROWS; r++, weights += long_, d += long_) {
            const long n = at + r < T ? at + r + 1 : 0;
            const float sum = n ? sums[at + r] : 0, along = n ? alongs[at + r] : 0;
            for (long j = 0; j < n; j++)
                weights[j] = fast_exp(weights[j] - sum);
            if (h->dropout > 0 && n) { /* a dropped weight gets a gradient only through the softmax's sum */
                const uint32_t start = (uint32_t)((place + at + r) * T);
                drop(h, d, start, n);
                for (long j = 0; j < n; j++)
                    d[j] = weights[j] * (d[j] - along);
                drop(h, weights, start, n);
            } else
                for (long j = 0; j < n; j++)
                    d[j] = weights[j] * (d[j] - along);
            for (long j = n; j < at + ROWS; j++)
                weights[j] = d[j] = 0;
        }
    }
}

/* One head of `attend_back`: compute dq [T, wide], and add this head's part to dk and dv [T, wide]. */
static void head_back(const Heads *h, const float *q, const float *grad, const float *k, const float *kp,
                      const float *vp, const float *sums, const float *alongs, float *p, float *dq, float *dk,
                      float *dv, long place, long wide, long long_)
{
    const long T = h->T, D = h->D;
    float *ds = p + DEEP * long_;
    for (long i = 0; i < T; i += DEEP) {
        const long tall = i + DEEP < up_to(T, ROWS) ? DEEP : up_to(T, ROWS) - i;
        scores_back(h, q, grad, kp, vp, sums, alongs, p, ds, i, place, wide, long_);
        for (long d = 0; d < D; d += WIDE) {
            for (long at = 0; at < tall; at += ROWS)
                micro(i + at + ROWS, ds + at * long_, long_, 1, k + d, wide, dq + (i + at) * wide + d, wide, 0);
            for (long j = 0; j < i + tall; j += ROWS) { /* no query before j sees key j */
                const long from = j > i ? j - i : 0;
                const float *seen = p + from * long_ + j, *pull = ds + from * long_ + j;
                micro(tall - from, seen, 1, long_, grad + (i + from) * wide + d, wide, dv + j * wide + d, wide, 1);
                micro(tall - from, pull, 1, long_, q + (i + from) * wide + d, wide, dk + j * wide + d, wide, 1);
            }
        }
    }
}

/* Attention backward: dout [B, T, heads D] -> dqkv. norms [B groups, 4, D], zero at first, gets the gradients of
   q_norm, q_bias, k_norm, k_bias. */
int attend_back(const Heads *h, const float *out, const float *sums, const float *dout, float *dqkv, float *norms)
{
    const long T = h->T, D = h->D, heads = h->heads, groups = h->groups, all = heads + 2 * groups, share = heads / groups;
    const long wide = up_to(D, WIDE), long_ = up_to(T + WIDE, 48), size = long_ * wide;
    const long each = size * 9 + long_ * (2 * DEEP + 1);
    float *rooms = calloc(h->threads * each, sizeof *rooms); /* the padding after T and D stays zero */
    if (!rooms)
        return 1;
#pragma omp parallel for num_threads(h->threads) schedule(static) if (h->B * T * all * D > ALONE)
    for (long unit = 0; unit < h->B * groups; unit++) {
        const long b = unit / groups, g = unit % groups, start = b * T * all * D;
        float *k = rooms + omp_get_thread_num() * each, *v = k + size, *kp = v + size, *vp = kp + size, *q = vp + size, *grad = q + size;
        float *dq = grad + size, *dk = dq + size, *dv = dk + size, *p = dv + size, *alongs = p + 2 * DEEP * long_;
        float *own = norms + unit * 4 * D;
        const float *x = h->qkv + start;
        float *dx = dqkv + start;
        const long key = (heads + g) * D, value = (heads + groups + g) * D;
        memset(dk, 0, 2 * size * sizeof *dk); /* and dv */
        take(h, x + key, h->k_norm, h->k_bias, 1, 1, k, wide);
        take(h, x + value, NULL, NULL, 0, 1, v, wide);
        panels(k, kp, up_to(T, WIDE), wide);
        panels(v, vp, up_to(T, WIDE), wide);
        for (long head = g * share; head < (g + 1) * share; head++) {
            const long place = (b * heads + head) * T;
            take(h, x + head * D, h->q_norm, h->q_bias, 1, 1 / sqrtf(D), q, wide);
            for (long t = 0; t < T; t++) {
                const long at = ((b * T + t) * heads + head) * D;
                float along = 0;
                for (long d = 0; d < D; d++)
                    along += out[at + d] * dout[at + d];
                alongs[t] = along;
                memcpy(grad + t * wide, dout + at, D * sizeof *grad);
            }
            head_back(h, q, grad, k, kp, vp, sums + place, alongs, p, dq, dk, dv, place, wide, long_);
            give(h, x + head * D, h->q_norm, own, h->q_bias ? own + D : NULL, 1, 1 / sqrtf(D), dq, wide, dx + head * D);
        }
        give(h, x + key, h->k_norm, own + 2 * D, h->k_bias ? own + 3 * D : NULL, 1, 1, dk, wide, dx + key);
        give(h, x + value, NULL, NULL, NULL, 0, 1, dv, wide, dx + value);
    }
    free(rooms);
    return 0;
}
