/* A convolution from its kept weights: forward, and its gradients.
 *
 * Sixteen samples at a time lie side by side. Planes of lanes have borders of zeros, so that a kept
 * weight is one offset into them and a broadcast. A tile of an output plane stays in registers while
 * all kept weights of its channel pass by. The gradient of the inputs is such a sum, too: over the
 * weights of an input channel, where a stride parts them by phase (the window's place that meets an
 * input modulo the stride). A weight's own gradient is the product of two planes.
 *
 * Shapes: N samples, I input and O output channels, K kept weights.
 */
#include "lanes.h"

#define PLANES (TILE >= 16 ? 4 : 2) /* that meet one plane of gradients at once */

/* Images [N, channels, height, width] in numbers: distances of samples, channels, rows, columns. */
struct images {
    int64_t samples, channels, height, width;
    int64_t sample, channel, row, column;
};

/* Planes of lanes: [channels, height + borders, width + borders] of 16 numbers each. */
struct planes {
    int64_t before, rows, columns; /* border before the image; size with both borders */
};

/* Where sums come from: groups of kept weights, group g from starts[g] to starts[g + 1]. */
struct weights {
    const int32_t *starts, *offsets; /* offsets into planes, in lanes */
    const float *values;
};

/* A tile of lanes: each is `start` plus its product with every weight of a group.
 * Distances are in numbers. */
INLINE void sum_tile(const int rows, const int columns, lanes start, const float *from,
                     ptrdiff_t row, ptrdiff_t step, const int32_t *offsets, const float *values,
                     int count, float *to, ptrdiff_t to_row, ptrdiff_t to_step) {
    lanes sums[16];
    UNROLL for (int i = 0; i < rows * columns; i++) sums[i] = start;
    for (int k = 0; k < count; k++) {
        lanes value = spread(values[k]);
        const float *in = from + (ptrdiff_t)offsets[k] * NUM_LANES;
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int c = 0; c < columns; c++)
                sums[r * columns + c] =
                    fused(value, load(in + r * row + c * step), sums[r * columns + c]);
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < columns; c++)
            store(to + r * to_row + c * to_step, sums[r * columns + c]);
}

#define TILE_OF(r, c)                                                                              \
    case 32 * r + c:                                                                               \
        if (r * c <= TILE)                                                                         \
            sum_tile(r, c, start, from, row, step, offsets, values, count, to, to_row, to_step);   \
        break;
#define TILES_OF(r, c) TILE_OF(r, c) TILE_OF(r, c + 1) TILE_OF(r, c + 2) TILE_OF(r, c + 3)

/* Any tile of up to TILE lanes; what is read stands `step` apart, a constant where it is the usual. */
INLINE void sum_any_tile(int rows, int columns, lanes start, const float *from, ptrdiff_t row,
                         ptrdiff_t step, const int32_t *offsets, const float *values, int count,
                         float *to, ptrdiff_t to_row, ptrdiff_t to_step) {
    switch (32 * rows + columns) {
        TILES_OF(1, 1)
        TILES_OF(1, 5)
        TILES_OF(1, 9)
        TILES_OF(1, 13)
        TILES_OF(2, 1)
        TILES_OF(2, 5)
        TILES_OF(4, 1)
    }
}

/* The sums of one group over a plane of height x width, tile by tile. */
APART void sum_plane(float constant, const float *from, ptrdiff_t row, ptrdiff_t step,
                     struct weights weights, int64_t group, int64_t height, int64_t width,
                     float *to, ptrdiff_t to_row, ptrdiff_t to_step) {
    const lanes start = spread(constant);
    const int32_t first = weights.starts[group], count = weights.starts[group + 1] - first;
    const int across = (int)((width + TILE - 1) / TILE), columns = (int)((width + across - 1) / across);
    const int down = 4 * columns <= TILE ? 4 : 2 * columns <= TILE ? 2 : 1;
    for (int64_t y = 0; y < height;) {
        int rows = down;
        while (rows > height - y) rows /= 2;
        for (int64_t x = 0; x < width; x += columns)
            if (step == NUM_LANES)
                sum_any_tile(rows, least(width - x, columns), start,
                             from + y * row + x * NUM_LANES, row, NUM_LANES,
                             weights.offsets + first, weights.values + first, count,
                             to + y * to_row + x * to_step, to_row, to_step);
            else
                sum_any_tile(rows, least(width - x, columns), start, from + y * row + x * step,
                             row, step, weights.offsets + first, weights.values + first, count,
                             to + y * to_row + x * to_step, to_row, to_step);
        y += rows;
    }
}

/* Clear the borders of a plane: all that lies between its image's rows. */
INLINE void clear_borders(float *plane, struct planes as, int64_t height, int64_t width) {
    const int64_t first = as.before * (as.columns + 1), lanes_in_all = as.rows * as.columns;
    memset(plane, 0, sizeof(float) * NUM_LANES * first);
    for (int64_t y = 0; y < height; y++) {
        int64_t from = first + y * as.columns + width;
        int64_t to = y + 1 < height ? from + as.columns - width : lanes_in_all;
        memset(plane + from * NUM_LANES, 0, sizeof(float) * NUM_LANES * (to - from));
    }
}

