/* A linear layer from its kept weights: forward, and all gradients in one pass over the pattern.
 *
 * Samples are taken in blocks of 1, 2 or 4 times 16 lanes, inputs laid out as [I, lanes]; a kept
 * weight is one broadcast and a fused multiply-add for every 16 samples. Output units are taken 16
 * at a time, so that their samples are put together again while they are in the first cache.
 *
 * Shapes: N samples, I inputs, O outputs, K kept weights, starts [O + 1], columns [K].
 */
#include "lanes.h"

#define MOST_VECTORS 4 /* times 16 lanes at once */
#define QUARTER (NUM_LANES / 4)
#define CHAINS 4       /* sums of a unit that do not wait for each other */
/* How many vectors of one unit the registers hold, CHAINS times each. */
#define AT_ONCE (TILE >= CHAINS * MOST_VECTORS ? MOST_VECTORS : 1)

INLINE int count_vectors(int64_t samples) {
    return samples > 48 ? 4 : samples > NUM_LANES + QUARTER ? 2 : 1;
}

/* Whether the samples are one vector and a few more. */
INLINE int takes_quarter(int64_t samples) {
    return samples > NUM_LANES && samples <= NUM_LANES + QUARTER;
}

/* Take a block of samples apart: [samples, columns] -> lanes [columns], then quarters [columns]. */
static void block_to_lanes(const float *from, int64_t columns, int64_t samples, float *to) {
    const int n = count_vectors(samples);
    for (int v = 0; v < n; v++)
        rows_to_lanes(from + v * NUM_LANES * columns, columns,
                      least(samples - v * NUM_LANES, NUM_LANES), (int)columns,
                      to + v * NUM_LANES, n * NUM_LANES);
    if (!takes_quarter(samples)) return;
    const int left = (int)samples - NUM_LANES;
    from += NUM_LANES * columns;
    to += NUM_LANES * columns;
    for (int64_t column = 0; column < columns; column++, to += QUARTER)
        for (int b = 0; b < QUARTER; b++) to[b] = b < left ? from[b * columns + column] : 0.0f;
}

/* Put a block of samples together again. */
static void lanes_to_block(const float *from, int64_t columns, int64_t samples, float *to) {
    const int n = count_vectors(samples);
    for (int v = 0; v < n; v++)
        lanes_to_rows(from + v * NUM_LANES, n * NUM_LANES,
                      least(samples - v * NUM_LANES, NUM_LANES), (int)columns,
                      to + v * NUM_LANES * columns, columns);
    if (!takes_quarter(samples)) return;
    const int left = (int)samples - NUM_LANES;
    from += NUM_LANES * columns;
    to += NUM_LANES * columns;
    for (int b = 0; b < left; b++)
        for (int64_t column = 0; column < columns; column++)
            to[b * columns + column] = from[column * QUARTER + b];
}

/* Add a weight times its input to the sums of a unit. */
INLINE void add_input(const int n, const int has_quarter, const int pitch, const float *x,
                      const float *quarter, int32_t column, float weight, lanes *sums) {
    const float *in = x + (ptrdiff_t)column * pitch * NUM_LANES;
    const lanes value = spread(weight);
    UNROLL for (int v = 0; v < n; v++) sums[v] = fused(value, load(in + v * NUM_LANES), sums[v]);
    if (has_quarter)
        sums[n] = fused(value, load_quarter(quarter + (ptrdiff_t)column * QUARTER), sums[n]);
}

/* Sum a unit's inputs: weight k is added to chain k mod CHAINS. */
INLINE void sum_inputs(const int n, const int has_quarter, const int pitch, const float *x,
                       const float *quarter, const float *values, const int32_t *columns, int64_t count, lanes bias,
                       float *out) {
    lanes sums[CHAINS][MOST_VECTORS];
    const int vectors = n + has_quarter;
    UNROLL for (int c = 0; c < CHAINS; c++)
        UNROLL for (int v = 0; v < vectors; v++) sums[c][v] = c ? zero() : bias;
    int64_t k = 0;
    for (; k + CHAINS <= count; k += CHAINS)
        UNROLL for (int c = 0; c < CHAINS; c++)
            add_input(n, has_quarter, pitch, x, quarter, columns[k + c], values[k + c], sums[c]);
    for (; k < count; k++)
        add_input(n, has_quarter, pitch, x, quarter, columns[k], values[k], sums[0]);
    UNROLL for (int v = 0; v < vectors; v++)
        store(out + v * NUM_LANES, add(add(sums[0][v], sums[1][v]), add(sums[2][v], sums[3][v])));
}

