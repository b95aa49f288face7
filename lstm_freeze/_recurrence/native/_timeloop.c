/* The time loop of an LSTM layer, forward and backward, for float32 on the CPU.
 *
 * This file does not know torch: it is given addresses and sizes. The Python files beside it make the
 * calls, and check what each address must hold. Without this extension torch operations compute the
 * same.
 *
 * Directions are independent of each other, and so are the sequences of a batch: each thread walks
 * through all steps with its own direction and sequences, and threads never wait for one another
 * within a call. Before the loop the weights are packed into panels of a few columns, which the
 * innermost loop reads in the order in which they lie.
 *
 * A sequence's result depends on that sequence alone, never on its place in the batch, the number of
 * sequences or threads, or the alignment: every sum is taken in one order, and the loops hold
 * nothing but IEEE operations, each rounded as it is written, so a lane of a vector and the scalar
 * tail of a loop give the same bits. Hence no fast-math, no call of libm, and fused multiply-adds
 * only where they are spelled out.
 */
#define PY_SSIZE_T_CLEAN
#include <pyconfig.h>
#ifndef Py_GIL_DISABLED /* the free-threaded builds have no limited API */
#define Py_LIMITED_API 0x030A0000
#endif
#include <Python.h>

#include <float.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../_threads.h"
#include "_blocks.h"

/* Rather no extension than one that rounds differently: torch operations then do its work. */
#if defined(__FAST_MATH__) || (defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0)
#error "float arithmetic must be IEEE single precision"
#endif

#if !defined(__GNUC__) && !defined(__clang__)
#error "needs the vector types of GCC or clang"
#endif

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif /* GCC has no such pragma: -ffp-contract=off is in pyproject.toml */

#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* ---- exp, sigmoid, tanh ------------------------------------------------------------------- */

/* a * b + c, rounded once where the processor has the instruction, else twice. `fused` is a
 * constant of each instruction set, known when the loops are compiled. */
