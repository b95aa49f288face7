/* The loops of _timeloop.c for one instruction set, which its macros describe. */

#define NAMED_(name, level) name##_##level
#define NAMED(name, level) NAMED_(name, level)
#define OWN(name) NAMED(name, LEVEL)
#define VECTOR OWN(Vector)
#define TILE_ROW(tile, panel, row) ((tile) + ((panel) * CHUNK + (row)) * LANES)

typedef float VECTOR __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE TARGET void OWN(pack_gate)(const float *in, int64_t of_row, int64_t of_column, int64_t depth,
                                  int64_t units, float *restrict out) {
    for (int64_t k = 0; k < depth; k++)
        for (int64_t j = 0; j < LANES; j++)
            out[k * LANES + j] = j < units ? in[j * of_row + k * of_column] : 0.0f;
}

/* Panels of LANES columns: [unit / LANES][gate][depth][unit % LANES], padded with zeros; this packs
 * all gates of one. */
TARGET static void OWN(pack)(const Packing *s, int64_t panel) {
    int64_t first = panel * LANES, units = smaller(LANES, s->units - first);
    for (int64_t g = 0; g < s->gates; g++) {
        const float *in = s->data + (g * s->units + first) * s->of_row;
        float *out = s->panels + (panel * s->gates + g) * s->depth * LANES;
        if (units < LANES)
            OWN(pack_gate)(in, s->of_row, s->of_column, s->depth, units, out);
        else if (s->of_row == 1)
            OWN(pack_gate)(in, 1, s->of_column, s->depth, LANES, out);
        else if (s->of_column == 1)
            OWN(pack_gate)(in, s->of_row, 1, s->depth, LANES, out);
        else
            OWN(pack_gate)(in, s->of_row, s->of_column, s->depth, LANES, out);
    }
}

/* m rows, (m, depth), times q panels, into `out`, with these strides of rows and panels, and
 * `panel_depth` floats from one depth of a panel to the next. What is at `added` (its panels lie as
 * those of `out`) is added; null for nothing. */
INLINE TARGET void OWN(tile_of)(const float *rows, int64_t of_row, int64_t of_depth,
                                const float *panels, int64_t panel_size, int64_t panel_depth,
                                int64_t depth, float *out,
                                int64_t out_row, int64_t out_panel, const float *added,
                                int64_t added_row, const int m, const int q) {
    VECTOR sums[2 * MOST_ROWS][MOST_PANELS], columns[MOST_PANELS];
    for (int r = 0; r < m; r++)
        for (int p = 0; p < q; p++)
            sums[r][p] = (VECTOR){0};
    for (int64_t k = 0; k < depth; k++) {
#pragma GCC unroll 4
        for (int p = 0; p < q; p++)
            columns[p] = *(const VECTOR *)(panels + p * panel_size + k * panel_depth);
#pragma GCC unroll 12
        for (int r = 0; r < m; r++) {
            /* In every lane: minus zero is exact. */
            VECTOR x = rows[r * of_row + k * of_depth] - (VECTOR){0};
#pragma GCC unroll 4
            for (int p = 0; p < q; p++)
                sums[r][p] = VECTOR_MULTIPLY_ADD(x, columns[p], sums[r][p]);
        }
    }
    for (int r = 0; r < m; r++)
        for (int p = 0; p < q; p++) {
            if (added)
                sums[r][p] += *(const VECTOR *)(added + r * added_row + p * out_panel);
            *(VECTOR *)(out + r * out_row + p * out_panel) = sums[r][p];
        }
}

#define TILE_CASE(m, q)                                                                            \
    case 8 * m + q:                                                                                \
        if (turned)                                                                                \
            OWN(tile_of)(rows, 1, MOST_ROWS, panels, panel_size, LANES, depth, out, out_row, out_panel,   \
                         added, added_row, m, q);                                                  \
        else                                                                                       \
            OWN(tile_of)(rows, width, 1, panels, panel_size, LANES, depth, out, out_row, out_panel,       \
                         added, added_row, m, q);                                                  \
        return;

/* The same with m and q known to the compiler, and of rows `width` apart or, `turned`, of rows side
 * by side with MOST_ROWS from one depth to the next. */