INLINE void forward_block(const int n, const int has_quarter, const float *lanes_of_x,
                          int64_t inputs, int64_t outputs, const int32_t *starts,
                          const int32_t *columns, const float *values, const float *bias,
                          int64_t samples, float *y) {
    const int at_once = n < AT_ONCE ? n : AT_ONCE;
    float unit[NUM_LANES][MOST_VECTORS * NUM_LANES];
    for (int64_t first = 0; first < outputs; first += NUM_LANES) {
        int units = least(outputs - first, NUM_LANES);
        for (int u = 0; u < units; u++) {
            int64_t start = starts[first + u], count = starts[first + u + 1] - start;
            for (int v = 0; v < n; v += at_once)
                sum_inputs(at_once, has_quarter, n, lanes_of_x + v * NUM_LANES,
                           lanes_of_x + inputs * n * NUM_LANES, values + start, columns + start,
                           count, spread(bias[first + u]), unit[u] + v * NUM_LANES);
        }
        for (int v = 0; v < n + has_quarter; v++) {
            int left = least(samples - v * NUM_LANES, NUM_LANES);
            lanes_to_rows(unit[0] + v * NUM_LANES, MOST_VECTORS * NUM_LANES, left, units,
                          y + v * NUM_LANES * outputs + first, outputs);
        }
    }
}

/* y [N, O] = x [N, I] W' + bias [O].
 * `lanes_of_x` [count_lanes(N), I] is kept for the gradients: blocks of lanes, one after another. */
EXPORT void NAMED(linear_forward)(const float *x, int64_t samples, int64_t inputs, int64_t outputs,
                            const int32_t *starts, const int32_t *columns, const float *values,
                            const float *bias, float *lanes_of_x, float *y) {
    while (samples > 0) {
        const int n = count_vectors(samples), has_quarter = takes_quarter(samples);
        const int64_t lanes_each = n * NUM_LANES + has_quarter * QUARTER;
        block_to_lanes(x, inputs, samples, lanes_of_x);
#define FORWARD(n, has_quarter)                                                                    \
    forward_block(n, has_quarter, lanes_of_x, inputs, outputs, starts, columns, values, bias,      \
                  samples, y)
        if (has_quarter)
            FORWARD(1, 1);
        else if (n == 1)
            FORWARD(1, 0);
        else if (n == 2)
            FORWARD(2, 0);
        else
            FORWARD(4, 0);
        samples -= lanes_each;
        x += lanes_each * inputs;
        y += lanes_each * outputs;
        lanes_of_x += lanes_each * inputs;
    }
}

/* Lanes of inputs, and room for those of their gradients or NULL; the quarters stand behind them. */
struct block {
    const float *x, *x_quarter;
    float *dx, *dx_quarter;
};

/* One weight sends its unit's gradient back to its input's, and meets the input in its own. */
INLINE lanes pass_weight(const int n, const int has_quarter, const lanes *gradient,
                         struct block block, int32_t column, float weight) {
    const ptrdiff_t at = (ptrdiff_t)column * n * NUM_LANES, quarter = (ptrdiff_t)column * QUARTER;
    const float *x = block.x + at;
    lanes product = multiply(gradient[0], load(x));
    UNROLL for (int v = 1; v < n; v++)
        product = fused(gradient[v], load(x + v * NUM_LANES), product);
    if (has_quarter)
        product = fused(gradient[n], load_quarter(block.x_quarter + quarter), product);
    if (!block.dx) return product;
    UNROLL for (int v = 0; v < n; v++) {
        float *to = block.dx + at + v * NUM_LANES;
        store(to, fused(spread(weight), gradient[v], load(to)));
    }
    if (has_quarter) {
        float *to = block.dx_quarter + quarter;
        store_quarter(to, fused(spread(weight), gradient[n], load_quarter(to)));
    }
    return product;
}

