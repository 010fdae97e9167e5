// SPDX-License-Identifier: Apache-2.0
#include <stdint.h>

#include "histogram.h"

void otb_histogram_add(const double *bounds, uint32_t n_bounds, const int64_t *series,
		       const double *values, uint32_t n, uint64_t *counts,
		       struct histogram_totals *totals)
{
	for (uint32_t i = 0; i < n; i++) {
		struct histogram_totals *to = &totals[series[i]];
		double value = values[i];
		uint32_t bucket = 0;

		/* Bounds are few: looking at all of them costs less than mispredicting one. */
		for (uint32_t j = 0; j < n_bounds; j++)
			bucket += value > bounds[j];
		counts[(uint64_t)series[i] * (n_bounds + 1) + bucket]++;
		to->sum += value;
		to->min = value < to->min ? value : to->min;
		to->max = value > to->max ? value : to->max;
	}
}
