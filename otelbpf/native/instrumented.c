// SPDX-License-Identifier: Apache-2.0
#include <stdint.h>
#include <string.h>

#include <linux/types.h>

#include "http1.h"
#include "instrumented.h"
#include "trace.h"

static uint32_t slot(uint32_t pid, uint64_t start_ns)
{
	return (uint32_t)mix(start_ns ^ (uint64_t)pid << 32) & (INSTRUMENTED_SLOTS - 1);
}

void instrumented_add(struct instrumented *t, uint32_t pid, uint64_t start_ns)
{
	t->at[slot(pid, start_ns)] = (struct process_name){ .start_ns = start_ns, .pid = pid };
}

int instrumented_has(const struct instrumented *t, uint32_t pid, uint64_t start_ns)
{
	const struct process_name *p = &t->at[slot(pid, start_ns)];

	return p->pid == pid && p->start_ns == start_ns;
}

int exports_spans(const struct http1_request *q)
{
	static const char path[] = "/v1/traces";
	uint32_t n = sizeof(path) - 1;

	return http1_method(q->method.at, q->method.len) == HTTP1_METHOD_POST && q->path.len >= n &&
	       !memcmp(q->path.at + q->path.len - n, path, n);
}
