/* SPDX-License-Identifier: Apache-2.0 */
/*
 * OpenTelemetry's consistent probability sampling in tracestate:
 * https://opentelemetry.io/docs/specs/otel/trace/tracestate-probability-sampling/
 */
#pragma once

#include <stdint.h>

/* "ot=th:" and 14 hexadecimal digits, with the end of the string. */
enum { TRACE_STATE_ROOT_LEN = 24 };

/* The tracestate of a new trace that was sampled at *threshold*; returns its length. */
uint32_t trace_state_root(uint64_t threshold, char out[TRACE_STATE_ROOT_LEN]);

/*
 * Copies a tracestate with this threshold in place of the one it has, its ot
 * member first. Returns the length; 0: it does not fit into *room*.
 */
uint32_t trace_state_with(const uint8_t *at, uint32_t len, uint64_t threshold, char *out,
			  uint32_t room);

/* The randomness that a tracestate says itself (rv); 0: it says none. */
int trace_state_randomness(const uint8_t *at, uint32_t len, uint64_t *out);
