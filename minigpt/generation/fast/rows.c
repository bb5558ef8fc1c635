/* Decode on a CPU: matrices times few vectors, attention of one position over the cache, and a whole block of both.
   See rows.py.

   One new token reads every weight once, so the goal is to read memory at full speed. Each row of a matrix is one
   simple loop over memory in order, which compilers vectorise; computing four rows together was half as fast. Numbers
   and sums are fp32. For int8 weights, vectors are rounded to 16-bit integers, and the sums are exact. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { FP32, BF16, INT8 };                     /* types of numbers */
enum { MOST = 32 };                            /* most vectors per call */
enum { ALONE = 1 << 16 };                      /* up to this many multiplications, one thread is as fast as several */

typedef struct {
    const void *weight;  /* [rows, columns] */
    const float *scale;  /* [rows] for int8, else NULL */
    const float *bias;   /* [rows] or NULL */
    long rows, columns, kind;
} Matrix;

typedef struct {
    const float *weight, *bias;  /* [size]; weight NULL: no norm; bias NULL: no bias */
} Norm;

typedef struct {
    Matrix qkv, out, up, down;
    Norm norm1, norm2, q_norm, k_norm;
    const float *cos, *sin;  /* [positions, D], or NULL without rotary positions */
    long heads, groups, head_size, activation, rms;
    float eps;
} Block;

typedef struct {
    void *keys, *values;              /* of one layer, [B, groups, positions, D] */
    long kind, batch_step, head_step; /* elements from one sequence to the next, and from one group to the next */
} Cache;

static inline float from_fp32(float value) { return value; }

static inline int32_t from_int8(int8_t value) { return value; }

/* erf by Abramowitz and Stegun, 7.1.26; accurate to 1.5e-7. */
static inline float fast_erf(float x)
{
    float size = fabsf(x), t = 1 / (1 + 0.3275911f * size);
    float series = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    return copysignf(1 - series * fast_exp(-size * size), x);
}

/* out[m] = sum over k of row[k] x[m][k]; four vectors at a time share the conversion of the row. */
#define DOTS(KIND, WEIGHT, NUMBER, SUM)                                                            \
    static inline void dots_##KIND(const WEIGHT *row, const NUMBER *x, SUM *out, long K, long M)   \
    {                                                                                              \
        long m = 0;                                                                                \
        for (; m + 4 <= M; m += 4) {                                                               \
            const NUMBER *p = x + m * K, *q = p + K, *r = q + K, *s = r + K;                       \
            SUM a = 0, b = 0, c = 0, d = 0;                                                        \
            for (long k = 0; k < K; k++) {                                                         \
                SUM weight = from_##KIND(row[k]);                                                  \
                a += weight * p[k];                                                                \
                b += weight * q[k];                                                                \
                c += weight * r[k];                                                                \
                d += weight * s[k];                                                                \
            }                                                                                      \
            out[m] = a, out[m + 1] = b, out[m + 2] = c, out[m + 3] = d;                            \
        }                                                                                          \
        for (; m < M; m++) {                                                                       \
            SUM a = 0;                                                                             \
            for (long k = 0; k < K; k++)                                                           \
                a += from_##KIND(row[k]) * x[m * K + k];                                           \
            out[m] = a;                                                                            \
        }                                                                                          \
    }

DOTS(fp32, float, float, float)
DOTS(bf16, uint16_t, float, float)
DOTS(int8, int8_t, int16_t, int32_t)

/* Round so that x[k] ~ unit * rounded[k], and return unit: as fine as 16 bits allow, but coarse enough that no sum of
   products with 8-bit weights overflows 32 bits. */
static float round_to_int16(const float *x, int16_t *rounded, long K)
{
    float largest = 0, total = 0;
    for (long k = 0; k < K; k++) {
        float size = fabsf(x[k]);
        largest = size > largest ? size : largest;
        total += size;
    }
    float finest = largest / 32767, safe = total * 127 / 2.1e9f, unit = finest > safe ? finest : safe;
    float per_unit = unit > 0 ? 1 / unit : 0;
    for (long k = 0; k < K; k++)
        rounded[k] = (int16_t)rintf(x[k] * per_unit);
    return unit;
}

/* y[m][n] = bias[n] + scale[n] * sum over k of weight[n][k] x[m][k], for M <= MOST vectors.
   Returns 0; 1 if there is no memory; 2 for more than MOST vectors. */