TARGET static void OWN(tile)(const float *rows, int64_t width, int turned, const float *panels,
                             int64_t panel_size, int64_t depth, float *out, int64_t out_row,
                             int64_t out_panel, const float *added, int64_t added_row, int m,
                             int q) {
    switch (8 * m + q) {
        TILE_CASE(1, 1) TILE_CASE(1, 2) TILE_CASE(1, 3) TILE_CASE(1, 4)
        TILE_CASE(2, 1) TILE_CASE(2, 2) TILE_CASE(2, 3) TILE_CASE(2, 4)
        TILE_CASE(3, 1) TILE_CASE(3, 2) TILE_CASE(3, 3) TILE_CASE(3, 4)
        TILE_CASE(4, 1) TILE_CASE(4, 2) TILE_CASE(4, 3)
        TILE_CASE(5, 1) TILE_CASE(5, 2)
        TILE_CASE(6, 1) TILE_CASE(6, 2)
#if TILE >= 24
        TILE_CASE(7, 1) TILE_CASE(8, 1) TILE_CASE(9, 1) TILE_CASE(10, 1) TILE_CASE(11, 1)
        TILE_CASE(12, 1)
        TILE_CASE(5, 3) TILE_CASE(6, 3)
        TILE_CASE(4, 4) TILE_CASE(5, 4) TILE_CASE(6, 4)
#endif
    }
}

/* Up to CHUNK rows times panels, over one block of their depth, into `out`. Rows are `width` apart
 * or, `turned`, as `turn` leaves them. */
TARGET static void OWN(product_block)(const float *rows, int64_t width, int turned, int64_t count,
                                      const float *panels, int64_t panel_size, int64_t depth,
                                      int64_t count_panels, float *out, int64_t out_row,
                                      int64_t out_panel, const float *added, int64_t added_row) {
    int64_t of_tile = count_panels == 1 && !turned ? ROWS_OF_ONE : MOST_ROWS;
    int64_t blocks = (count + of_tile - 1) / of_tile;
    int most = (int)((count + blocks - 1) / blocks);
    for (int64_t p = 0, q; p < count_panels; p += q) {
        for (q = count_panels - p == 3 ? 3 : MOST_PANELS;
             q > 1 && (q * most > TILE || q > count_panels - p);)
            q /= 2;
        for (int64_t b = 0; b < blocks; b++) {
            int64_t r = count * b / blocks;
            OWN(tile)(turned ? rows + b * MOST_ROWS * depth : rows + r * width, width, turned,
                      panels + p * panel_size, panel_size, depth,
                      out + r * out_row + p * out_panel, out_row, out_panel,
                      added ? added + r * added_row + p * out_panel : 0, added_row,
                      (int)(count * (b + 1) / blocks - r), (int)q);
        }
    }
}

/* Up to CHUNK rows, (count, depth), times panels, into `out`. Each number is the sum of the depth's
 * blocks, in their order. */
INLINE TARGET void OWN(product_into)(const float *rows, int64_t width, int64_t count,
                                     const float *panels, int64_t depth, int64_t count_panels,
                                     float *out, int64_t out_row, int64_t out_panel) {
    for (int64_t k = 0, most = block_of(depth, DEPTH_BLOCK); k < depth; k += most)
        OWN(product_block)(rows + k, width, 0, count, panels + k * LANES, depth * LANES,
                           smaller(most, depth - k), count_panels, out, out_row, out_panel,
                           k ? out : 0, out_row);
}

/* The same of up to MOST_PANELS panels into a tile. */
TARGET static void OWN(product)(const float *rows, int64_t width, int64_t count,
                                const float *panels, int64_t depth, int count_panels,
                                float *tile) {
    OWN(product_into)(rows, width, count, panels, depth, count_panels, tile, LANES, CHUNK * LANES);
}

/* Rows that lie side by side, (depth, count), tile by tile as the innermost loop reads them. */
TARGET static void OWN(turn)(const float *rows, int64_t of_depth, int64_t count, int64_t depth,
                             float *restrict out) {
    int64_t blocks = (count + MOST_ROWS - 1) / MOST_ROWS;
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = count * b / blocks, m = count * (b + 1) / blocks - first;
        float *tile = out + b * MOST_ROWS * depth;
        if (m == MOST_ROWS)
            for (int64_t k = 0; k < depth; k++)
                memcpy(tile + k * MOST_ROWS, rows + k * of_depth + first, MOST_ROWS * sizeof(float));
        else
            for (int64_t k = 0; k < depth; k++)
                for (int64_t r = 0; r < m; r++)
                    tile[k * MOST_ROWS + r] = rows[k * of_depth + first + r];
    }
}

