/* An embedding from its kept weights: rows of a table, looked up and learnt.
 *
 * Every number is copied, or added to one place in the order of the samples, so no variant is needed.
 *
 * Shapes: N samples, O units, K kept weights, starts [rows + 1], columns [K].
 */
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

/* y [N, O]: the kept weights of each sample's row, zeros between them. */
EXPORT void embedding_forward(const int64_t *rows, int64_t samples, int64_t units, const int32_t *starts,
                       const int32_t *columns, const float *values, float *y) {
    memset(y, 0, sizeof(float) * samples * units);
    for (int64_t n = 0; n < samples; n++, y += units)
        for (int64_t k = starts[rows[n]]; k < starts[rows[n] + 1]; k++) y[columns[k]] = values[k];
}

/* dvalues [K] from dy [N, O]. */
EXPORT void embedding_backward(const int64_t *rows, int64_t samples, int64_t units,
                        const int32_t *starts, const int32_t *columns, int64_t kept,
                        const float *dy, float *dvalues) {
    if (kept > 0) memset(dvalues, 0, sizeof(float) * kept);
    for (int64_t n = 0; n < samples; n++, dy += units)
        for (int64_t k = starts[rows[n]]; k < starts[rows[n] + 1]; k++)
            dvalues[k] += dy[columns[k]];
}
