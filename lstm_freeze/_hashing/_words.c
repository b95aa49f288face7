/* The sums behind fingerprints: sum(low * word + high * (word >> 32)) modulo 2^64.
 *
 * Low and high are multipliers. All numbers are integers, so the order of the additions does not
 * matter, and the torch operations of word_sums.py, which are used where this extension is not
 * built, give the same sums.
 */
#define PY_SSIZE_T_CLEAN
#include <pyconfig.h>
#ifndef Py_GIL_DISABLED /* the free-threaded builds have no limited API */
#define Py_LIMITED_API 0x030A0000
#endif
#include <Python.h>

#include <stdint.h>
#include <string.h>

#include "../_threads.h"

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
    uint64_t sum = 0; /* unsigned, since C defines no overflow of signed integers */
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
/* AVX2 has no product of 64-bit numbers. So words and multipliers are split into halves of 32 bits,
 * upper * 2^32 + lower:
 *   low * word + high * (word >> 32) = low.lower * word.lower + high.lower * word.upper
 *     + 2^32 * (low.upper * word.lower + (high.upper + low.lower) * word.upper
 *               - (high.lower if word < 0)),
 * Of what is multiplied by 2^32 only the lower 32 bits count. Four rows are summed at a time, so
 * that multipliers are read once for four words: they do not stay in the first-level cache. */
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
            __m256i multiplier = _mm256_blend_epi32(
                _mm256_srli_epi64(low, 32), _mm256_add_epi32(high, _mm256_slli_epi64(low, 32)),
                0xAA);
            for (int i = 0; i < ROWS; i++) {
                __m256i word = _mm256_loadu_si256((const __m256i *)(words + i * t->length + k));
                __m256i negative = _mm256_and_si256(_mm256_srai_epi32(word, 31), moved);
                whole[i] = _mm256_add_epi64(whole[i], _mm256_mul_epu32(word, low));
                whole[i] = _mm256_add_epi64(
                    whole[i], _mm256_mul_epu32(_mm256_srli_epi64(word, 32), high));
                upper[i] = _mm256_add_epi32(upper[i], _mm256_mullo_epi32(word, multiplier));
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

/* ---- several tables, in blocks of rows ------------------------------------------------------ */

#define BLOCK_WORDS 32768  /* 256 KiB, which stay in a core's cache beside the multipliers */
#define THREAD_WORDS 65536 /* fewer are summed before another thread has started */

typedef struct {
    const Table *tables;
    void (*sums)(const Table *);
} Job;

/* The rows of a block: a multiple of the 4 that are summed at a time. */
static int64_t block_rows(const Table *t) {
    int64_t rows = BLOCK_WORDS / (t->length ? t->length : 1) & ~(int64_t)3;
    return rows ? rows : 4;
}

static int64_t blocks(const Table *t) { return (t->rows + block_rows(t) - 1) / block_rows(t); }

static void sum_block(const void *argument, int64_t unit) {
    const Job *job = (const Job *)argument;
    const Table *t = job->tables;
    for (; unit >= blocks(t); t++)
        unit -= blocks(t);
    Table block = *t;
    int64_t first = unit * block_rows(t), left = t->rows - first;
    block.words += first * t->length;
    block.out += first;
    block.rows = left < block_rows(t) ? left : block_rows(t);
    job->sums(&block);
}

/* row_sums(threads, tables, owners): `tables` are the bytes of an array of Table, whose addresses
 * are not checked. `owners` are not read: they keep the memory alive during the call. */
static PyObject *call(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    char *bytes;
    Py_ssize_t size;
    int64_t units = 0, words = 0;
    (void)module;
    if (count != 3) {
        PyErr_Format(PyExc_TypeError, "expected 3 arguments, got %zd", count);
        return NULL;
    }
    long long threads = PyLong_AsLongLong(args[0]);
    if ((threads == -1 && PyErr_Occurred()) || PyBytes_AsStringAndSize(args[1], &bytes, &size) < 0)
        return NULL;
    if (size % (Py_ssize_t)sizeof(Table)) {
        PyErr_Format(PyExc_ValueError, "expected tables of %zd bytes, got %zd bytes",
                     (Py_ssize_t)sizeof(Table), size);
        return NULL;
    }
    Table *tables = (Table *)PyMem_Malloc(size ? (size_t)size : 1);
    if (!tables)
        return PyErr_NoMemory();
    memcpy(tables, bytes, (size_t)size);
    for (Py_ssize_t k = 0; k < size / (Py_ssize_t)sizeof(Table); k++) {
        units += blocks(tables + k);
        words += tables[k].rows * tables[k].length;
    }
    Job job = {tables, chosen()};
    Py_BEGIN_ALLOW_THREADS
    run_units(&job, sum_block, units, threads < words / THREAD_WORDS ? threads : words / THREAD_WORDS);
    Py_END_ALLOW_THREADS
    PyMem_Free(tables);
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"row_sums", (PyCFunction)(void (*)(void))call, METH_FASTCALL,
     "row_sums(threads, tables, owners)"},
    SHARE_THREADS,
    {NULL, NULL, 0, NULL},
};

static int start(PyObject *module) {
    /* Counts the changes of the call above: an extension left over from another version of the
     * package must not be called. */
    return PyModule_AddIntConstant(module, "INTERFACE", 1);
}

static PyModuleDef_Slot SLOTS[] = {
    {Py_mod_exec, (void *)start},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_words", "Sums of 8-byte words times multipliers.", 0, METHODS, SLOTS,
    NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__words(void) { return PyModuleDef_Init(&MODULE); }