/* Rows [low, low + count), at most CHUNK, of a product, in the columns of panels [from, to). Each
 * number is the sum of the depth's blocks, in their order. */
TARGET static void OWN(multiply)(const Multiply *s, int64_t low, int64_t count, int64_t from,
                                 int64_t to) {
    float scratch[CHUNK * DEPTH_BLOCK], tile[MOST_PANELS * CHUNK * LANES];
    int64_t last = smaller(to * LANES, s->columns), whole = s->columns / LANES;
    int64_t panel_size = s->depth * LANES, N = s->columns;
    int turned = s->of_depth != 1;
    float *out = s->out + low * N;
    for (int64_t k = 0, most = block_of(s->depth, DEPTH_BLOCK); k < s->depth; k += most) {
        const float *rows = s->matrix + low * s->of_row + k * s->of_depth;
        int64_t depth = smaller(most, s->depth - k);
        const float *added = k ? out : 0;
        if (turned) {
            OWN(turn)(rows, s->of_depth, count, depth, scratch);
            rows = scratch;
        }
        for (int64_t p = from, q; p < to; p += q) {
            const float *panels = s->panels + p * panel_size + k * LANES;
            q = smaller(MOST_PANELS, to - p);
            if (p + q <= whole) {
                OWN(product_block)(rows, s->of_row, turned, count, panels, panel_size, depth, q,
                                   out + p * LANES, N, LANES, added ? added + p * LANES : 0, N);
                continue;
            }
            OWN(product_block)(rows, s->of_row, turned, count, panels, panel_size, depth, q, tile,
                               MOST_PANELS * LANES, LANES, 0, 0);
            for (int64_t r = 0; r < count; r++) {
                const float *sums = tile + r * MOST_PANELS * LANES;
                for (int64_t j = p * LANES; j < last; j++)
                    out[r * N + j] = added ? sums[j - p * LANES] + added[r * N + j]
                                           : sums[j - p * LANES];
            }
        }
    }
}

/* beside.t() @ rows, of OUTER_ROWS columns beside up to CHUNK rows, (count, width): the first `columns`
 * of them are written to `out`, (columns, width), or added to what is there. */
TARGET static void OWN(outer)(const float *beside, const float *rows, int64_t width, int64_t count,
                              float *out, int64_t columns, int adds) {
    float rest[CHUNK * LANES], sums[OUTER_ROWS * OUTER_PANELS * LANES];
    for (int64_t k = 0, wide; k < width; k += wide) {
        const float *panels = rows + k;
        int64_t of_row = width, left = width - k, whole = columns == OUTER_ROWS && left >= LANES;
        wide = left < OUTER_PANELS * LANES ? smaller(LANES, left) : OUTER_PANELS * LANES;
        if (wide < LANES) {
            for (int64_t n = 0; n < count; n++)
                for (int64_t j = 0; j < LANES; j++)
                    rest[n * LANES + j] = j < wide ? panels[n * width + j] : 0.0f;
            panels = rest;
            of_row = LANES;
        }
        float *to = whole ? out + k : sums;
        int64_t to_row = whole ? width : OUTER_PANELS * LANES;
        const float *added = whole && adds ? to : 0;
        if (wide == OUTER_PANELS * LANES)
            OWN(tile_of)(beside, 1, OUTER_ROWS, panels, LANES, of_row, count, to, to_row, LANES, added,
                         to_row, OUTER_ROWS, OUTER_PANELS);
        else
            OWN(tile_of)(beside, 1, OUTER_ROWS, panels, LANES, of_row, count, to, to_row, LANES, added,
                         to_row, OUTER_ROWS, 1);
        for (int64_t r = 0; !whole && r < columns; r++)
            for (int64_t j = 0; j < wide; j++) {
                float *sum = out + r * width + k + j;
                *sum = adds ? *sum + sums[r * to_row + j] : sums[r * to_row + j];
            }
    }
}

