/* Code that all C files of this package share: compiled.py includes it before each. */

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { GELU, GELU_TANH, RELU2, SWIGLU, RELU }; /* activations: `in_c` of model/activations.py */

/* x - n ln(2), in two steps: n times ln(2) as a float, then n times its rounding error. As fused operations, compilers
   keep the steps apart. If they add the factors first (-fassociative-math), the error grows with n, to 4e-6. */
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define LESS_LN2(X, N) __builtin_fmaf(N, 1.90465430e-9f, __builtin_fmaf(N, -0.693147182f, X))
#else
#define LESS_LN2(X, N) ((X) - (N)*0.693359375f + (N)*2.12194440e-4f)
#endif

/* e^x = 2^n e^f with |f| <= ln(2) / 2, to a relative error of about 2e-7. Compilers vectorise this, but not expf. */
static inline float fast_exp(float x)
{
    x = x < -87 ? -87 : x > 88 ? 88 : x;
    float n = rintf(x * 1.44269504f), f = LESS_LN2(x, n);
    float series = 1 + f * (1 + f * (1 / 2.f + f * (1 / 6.f + f * (1 / 24.f + f * (1 / 120.f + f / 720)))));
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return series * power;
}

static inline float from_bf16(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint16_t to_bf16(float value) /* to the nearest, ties to even; NaN stays NaN */
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0;
}