/* Lay images out as planes of lanes, borders of zeros around them. */
static void make_planes(const float *from, struct images of, int samples, struct planes as,
                        float *to) {
    const ptrdiff_t row = as.columns * NUM_LANES, plane = as.rows * row;
    for (int64_t c = 0; c < of.channels; c++)
        clear_borders(to + c * plane, as, of.height, of.width);
    float *origin = to + as.before * (row + NUM_LANES);
    for (int64_t y = 0; y < of.height; y++)
        if (of.channel == 1)
            for (int64_t x = 0; x < of.width; x++)
                rows_to_lanes(from + y * of.row + x * of.column, of.sample, samples,
                              (int)of.channels, origin + y * row + x * NUM_LANES, plane);
        else
            for (int64_t c = 0; c < of.channels; c++)
                rows_to_lanes(from + c * of.channel + y * of.row, of.sample, samples,
                              (int)of.width, origin + c * plane + y * row, NUM_LANES);
}

/* Put images together again from planes without borders. */
static void take_planes(const float *from, struct images of, int samples, float *to) {
    const ptrdiff_t plane = of.height * of.width;
    if (of.channel == 1)
        for (int64_t pixel = 0; pixel < plane; pixel++)
            lanes_to_rows(from + pixel * NUM_LANES, plane * NUM_LANES, samples, (int)of.channels,
                          to + pixel * of.column, of.sample);
    else
        for (int64_t c = 0; c < of.channels; c++)
            lanes_to_rows(from + c * plane * NUM_LANES, NUM_LANES, samples, (int)plane,
                          to + c * of.channel, of.sample);
}

/* y = x convolved with the kept weights, plus bias [O] or NULL.
 * `planes_of_x` [blocks of 16 samples][planes] is kept for the gradients; `planes_of_y` is room for
 * one block without borders. `weights` are grouped by output channel. */
EXPORT void NAMED(conv_forward)(const float *x, const struct images *of_x, const struct planes *as_x,
                          const struct weights *weights, const float *bias, int64_t stride,
                          float *planes_of_x, float *planes_of_y, const struct images *of_y,
                          float *y) {
    const ptrdiff_t row = as_x->columns * NUM_LANES;
    const ptrdiff_t to_row = of_y->width * NUM_LANES, to_plane = of_y->height * to_row;
    for (int64_t sample = 0; sample < of_x->samples; sample += NUM_LANES) {
        int samples = least(of_x->samples - sample, NUM_LANES);
        make_planes(x + sample * of_x->sample, *of_x, samples, *as_x, planes_of_x);
        for (int64_t o = 0; o < of_y->channels; o++) {
            sum_plane(bias ? bias[o] : 0.0f, planes_of_x, stride * row, stride * NUM_LANES,
                      *weights, o, of_y->height, of_y->width, planes_of_y + o * to_plane, to_row,
                      NUM_LANES);
        }
        take_planes(planes_of_y, *of_y, samples, y + sample * of_y->sample);
        planes_of_x += of_x->channels * as_x->rows * row;
    }
}

/* Products of the plane dy with those that some weights see, summed over positions: even columns in
 * one chain, odd ones in another. */
INLINE void multiply_planes(const int weights, const float *dy, ptrdiff_t dy_row, const float *x,
                            ptrdiff_t x_row, ptrdiff_t x_step, const int32_t *offsets,
                            int64_t height, int64_t width, lanes *products) {
    lanes even[PLANES], odd[PLANES];
    UNROLL for (int w = 0; w < weights; w++) even[w] = odd[w] = zero();
    for (int64_t y = 0; y < height; y++, dy += dy_row, x += x_row) {
        const float *seen[PLANES], *of = dy;
        UNROLL for (int w = 0; w < weights; w++) seen[w] = x + (ptrdiff_t)offsets[w] * NUM_LANES;
        for (int64_t left = width; left > 0; left -= 2, of += 2 * NUM_LANES) {
            lanes gradient = load(of);
            UNROLL for (int w = 0; w < weights; w++)
                even[w] = fused(gradient, load(seen[w]), even[w]);
            if (left == 1) break;
            gradient = load(of + NUM_LANES);
            UNROLL for (int w = 0; w < weights; w++) {
                odd[w] = fused(gradient, load(seen[w] + x_step), odd[w]);
                seen[w] += 2 * x_step;
            }
        }
    }
    UNROLL for (int w = 0; w < weights; w++) products[w] = add(even[w], odd[w]);
}

