/* Batch moments with 2x2 max-pooling, and the affine map with a leaky ReLU that follows them, with
 * their first and second derivatives. One pass over memory each.
 *
 * Images are contiguous [groups, images, height, width, channels]; vectors over channels are
 * [groups, channels]. Compiled once with REAL as float and once as double; NAME(f) adds a suffix.
 *
 * Sums run over blocks whose number does not depend on the number of threads, and blocks are added
 * in their order, so that results are the same bit for bit however many cores there are.
 */
#include <stdint.h>
#include <stdlib.h>

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(f) JOIN(f, REAL)

typedef int64_t index_t;

enum { BLOCKS = 16 };

static index_t block_count(index_t rows) { return rows < BLOCKS ? rows : BLOCKS; }

/* Adds up the blocks' sums of `vectors` vectors: from [groups, blocks, vectors, channels]. */
static void NAME(reduce)(const double *partial, index_t groups, index_t blocks, index_t vectors,
                         index_t channels, REAL *const *out) {
    for (index_t g = 0; g < groups; g++)
        for (index_t v = 0; v < vectors; v++)
            for (index_t c = 0; c < channels; c++) {
                double sum = 0;
                for (index_t b = 0; b < blocks; b++)
                    sum += partial[((g * blocks + b) * vectors + v) * channels + c];
                out[v][g * channels + c] = (REAL)sum;
            }
}

/* Moves sums of a few values in working precision into double precision. */
static void NAME(flush)(REAL *restrict local, double *restrict total, index_t count) {
    for (index_t i = 0; i < count; i++) {
        total[i] += local[i];
        local[i] = 0;
    }
}

/* The larger of two values; NaN if b or a is NaN. */
static inline REAL NAME(larger)(REAL a, REAL b) {
    REAL larger = b > a ? b : a;
    return b != b ? b : larger;
}

static void NAME(add_moments)(const REAL *restrict x, const REAL *restrict origin,
                              REAL *restrict sums, index_t channels) {
    for (index_t c = 0; c < channels; c++) {
        REAL d = x[c] - origin[c];
        sums[c] += d;
        sums[channels + c] += d * d;
    }
}

static void NAME(pool_window)(const REAL *restrict x00, const REAL *restrict x01,
                              const REAL *restrict x10, const REAL *restrict x11,
                              const REAL *restrict sign, const REAL *restrict origin,
                              REAL *restrict pooled, REAL *restrict sums, index_t channels) {
    for (index_t c = 0; c < channels; c++) {
        REAL s = sign[c], o = origin[c];
        REAL top = NAME(larger)(s * x00[c], s * x01[c]);
        REAL bottom = NAME(larger)(s * x10[c], s * x11[c]);
        pooled[c] = s * NAME(larger)(top, bottom);
        REAL d00 = x00[c] - o, d01 = x01[c] - o, d10 = x10[c] - o, d11 = x11[c] - o;
        sums[c] += (d00 + d01) + (d10 + d11);
        sums[channels + c] += (d00 * d00 + d01 * d01) + (d10 * d10 + d11 * d11);
    }
}

/* Mean and biased variance over images and positions, and, where pool is 2, the value of each
 * window that is largest after multiplication by the channel's sign. Returns 0, or 1 if out
 * of memory. */
