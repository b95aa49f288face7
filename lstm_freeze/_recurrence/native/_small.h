/* A small layer, forward and backward, in one call each: where there is little to compute, every
 * call of torch takes longer than its numbers. Without projection; on one thread, or one for each
 * direction. small.py says which layers these are. Include in _timeloop.c after the loops. */

typedef struct {
    const float *data;
    int64_t of_row, of_column;
} Matrix;

/* Of one direction: (4H, I), (4H, H), and (4H, 1) or null. */
typedef struct {
    Matrix ih, hh, bias_ih, bias_hh;
} Weights;

typedef struct {
    int64_t directions, input_size, hidden_size, rows; /* D, I, H, N */
    Steps steps;
    const int64_t *reverse; /* the row that each row swaps with; null for dense rows */
    const float *data;      /* (N, I) */
    float *gates, *hidden, *cells; /* (D, N, 4H) and twice (D, batch + N, H); null: not kept */
    Weights weights[2];
} Layer;

typedef struct {
    Layer layer;
    const float *h0, *c0;      /* (D, batch, H); zeros where null */
    float *output, *h_n, *c_n; /* (N, D * H), (D, batch, H), (D, batch, H) */
} LayerForward;

/* What is null is not wanted. A bias has one gradient, whichever of the two asks. */
typedef struct {
    Layer layer;
    const float *output, *h_n, *c_n; /* gradients of the results; zeros where null */
    float *data, *h0, *c0;           /* (N, I), (D, batch, H), (D, batch, H) */
    struct {
        float *ih, *hh, *bias; /* (4H, I), (4H, H), (4H,) */
    } weights[2];
} LayerBackward;

/* Takes the next `size` floats of the scratch memory. */
static float *taken(float **scratch, int64_t size) {
    float *here = *scratch;
    *scratch += size;
    return here;
}