int linear(const Matrix *matrix, const float *x, float *y, long M, int threads)
{
    const long N = matrix->rows, K = matrix->columns, kind = matrix->kind;
    float units[MOST];
    int16_t *rounded = NULL;
    if (M > MOST)
        return 2;
    if (kind == INT8) {
        rounded = malloc(M * K * sizeof *rounded);
        if (!rounded)
            return 1;
        for (long m = 0; m < M; m++)
            units[m] = round_to_int16(x + m * K, rounded + m * K, K);
    }
    /* Threads take large chunks of rows first, then small ones, so a thread that starts late takes fewer rows. Small
       chunks from the start take half as long again. */
#pragma omp parallel for if (N * K * M > ALONE) num_threads(threads) schedule(guided, 16)
    for (long n = 0; n < N; n++) {
        float sums[MOST], bias = matrix->bias ? matrix->bias[n] : 0;
        if (kind == FP32) {
            dots_fp32((const float *)matrix->weight + n * K, x, sums, K, M);
        } else if (kind == BF16) {
            dots_bf16((const uint16_t *)matrix->weight + n * K, x, sums, K, M);
        } else {
            int32_t exact[MOST];
            dots_int8((const int8_t *)matrix->weight + n * K, rounded, exact, K, M);
            for (long m = 0; m < M; m++)
                sums[m] = exact[m] * units[m] * matrix->scale[n];
        }
        for (long m = 0; m < M; m++)
            y[m * N + n] = sums[m] + bias;
    }
    free(rounded);
    return 0;
}

/* out[h] = softmax(query[h] . keys[g] / sqrt(D)) values[g] over S positions, g being the group of head h. */
#define ATTEND_HEAD(KIND, NUMBER)                                                                         \
    static void attend_head_##KIND(const float *query, const NUMBER *keys, const NUMBER *values, float *out, \
                                   float *scores, long S, long D)                                         \
    {                                                                                                     \
        float largest = -INFINITY, total = 0, shrink = 1 / sqrtf(D);                                      \
        for (long s = 0; s < S; s++) {                                                                    \
            dots_##KIND(keys + s * D, query, scores + s, D, 1);                                           \
            largest = scores[s] > largest ? scores[s] : largest;                                          \
        }                                                                                                 \
        for (long s = 0; s < S; s++)                                                                      \
            total += scores[s] = fast_exp((scores[s] - largest) * shrink);                                \
        memset(out, 0, D * sizeof *out);                                                                  \
        for (long s = 0; s < S; s++) {                                                                    \
            float share = scores[s] / total;                                                              \
            for (long d = 0; d < D; d++)                                                                  \
                out[d] += share * from_##KIND(values[s * D + d]);                                         \
        }                                                                                                 \
    }

ATTEND_HEAD(fp32, float)
ATTEND_HEAD(bf16, uint16_t)

/* Attention of one position: query [B, heads, D], with `query_step` numbers from one sequence to the next; the first S
   positions of the cache -> out [B, heads, D].
   Returns 0, or 1 if there is no memory. */
int attend(const float *query, const Cache *cache, float *out, long B, long heads, long groups, long S, long D,
           long query_step, int threads)
{
    float *scores = malloc(B * heads * S * sizeof *scores);
    if (!scores)
        return 1;
#pragma omp parallel for if (B * heads * S * D > ALONE) num_threads(threads) schedule(static)
    for (long i = 0; i < B * heads; i++) {
        long b = i / heads, h = i % heads, start = b * cache->batch_step + h / (heads / groups) * cache->head_step;
        const float *q = query + b * query_step + h * D;
        if (cache->kind == FP32)
            attend_head_fp32(q, (float *)cache->keys + start, (float *)cache->values + start, out + i * D,
                             scores + i * S, S, D);
        else
            attend_head_bf16(q, (uint16_t *)cache->keys + start, (uint16_t *)cache->values + start, out + i * D,
                             scores + i * S, S, D);
    }
    free(scores);
    return 0;
}

static void normalise(const Norm *norm, const float *x, float *out, long size, const Block *block)
{
    float mean = 0, squares = 0;
    if (!block->rms) {
        for (long i = 0; i < size; i++)
            mean += x[i];
        mean /= size;
    }
    for (long i = 0; i < size; i++)
        squares += (x[i] - mean) * (x[i] - mean);
    float factor = 1 / sqrtf(squares / size + block->eps);
    for (long i = 0; i < size; i++)
        out[i] = (x[i] - mean) * factor * norm->weight[i] + (norm->bias ? norm->bias[i] : 0);
}