INLINE float multiply_add(float a, float b, float c, int fused) {
    return fused ? __builtin_fmaf(a, b, c) : a * b + c;
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

/* 1 / (1 + e) or, where x < 0, e / (1 + e), with e = exp(-|x|): nothing overflows. Every comparison
 * with a NaN is false, so both selections below keep it. */
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

/* ---- sizes of blocks ------------------------------------------------------------------------ */

#define MOST_ROWS 6     /* rows of a tile of the product */
#define ROWS_OF_ONE (TILE / 2) /* the same of a tile of one panel */
#define MOST_PANELS 4   /* panels of a tile; a multiple of them makes a full tile of gates */
#define CHUNK 48        /* rows that one panel serves while it is in the first cache */
#define DEPTH_BLOCK 320 /* the same for the depth of the product */
#define UNIT_PANELS 32  /* the most panels of a unit of work of a product of matrices */
#define OUTER_PANELS 3  /* panels of a tile of products that sum over rows */
#define OUTER_ROWS (TILE / OUTER_PANELS) /* rows of such a tile */

/* ---- what a call is given ------------------------------------------------------------------- */

#define GATES 4 /* input, forget, cell and output, in this order */

/* Where an operand (D, rows, F) lies: rows are dense, `direction` floats lie between directions. */
typedef struct {
    float *data;
    int64_t direction;
} Operand;

/* Which rows belong to which step. Rows lie step after step; step t has sizes[t] of them, or `batch`
 * where `sizes` is null. */
typedef struct {
    int64_t first, steps; /* the first step of this call and their number */
    int64_t batch;        /* sequences: the rows of the first step of all */
    const int64_t *sizes;
} Steps;

/* With `keep`, hidden (D, batch + N, P) and cells (D, batch + N, H) hold the initial state in their
 * first rows, and then that of each row; gates (D, N, 4H) receive the activations. Without it, cells
 * (D, batch, H) is one state, updated in place; hidden (D, 2, batch, P) holds the states before and
 * after a step in turns, the initial one first; there are no gates. */
typedef struct {
    int64_t directions, hidden_size, state_size; /* D, H, P */
    Steps steps;
    int64_t row;    /* the first row of the first step */
    int64_t before; /* the first row of the state before it, in `hidden`, with `keep` */
    int64_t keep;
    Operand gates, hidden, cells;
    Operand squashed; /* (D, batch, H) scratch of a projection */
    Operand weight_hh, weight_hr; /* panels; weight_hr.data is null without a projection */
    Operand projected; /* (D, rows of these steps, 4H) the input's part of the gates; may be `gates` */
    /* Where weight_ih.data is not null, the input's part is computed here, step by step. */
    Operand weight_ih; /* panels */
    int64_t input_size;
    const float *input[2]; /* (N, input_size) of each direction */
    int64_t mirrored; /* those rows of the direction that goes back begin with the last step */
    const float *bias[2]; /* (4H) of each direction, which the input's part has not; or null */
    int64_t rows;         /* N */
    int64_t back;         /* the direction, of those walked, that goes back in time; -1: none */
    const int64_t *reverse; /* (N) where its rows stand in the output; null where rows are dense */
    float *output;          /* P floats for each row and direction; or null */
    int64_t of_output;      /* floats from one row to the next */
} Forward;

/* Rows that a weight was multiplied with, (count, width), in the order of `index` or, where it is null,
 * as they lie. */
typedef struct {
    int64_t count, width;
    const float *rows;
    const int64_t *index;
} Read;

/* A weight with an update up @ down: up (4H, rank), down (rank, width). A rank of 0: none. */
typedef struct {
    int64_t rank;
    Read read;
    const float *panels_down; /* of down.t(); null if the gradient of `up` is not asked for */
} Side;

/* The factors of weight_ih and weight_hh of one direction. For each span of rows `out` receives the
 * gradients of both `up` turned, (ranks, 4H), and then those of both `down`. */
typedef struct {
    const float *panels_up; /* of both side by side, (4H, ranks); null if no `down` is asked for */
    Side sides[2];
    float *out;     /* (spans, of_out); null: there is nothing to compute */
    int64_t of_out; /* floats from one span to the next */
} Factors;

/* Sums over all rows of what the gates' gradients are multiplied with. They are made in chunks of CHUNK
 * rows, from the last one to the first, while these are in cache. A span of chunks has its own sums,
 * which the caller adds: so threads can share the work, and the bits do not depend on how many do. */
typedef struct {
    int64_t chunks, of_span, spans; /* the chunks, 0 if there is nothing to sum; those of a span */
    float *biases[2];                 /* (spans, 4H) the sums of rows of each direction; or null */
    int64_t of_scratch;               /* floats of a span and direction */
    float *scratch;
    Factors factors[2];
} Sums;

typedef struct {
    int64_t directions, hidden_size, state_size;
    Steps steps;
    int64_t row; /* N */
    Operand gates, cells;
    int64_t back;           /* as in Forward */
    const int64_t *reverse; /* the same */
    /* The output's gradient, from the first direction walked on; null for zeros. Where rows are dense
     * a step has a stride and a sequence another one, else a row has that of a step. */
    const float *output;
    int64_t of_step, of_sequence, of_unit;
    Operand dh;     /* (D, batch, P) scratch; with a projection (D, N, P), receives the hidden states' */
    Operand dh_n;   /* (D, batch, P) of the final hidden states */
    Operand dc;     /* (D, batch, H) of the final cell states; receives that of the initial ones */
    Operand dgates; /* (D, N, 4H) receives that of the pre-activations */
    Operand weight_hh, weight_hr;
    Sums sums;
} Backward;

typedef struct {
    int64_t gates, units, depth; /* the matrix is (gates * units, depth), with these strides: */
    int64_t of_row, of_column;
    const float *data;
    float *panels;
} Packing;

/* out (rows, columns) = matrix (rows, depth) @ panels of (depth, columns). */
typedef struct {
    int64_t rows, depth, columns;
    int64_t of_row, of_depth; /* the matrix's strides, one of which is 1 */
    const float *matrix, *panels;
    float *out;
} Multiply;

INLINE float *at(Operand operand, int64_t d, int64_t row, int64_t width) {
    return operand.data + d * operand.direction + row * width;
}

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* The size of blocks of about one size, as few as can be with at most `most` in each. */
INLINE int64_t block_of(int64_t all, int64_t most) {
    int64_t blocks = (all + most - 1) / most;
    return blocks > 1 ? (all + blocks - 1) / blocks : all;
}

INLINE int64_t rows_of(const Steps *s, int64_t step) {
    return s->sizes ? s->sizes[step] : s->batch;
}

/* Whether a walk through the sequences [low, high) is one through all rows, which makes the sums on its
 * way. */
INLINE int makes_sums(const Backward *s, int64_t low, int64_t high) {
    return low == 0 && high == s->steps.batch;
}

/* Which row of the output a direction's row is, of a step that begins with `row`. */
INLINE int64_t output_row(int64_t all, const int64_t *reverse, int goes_back, int64_t row,
                          int64_t size, int64_t sequence) {
    if (!goes_back)
        return row + sequence;
    return reverse ? reverse[row + sequence] : all - row - size + sequence;
}

/* ---- the loops, once for each instruction set, chosen when the module loads ------------------ */

/* No iteration reads what another one writes, also where a result replaces an operand. */
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

typedef struct {
    const char *name;
    int64_t lanes;
    void (*pack)(const Packing *, int64_t);
    void (*forward)(const Forward *, int64_t, int64_t, int64_t);
    void (*backward)(const Backward *, int64_t, int64_t, int64_t);
    void (*multiply)(const Multiply *, int64_t, int64_t, int64_t, int64_t);
    void (*sum_chunk)(const Backward *, int64_t, int64_t);
} Level;

#if defined(__aarch64__)
#define LEVEL neon
#define TARGET
#define LANES 4
#define TILE 24 /* vectors of sums that leave room among the registers */
#define FUSED 1
#define VECTOR_MULTIPLY_ADD(a, b, c) vfmaq_f32(c, a, b)
#else
#define LEVEL baseline
#define TARGET
#define LANES 4
#define TILE 12
#define FUSED 0
#define VECTOR_MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#endif
#include "_timeloop_level.h"

#if defined(__x86_64__)
#define LEVEL avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define TILE 12
#define FUSED 1
#define VECTOR_MULTIPLY_ADD(a, b, c) (VECTOR) _mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c))
#include "_timeloop_level.h"

#define LEVEL avx512f
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define LANES 16
#define TILE 24
#define FUSED 1
#define VECTOR_MULTIPLY_ADD(a, b, c) (VECTOR) _mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c))
#include "_timeloop_level.h"
#endif

#define LEVEL_ENTRY(level, lanes)                                                                  \
    {#level, lanes, pack_##level, forward_##level, backward_##level, multiply_##level, sum_chunk_##level}

static const Level LEVELS[] = {
#if defined(__aarch64__)
    LEVEL_ENTRY(neon, 4),
#else
    LEVEL_ENTRY(baseline, 4),
#endif
#if defined(__x86_64__)
    LEVEL_ENTRY(avx2, 8),
    LEVEL_ENTRY(avx512f, 16),
#endif
};

/* How many of LEVELS this processor runs; the last of them is the fastest. */
static int usable_levels(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return 1;
    return __builtin_cpu_supports("avx512f") ? 3 : 2;
#else
    return 1;
#endif
}

static int is_intel(void) {
#if defined(__x86_64__)
    return __builtin_cpu_is("intel") != 0;
#else
    return 0;
#endif
}

static const Level *current;

#include "_small.h"

/* ---- threads ------------------------------------------------------------------------------- */

/* A call's work: `parts` ranges of sequences for each direction. */
typedef struct {
    const void *job;
    const Steps *steps;
    int64_t parts;
} Ranges;

#define FEWEST_ROWS 4 /* of a part: each part reads all weights, which is too much for fewer rows */

static Ranges ranges(const void *job, const Steps *steps, int64_t directions, int64_t threads) {
    int64_t parts = smaller((threads + directions - 1) / directions, steps->batch / FEWEST_ROWS);
    return (Ranges){job, steps, parts > 1 ? parts : 1};
}

/* The first sequence of a part: parts have about the same number of rows over all steps. */
static int64_t bound(const Ranges *r, int64_t part) {
    const Steps *s = r->steps;
    int64_t last = s->first + s->steps, all = 0, rows = 0, sequence = 0;
    if (part == 0 || part == r->parts)
        return part ? s->batch : 0;
    if (!s->sizes)
        return s->batch * part / r->parts;
    for (int64_t t = s->first; t < last; t++)
        all += s->sizes[t];
    while (rows * r->parts < all * part) {
        while (s->sizes[last - 1] <= sequence)
            last--;
        rows += last - s->first;
        sequence++;
    }
    return sequence;
}

static void forward_unit(const void *argument, int64_t unit) {
    const Ranges *r = argument;
    int64_t part = unit % r->parts;
    current->forward(r->job, unit / r->parts, bound(r, part), bound(r, part + 1));
}

static void backward_unit(const void *argument, int64_t unit) {
    const Ranges *r = argument;
    int64_t part = unit % r->parts;
    current->backward(r->job, unit / r->parts, bound(r, part), bound(r, part + 1));
}

static void pack_unit(const void *job, int64_t panel) { current->pack(job, panel); }

/* A product's work: each unit has CHUNK rows and some panels, all of the depth. */
typedef struct {
    const Multiply *job;
    int64_t chunks, panels, of_unit;
} Units;

#define UNITS_OF_A_THREAD 4 /* at least, where there are as many: the threads end at about one time */

static Units units_of(const Multiply *job, int64_t threads) {
    int64_t chunks = (job->rows + CHUNK - 1) / CHUNK;
    int64_t panels = (job->columns + current->lanes - 1) / current->lanes;
    int64_t parts = chunks ? (UNITS_OF_A_THREAD * threads + chunks - 1) / chunks : 1;
    int64_t of_unit = smaller(UNIT_PANELS, (panels + parts - 1) / parts);
    of_unit = (of_unit + MOST_PANELS - 1) / MOST_PANELS * MOST_PANELS;
    return (Units){job, chunks, panels, of_unit > 0 ? of_unit : MOST_PANELS};
}

/* Rows change first from unit to unit: the panels are in cache for the next unit. */
static void multiply_unit(const void *argument, int64_t unit) {
    const Units *u = argument;
    int64_t low = unit % u->chunks * CHUNK, from = unit / u->chunks * u->of_unit;
    current->multiply(u->job, low, smaller(CHUNK, u->job->rows - low), from,
                      smaller(u->panels, from + u->of_unit));
}

static void sum_unit(const void *argument, int64_t unit) {
    const Backward *job = argument;
    const Sums *s = &job->sums;
    int64_t span = unit % s->spans, end = smaller(s->chunks, (span + 1) * s->of_span);
    for (int64_t chunk = end - 1; chunk >= span * s->of_span; chunk--)
        current->sum_chunk(job, unit / s->spans, chunk);
}

/* ---- the module --------------------------------------------------------------------------- */

/* Reads (threads: int, job: bytes, owners: object). The owners are not read: they keep the memory
 * alive during the call. */
static int read_call(PyObject *const *args, Py_ssize_t count, void *job, Py_ssize_t size,
                     int64_t *threads) {
    char *bytes;
    Py_ssize_t length;
    if (count != 3) {
        PyErr_Format(PyExc_TypeError, "expected 3 arguments, got %zd", count);
        return -1;
    }
    *threads = PyLong_AsLongLong(args[0]);
    if ((*threads == -1 && PyErr_Occurred()) || PyBytes_AsStringAndSize(args[1], &bytes, &length) < 0)
        return -1;
    if (length != size) {
        PyErr_Format(PyExc_ValueError, "expected a job of %zd bytes, got %zd", size, length);
        return -1;
    }
    memcpy(job, bytes, (size_t)size);
    return 0;
}

static PyObject *pack(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    Packing job;
    int64_t threads;
    (void)module;
    if (read_call(args, count, &job, sizeof job, &threads) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    run_units(&job, pack_unit, (job.units + current->lanes - 1) / current->lanes, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *multiply(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    Multiply job;
    int64_t threads;
    (void)module;
    if (read_call(args, count, &job, sizeof job, &threads) < 0)
        return NULL;
    Units u = units_of(&job, threads);
    Py_BEGIN_ALLOW_THREADS
    run_units(&u, multiply_unit, u.chunks * ((u.panels + u.of_unit - 1) / u.of_unit), threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static int is_within(const int64_t *index, int64_t length, int64_t count) {
    for (int64_t n = 0; index && n < length; n++)
        if (index[n] < 0 || index[n] >= count) {
            PyErr_SetString(PyExc_IndexError, "an order of rows must hold rows that are there");
            return 0;
        }
    return 1;
}

static PyObject *forward(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    Forward job;
    int64_t threads;
    (void)module;
    if (read_call(args, count, &job, sizeof job, &threads) < 0 ||
        (!job.row && !is_within(job.reverse, job.rows, job.rows)))
        return NULL;
    Ranges r = ranges(&job, &job.steps, job.directions, threads);
    Py_BEGIN_ALLOW_THREADS
    run_units(&r, forward_unit, job.directions * r.parts, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static int reads_within(const Backward *job) {
    if (!is_within(job->reverse, job->row, job->row))
        return 0;
    for (int64_t d = 0; d < job->directions; d++)
        for (int k = 0; k < 2; k++) {
            const Side *side = &job->sums.factors[d].sides[k];
            if (side->rank && !is_within(side->read.index, job->row, side->read.count))
                return 0;
        }
    return 1;
}

static PyObject *backward(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    Backward job;
    int64_t threads;
    (void)module;
    if (read_call(args, count, &job, sizeof job, &threads) < 0 || !reads_within(&job))
        return NULL;
    Ranges r = ranges(&job, &job.steps, job.directions, threads);
    Py_BEGIN_ALLOW_THREADS
    run_units(&r, backward_unit, job.directions * r.parts, threads);
    if (job.sums.chunks && !makes_sums(&job, 0, bound(&r, 1)))
        run_units(&job, sum_unit, job.directions * job.sums.spans, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *layer_forward(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    LayerForward job;
    int64_t threads;
    (void)module;
    if (read_call(args, count, &job, sizeof job, &threads) < 0)
        return NULL;
    Pass pass = {.layer = &job.layer, .job = &job};
    if (run_layer(&pass, forward_direction, threads) < 0)
        return NULL;
    free_scratch(&pass);
    Py_RETURN_NONE;
}

static PyObject *layer_backward(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    LayerBackward job;
    int64_t threads;
    (void)module;
    if (read_call(args, count, &job, sizeof job, &threads) < 0)
        return NULL;
    Pass pass = {.layer = &job.layer, .job = &job};
    if (run_layer(&pass, backward_direction, threads) < 0)
        return NULL;
    if (job.data && job.layer.directions == 2)
        add_second(&pass, job.data);
    free_scratch(&pass);
    Py_RETURN_NONE;
}

static PyObject *lanes(PyObject *module, PyObject *none) {
    (void)module;
    (void)none;
    return PyLong_FromLongLong(current->lanes);
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
    {"pack", (PyCFunction)(void (*)(void))pack, METH_FASTCALL, "pack(threads, job, owners)"},
    {"multiply", (PyCFunction)(void (*)(void))multiply, METH_FASTCALL,
     "multiply(threads, job, owners)"},
    {"forward", (PyCFunction)(void (*)(void))forward, METH_FASTCALL, "forward(threads, job, owners)"},
    {"backward", (PyCFunction)(void (*)(void))backward, METH_FASTCALL,
     "backward(threads, job, owners)"},
    {"layer_forward", (PyCFunction)(void (*)(void))layer_forward, METH_FASTCALL,
     "layer_forward(threads, job, owners)"},
    {"layer_backward", (PyCFunction)(void (*)(void))layer_backward, METH_FASTCALL,
     "layer_backward(threads, job, owners)"},
    SHARE_THREADS,
    MEMORY_METHODS,
    {"lanes", lanes, METH_NOARGS, "The columns of a panel."},
    {"levels", levels, METH_NOARGS, "The instruction sets that this processor can run."},
    {"use", use, METH_O, "Choose one of levels(); returns the name of the one in use before."},
    {NULL, NULL, 0, NULL},
};

static int start(PyObject *module) {
    current = &LEVELS[usable_levels() - 1];
    if (PyModule_AddIntConstant(module, "GATES", GATES) < 0 ||
        PyModule_AddIntConstant(module, "CHUNK", CHUNK) < 0 ||
        PyModule_AddIntConstant(module, "IS_INTEL", is_intel()) < 0)
        return -1;
    /* Counts the changes of the calls above: an extension left over from another version of the
     * package must not be called. */
    return PyModule_AddIntConstant(module, "INTERFACE", 7);
}

static PyModuleDef_Slot SLOTS[] = {
    {Py_mod_exec, (void *)start},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_timeloop", "The time loop of an LSTM layer.", 0, METHODS, SLOTS, NULL,
    NULL, NULL,
};

PyMODINIT_FUNC PyInit__timeloop(void) { return PyModuleDef_Init(&MODULE); }