static int64_t panels_size(int64_t units, int64_t depth) {
    int64_t lanes = current->lanes;
    return (units + lanes - 1) / lanes * lanes * depth;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* The floats of scratch memory of a direction, for either pass. */
static int64_t scratch_size(const Layer *s) {
    int64_t I = s->input_size, H = s->hidden_size, N = s->rows, batch = s->steps.batch;
    int64_t gates = GATES * H, kept = s->gates ? 0 : N * gates + 2 * (batch + N) * H;
    int64_t panels = larger(panels_size(gates, I), GATES * panels_size(H, H));
    panels = larger(panels, larger(panels_size(H, gates), panels_size(I, gates)));
    panels = larger(panels, larger(panels_size(I, N), panels_size(H, N)));
    return kept + panels + gates + N * (2 * I + H + gates) + 3 * batch * H;
}

/* A pass of one layer. */
typedef struct {
    const Layer *layer;
    const void *job;
    float *scratch; /* (D, size) and then (N, I), for the gradients of the second direction's input */
    int64_t size;
    Block *block; /* whose memory `scratch` is; or null */
} Pass;

/* Large memory comes from a kept block: the C library would get new pages from the system each time. */
static float *scratch_of(Pass *pass) {
    const Layer *s = pass->layer;
    pass->size = scratch_size(s);
    int64_t size = (s->directions * pass->size + s->rows * s->input_size) * (int64_t)sizeof(float);
    pass->block = size < MEGABYTE ? NULL : lent_block(size);
    pass->scratch = pass->block ? memory_of(pass->block) : malloc((size_t)size);
    return pass->scratch;
}

static void free_scratch(Pass *pass) {
    if (pass->block)
        return_block(pass->block);
    else
        free(pass->scratch);
}

static void packed(Matrix m, int64_t gates, int64_t units, int64_t depth, float *panels) {
    Packing job = {gates, units, depth, m.of_row, m.of_column, m.data, panels};
    for (int64_t first = 0; first * current->lanes < units; first++)
        current->pack(&job, first);
}

static Matrix dense(const float *rows, int64_t columns) { return (Matrix){rows, columns, 1}; }

static Matrix transposed(Matrix m) { return (Matrix){m.data, m.of_column, m.of_row}; }

/* out (rows, columns) = left (rows, depth) times right (columns, depth) transposed. */
static void times(int64_t rows, int64_t depth, int64_t columns, Matrix left, Matrix right,
                  float *panels, float *out) {
    Multiply job = {rows, depth, columns, left.of_row, left.of_column, left.data, panels, out};
    int64_t count = (columns + current->lanes - 1) / current->lanes;
    packed(right, 1, columns, depth, panels);
    for (int64_t low = 0; low < rows; low += CHUNK)
        current->multiply(&job, low, smaller(CHUNK, rows - low), 0, count);
}

/* The row of the input that row n of direction d is. */
static int64_t turned_row(const Layer *s, int64_t d, int64_t n) {
    int64_t batch = s->steps.batch;
    if (!d)
        return n;
    return s->reverse ? s->reverse[n] : s->rows - batch - n / batch * batch + n % batch;
}

/* The rows of the input in the order of direction d. */
static const float *turned(const Layer *s, int64_t d, float **scratch) {
    int64_t I = s->input_size;
    float *out;
    if (!d)
        return s->data;
    out = taken(scratch, s->rows * I);
    for (int64_t n = 0; n < s->rows; n++)
        memcpy(out + n * I, s->data + turned_row(s, d, n) * I, (size_t)I * sizeof(float));
    return out;
}

static void copied(float *out, const float *in, int64_t count) {
    if (in)
        memcpy(out, in, (size_t)count * sizeof(float));
    else
        memset(out, 0, (size_t)count * sizeof(float));
}

/* Each sequence's state after its last step, (batch, H), from the states of all rows. */
static void last_states(const Layer *s, const float *states, float *out) {
    int64_t H = s->hidden_size, row = s->rows, ended = 0;
    for (int64_t t = s->steps.steps - 1; t >= 0; t--) {
        int64_t size = rows_of(&s->steps, t);
        row -= size;
        if (size > ended) {
            copied(out + ended * H, states + (row + ended) * H, (size - ended) * H);
            ended = size;
        }
    }
}

static void forward_direction(const void *argument, int64_t d) {
    const Pass *pass = argument;
    const LayerForward *f = pass->job;
    const Layer *s = pass->layer;
    const Weights *w = &s->weights[d];
    int64_t D = s->directions, I = s->input_size, H = s->hidden_size, N = s->rows;
    int64_t gates_size = GATES * H, B = s->steps.batch;
    float *scratch = pass->scratch + d * pass->size, *gates, *hidden, *cells;
    if (s->gates) {
        gates = s->gates + d * N * gates_size;
        hidden = s->hidden + d * (B + N) * H;
        cells = s->cells + d * (B + N) * H;
    } else {
        gates = taken(&scratch, N * gates_size);
        hidden = taken(&scratch, (B + N) * H);
        cells = taken(&scratch, (B + N) * H);
    }
    const float *rows = turned(s, d, &scratch);
    float *bias = taken(&scratch, gates_size), *panels = scratch;
    int has_bias = w->bias_ih.data && w->bias_hh.data;
    for (int64_t k = 0; has_bias && k < gates_size; k++)
        bias[k] = w->bias_ih.data[k * w->bias_ih.of_row] + w->bias_hh.data[k * w->bias_hh.of_row];
    times(N, I, gates_size, dense(rows, I), w->ih, panels, gates);
    copied(hidden, f->h0 ? f->h0 + d * B * H : 0, B * H);
    copied(cells, f->c0 ? f->c0 + d * B * H : 0, B * H);
    packed(w->hh, GATES, H, H, panels);
    Forward walk = {
        .directions = 1, .hidden_size = H, .state_size = H, .steps = s->steps, .keep = 1,
        .gates = {gates, 0}, .hidden = {hidden, 0}, .cells = {cells, 0}, .projected = {gates, 0},
        .weight_hh = {panels, 0}, .bias = {has_bias ? bias : 0}, .rows = N, .back = d - 1,
        .reverse = s->reverse, .output = f->output + d * H, .of_output = D * H,
    };
    current->forward(&walk, 0, 0, B);
    last_states(s, hidden + B * H, f->h_n + d * B * H);
    last_states(s, cells + B * H, f->c_n + d * B * H);
}

/* The hidden state that each row began with, (N, H). */
static const float *states_before(const Layer *s, const float *hidden, float **scratch) {
    int64_t H = s->hidden_size, B = s->steps.batch, row = 0, before = 0;
    float *out;
    if (!s->steps.sizes)
        return hidden;
    out = taken(scratch, s->rows * H);
    for (int64_t t = 0; t < s->steps.steps; t++) {
        int64_t size = s->steps.sizes[t];
        copied(out + row * H, hidden + before * H, size * H);
        before = B + row;
        row += size;
    }
    return out;
}

static void backward_direction(const void *argument, int64_t d) {
    const Pass *pass = argument;
    const LayerBackward *b = pass->job;
    const Layer *s = pass->layer;
    const Weights *w = &s->weights[d];
    int64_t D = s->directions, I = s->input_size, H = s->hidden_size, N = s->rows;
    int64_t gates_size = GATES * H, B = s->steps.batch;
    float *d_ih = b->weights[d].ih, *d_hh = b->weights[d].hh, *d_bias = b->weights[d].bias;
    float *hidden = s->hidden + d * (B + N) * H, *cells = s->cells + d * (B + N) * H;
    if (!b->data && !b->h0 && !b->c0 && !d_ih && !d_hh && !d_bias)
        return;
    float *scratch = pass->scratch + d * pass->size;
    float *dh = taken(&scratch, B * H), *dh_n = taken(&scratch, B * H);
    float *dc = taken(&scratch, B * H), *dgates = taken(&scratch, N * gates_size);
    copied(dh_n, b->h_n ? b->h_n + d * B * H : 0, B * H);
    copied(dc, b->c_n ? b->c_n + d * B * H : 0, B * H);
    packed(transposed(w->hh), 1, H, gates_size, scratch);
    Backward walk = {
        .directions = 1, .hidden_size = H, .state_size = H, .steps = s->steps, .row = N,
        .gates = {s->gates + d * N * gates_size, 0}, .cells = {cells, 0}, .dh = {dh, 0},
        .dh_n = {dh_n, 0}, .dc = {dc, 0}, .dgates = {dgates, 0}, .weight_hh = {scratch, 0},
        .back = d - 1, .reverse = s->reverse, .output = b->output ? b->output + d * H : 0,
        .of_step = (s->steps.sizes ? 1 : B) * D * H, .of_sequence = D * H, .of_unit = 1,
        .sums = {.chunks = d_bias ? (N + CHUNK - 1) / CHUNK : 0, .of_span = N, .biases = {d_bias}},
    };
    current->backward(&walk, 0, 0, B);
    Matrix rows_of_gates = dense(dgates, gates_size);
    if (b->c0)
        copied(b->c0 + d * B * H, dc, B * H);
    if (b->h0)
        times(B, gates_size, H, rows_of_gates, transposed(w->hh), scratch, b->h0 + d * B * H);
    if (b->data)
        times(N, gates_size, I, rows_of_gates, transposed(w->ih), scratch,
              d ? pass->scratch + D * pass->size : b->data);
    if (d_ih) {
        const float *rows = turned(s, d, &scratch);
        times(gates_size, N, I, transposed(rows_of_gates), transposed(dense(rows, I)), scratch, d_ih);
    }
    if (d_hh) {
        const float *rows = states_before(s, hidden, &scratch);
        times(gates_size, N, H, transposed(rows_of_gates), transposed(dense(rows, H)), scratch, d_hh);
    }
}

/* Adds what the second direction found to the gradients of the input. */
static void add_second(const Pass *pass, float *data) {
    const Layer *s = pass->layer;
    const float *part = pass->scratch + 2 * pass->size;
    int64_t I = s->input_size;
    for (int64_t n = 0; n < s->rows; n++)
        for (int64_t k = 0; k < I; k++)
            data[turned_row(s, 1, n) * I + k] += part[n * I + k];
}

/* Whether every row swaps with one that there is. */
static int rows_are_there(const Layer *s) {
    for (int64_t n = 0; s->reverse && n < s->rows; n++)
        if (s->reverse[n] < 0 || s->reverse[n] >= s->rows)
            return 0;
    return 1;
}

#define WORTH_A_THREAD ((int64_t)1 << 20) /* of numbers packed, of which each is as long as 16 products */

/* Runs one of the passes, whose scratch memory the caller frees; -1 with an exception set. */
static int run_layer(Pass *pass, void (*run)(const void *, int64_t), int64_t threads) {
    const Layer *s = pass->layer;
    int64_t D = s->directions, numbers = D * GATES * s->hidden_size * (s->input_size + s->hidden_size);
    if (!rows_are_there(s)) {
        PyErr_SetString(PyExc_IndexError, "`reverse` must hold rows of the input");
        return -1;
    }
    if (!scratch_of(pass)) {
        PyErr_NoMemory();
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    run_units(pass, run, D, numbers * (16 + s->rows) < WORTH_A_THREAD ? 1 : threads);
    Py_END_ALLOW_THREADS
    return 0;
}
