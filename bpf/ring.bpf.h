/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#pragma once

#include "kernel.h"
#include <bpf/bpf_helpers.h>

/*
 * A ring with its two counters: events that were to be sent, and those that
 * found no room. User space finds all three by name and may resize the ring.
 */
#define RING(name, bytes)                               \
	struct {                                        \
		__uint(type, BPF_MAP_TYPE_RINGBUF);     \
		__uint(max_entries, bytes);             \
	} name SEC(".maps");                            \
	const volatile __u64 name##_high = (bytes) / 2; \
	__u64 name##_seen;                              \
	__u64 name##_lost

/* Keep a struct in the object's BTF: user space reads the layout from there. */
#define EVENT(type) const struct type *type##_layout __attribute__((unused))

/*
 * Copy one event out; 0, or a negative errno when there is no room. Waking the
 * reader for each event costs the application microseconds, so only a ring that
 * is half full wakes it (which every 16th event looks at); a quiet one is drained
 * on a timer.
 */
#define TRY_OUTPUT(ring, event, size)                                          \
	({                                                                     \
		__u64 flags__ = BPF_RB_NO_WAKEUP;                              \
		long err__;                                                    \
                                                                               \
		if (!(ring##_seen & 15) &&                                     \
		    bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA) > ring##_high) \
			flags__ = BPF_RB_FORCE_WAKEUP;                         \
		err__ = bpf_ringbuf_output(&ring, event, size, flags__);       \
		if (!err__)                                                    \
			__sync_fetch_and_add(&ring##_seen, 1);                 \
		err__;                                                         \
	})

/* The same, for an event that will not be offered again: without room it is lost, and counted. */
#define OUTPUT(ring, event, size)                              \
	({                                                     \
		if (TRY_OUTPUT(ring, event, size)) {           \
			__sync_fetch_and_add(&ring##_seen, 1); \
			__sync_fetch_and_add(&ring##_lost, 1); \
		}                                              \
	})

/* The same, and wakes the reader: for what is rare and cannot wait for the timer. */
#define OUTPUT_NOW(ring, event, size)                                            \
	({                                                                       \
		__sync_fetch_and_add(&ring##_seen, 1);                           \
		if (bpf_ringbuf_output(&ring, event, size, BPF_RB_FORCE_WAKEUP)) \
			__sync_fetch_and_add(&ring##_lost, 1);                   \
	})