/* The same of any number of columns, `of_beside` apart from one row to the next. */
TARGET static void OWN(outers)(const float *beside, int64_t of_beside, int64_t columns,
                               const float *rows, int64_t width, int64_t count, float *out,
                               int adds) {
    float some[CHUNK * OUTER_ROWS];
    for (int64_t first = 0; first < columns; first += OUTER_ROWS) {
        int64_t last = smaller(OUTER_ROWS, columns - first);
        for (int64_t r = 0; r < count; r++) {
            const float *from = beside + r * of_beside + first;
            if (last == OUTER_ROWS)
                memcpy(some + r * OUTER_ROWS, from, OUTER_ROWS * sizeof(float));
            else
                for (int64_t c = 0; c < OUTER_ROWS; c++)
                    some[r * OUTER_ROWS + c] = c < last ? from[c] : 0.0f;
        }
        OWN(outer)(some, rows, width, count, out + first * width, last, adds);
    }
}

/* Rows [first, first + count) of an operand's rows: where they are, or copied to `scratch`. */
INLINE const float *OWN(chunk_of)(const Read *s, int64_t first, int64_t count, float *scratch) {
    if (!s->index)
        return s->rows + first * s->width;
    for (int64_t r = 0; r < count; r++)
        memcpy(scratch + r * s->width, s->rows + s->index[first + r] * s->width,
               (size_t)s->width * sizeof(float));
    return scratch;
}

/* The products of one direction's factors over up to CHUNK rows from `first` on, written to `out` or
 * added to what is there. */
TARGET static void OWN(factors)(const Factors *s, const float *dgates, int64_t G, int64_t first,
                                int64_t count, float *scratch, float *out, int adds) {
    int64_t R = s->sides[0].rank + s->sides[1].rank, all = (R + LANES - 1) / LANES * LANES;
    float *low = scratch, *thin = low + CHUNK * all, *gathered = thin + CHUNK * all;
    float *ups = out, *downs = out + R * G;
    if (s->panels_up)
        OWN(product_into)(dgates, G, count, s->panels_up, G, all / LANES, low, all, LANES);
    for (int k = 0; k < 2; k++) {
        const Side *side = &s->sides[k];
        int64_t r = side->rank, wide = (r + LANES - 1) / LANES * LANES, F = side->read.width;
        if (!r)
            continue;
        const float *rows = OWN(chunk_of)(&side->read, first, count, gathered);
        if (side->panels_down) {
            OWN(product_into)(rows, F, count, side->panels_down, F, wide / LANES, thin, wide, LANES);
            OWN(outers)(thin, wide, r, dgates, G, count, ups, adds);
        }
        if (s->panels_up)
            OWN(outers)(low, all, r, rows, F, count, downs, adds);
        ups += r * G;
        downs += r * F;
        low += r;
    }
}

/* The sum of rows, (count, width), written to `out` or added to what is there. */
TARGET static void OWN(sum_rows)(const float *rows, int64_t count, int64_t width, float *out,
                                 int adds) {
    int64_t k = 0;
    for (; k + MOST_PANELS * LANES <= width; k += MOST_PANELS * LANES) {
        VECTOR sums[MOST_PANELS] = {{0}};
        for (int64_t n = 0; n < count; n++)
            for (int p = 0; p < MOST_PANELS; p++)
                sums[p] += *(const VECTOR *)(rows + n * width + k + p * LANES);
        for (int p = 0; p < MOST_PANELS; p++) {
            VECTOR *sum = (VECTOR *)(out + k + p * LANES);
            if (adds)
                sums[p] += *sum;
            *sum = sums[p];
        }
    }
    for (; k < width; k++) {
        float sum = 0.0f;
        for (int64_t n = 0; n < count; n++)
            sum += rows[n * width + k];
        out[k] = adds ? out[k] + sum : sum;
    }
}

/* The sums over the rows of one chunk of one direction, of which the gates' gradients are there. */
TARGET static void OWN(sum_chunk)(const Backward *s, int64_t d, int64_t chunk) {
    const Sums *of = &s->sums;
    const Factors *factors = &of->factors[d];
    int64_t G = GATES * s->hidden_size, first = chunk * CHUNK;
    int64_t count = smaller(CHUNK, s->row - first), span = chunk / of->of_span;
    int adds = chunk + 1 < smaller(of->chunks, (span + 1) * of->of_span);
    const float *dgates = at(s->dgates, d, first, G);
    if (of->biases[d])
        OWN(sum_rows)(dgates, count, G, of->biases[d] + span * G, adds);
    if (factors->out)
        OWN(factors)(factors, dgates, G, first, count,
                     of->scratch + (d * of->spans + span) * of->of_scratch,
                     factors->out + span * factors->of_out, adds);
}

/* From the input's part of the gates, `of_gate` apart, the bias, `of_bias` apart, and the state's
 * part in a tile. */
