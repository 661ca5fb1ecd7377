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
#define CHAINS 4       /* sums of a unit that do not wait for each other */
/* How many vectors of one unit the registers hold, CHAINS times each. */
#define AT_ONCE (TILE >= CHAINS * MOST_VECTORS ? MOST_VECTORS : 1)

INLINE int count_vectors(int64_t samples) {
    return samples > 48 ? 4 : samples > 16 ? 2 : 1;
}

/* Sum a unit's inputs: weight k is added to chain k mod CHAINS. */
INLINE void sum_inputs(int n, const float *x, ptrdiff_t pitch, const float *values,
                       const int32_t *columns, int64_t count, lanes bias, float *out) {
    lanes sums[CHAINS][MOST_VECTORS];
    UNROLL for (int c = 0; c < CHAINS; c++)
        UNROLL for (int v = 0; v < n; v++) sums[c][v] = c ? zero() : bias;
    int64_t k = 0;
    for (; k + CHAINS <= count; k += CHAINS)
        UNROLL for (int c = 0; c < CHAINS; c++) {
            const float *in = x + columns[k + c] * pitch;
            lanes value = spread(values[k + c]);
            UNROLL for (int v = 0; v < n; v++)
                sums[c][v] = fused(value, load(in + v * NUM_LANES), sums[c][v]);
        }
    for (; k < count; k++) {
        const float *in = x + columns[k] * pitch;
        lanes value = spread(values[k]);
        UNROLL for (int v = 0; v < n; v++)
            sums[0][v] = fused(value, load(in + v * NUM_LANES), sums[0][v]);
    }
    UNROLL for (int v = 0; v < n; v++)
        store(out + v * NUM_LANES, add(add(sums[0][v], sums[1][v]), add(sums[2][v], sums[3][v])));
}

