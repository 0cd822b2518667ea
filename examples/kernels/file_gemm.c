// codes = c + a b in int32, which wraps: an INT8 GEMM as a program of its own, with no library.
//
//     cc -O2 -o file_gemm file_gemm.c
//     fqtsim golden make --hardware int8_acc32_wrap --gemm dgrad --out set.safetensors
//     fqtsim golden check set.safetensors --no-large --command "./file_gemm {a.0} {a.1} {b.1} {a} {b} {c} {codes}"
//
// {a}, {b} and {c} are raw files, little-endian and row by row; {c} is - in cases without start values. {a.0}, {a.1} and
// {b.1} are M, K and N. -DTAIL_DROPPED leaves out the last K % 16 products, which squares of whole tiles do not show.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef TAIL_DROPPED
#define SUMMED(k) ((k) / 16 * 16)
#else
#define SUMMED(k) (k)
#endif

static void *from_file(const char *path, size_t bytes) {
    void *data = calloc(bytes + 1, 1);  // one more: K may be 0
    FILE *file = strcmp(path, "-") ? fopen(path, "rb") : NULL;
    if (!data || (strcmp(path, "-") && !file)) exit(2);
    if (file && (fread(data, 1, bytes, file) != bytes || fclose(file))) exit(2);
    return data;
}

int main(int count, char **words) {
    if (count != 8) return 2;
    size_t m = strtoull(words[1], NULL, 10), k = strtoull(words[2], NULL, 10), n = strtoull(words[3], NULL, 10);
    const int8_t *a = from_file(words[4], m * k), *b = from_file(words[5], k * n);
    uint32_t *codes = from_file(words[6], 4 * m * n);  // start values or zeros; unsigned, so that sums may wrap
    for (size_t row = 0; row < m; row++)
        for (size_t col = 0; col < n; col++)
            for (size_t term = 0; term < SUMMED(k); term++)
                codes[row * n + col] += (uint32_t)(a[row * k + term] * b[term * n + col]);
    FILE *out = fopen(words[7], "wb");
    return !out || fwrite(codes, 4, m * n, out) != m * n || fclose(out) != 0;
}