INLINE TARGET void OWN(forward_units)(int64_t H, int width, const float *tile, const float *input,
                                      int64_t of_gate, const float *bias, int64_t of_bias,
                                      float *gates, const float *c_before, float *c, float *h,
                                      int keep) {
    INDEPENDENT
    for (int k = 0; k < width; k++) {
        float a[GATES];
        for (int g = 0; g < GATES; g++)
            a[g] = input[g * of_gate + k] + bias[g * of_bias + k] + TILE_ROW(tile, g, 0)[k];
        float i = sigmoid(a[0], FUSED), f = sigmoid(a[1], FUSED);
        float g = hyperbolic_tangent(a[2], FUSED), o = sigmoid(a[3], FUSED);
        float next = multiply_add(f, c_before[k], i * g, FUSED);
        if (keep) {
            gates[k] = i;
            gates[H + k] = f;
            gates[2 * H + k] = g;
            gates[3 * H + k] = o;
        }
        c[k] = next;
        h[k] = o * hyperbolic_tangent(next, FUSED);
    }
}

/* The same for fewer units than lanes, in whole vectors: a copy of them, filled up with zeros. */
TARGET static void OWN(forward_last_units)(int64_t H, int width, const float *tile,
                                           const float *input, int64_t of_gate,
                                           const float *bias, int64_t of_bias, float *gates,
                                           const float *c_before, float *c, float *h, int keep) {
    float own_gates[GATES * LANES] = {0}, own_bias[GATES * LANES] = {0};
    float own_c[LANES] = {0}, own_h[LANES];
    for (int k = 0; k < width; k++) {
        for (int g = 0; g < GATES; g++) {
            own_gates[g * LANES + k] = input[g * of_gate + k];
            own_bias[g * LANES + k] = bias[g * of_bias + k];
        }
        own_c[k] = c_before[k];
    }
    OWN(forward_units)(LANES, LANES, tile, own_gates, LANES, own_bias, LANES, own_gates, own_c, own_c,
                       own_h, 1);
    for (int k = 0; k < width; k++) {
        for (int g = 0; keep && g < GATES; g++)
            gates[g * H + k] = own_gates[g * LANES + k];
        c[k] = own_c[k];
        h[k] = own_h[k];
    }
}

/* The input's part of the gates of a panel of units, (count, GATES, LANES): as `multiply` sums it up. */
TARGET static void OWN(input_gates)(const Forward *s, int64_t d, int64_t row, int64_t count,
                                    int64_t u, float *out) {
    int64_t I = s->input_size;
    OWN(product_into)(s->input[d] + row * I, I, count, at(s->weight_ih, d, 0, 0) + u * GATES * I, I,
                      GATES, out, GATES * LANES, LANES);
}

/* The units of the panel from `u` on, in one step of up to CHUNK sequences from `first` on, before any
 * projection. The step's states before and after it begin with these rows of `hidden`. */
TARGET static void OWN(forward_panel)(const Forward *s, int64_t d, int64_t row, int64_t size,
                                      int64_t before, int64_t after, int64_t first, int64_t count,
                                      int64_t u) {
    int64_t H = s->hidden_size, P = s->state_size, batch = s->steps.batch;
    float tile[GATES * CHUNK * LANES], of_input[GATES * CHUNK * LANES];
    const float no_bias[LANES] = {0};
    int computes = s->weight_ih.data != 0, width = (int)smaller(LANES, H - u);
    int64_t source = computes ? row : row - s->row;
    if (s->mirrored && d == s->back)
        source = (computes ? s->rows : s->steps.steps * batch) - source - size;
    const float *projected = computes ? 0 : at(s->projected, d, source + first, GATES * H) + u;
    float *gates = s->keep ? at(s->gates, d, row + first, GATES * H) + u : 0;
    const float *c_before = at(s->cells, d, (s->keep ? before : 0) + first, H) + u;
    float *c = at(s->cells, d, (s->keep ? after : 0) + first, H) + u;
    float *h = (s->weight_hr.data ? at(s->squashed, d, first, H)
                                  : at(s->hidden, d, after + first, H)) + u;
    const float *bias = s->bias[d] ? s->bias[d] + u : no_bias;
    if (computes)
        OWN(input_gates)(s, d, source + first, count, u, of_input);
    for (int64_t r = 0; r < count; r++)
        for (int g = 0; g < GATES; g++) {
            if (projected)
                __builtin_prefetch(projected + (r * GATES + g) * H, 0, 2);
            if (gates && gates != projected)
                __builtin_prefetch(gates + (r * GATES + g) * H, 1, 2);
        }
    OWN(product)(at(s->hidden, d, before + first, P), P, count,
                 at(s->weight_hh, d, 0, 0) + u * GATES * P, P, GATES, tile);
    for (int64_t r = 0; r < count; r++) {
        const float *sums = TILE_ROW(tile, 0, r);
        float *g = gates ? gates + r * GATES * H : 0;
        const float *x = computes ? of_input + r * GATES * LANES : projected + r * GATES * H;
        int64_t of_gate = computes ? LANES : H, of_bias = s->bias[d] ? H : 0, k = r * H;
        if (width == LANES && s->keep)
            OWN(forward_units)(H, LANES, sums, x, of_gate, bias, of_bias, g, c_before + k, c + k,
                               h + k, 1);
        else if (width == LANES)
            OWN(forward_units)(H, LANES, sums, x, of_gate, bias, of_bias, g, c_before + k, c + k,
                               h + k, 0);
        else
            OWN(forward_last_units)(H, width, sums, x, of_gate, bias, of_bias, g, c_before + k, c + k,
                                    h + k, (int)s->keep);
    }
}

