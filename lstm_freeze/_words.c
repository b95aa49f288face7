/* The sums behind fingerprints, sum(low * word + high * (word >> 32)) modulo 2^64, at the speed of
 * memory. Integers only, so every way to add them up gives the same number as the torch operations
 * of lstm_freeze/_bits.py, which serve where this extension is not built.
 */
#define PY_SSIZE_T_CLEAN
#include <pyconfig.h>
#ifndef Py_GIL_DISABLED /* the free-threaded builds have no limited API */
#define Py_LIMITED_API 0x030A0000
#endif
#include <Python.h>

#include <stdint.h>

#if defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

#if (defined(__GNUC__) || defined(__clang__)) && (defined(__x86_64__) || defined(__i386__))
#define X86_LEVELS 1
#include <immintrin.h>
#else
#define X86_LEVELS 0
#endif

typedef struct {
    const int64_t *words; /* (rows, length), dense */
    int64_t rows, length;
    const int64_t *low, *high; /* (length) */
    int64_t *out;              /* (rows) */
} Table;

/* The sum of one row from a word on. */
INLINE uint64_t sum_of(const Table *t, const int64_t *words, int64_t from) {
    uint64_t sum = 0; /* unsigned, whose overflow is defined */
    for (int64_t k = from; k < t->length; k++)
        sum += (uint64_t)t->low[k] * (uint64_t)words[k] +
               (uint64_t)t->high[k] * (uint64_t)(words[k] >> 32);
    return sum;
}

INLINE void row_sums(const Table *t) {
    for (int64_t r = 0; r < t->rows; r++)
        t->out[r] = (int64_t)sum_of(t, t->words + r * t->length, 0);
}

static void row_sums_baseline(const Table *t) { row_sums(t); }
#if X86_LEVELS
/* AVX2 has no product of 64-bit numbers. With words and weights as halves (upper * 2^32 + lower),
 *   low * word + high * (word >> 32) = low.lower * word.lower + high.lower * word.upper
 *     + 2^32 * (low.upper * word.lower + (high.upper + low.lower) * word.upper
 *               - (high.lower if word < 0)),
 * where what is multiplied by 2^32 counts modulo 2^32 only. Four rows at a time share the weights,
 * which do not stay in the first-level cache beside the words. */
#define ROWS 4
__attribute__((target("avx2"))) static void row_sums_avx2(const Table *t) {
    int64_t r = 0, whole_length = t->length & ~(int64_t)3;
    for (; r + ROWS <= t->rows; r += ROWS) {
        const int64_t *words = t->words + r * t->length;
        __m256i whole[ROWS], upper[ROWS];
        for (int i = 0; i < ROWS; i++)
            whole[i] = upper[i] = _mm256_setzero_si256();
        for (int64_t k = 0; k < whole_length; k += 4) {
            __m256i low = _mm256_loadu_si256((const __m256i *)(t->low + k));
            __m256i high = _mm256_loadu_si256((const __m256i *)(t->high + k));
            __m256i moved = _mm256_slli_epi64(high, 32);
            __m256i weight = _mm256_blend_epi32(
                _mm256_srli_epi64(low, 32), _mm256_add_epi32(high, _mm256_slli_epi64(low, 32)),
                0xAA);
            for (int i = 0; i < ROWS; i++) {
                __m256i word = _mm256_loadu_si256((const __m256i *)(words + i * t->length + k));
                __m256i negative = _mm256_and_si256(_mm256_srai_epi32(word, 31), moved);
                whole[i] = _mm256_add_epi64(whole[i], _mm256_mul_epu32(word, low));
                whole[i] = _mm256_add_epi64(
                    whole[i], _mm256_mul_epu32(_mm256_srli_epi64(word, 32), high));
                upper[i] = _mm256_add_epi32(upper[i], _mm256_mullo_epi32(word, weight));
                upper[i] = _mm256_sub_epi32(upper[i], negative);
            }
        }
        for (int i = 0; i < ROWS; i++) {
            uint64_t wholes[4], sum = 0;
            uint32_t uppers[8], top = 0;
            _mm256_storeu_si256((__m256i *)wholes, whole[i]);
            _mm256_storeu_si256((__m256i *)uppers, upper[i]);
            for (int j = 0; j < 8; j++)
                top += uppers[j];
            for (int j = 0; j < 4; j++)
                sum += wholes[j];
            t->out[r + i] = (int64_t)(sum + ((uint64_t)top << 32) +
                                      sum_of(t, words + i * t->length, whole_length));
        }
    }
    for (; r < t->rows; r++)
        t->out[r] = (int64_t)sum_of(t, t->words + r * t->length, 0);
}
__attribute__((target("avx512f,avx512dq"))) static void row_sums_avx512(const Table *t) {
    row_sums(t);
}
#endif

static void (*chosen(void))(const Table *) {
#if X86_LEVELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
        return row_sums_avx512;
    if (__builtin_cpu_supports("avx2"))
        return row_sums_avx2;
#endif
    return row_sums_baseline;
}

/* row_sums(words, rows, length, low, high, out): addresses and sizes, which are not checked. */
static PyObject *call(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    long long number[6];
    (void)module;
    if (count != 6) {
        PyErr_Format(PyExc_TypeError, "expected 6 arguments, got %zd", count);
        return NULL;
    }
    for (int k = 0; k < 6; k++) {
        number[k] = PyLong_AsLongLong(args[k]);
        if (number[k] == -1 && PyErr_Occurred())
            return NULL;
    }
    Table table = {(const int64_t *)(intptr_t)number[0], number[1], number[2],
                   (const int64_t *)(intptr_t)number[3], (const int64_t *)(intptr_t)number[4],
                   (int64_t *)(intptr_t)number[5]};
    Py_BEGIN_ALLOW_THREADS
    chosen()(&table);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"row_sums", (PyCFunction)(void (*)(void))call, METH_FASTCALL,
     "row_sums(words, rows, length, low, high, out)"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot SLOTS[] = {
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_words", "Weighted sums of 8-byte words.", 0, METHODS, SLOTS,
    NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__words(void) { return PyModuleDef_Init(&MODULE); }
