/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes that report their own requests: an SDK in them was seen at work. A
 * table of fixed size: what has to make room is learned again.
 */
#ifndef OTB_INSTRUMENTED_H
#define OTB_INSTRUMENTED_H

#include <stdint.h>

struct http1_request;

enum { INSTRUMENTED_SLOTS = 4096 }; /* a power of two */

struct process_name {
	uint64_t start_ns; /* CLOCK_BOOTTIME; with pid, names a process for good */
	uint32_t pid;
	uint32_t _pad;
};

struct instrumented {
	struct process_name at[INSTRUMENTED_SLOTS];
};

void instrumented_add(struct instrumented *t, uint32_t pid, uint64_t start_ns);
int instrumented_has(const struct instrumented *t, uint32_t pid, uint64_t start_ns);

/* Is this how spans are sent? OTLP over HTTP (its specification: POST to /v1/traces). */
int exports_spans(const struct http1_request *q);

#endif