/* out (count, N) = rows (count, depth) times the panels of N columns. */
TARGET static void OWN(project)(const float *rows, int64_t depth, int64_t count,
                                const float *panels, float *out, int64_t N) {
    float tile[MOST_PANELS * CHUNK * LANES];
    for (int64_t u = 0; u < N; u += LANES) {
        OWN(product)(rows, depth, count, panels + u * depth, depth, 1, tile);
        for (int64_t r = 0; r < count; r++)
            memcpy(out + r * N + u, TILE_ROW(tile, 0, r),
                   (size_t)smaller(LANES, N - u) * sizeof(float));
    }
}

/* The states after a step of `count` sequences from `first` on, to their places in the output. */
TARGET static void OWN(put_out)(const Forward *s, int64_t d, int64_t row, int64_t size, int64_t after,
                                int64_t first, int64_t count) {
    int64_t P = s->state_size;
    for (int64_t r = first; s->output && r < first + count; r++)
        memcpy(s->output + d * P +
                   output_row(s->rows, s->reverse, d == s->back, row, size, r) * s->of_output,
               at(s->hidden, d, after + r, P), (size_t)P * sizeof(float));
}

/* Sequences [low, high) of one direction through all steps. */
TARGET static void OWN(forward)(const Forward *s, int64_t d, int64_t low, int64_t high) {
    int64_t row = s->row, H = s->hidden_size, P = s->state_size, batch = s->steps.batch;
    int64_t before = s->before;
    for (int64_t t = s->steps.first; t < s->steps.first + s->steps.steps; t++) {
        int64_t size = rows_of(&s->steps, t), last = smaller(high, size);
        int64_t most = block_of(last - low, CHUNK), after = batch + row;
        if (!s->keep) {
            before = t % 2 * batch;
            after = batch - before;
        }
        /* A panel serves all rows of the step while it is in cache. */
        for (int64_t u = 0; u < H; u += LANES)
            for (int64_t first = low; first < last; first += most)
                OWN(forward_panel)(s, d, row, size, before, after, first,
                                   smaller(most, last - first), u);
        for (int64_t first = low; first < last; first += most) {
            int64_t count = smaller(most, last - first);
            if (s->weight_hr.data)
                OWN(project)(at(s->squashed, d, first, H), H, count, at(s->weight_hr, d, 0, 0),
                             at(s->hidden, d, after + first, P), P);
            OWN(put_out)(s, d, row, size, after, first, count);
        }
        before = after;
        row += size;
    }
}

INLINE TARGET void OWN(backward_units)(int64_t H, int width, const float *later, const float *dh,
                                       float *dc, const float *gates, const float *c_before,
                                       const float *c, float *dgates) {
    INDEPENDENT
    for (int k = 0; k < width; k++) {
        float i = gates[k], f = gates[H + k], g = gates[2 * H + k], o = gates[3 * H + k];
        float hidden = dh ? dh[k] + later[k] : later[k];
        float squashed = hyperbolic_tangent(c[k], FUSED);
        float cell = dc[k] + hidden * o * (1.0f - squashed * squashed);
        dgates[k] = cell * g * (i * (1.0f - i));
        /* In this order: a large cell state must not overflow where f's own factor is 0. */
        dgates[H + k] = cell * (c_before[k] * (f * (1.0f - f)));
        dgates[2 * H + k] = cell * i * (1.0f - g * g);
        dgates[3 * H + k] = hidden * squashed * (o * (1.0f - o));
        dc[k] = cell * f;
    }
}

