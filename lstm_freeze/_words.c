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
#else
#define X86_LEVELS 0
#endif

typedef struct {
    const int64_t *words; /* (rows, length), dense */
    int64_t rows, length;
    const int64_t *low, *high; /* (length) */
    int64_t *out;              /* (rows) */
} Table;

INLINE void row_sums(const Table *t) {
    for (int64_t r = 0; r < t->rows; r++) {
        const int64_t *words = t->words + r * t->length;
        uint64_t sum = 0; /* unsigned, whose overflow is defined */
        for (int64_t k = 0; k < t->length; k++)
            sum += (uint64_t)t->low[k] * (uint64_t)words[k] +
                   (uint64_t)t->high[k] * (uint64_t)(words[k] >> 32);
        t->out[r] = (int64_t)sum;
    }
}

static void row_sums_baseline(const Table *t) { row_sums(t); }
#if X86_LEVELS
__attribute__((target("avx2"))) static void row_sums_avx2(const Table *t) { row_sums(t); }
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