int NAME(pool_moments)(const REAL *x, const REAL *sign, index_t groups, index_t images,
                       index_t height, index_t width, index_t channels, index_t pool, REAL *pooled,
                       REAL *mean, REAL *variance) {
    index_t blocks = block_count(images), h2 = height / 2, w2 = width / 2, row = width * channels;
    double *partial = calloc(groups * blocks * 2 * channels, sizeof(double));
    if (!partial) return 1;
    int failed = 0;
#pragma omp parallel for schedule(static) reduction(| : failed)
    for (index_t gb = 0; gb < groups * blocks; gb++) {
        index_t g = gb / blocks, b = gb % blocks;
        const REAL *origin = x + g * images * height * row, *s = sign + g * channels;
        double *total = partial + gb * 2 * channels;
        REAL *sums = calloc(2 * channels, sizeof(REAL));
        if (!sums) { failed = 1; continue; }
        for (index_t i = b * images / blocks; i < (b + 1) * images / blocks; i++) {
            const REAL *image = x + (g * images + i) * height * row;
            REAL *out = pooled + (g * images + i) * h2 * w2 * channels;
            for (index_t h = 0; h < height; h++) {
                const REAL *upper = image + h * row;
                index_t w = 0;
                if (pool == 2 && h + 1 < height) {
                    for (; w < w2; w++, out += channels) {
                        const REAL *corner = upper + 2 * w * channels;
                        NAME(pool_window)(corner, corner + channels, corner + row,
                                          corner + row + channels, s, origin, out, sums, channels);
                    }
                    for (index_t rest = 2 * w2; rest < width; rest++) {
                        NAME(add_moments)(upper + rest * channels, origin, sums, channels);
                        NAME(add_moments)(upper + row + rest * channels, origin, sums, channels);
                    }
                    h++;
                } else {
                    for (; w < width; w++)
                        NAME(add_moments)(upper + w * channels, origin, sums, channels);
                }
                NAME(flush)(sums, total, 2 * channels);
            }
        }
        free(sums);
    }
    double count = (double)images * height * width;
    for (index_t g = 0; g < groups; g++)
        for (index_t c = 0; c < channels; c++) {
            double first = 0, second = 0;
            for (index_t b = 0; b < blocks; b++) {
                const double *total = partial + (g * blocks + b) * 2 * channels;
                first += total[c];
                second += total[channels + c];
            }
            first /= count;
            second = second / count - first * first;
            mean[g * channels + c] = (REAL)(first + x[g * images * height * row + c]);
            variance[g * channels + c] = (REAL)(second > 0 || second != second ? second : 0);
        }
    free(partial);
    return failed;
}

/* The position in each window that the pooled value came from: the first one if several tie. */
#define WINDOW(x00, x01, x10, x11, p)                                                             \
    int is00 = (x00) == (p), is01 = !is00 & ((x01) == (p));                                       \
    int is10 = !(is00 | is01) & ((x10) == (p)), is11 = !(is00 | is01 | is10);

static void NAME(scatter_window)(const REAL *restrict x, index_t row, const REAL *restrict pooled,
                                 const REAL *restrict g, const REAL *restrict a,
                                 const REAL *restrict b, REAL *restrict out, index_t channels) {
    const REAL *restrict x01 = x + channels, *restrict x10 = x + row,
               *restrict x11 = x + row + channels;
    REAL *restrict out01 = out + channels, *restrict out10 = out + row,
         *restrict out11 = out + row + channels;
    for (index_t c = 0; c < channels; c++) {
        WINDOW(x[c], x01[c], x10[c], x11[c], pooled[c])
        REAL value = g[c];
        out[c] = a[c] + b[c] * x[c] + (is00 ? value : 0);
        out01[c] = a[c] + b[c] * x01[c] + (is01 ? value : 0);
        out10[c] = a[c] + b[c] * x10[c] + (is10 ? value : 0);
        out11[c] = a[c] + b[c] * x11[c] + (is11 ? value : 0);
    }
}

static void NAME(affine_row)(const REAL *restrict x, const REAL *restrict a,
                             const REAL *restrict b, REAL *restrict out, index_t channels) {
    for (index_t c = 0; c < channels; c++) out[c] = a[c] + b[c] * x[c];
}

/* out = scatter(g) + a + b x, the gradient of pool_moments; g is not used without pooling. */
int NAME(scatter_affine)(const REAL *g, const REAL *a, const REAL *b, const REAL *x,
                         const REAL *pooled, index_t groups, index_t images, index_t height,
                         index_t width, index_t channels, index_t pool, REAL *out) {
    index_t h2 = height / 2, w2 = width / 2, row = width * channels;
#pragma omp parallel for schedule(static)
    for (index_t gi = 0; gi < groups * images; gi++) {
        const REAL *ga = a + gi / images * channels, *gb = b + gi / images * channels;
        const REAL *image = x + gi * height * row;
        REAL *to = out + gi * height * row;
        if (pool != 2) {
            for (index_t hw = 0; hw < height * width; hw++)
                NAME(affine_row)(image + hw * channels, ga, gb, to + hw * channels, channels);
            continue;
        }
        const REAL *from = g + gi * h2 * w2 * channels, *p = pooled + gi * h2 * w2 * channels;
        for (index_t h = 0; h < 2 * h2; h += 2) {
            index_t at = h * row;
            for (index_t w = 0; w < w2; w++, from += channels, p += channels)
                NAME(scatter_window)(image + at + 2 * w * channels, row, p, from, ga, gb,
                                     to + at + 2 * w * channels, channels);
            for (index_t w = 2 * w2; w < width; w++)
                for (index_t r = 0; r < 2; r++) {
                    index_t rest = at + r * row + w * channels;
                    NAME(affine_row)(image + rest, ga, gb, to + rest, channels);
                }
        }
        for (index_t hw = 2 * h2 * width; hw < height * width; hw++)
            NAME(affine_row)(image + hw * channels, ga, gb, to + hw * channels, channels);
    }
    return 0;
}

