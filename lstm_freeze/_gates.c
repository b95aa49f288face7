/* The gate arithmetic of one LSTM time step, forward and backward, for float32 on the CPU.
 *
 * Knows nothing of torch: it is given addresses and sizes. lstm_freeze/_native.py builds the calls
 * and says what each address must hold; without this extension _recurrence.py does the same in
 * torch operations.
 *
 * An element's result depends on that element alone, never on its place, the number of rows or the
 * alignment: the loops hold nothing but IEEE operations, each rounded as it is written, so a lane
 * of a vector and the scalar tail of a loop give the same bits. Hence no fast-math, no call of libm,
 * and fused multiply-adds only where they are spelled out.
 */
#define PY_SSIZE_T_CLEAN
#include <pyconfig.h>
#ifndef Py_GIL_DISABLED /* the free-threaded builds have no limited API */
#define Py_LIMITED_API 0x030A0000
#endif
#include <Python.h>

#include <float.h>
#include <stdint.h>
#include <string.h>

/* Fail to build rather than round differently; the torch path then serves. */
#if defined(__FAST_MATH__) || (defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0)
#error "float arithmetic must be IEEE single precision"
#endif

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(_MSC_VER)
#pragma fp_contract(off)
#endif /* GCC has no such pragma: -ffp-contract=off is in pyproject.toml */

#if defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define INLINE static __forceinline
#else
#define INLINE static inline
#endif

#if (defined(__GNUC__) || defined(__clang__)) && (defined(__x86_64__) || defined(__i386__))
#define X86_LEVELS 1
#else
#define X86_LEVELS 0
#endif

/* ---- exp, sigmoid, tanh ------------------------------------------------------------------- */

/* a * b + c, rounded once where the processor has the instruction, else twice. `fused` is a
 * constant of each instruction set, known when the loops are compiled. */
INLINE float multiply_add(float a, float b, float c, int fused) {
#if defined(__GNUC__) || defined(__clang__)
    if (fused)
        return __builtin_fmaf(a, b, c);
#endif
    return a * b + c;
}

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

#define SIGN 0x80000000u
#define ROUND 12582912.0f /* 1.5 * 2^23: adding it leaves an integer in the lowest bits */
#define LOG2_E 1.44269504f
#define LN2_HIGH 0.693145752f /* 15 bits: an exact product with any exponent */
#define LN2_LOW 1.42860677e-6f

/* exp(t) = (1 + excess) * 2^n; `rounded` holds n in its lowest bits. */
typedef struct {
    float excess, rounded;
} Exponential;

INLINE Exponential exponential(float t, int fused) {
    float rounded = multiply_add(t, LOG2_E, ROUND, fused);
    float n = rounded - ROUND;
    float r = multiply_add(-n, LN2_LOW, multiply_add(-n, LN2_HIGH, t, fused), fused);
    /* exp(r) - 1 for |r| <= ln(2) / 2: minimax, relative error 1.4e-8 before rounding. */
    float square = r * r;
    float low = multiply_add(0x1.5554aep-3f, r, 0x1.fffffep-2f, fused);
    float high = multiply_add(0x1.122886p-7f, r, 0x1.555676p-5f, fused);
    high = multiply_add(square, 0x1.6bebdap-10f, high, fused);
    low = multiply_add(square, high, low, fused);
    return (Exponential){multiply_add(low, square, r, fused), rounded};
}

INLINE float power_of_two(float rounded, uint32_t bias) {
    return float_of((bits_of(rounded) + bias) << 23);
}

/* 1 / (1 + e) or, where x < 0, e / (1 + e), with e = exp(-|x|): nothing overflows. A NaN is neither
 * less nor greater than anything, so it passes every selection and stays one. */
