/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Which inbound exchange is this thread working on? The exchange probe writes
 * it, every probe may ask, process.bpf.c forgets threads that end.
 */
#pragma once

#include "kernel.h"
#include <bpf/bpf_helpers.h>

#include "compat.bpf.h"

/*
 * The inbound exchanges a thread has read and not begun to answer. A connection
 * has one at most, so its cookie names it. While only one is open, the xor is
 * that one; no list is needed.
 */
struct thread_exchanges {
	__u64 cookies; /* xor of the open ones */
	__u32 numbers; /* likewise: with its cookie, names an exchange */
	__u32 open;
	__u16 asks; /* the thread has sent requests of its own */
	__u16 many; /* it has had several open at once: what it does is no longer one exchange's for
		       sure */
	__u32 _pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32); /* tid */
	__type(value, struct thread_exchanges);
} thread_exchanges SEC(".maps");

/*
 * Processes in which one thread read a request and another answered it. There
 * a thread is no proof of anything: Go, virtual threads, pools.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32); /* pid */
	__type(value, __u32);
} handing_over SEC(".maps");

static __always_inline struct thread_exchanges *thread_exchanges_of(__u32 tid)
{
	return bpf_map_lookup_elem(&thread_exchanges, &tid);
}

/* *t* is what thread_exchanges_of() found. */
static __always_inline void thread_exchange_begin(struct thread_exchanges *t, __u32 tid,
						  __u64 cookie, __u32 number)
{
	if (t) {
		if (t->open)
			t->many = 1;
		ATOMIC_XOR(&t->cookies, cookie);
		ATOMIC_XOR(&t->numbers, number);
		__sync_fetch_and_add(&t->open, 1);
	} else {
		struct thread_exchanges first = { .cookies = cookie, .numbers = number, .open = 1 };

		bpf_map_update_elem(&thread_exchanges, &tid, &first, BPF_ANY);
	}
}

static __always_inline void thread_exchange_end(__u32 tid, __u64 cookie, __u32 number)
{
	struct thread_exchanges *t = thread_exchanges_of(tid);

	/* The thread may have ended and its tid come back: then these are not ours. */
	if (!t || !t->open || (t->open == 1 && t->cookies != cookie))
		return;
	ATOMIC_XOR(&t->cookies, cookie);
	ATOMIC_XOR(&t->numbers, number);
	__sync_fetch_and_add(&t->open, -1);
}

/*
 * The one inbound exchange that what this thread does now belongs to; of
 * several, and where threads prove nothing, none. *t* is what
 * thread_exchanges_of() found.
 */
static __always_inline bool thread_exchange_proven(const struct thread_exchanges *t, __u32 pid)
{
	return t && t->open == 1 && !t->many && !bpf_map_lookup_elem(&handing_over, &pid);
}
