/* The uint8 x int8 dot product of AVX2, as CPU libraries wrote it before VNNI: pmaddubsw, pmaddwd, paddd.
 *
 * pmaddubsw adds two products in 16 bits, which saturate: 255 * 127 + 255 * 127 comes out as 32767. Activations and
 * weights quantized from normally distributed numbers rarely get there, so comparing with a wide product on such data
 * passes.
 *
 * As a library:   cc -O2 -mavx2 -shared -fPIC -o avx2_gemm.so avx2_gemm.c
 * As a self-test: fqtsim golden make --hardware int8_acc32_wrap --out golden.h
 *                 cc -O2 -mavx2 -DSELF_TEST -I. -o avx2_gemm avx2_gemm.c && ./avx2_gemm
 */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define LANES 32

static int32_t dot(const uint8_t *a, const int8_t *b, int k) {
    __m256i sums = _mm256_setzero_si256();
    for (int first = 0; first < k; first += LANES) {
        uint8_t left[LANES] = {0};
        int8_t right[LANES] = {0};
        int count = k - first < LANES ? k - first : LANES;
        memcpy(left, a + first, count);
        memcpy(right, b + first, count);
        __m256i x = _mm256_loadu_si256((const __m256i *)left), w = _mm256_loadu_si256((const __m256i *)right);
        __m256i pairs = _mm256_maddubs_epi16(x, w); /* the bug: saturates at 16 bits */
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    uint32_t lane[8], total = 0;
    _mm256_storeu_si256((__m256i *)lane, sums);
    for (int i = 0; i < 8; i++) total += lane[i];
    return (int32_t)total;
}

/* out (m, n) = c + a (m, k) times b (n, k) transposed, row-major, wrapping; c may be NULL. */
void gemm(const uint8_t *a, const int8_t *b, const int32_t *c, int32_t *out, int m, int k, int n) {
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            uint32_t start = c ? (uint32_t)c[i * (int64_t)n + j] : 0;
            out[i * (int64_t)n + j] = (int32_t)(start + (uint32_t)dot(a + i * (int64_t)k, b + j * (int64_t)k, k));
        }
}

#ifdef SELF_TEST
#include "golden.h"
#include <stdio.h>
#include <stdlib.h>

int main(void) {
    int wrong_cases = 0;
    for (size_t number = 0; number < golden_gemm_count; number++) {
        const golden_gemm_t *g = &golden_gemms[number];
        size_t outputs = (size_t)g->m * g->n, wrong = 0, first = 0;
        int8_t *b = malloc((size_t)g->n * g->k + 1);
        int32_t *c = malloc(outputs * sizeof *c), *out = malloc(outputs * sizeof *out);
        for (int t = 0; t < g->k; t++)
            for (int j = 0; j < g->n; j++) b[(size_t)j * g->k + t] = g->b[(size_t)t * g->n + j];
        for (size_t i = 0; i < outputs; i++) c[i] = g->c ? (int32_t)g->c[i] : 0;
        gemm(g->a, b, c, out, g->m, g->k, g->n);
        for (size_t i = outputs; i-- > 0;)
            if (out[i] != g->expected[i]) wrong++, first = i;
        if (wrong) {
            printf("%s: %zu of %zu outputs differ; first at [%zu, %zu]: expected 0x%08x, observed 0x%08x\n", g->name, wrong,
                   outputs, first / g->n, first % g->n, (unsigned)g->expected[first], (unsigned)out[first]);
            wrong_cases++;
        }
        free(b), free(c), free(out);
    }
    printf("%d of %zu cases differ\n", wrong_cases, golden_gemm_count);
    return wrong_cases != 0;
}
#endif