/* Gradients of the kept weights of one output channel. */
INLINE void make_weight_gradients(const float *dy, ptrdiff_t dy_row, const float *x,
                                  ptrdiff_t x_row, ptrdiff_t x_step, const int32_t *offsets,
                                  int count, int64_t height, int64_t width, int is_first,
                                  float *dvalues) {
    for (int k = 0; k < count; k += NUM_LANES) {
        lanes products[NUM_LANES];
        int some = least(count - k, NUM_LANES), j = 0;
        for (; j + PLANES <= some; j += PLANES)
            multiply_planes(PLANES, dy, dy_row, x, x_row, x_step, offsets + k + j, height, width,
                            products + j);
        for (; j < some; j++)
            multiply_planes(1, dy, dy_row, x, x_row, x_step, offsets + k + j, height, width,
                            products + j);
        put_sums(dvalues + k, products, some, is_first);
    }
}

INLINE lanes sum_lanes(const float *a, ptrdiff_t row, int64_t height, int64_t width) {
    lanes sum = zero();
    for (int64_t y = 0; y < height; y++, a += row)
        for (int64_t x = 0; x < width; x++) sum = add(sum, load(a + x * NUM_LANES));
    return sum;
}

/* Gradients of the inputs, a plane without borders for each input channel. `weights` are grouped by
 * input channel and phase. Input y meets the window's place (y + padding) mod stride and those a
 * stride further; their offsets say how far back the output stands. */
static void make_input_gradients(const float *planes_of_dy, ptrdiff_t row, struct weights weights,
                                 int64_t stride, int64_t padding, const struct images *of_x,
                                 float *to) {
    const ptrdiff_t to_row = of_x->width * NUM_LANES;
    for (int64_t i = 0; i < of_x->channels; i++, to += of_x->height * to_row)
        for (int64_t phase = 0; phase < stride * stride; phase++) {
            int64_t down = phase / stride, right = phase % stride;
            int64_t y = (down + padding * (stride - 1)) % stride;
            int64_t x = (right + padding * (stride - 1)) % stride;
            if (y >= of_x->height || x >= of_x->width) continue;
            const float *from = planes_of_dy + (y + padding) / stride * row +
                                (x + padding) / stride * NUM_LANES;
            sum_plane(0.0f, from, row, NUM_LANES, weights, i * stride * stride + phase,
                      (of_x->height - y + stride - 1) / stride,
                      (of_x->width - x + stride - 1) / stride, to + y * to_row + x * NUM_LANES,
                      stride * to_row, stride * NUM_LANES);
        }
}

/* Gradients dx, dvalues [K] and dbias [O] (or NULL) from dy and the forward's `planes_of_x`.
 * `by_input` is NULL where dx is not wanted; its offsets count from the border's corner on.
 * `planes_of_dy` and `planes_of_dx` are room for one block, with borders and without. */
EXPORT void NAMED(conv_backward)(const float *dy, const struct images *of_dy, const struct planes *as_dy,
                           const float *planes_of_x, const struct images *of_x,
                           const struct planes *as_x, const struct weights *weights,
                           const struct weights *by_input, int64_t stride, int64_t padding,
                           float *planes_of_dy, float *planes_of_dx, float *dx, float *dvalues,
                           float *dbias) {
    const ptrdiff_t row = as_dy->columns * NUM_LANES, plane = as_dy->rows * row;
    const ptrdiff_t x_row = as_x->columns * NUM_LANES;
    const float *origin = planes_of_dy + as_dy->before * (row + NUM_LANES);
    for (int64_t sample = 0; sample < of_x->samples; sample += NUM_LANES) {
        const int samples = least(of_x->samples - sample, NUM_LANES), is_first = sample == 0;
        make_planes(dy + sample * of_dy->sample, *of_dy, samples, *as_dy, planes_of_dy);
        lanes totals[NUM_LANES];
        for (int64_t o = 0; o < of_dy->channels; o++) {
            const float *of = origin + o * plane;
            const int32_t first = weights->starts[o], count = weights->starts[o + 1] - first;
            if (stride == 1)
                make_weight_gradients(of, row, planes_of_x, x_row, NUM_LANES,
                                      weights->offsets + first, count, of_dy->height,
                                      of_dy->width, is_first, dvalues + first);
            else
                make_weight_gradients(of, row, planes_of_x, stride * x_row, stride * NUM_LANES,
                                      weights->offsets + first, count, of_dy->height,
                                      of_dy->width, is_first, dvalues + first);
            if (!dbias) continue;
            int place = (int)(o % NUM_LANES);
            totals[place] = sum_lanes(of, row, of_dy->height, of_dy->width);
            if (place == NUM_LANES - 1 || o == of_dy->channels - 1)
                put_sums(dbias + o - place, totals, place + 1, is_first);
        }
        if (by_input) {
            make_input_gradients(planes_of_dy, row, *by_input, stride, padding, of_x,
                                 planes_of_dx);
            take_planes(planes_of_dx, *of_x, samples, dx + sample * of_x->sample);
        }
        planes_of_x += of_x->channels * as_x->rows * x_row;
    }
}