/* All weights of a unit, sixteen at a time. */
INLINE void pass_weights(const int n, const int has_quarter, const float *dy, struct block block,
                         const float *values, const int32_t *columns, int64_t count,
                         float *dvalues, int is_first) {
    lanes gradient[MOST_VECTORS], products[NUM_LANES];
    UNROLL for (int v = 0; v < n + has_quarter; v++) gradient[v] = load(dy + v * NUM_LANES);
    int64_t k = 0;
    for (; k + NUM_LANES <= count; k += NUM_LANES) {
        UNROLL for (int j = 0; j < NUM_LANES; j++)
            products[j] = pass_weight(n, has_quarter, gradient, block, columns[k + j], values[k + j]);
        lanes sums = sum_each(products);
        store(dvalues + k, is_first ? sums : add(load(dvalues + k), sums));
    }
    for (int j = 0; j < count - k; j++)
        products[j] = pass_weight(n, has_quarter, gradient, block, columns[k + j], values[k + j]);
    if (k < count) put_sums(dvalues + k, products, (int)(count - k), is_first);
}

INLINE void backward_block(const int n, const int has_quarter, const float *dy, struct block block,
                           int64_t outputs, const int32_t *starts, const int32_t *columns,
                           const float *values, int64_t samples, int is_first, float *dvalues,
                           float *dbias) {
    float unit[NUM_LANES][MOST_VECTORS * NUM_LANES];
    for (int64_t first = 0; first < outputs; first += NUM_LANES) {
        int units = least(outputs - first, NUM_LANES);
        for (int v = 0; v < n + has_quarter; v++)
            rows_to_lanes(dy + v * NUM_LANES * outputs + first, outputs,
                          least(samples - v * NUM_LANES, NUM_LANES), units,
                          unit[0] + v * NUM_LANES, MOST_VECTORS * NUM_LANES);
        lanes totals[NUM_LANES];
        for (int u = 0; u < units; u++) {
            int64_t start = starts[first + u], count = starts[first + u + 1] - start;
            pass_weights(n, has_quarter, unit[u], block, values + start, columns + start, count,
                         dvalues + start, is_first);
            totals[u] = load(unit[u]);
            UNROLL for (int v = 1; v < n + has_quarter; v++)
                totals[u] = add(totals[u], load(unit[u] + v * NUM_LANES));
        }
        put_sums(dbias + first, totals, units, is_first);
    }
}

/* Gradients dx [N, I], dvalues [K] and dbias [O] from dy [N, O] and the forward's `lanes_of_x`.
 * `lanes_of_dx` [64, I] is room to work in; it and dx are NULL where dx is not wanted. */
EXPORT void NAMED(linear_backward)(const float *dy, const float *lanes_of_x, int64_t samples,
                             int64_t inputs, int64_t outputs, const int32_t *starts,
                             const int32_t *columns, const float *values, float *lanes_of_dx,
                             float *dx, float *dvalues, float *dbias) {
    for (int is_first = 1; samples > 0; is_first = 0) {
        const int n = count_vectors(samples), has_quarter = takes_quarter(samples);
        const int64_t lanes_each = n * NUM_LANES + has_quarter * QUARTER;
        const ptrdiff_t quarters = inputs * n * NUM_LANES;
        const struct block block = {lanes_of_x, lanes_of_x + quarters, lanes_of_dx,
                                    lanes_of_dx + (dx ? quarters : 0)};
        if (dx) memset(lanes_of_dx, 0, sizeof(float) * lanes_each * inputs);
#define BACKWARD(n, has_quarter)                                                                   \
    backward_block(n, has_quarter, dy, block, outputs, starts, columns, values, samples, is_first, \
                   dvalues, dbias)
        if (has_quarter)
            BACKWARD(1, 1);
        else if (n == 1)
            BACKWARD(1, 0);
        else if (n == 2)
            BACKWARD(2, 0);
        else
            BACKWARD(4, 0);
        if (dx) {
            lanes_to_block(lanes_of_dx, inputs, samples, dx);
            dx += lanes_each * inputs;
        }
        samples -= lanes_each;
        dy += lanes_each * outputs;
        lanes_of_x += lanes_each * inputs;
    }
}
