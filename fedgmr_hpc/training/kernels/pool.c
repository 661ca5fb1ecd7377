/* ReLU of the greatest of every 2 x 2 pixels, and its gradient, without a pass for each.
 *
 * Nothing is added, so the bits are those of torch's own pooling: the first of equals is taken, and a
 * NaN before all. Images are channels_last: [N, height, width, channels].
 */
#include "lanes.h"

enum { NOWHERE = 4 }; /* the place of a window whose greatest is not above 0 */

/* The later one's place if it is greater or a NaN. */
#define TAKE_GREATER(later, its_place)                                                             \
    do {                                                                                           \
        const int32_t is_greater = (later > greatest) | (later != later);                          \
        greatest = is_greater ? later : greatest;                                                  \
        place = is_greater ? its_place : place;                                                    \
    } while (0)

static void pool_window(const float *restrict x, int64_t row, int64_t channels, float *restrict y,
                        uint8_t *restrict places) {
    const float *below = x + row;
    for (int64_t c = 0; c < channels; c++) {
        const float right = x[c + channels], under = below[c], across = below[c + channels];
        float greatest = x[c];
        int32_t place = 0;
        TAKE_GREATER(right, 1);
        TAKE_GREATER(under, 2);
        TAKE_GREATER(across, 3);
        y[c] = greatest <= 0.0f ? 0.0f : greatest;
        places[c] = (uint8_t)(greatest <= 0.0f ? NOWHERE : place);
    }
}

static void spread_window(const float *restrict dy, const uint8_t *restrict places, int64_t row,
                          int64_t channels, float *restrict dx) {
    float *below = dx + row;
    for (int64_t c = 0; c < channels; c++) {
        const float gradient = dy[c];
        const int32_t place = places[c];
        dx[c] = place == 0 ? gradient : 0.0f;
        dx[c + channels] = place == 1 ? gradient : 0.0f;
        below[c] = place == 2 ? gradient : 0.0f;
        below[c + channels] = place == 3 ? gradient : 0.0f;
    }
}

/* y and places [N, height / 2, width / 2, channels] of x; the last row or column of an odd number
 * is left out. */
EXPORT void NAMED(pool_forward)(const float *x, int64_t samples, int64_t height, int64_t width,
                          int64_t channels, float *y, uint8_t *places) {
    const int64_t row = width * channels;
    for (int64_t sample = 0; sample < samples; sample++, x += height * row)
        for (int64_t down = 0; down + 1 < height; down += 2)
            for (int64_t right = 0; right + 1 < width; right += 2) {
                pool_window(x + down * row + right * channels, row, channels, y, places);
                y += channels;
                places += channels;
            }
}

/* dx from dy and the forward's places. */
EXPORT void NAMED(pool_backward)(const float *dy, const uint8_t *places, int64_t samples,
                           int64_t height, int64_t width, int64_t channels, float *dx) {
    const int64_t row = width * channels;
    if (height % 2 || width % 2) memset(dx, 0, sizeof(float) * samples * height * row);
    for (int64_t sample = 0; sample < samples; sample++, dx += height * row)
        for (int64_t down = 0; down + 1 < height; down += 2)
            for (int64_t right = 0; right + 1 < width; right += 2) {
                spread_window(dy, places, row, channels, dx + down * row + right * channels);
                dy += channels;
                places += channels;
            }
}