INLINE void forward_block(int n, const float *lanes_of_x, int64_t outputs, const int32_t *starts,
                          const int32_t *columns, const float *values, const float *bias,
                          int64_t samples, float *y) {
    const int at_once = n < AT_ONCE ? n : AT_ONCE;
    float unit[NUM_LANES][MOST_VECTORS * NUM_LANES];
    for (int64_t first = 0; first < outputs; first += NUM_LANES) {
        int units = least(outputs - first, NUM_LANES);
        for (int u = 0; u < units; u++) {
            int64_t start = starts[first + u], count = starts[first + u + 1] - start;
            for (int v = 0; v < n; v += at_once)
                sum_inputs(at_once, lanes_of_x + v * NUM_LANES, n * NUM_LANES, values + start,
                           columns + start, count, spread(bias[first + u]),
                           unit[u] + v * NUM_LANES);
        }
        for (int v = 0; v < n; v++) {
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
        int n = count_vectors(samples);
        for (int v = 0; v < n; v++)
            rows_to_lanes(x + v * NUM_LANES * inputs, inputs,
                          least(samples - v * NUM_LANES, NUM_LANES), (int)inputs,
                          lanes_of_x + v * NUM_LANES, n * NUM_LANES);
        if (n == 1)
            forward_block(1, lanes_of_x, outputs, starts, columns, values, bias, samples, y);
        else if (n == 2)
            forward_block(2, lanes_of_x, outputs, starts, columns, values, bias, samples, y);
        else
            forward_block(4, lanes_of_x, outputs, starts, columns, values, bias, samples, y);
        samples -= n * NUM_LANES;
        x += n * NUM_LANES * inputs;
        y += n * NUM_LANES * outputs;
        lanes_of_x += n * NUM_LANES * inputs;
    }
}

/* One weight sends its unit's gradient back to its input's, and meets the input in its own. */
INLINE lanes pass_weight(int n, const lanes *gradient, float value, const float *x, float *dx) {
    lanes product = multiply(gradient[0], load(x));
    UNROLL for (int v = 1; v < n; v++)
        product = fused(gradient[v], load(x + v * NUM_LANES), product);
    if (dx)
        UNROLL for (int v = 0; v < n; v++) {
            float *to = dx + v * NUM_LANES;
            store(to, fused(spread(value), gradient[v], load(to)));
        }
    return product;
}

/* All weights of a unit, sixteen at a time. */
INLINE void pass_weights(int n, const float *dy, const float *x, float *dx, const float *values,
                         const int32_t *columns, int64_t count, float *dvalues, int is_first) {
    lanes gradient[MOST_VECTORS], products[NUM_LANES];
    UNROLL for (int v = 0; v < n; v++) gradient[v] = load(dy + v * NUM_LANES);
    int64_t k = 0;
    for (; k + NUM_LANES <= count; k += NUM_LANES) {
        UNROLL for (int j = 0; j < NUM_LANES; j++) {
            ptrdiff_t at = (ptrdiff_t)columns[k + j] * n * NUM_LANES;
            products[j] = pass_weight(n, gradient, values[k + j], x + at, dx ? dx + at : NULL);
        }
        lanes sums = sum_each(products);
        store(dvalues + k, is_first ? sums : add(load(dvalues + k), sums));
    }
    for (int j = 0; j < count - k; j++) {
        ptrdiff_t at = (ptrdiff_t)columns[k + j] * n * NUM_LANES;
        products[j] = pass_weight(n, gradient, values[k + j], x + at, dx ? dx + at : NULL);
    }
    if (k < count) put_sums(dvalues + k, products, (int)(count - k), is_first);
}

INLINE void backward_block(int n, const float *dy, const float *lanes_of_x,
                           int64_t outputs, const int32_t *starts, const int32_t *columns,
                           const float *values, int64_t samples, int is_first, float *lanes_of_dx,
                           float *dvalues, float *dbias) {
    float unit[NUM_LANES][MOST_VECTORS * NUM_LANES];
    for (int64_t first = 0; first < outputs; first += NUM_LANES) {
        int units = least(outputs - first, NUM_LANES);
        for (int v = 0; v < n; v++)
            rows_to_lanes(dy + v * NUM_LANES * outputs + first, outputs,
                          least(samples - v * NUM_LANES, NUM_LANES), units,
                          unit[0] + v * NUM_LANES, MOST_VECTORS * NUM_LANES);
        lanes totals[NUM_LANES];
        for (int u = 0; u < units; u++) {
            int64_t start = starts[first + u], count = starts[first + u + 1] - start;
            pass_weights(n, unit[u], lanes_of_x, lanes_of_dx, values + start,
                            columns + start, count, dvalues + start, is_first);
            totals[u] = load(unit[u]);
            UNROLL for (int v = 1; v < n; v++)
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
        int n = count_vectors(samples);
        if (dx) memset(lanes_of_dx, 0, sizeof(float) * n * NUM_LANES * inputs);
        if (n == 1)
            backward_block(1, dy, lanes_of_x, outputs, starts, columns, values, samples,
                              is_first, lanes_of_dx, dvalues, dbias);
        else if (n == 2)
            backward_block(2, dy, lanes_of_x, outputs, starts, columns, values, samples,
                              is_first, lanes_of_dx, dvalues, dbias);
        else
            backward_block(4, dy, lanes_of_x, outputs, starts, columns, values, samples,
                              is_first, lanes_of_dx, dvalues, dbias);
        if (dx) {
            for (int v = 0; v < n; v++)
                lanes_to_rows(lanes_of_dx + v * NUM_LANES, n * NUM_LANES,
                              least(samples - v * NUM_LANES, NUM_LANES), (int)inputs,
                              dx + v * NUM_LANES * inputs, inputs);
            dx += n * NUM_LANES * inputs;
        }
        samples -= n * NUM_LANES;
        dy += n * NUM_LANES * outputs;
        lanes_of_x += n * NUM_LANES * inputs;
    }
}