/* The same for fewer units than lanes, in whole vectors: a copy of them, filled up with zeros. */
TARGET static void OWN(backward_last_units)(int64_t H, int width, const float *later,
                                            const float *dh, float *dc, const float *gates,
                                            const float *c_before, const float *c, float *dgates) {
    float own_gates[GATES * LANES] = {0}, own_c[3 * LANES] = {0}, own_dgates[GATES * LANES];
    float own_dh[LANES] = {0};
    for (int k = 0; k < width; k++) {
        for (int g = 0; g < GATES; g++)
            own_gates[g * LANES + k] = gates[g * H + k];
        own_c[k] = c_before[k];
        own_c[LANES + k] = c[k];
        own_c[2 * LANES + k] = dc[k];
        own_dh[k] = dh ? dh[k] : 0.0f;
    }
    OWN(backward_units)(LANES, LANES, later, dh ? own_dh : 0, own_c + 2 * LANES, own_gates, own_c,
                        own_c + LANES, own_dgates);
    for (int k = 0; k < width; k++) {
        for (int g = 0; g < GATES; g++)
            dgates[g * H + k] = own_dgates[g * LANES + k];
        dc[k] = own_c[2 * LANES + k];
    }
}

/* What one step of up to CHUNK sequences works on, from its first row. */
typedef struct {
    float *dh, *dc, *dgates;
    const float *gates, *c_before, *c;
} OWN(Rows);

INLINE OWN(Rows) OWN(rows_from)(const Backward *s, int64_t d, int64_t row, int64_t before,
                                int64_t first) {
    int64_t H = s->hidden_size, G = GATES * H, here = row + first;
    return (OWN(Rows)){
        at(s->dh, d, s->weight_hr.data ? here : first, s->state_size), at(s->dc, d, first, H),
        at(s->dgates, d, here, G), at(s->gates, d, here, G), at(s->cells, d, before + first, H),
        at(s->cells, d, s->steps.batch + here, H),
    };
}

/* The units of `panels` panels from `u` on, given what reaches o * tanh(c) in a tile, and in dh. */
TARGET static void OWN(backward_tile)(int64_t H, int64_t u, int panels, int64_t count,
                                      const float *tile, const OWN(Rows) * s, const float *dh) {
    for (int64_t r = 0; r < count; r++)
        for (int p = 0; p < panels; p++) {
            int64_t unit = u + p * LANES, k = r * H + unit, g = r * GATES * H + unit;
            int width = (int)smaller(LANES, H - unit);
            const float *later = TILE_ROW(tile, p, r);
            if (width == LANES && dh)
                OWN(backward_units)(H, LANES, later, dh + k, s->dc + k, s->gates + g,
                                    s->c_before + k, s->c + k, s->dgates + g);
            else if (width == LANES)
                OWN(backward_units)(H, LANES, later, 0, s->dc + k, s->gates + g, s->c_before + k,
                                    s->c + k, s->dgates + g);
            else
                OWN(backward_last_units)(H, width, later, dh ? dh + k : 0, s->dc + k, s->gates + g,
                                         s->c_before + k, s->c + k, s->dgates + g);
        }
}

/* The panels from `u` on, in one step of up to CHUNK sequences. The first `running` of them have a later
 * step, whose gates' gradients are in `later`; the others end here, with the gradients `dh_n`. With a
 * projection this is the gradient of its results. */
TARGET static void OWN(backward_panels)(const Backward *s, int64_t d, const OWN(Rows) * here,
                                        const float *later, const float *dh_n, int64_t count,
                                        int64_t running, int64_t u) {
    int64_t H = s->hidden_size, P = s->state_size, end = smaller(P, u + MOST_PANELS * LANES);
    float tile[MOST_PANELS * CHUNK * LANES];
    int panels = (int)((end - u + LANES - 1) / LANES);
    if (running)
        OWN(product)(later, GATES * H, running, at(s->weight_hh, d, u, GATES * H), GATES * H, panels,
                     tile);
    for (int64_t r = running; r < count; r++)
        for (int64_t k = u; k < end; k++)
            TILE_ROW(tile, (k - u) / LANES, r)[(k - u) % LANES] = dh_n[r * P + k];
    if (!s->weight_hr.data)
        OWN(backward_tile)(H, u, panels, count, tile, here, here->dh);
    else
        for (int64_t r = 0; r < count; r++)
            for (int64_t k = u; k < end; k++)
                here->dh[r * P + k] += TILE_ROW(tile, (k - u) / LANES, r)[(k - u) % LANES];
}