INLINE float sigmoid(float x, int fused) {
    float t = float_of(bits_of(x) | SIGN);
    Exponential of_t = exponential(t, fused);
    float scale = power_of_two(of_t.rounded, 127 + 64); /* e may be denormal, its scale may not */
    float e = multiply_add(of_t.excess, scale, scale, fused) * 0x1p-64f;
    e = t < -104.0f ? 0.0f : e;
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

/* expm1(2|x|) / (expm1(2|x|) + 2), with the sign of x: accurate near 0, and never inf / inf. */
INLINE float hyperbolic_tangent(float x, int fused) {
    uint32_t sign = bits_of(x) & SIGN;
    float a = float_of(bits_of(x) ^ sign);
    Exponential of_t = exponential(a + a, fused);
    float scale = power_of_two(of_t.rounded, 127);
    float e = multiply_add(of_t.excess, scale, scale - 1.0f, fused);
    float result = a > 10.0f ? 1.0f : e / (e + 2.0f); /* it rounds to 1 from 9.02 on */
    return float_of(bits_of(result) | sign);
}

/* ---- one step over (D, rows, H) ----------------------------------------------------------- */

/* Where an operand (D, rows, H or 4H) lies; strides in floats, the last axis is dense. */
typedef struct {
    float *data;
    int64_t direction, row;
} Operand;

typedef struct {
    int64_t directions, hidden;
    Operand pre, gates, c_before, c, h; /* gates.data may be null: not kept */
} Forward;

typedef struct {
    int64_t directions, hidden;
    Operand dh, dc, gates, c_before, c, dgates;
} Backward;

INLINE float *at(Operand operand, int64_t d, int64_t row) {
    return operand.data + d * operand.direction + row * operand.row;
}

/* `pre` may be `gates`, and `c_before` may be `c`, but only as the same rows: the loops run over
 * elements in order and touch each at the same place, hence no `restrict` but this promise. */
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define INDEPENDENT _Pragma("GCC ivdep")
#elif defined(_MSC_VER)
#define INDEPENDENT __pragma(loop(ivdep))
#else
#define INDEPENDENT
#endif

INLINE void forward_row(int64_t H, const float *pre, float *gates, const float *c_before, float *c,
                        float *h, int keep, int fused) {
    INDEPENDENT
    for (int64_t k = 0; k < H; k++) {
        float i = sigmoid(pre[k], fused);
        float f = sigmoid(pre[H + k], fused);
        float g = hyperbolic_tangent(pre[2 * H + k], fused);
        float o = sigmoid(pre[3 * H + k], fused);
        float next = multiply_add(f, c_before[k], i * g, fused);
        if (keep) {
            gates[k] = i;
            gates[H + k] = f;
            gates[2 * H + k] = g;
            gates[3 * H + k] = o;
        }
        c[k] = next;
        h[k] = o * hyperbolic_tangent(next, fused);
    }
}

INLINE void backward_row(int64_t H, const float *dh, float *dc, const float *gates,
                         const float *c_before, const float *c, float *dgates, int fused) {
    INDEPENDENT
    for (int64_t k = 0; k < H; k++) {
        float i = gates[k], f = gates[H + k], g = gates[2 * H + k], o = gates[3 * H + k];
        float squashed = hyperbolic_tangent(c[k], fused);
        float cell = dc[k] + dh[k] * o * (1.0f - squashed * squashed);
        dgates[k] = cell * g * (i * (1.0f - i));
        dgates[H + k] = cell * c_before[k] * (f * (1.0f - f));
        dgates[2 * H + k] = cell * i * (1.0f - g * g);
        dgates[3 * H + k] = dh[k] * squashed * (o * (1.0f - o));
        dc[k] = cell * f;
    }
}

/* `rows`: their number, then the first row of each operand in the order of the struct. */
INLINE void forward_rows(const Forward *s, const int64_t *rows, int fused) {
    for (int64_t d = 0; d < s->directions; d++)
        for (int64_t b = 0; b < rows[0]; b++) {
            const float *pre = at(s->pre, d, rows[1] + b);
            const float *c_before = at(s->c_before, d, rows[3] + b);
            float *c = at(s->c, d, rows[4] + b), *h = at(s->h, d, rows[5] + b);
            if (s->gates.data)
                forward_row(s->hidden, pre, at(s->gates, d, rows[2] + b), c_before, c, h, 1, fused);
            else
                forward_row(s->hidden, pre, NULL, c_before, c, h, 0, fused);
        }
}

INLINE void backward_rows(const Backward *s, const int64_t *rows, int fused) {
    for (int64_t d = 0; d < s->directions; d++)
        for (int64_t b = 0; b < rows[0]; b++)
            backward_row(s->hidden, at(s->dh, d, rows[1] + b), at(s->dc, d, rows[2] + b),
                         at(s->gates, d, rows[3] + b), at(s->c_before, d, rows[4] + b),
                         at(s->c, d, rows[5] + b), at(s->dgates, d, rows[6] + b), fused);
}

/* ---- the same code for each instruction set, chosen when the module loads -------------------- */

typedef struct {
    const char *name;
    void (*forward)(const Forward *, const int64_t *);
    void (*backward)(const Backward *, const int64_t *);
} Level;

#define LEVEL(suffix, fused, attribute)                                                            \
    attribute static void forward_##suffix(const Forward *s, const int64_t *rows) {                \
        forward_rows(s, rows, fused);                                                              \
    }                                                                                              \
    attribute static void backward_##suffix(const Backward *s, const int64_t *rows) {              \
        backward_rows(s, rows, fused);                                                             \
    }

#ifdef __FP_FAST_FMAF /* arm64 has the instruction always */
LEVEL(baseline, 1, )
#else
LEVEL(baseline, 0, )
#endif
#if X86_LEVELS
LEVEL(avx2, 1, __attribute__((target("avx2,fma"))))
LEVEL(avx512f, 1, __attribute__((target("avx512f,avx2,fma"))))
#endif