/* Rotate each pair (i, i + D/2) by the angle of its position. */
static void rotate(float *x, const float *cos, const float *sin, long D)
{
    for (long i = 0, j = D / 2; j < D; i++, j++) {
        float first = x[i], second = x[j];
        x[i] = first * cos[i] - second * sin[i];
        x[j] = second * cos[j] + first * sin[j];
    }
}

/* Prepare a head's query or key for attention: QK-norm and rotary position. */
static void place(float *x, const Norm *norm, const Block *block, long position)
{
    long D = block->head_size;
    if (norm->weight)
        normalise(norm, x, x, D, block);
    if (block->cos)
        rotate(x, block->cos + position * D, block->sin + position * D, D);
}

static void store(void *to, long kind, long start, const float *x, long D)
{
    if (kind == FP32)
        memcpy((float *)to + start, x, D * sizeof *x);
    else
        for (long d = 0; d < D; d++)
            ((uint16_t *)to)[start + d] = to_bf16(x[d]);
}

/* Apply the activation to x [size] in place. swiglu reads the gates [size], and after them the other half [size]. */
static void activate(float *x, long size, long activation)
{
    if (activation == GELU)
        for (long i = 0; i < size; i++)
            x[i] = x[i] / 2 * (1 + fast_erf(x[i] * 0.70710678f));
    else if (activation == GELU_TANH) /* (1 + tanh u) / 2 = 1 / (1 + e^-2u) */
        for (long i = 0; i < size; i++)
            x[i] = x[i] / (1 + fast_exp(-2 * 0.79788456f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
    else if (activation == RELU2)
        for (long i = 0; i < size; i++)
            x[i] = x[i] < 0 ? 0 : x[i] * x[i]; /* NaN stays NaN */
    else if (activation == RELU)
        for (long i = 0; i < size; i++)
            x[i] = x[i] < 0 ? 0 : x[i];
    else
        for (long i = 0; i < size; i++)
            x[i] = x[i] / (1 + fast_exp(-x[i])) * x[size + i];
}

/* Compute a block for one position of each of B <= MOST sequences: x [B, C] is replaced by the block's output, and the
   keys and values are stored in the cache at `position`. Returns the same codes as `linear`. */
int step(const Block *block, float *x, const Cache *cache, long B, long position, int threads)
{
    const long C = block->qkv.columns, heads = block->heads, groups = block->groups, D = block->head_size;
    const long wide = block->qkv.rows, mixed_size = heads * D, up = block->up.rows, hidden = block->down.columns;
    const long middle = wide + mixed_size > up ? wide + mixed_size : up;
    float *normed = malloc(B * (C + middle) * sizeof *normed);
    if (!normed)
        return 1;
    float *qkv = normed + B * C, *mixed = qkv + B * wide, *ff = qkv;
    int failed = 0;

    for (long b = 0; b < B; b++)
        normalise(&block->norm1, x + b * C, normed + b * C, C, block);
    failed |= linear(&block->qkv, normed, qkv, B, threads);
    for (long b = 0; b < B; b++) {
        float *query = qkv + b * wide, *key = query + mixed_size, *value = key + groups * D;
        for (long h = 0; h < heads; h++)
            place(query + h * D, &block->q_norm, block, position);
        for (long g = 0; g < groups; g++) {
            long start = b * cache->batch_step + g * cache->head_step + position * D;
            place(key + g * D, &block->k_norm, block, position);
            store(cache->keys, cache->kind, start, key + g * D, D);
            store(cache->values, cache->kind, start, value + g * D, D);
        }
    }
    failed |= attend(qkv, cache, mixed, B, heads, groups, position + 1, D, wide, threads);
    failed |= linear(&block->out, mixed, normed, B, threads);
    for (long i = 0; i < B * C; i++)
        x[i] += normed[i];

    for (long b = 0; b < B; b++)
        normalise(&block->norm2, x + b * C, normed + b * C, C, block);
    failed |= linear(&block->up, normed, ff, B, threads);
    for (long b = 0; b < B; b++) {
        activate(ff + b * up, hidden, block->activation);
        memmove(ff + b * hidden, ff + b * up, hidden * sizeof *ff); /* closes the gaps that swiglu leaves */
    }
    failed |= linear(&block->down, ff, normed, B, threads);
    for (long i = 0; i < B * C; i++)
        x[i] += normed[i];
    free(normed);
    return failed;
}