static void NAME(gather_window)(const REAL *restrict u, const REAL *restrict x, index_t row,
                                const REAL *restrict pooled, const REAL *restrict b,
                                REAL *restrict g, REAL *restrict out, REAL *restrict sums,
                                index_t channels) {
    const REAL *restrict x01 = x + channels, *restrict x10 = x + row,
               *restrict x11 = x + row + channels;
    const REAL *restrict u01 = u + channels, *restrict u10 = u + row,
               *restrict u11 = u + row + channels;
    REAL *restrict out01 = out + channels, *restrict out10 = out + row,
         *restrict out11 = out + row + channels;
    for (index_t c = 0; c < channels; c++) {
        WINDOW(x[c], x01[c], x10[c], x11[c], pooled[c])
        REAL v00 = u[c], v01 = u01[c], v10 = u10[c], v11 = u11[c];
        g[c] = (is00 ? v00 : 0) + (is01 ? v01 : 0) + (is10 ? v10 : 0) + (is11 ? v11 : 0);
        sums[c] += (v00 + v01) + (v10 + v11);
        sums[channels + c] += (v00 * x[c] + v01 * x01[c]) + (v10 * x10[c] + v11 * x11[c]);
        out[c] = b[c] * v00;
        out01[c] = b[c] * v01;
        out10[c] = b[c] * v10;
        out11[c] = b[c] * v11;
    }
}

static void NAME(gather_row)(const REAL *restrict u, const REAL *restrict x,
                             const REAL *restrict b, REAL *restrict out, REAL *restrict sums,
                             index_t channels) {
    for (index_t c = 0; c < channels; c++) {
        sums[c] += u[c];
        sums[channels + c] += u[c] * x[c];
        out[c] = b[c] * u[c];
    }
}

/* The gradients of <u, scatter_affine>: over g (where pooled), a, b and x. */
int NAME(gather_sums)(const REAL *u, const REAL *b, const REAL *x, const REAL *pooled,
                      index_t groups, index_t images, index_t height, index_t width,
                      index_t channels, index_t pool, REAL *g, REAL *over_a, REAL *over_b,
                      REAL *over_x) {
    index_t blocks = block_count(images), h2 = height / 2, w2 = width / 2, row = width * channels;
    double *partial = calloc(groups * blocks * 2 * channels, sizeof(double));
    if (!partial) return 1;
    int failed = 0;
#pragma omp parallel for schedule(static) reduction(| : failed)
    for (index_t at = 0; at < groups * blocks; at++) {
        index_t group = at / blocks, block = at % blocks;
        const REAL *gb = b + group * channels;
        double *total = partial + at * 2 * channels;
        REAL *sums = calloc(2 * channels, sizeof(REAL));
        if (!sums) { failed = 1; continue; }
        for (index_t i = block * images / blocks; i < (block + 1) * images / blocks; i++) {
            index_t gi = group * images + i, start = gi * height * row;
            const REAL *p = pooled + gi * h2 * w2 * channels;
            REAL *to = g + gi * h2 * w2 * channels;
            for (index_t h = 0; h < height; h++) {
                index_t upper = start + h * row;
                if (pool == 2 && h + 1 < height) {
                    for (index_t w = 0; w < w2; w++, p += channels, to += channels) {
                        index_t k = upper + 2 * w * channels;
                        NAME(gather_window)(u + k, x + k, row, p, gb, to, over_x + k, sums,
                                            channels);
                    }
                    for (index_t w = 2 * w2; w < width; w++)
                        for (index_t r = 0; r < 2; r++) {
                            index_t k = upper + r * row + w * channels;
                            NAME(gather_row)(u + k, x + k, gb, over_x + k, sums, channels);
                        }
                    h++;
                } else {
                    for (index_t k = upper; k < upper + row; k += channels)
                        NAME(gather_row)(u + k, x + k, gb, over_x + k, sums, channels);
                }
                NAME(flush)(sums, total, 2 * channels);
            }
        }
        free(sums);
    }
    REAL *const out[2] = {over_a, over_b};
    NAME(reduce)(partial, groups, blocks, 2, channels, out);
    free(partial);
    return failed;
}