/* The same of the units before a projection, given the gradient of its results. */
TARGET static void OWN(backward_projected)(const Backward *s, int64_t d, const OWN(Rows) * here,
                                           int64_t count, int64_t u) {
    int64_t H = s->hidden_size, P = s->state_size;
    float tile[MOST_PANELS * CHUNK * LANES];
    int panels = (int)((smaller(H, u + MOST_PANELS * LANES) - u + LANES - 1) / LANES);
    OWN(product)(here->dh, P, count, at(s->weight_hr, d, u, P), P, panels, tile);
    OWN(backward_tile)(H, u, panels, count, tile, here, 0);
}

/* The output's gradient at a step of `count` sequences from `first` on, (count, P), to `out`. */
TARGET static void OWN(take_in)(const Backward *s, int64_t d, int64_t t, int64_t row, int64_t first,
                                int64_t count, float *out) {
    int64_t P = s->state_size, size = rows_of(&s->steps, t);
    int64_t step = d == s->back ? s->steps.steps - 1 - t : t;
    for (int64_t r = first; r < first + count; r++, out += P) {
        if (!s->output) {
            memset(out, 0, (size_t)P * sizeof(float));
            continue;
        }
        const float *in = s->output + d * P * s->of_unit;
        in += s->steps.sizes
                  ? output_row(s->row, s->reverse, d == s->back, row, size, r) * s->of_step
                  : step * s->of_step + r * s->of_sequence;
        if (s->of_unit == 1)
            memcpy(out, in, (size_t)P * sizeof(float));
        else
            for (int64_t k = 0; k < P; k++)
                out[k] = in[k * s->of_unit];
    }
}

/* Sequences [low, high) of one direction back through all steps. */
TARGET static void OWN(backward)(const Backward *s, int64_t d, int64_t low, int64_t high) {
    int64_t H = s->hidden_size, P = s->state_size;
    int64_t end = s->row, later = 0, chunk = makes_sums(s, low, high) ? s->sums.chunks : 0;
    int projects = s->weight_hr.data != 0;
    for (int64_t t = s->steps.first + s->steps.steps - 1; t >= s->steps.first; t--) {
        int64_t size = rows_of(&s->steps, t), row = end - size, last = smaller(high, size);
        int64_t before = t ? s->steps.batch + row - rows_of(&s->steps, t - 1) : 0;
        int64_t most = block_of(last - low, CHUNK), wide = MOST_PANELS * LANES;
        if (low < last)
            OWN(take_in)(s, d, t, row, low, last - low, at(s->dh, d, projects ? row + low : low, P));
        /* Panels serve all rows of the step while they are in cache. */
        for (int64_t u = 0; u < P; u += wide)
            for (int64_t first = low; first < last; first += most) {
                int64_t count = smaller(most, last - first);
                int64_t running = smaller(count, later > first ? later - first : 0);
                OWN(Rows) here = OWN(rows_from)(s, d, row, before, first);
                OWN(backward_panels)(s, d, &here, at(s->dgates, d, end + first, GATES * H),
                                     at(s->dh_n, d, first, P), count, running, u);
            }
        for (int64_t u = 0; projects && u < H; u += wide)
            for (int64_t first = low; first < last; first += most) {
                OWN(Rows) here = OWN(rows_from)(s, d, row, before, first);
                OWN(backward_projected)(s, d, &here, smaller(most, last - first), u);
            }
        end = row;
        later = size;
        for (; chunk && (chunk - 1) * CHUNK >= row; chunk--)
            OWN(sum_chunk)(s, d, chunk - 1);
    }
}

#undef LEVEL
#undef TARGET
#undef LANES
#undef TILE
#undef FUSED
#undef VECTOR_MULTIPLY_ADD
#undef NAMED_
#undef NAMED
#undef OWN
#undef VECTOR
#undef TILE_ROW
#undef TILE_CASE