static const Level LEVELS[] = {
    {"baseline", forward_baseline, backward_baseline},
#if X86_LEVELS
    {"avx2", forward_avx2, backward_avx2},
    {"avx512f", forward_avx512f, backward_avx512f},
#endif
};

/* How many of LEVELS this processor runs; the last of them is the fastest. */
static int usable_levels(void) {
#if X86_LEVELS
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return 1;
    return __builtin_cpu_supports("avx512f") ? 3 : 2;
#else
    return 1;
#endif
}

static const Level *current;

/* ---- the module --------------------------------------------------------------------------- */

/* About 20 microseconds of arithmetic; below it, releasing the GIL costs more than it gives. */
#define RELEASE_GIL_FROM 16384

/* Reads (step: bytes, owners: object, rows: int, first row of each operand: int ...). The owners are
 * not looked at: whoever binds them to a call keeps their memory alive as long as the call. */
static int read_call(PyObject *const *args, Py_ssize_t count, Py_ssize_t operands, void *step,
                     Py_ssize_t size, int64_t *rows) {
    char *bytes;
    Py_ssize_t length;
    if (count != operands + 3) {
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", operands + 3, count);
        return -1;
    }
    if (PyBytes_AsStringAndSize(args[0], &bytes, &length) < 0)
        return -1;
    if (length != size) {
        PyErr_Format(PyExc_ValueError, "expected a step of %zd bytes, got %zd", size, length);
        return -1;
    }
    memcpy(step, bytes, (size_t)size);
    for (Py_ssize_t k = 0; k <= operands; k++) {
        rows[k] = PyLong_AsLongLong(args[k + 2]);
        if (rows[k] == -1 && PyErr_Occurred())
            return -1;
    }
    return 0;
}

static PyObject *forward(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    Forward step;
    int64_t rows[6];
    (void)module;
    if (read_call(args, count, 5, &step, sizeof step, rows) < 0)
        return NULL;
    if (step.directions * rows[0] * step.hidden < RELEASE_GIL_FROM) {
        current->forward(&step, rows);
    } else {
        Py_BEGIN_ALLOW_THREADS
        current->forward(&step, rows);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static PyObject *backward(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    Backward step;
    int64_t rows[7];
    (void)module;
    if (read_call(args, count, 6, &step, sizeof step, rows) < 0)
        return NULL;
    if (step.directions * rows[0] * step.hidden < RELEASE_GIL_FROM) {
        current->backward(&step, rows);
    } else {
        Py_BEGIN_ALLOW_THREADS
        current->backward(&step, rows);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static PyObject *levels(PyObject *module, PyObject *none) {
    PyObject *names = PyTuple_New(usable_levels());
    (void)module;
    (void)none;
    for (int k = 0; names && k < usable_levels(); k++) {
        PyObject *name = PyUnicode_FromString(LEVELS[k].name);
        if (!name || PyTuple_SetItem(names, k, name) < 0) {
            Py_DECREF(names);
            return NULL;
        }
    }
    return names;
}

static PyObject *use(PyObject *module, PyObject *name) {
    (void)module;
    if (!PyUnicode_Check(name)) {
        PyErr_SetString(PyExc_TypeError, "the level must be a string");
        return NULL;
    }
    for (int k = 0; k < usable_levels(); k++)
        if (PyUnicode_CompareWithASCIIString(name, LEVELS[k].name) == 0) {
            PyObject *before = PyUnicode_FromString(current->name);
            if (before)
                current = &LEVELS[k];
            return before;
        }
    PyErr_Format(PyExc_ValueError, "this processor has no level %R", name);
    return NULL;
}

static PyMethodDef METHODS[] = {
    {"forward", (PyCFunction)(void (*)(void))forward, METH_FASTCALL,
     "forward(step, owners, rows, first rows of pre, gates, c_before, c, h)"},
    {"backward", (PyCFunction)(void (*)(void))backward, METH_FASTCALL,
     "backward(step, owners, rows, first rows of dh, dc, gates, c_before, c, dgates)"},
    {"levels", levels, METH_NOARGS, "The instruction sets that this processor can run."},
    {"use", use, METH_O, "Choose one of levels(); returns the name of the one in use before."},
    {NULL, NULL, 0, NULL},
};

static int start(PyObject *module) {
    current = &LEVELS[usable_levels() - 1];
    /* Counts the changes of the calls above: an extension left over from another version of the
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
    PyModuleDef_HEAD_INIT, "_gates", "The gate arithmetic of one LSTM time step.", 0, METHODS,
    SLOTS, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__gates(void) { return PyModuleDef_Init(&MODULE); }