/* y = leaky ReLU of scale x + shift. */
int NAME(affine_relu)(const REAL *x, const REAL *scale, const REAL *shift, REAL slope,
                      index_t groups, index_t rows, index_t channels, REAL *y) {
#pragma omp parallel for schedule(static)
    for (index_t gr = 0; gr < groups * rows; gr++) {
        const REAL *restrict s = scale + gr / rows * channels;
        const REAL *restrict t = shift + gr / rows * channels, *restrict in = x + gr * channels;
        REAL *restrict out = y + gr * channels;
        for (index_t c = 0; c < channels; c++) {
            REAL z = s[c] * in[c] + t[c];
            out[c] = z <= 0 ? slope * z : z;
        }
    }
    return 0;
}

/* Vector-Jacobian products of affine_relu for x, scale and shift; y tells where it is active. */
int NAME(affine_relu_backward)(const REAL *g, const REAL *x, const REAL *y, const REAL *scale,
                               REAL slope, index_t groups, index_t rows, index_t channels,
                               REAL *over_x, REAL *over_scale, REAL *over_shift) {
    index_t blocks = block_count(rows);
    double *partial = calloc(groups * blocks * 2 * channels, sizeof(double));
    if (!partial) return 1;
    int failed = 0;
#pragma omp parallel for schedule(static) reduction(| : failed)
    for (index_t at = 0; at < groups * blocks; at++) {
        index_t group = at / blocks, block = at % blocks, pending = 0;
        const REAL *restrict s = scale + group * channels;
        REAL *restrict sums = calloc(2 * channels, sizeof(REAL));
        if (!sums) { failed = 1; continue; }
        for (index_t r = block * rows / blocks; r < (block + 1) * rows / blocks; r++) {
            index_t k = (group * rows + r) * channels;
            const REAL *restrict gr = g + k, *restrict xr = x + k, *restrict yr = y + k;
            REAL *restrict out = over_x + k;
            for (index_t c = 0; c < channels; c++) {
                REAL value = yr[c] <= 0 ? slope * gr[c] : gr[c];
                out[c] = value * s[c];
                sums[c] += value * xr[c];
                sums[channels + c] += value;
            }
            if (++pending == 64) {
                NAME(flush)(sums, partial + at * 2 * channels, 2 * channels);
                pending = 0;
            }
        }
        NAME(flush)(sums, partial + at * 2 * channels, 2 * channels);
        free(sums);
    }
    REAL *const out[2] = {over_scale, over_shift};
    NAME(reduce)(partial, groups, blocks, 2, channels, out);
    free(partial);
    return failed;
}

/* The gradients of <u, over_x> + <u_scale, over_scale> + <u_shift, over_shift> over g, x, scale. */
int NAME(affine_relu_double)(const REAL *u, const REAL *u_scale, const REAL *u_shift,
                             const REAL *g, const REAL *x, const REAL *y, const REAL *scale,
                             REAL slope, index_t groups, index_t rows, index_t channels,
                             REAL *over_g, REAL *over_x, REAL *over_scale) {
    index_t blocks = block_count(rows);
    double *partial = calloc(groups * blocks * channels, sizeof(double));
    if (!partial) return 1;
    int failed = 0;
#pragma omp parallel for schedule(static) reduction(| : failed)
    for (index_t at = 0; at < groups * blocks; at++) {
        index_t group = at / blocks, block = at % blocks, pending = 0;
        const REAL *restrict s = scale + group * channels;
        const REAL *restrict us = u_scale + group * channels;
        const REAL *restrict ut = u_shift + group * channels;
        REAL *restrict sums = calloc(channels, sizeof(REAL));
        if (!sums) { failed = 1; continue; }
        for (index_t r = block * rows / blocks; r < (block + 1) * rows / blocks; r++) {
            index_t k = (group * rows + r) * channels;
            const REAL *restrict ur = u + k, *restrict gr = g + k, *restrict xr = x + k;
            const REAL *restrict yr = y + k;
            REAL *restrict to_g = over_g + k, *restrict to_x = over_x + k;
            for (index_t c = 0; c < channels; c++) {
                REAL active = yr[c] <= 0 ? slope : 1, value = active * gr[c];
                to_g[c] = active * (ur[c] * s[c] + us[c] * xr[c] + ut[c]);
                to_x[c] = value * us[c];
                sums[c] += value * ur[c];
            }
            if (++pending == 64) {
                NAME(flush)(sums, partial + at * channels, channels);
                pending = 0;
            }
        }
        NAME(flush)(sums, partial + at * channels, channels);
        free(sums);
    }
    REAL *const out[1] = {over_scale};
    NAME(reduce)(partial, groups, blocks, 1, channels, out);
    free(partial);
    return failed;
}
