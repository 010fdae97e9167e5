/* SPDX-License-Identifier: Apache-2.0 */
/* Read by gcc and cffi: no directives; include <stdint.h> before it. */

/* What values add to one series: its buckets' counts are elsewhere. */
struct histogram_totals {
	double sum, min, max;
};

/*
 * Counts n values, each into the series of its number. Bucket i of n_bounds + 1
 * has what is over bounds[i - 1] and not over bounds[i]. *counts* has a row of
 * buckets for each series.
 */
void otb_histogram_add(const double *bounds, uint32_t n_bounds, const int64_t *series,
		       const double *values, uint32_t n, uint64_t *counts,
		       struct histogram_totals *totals);
