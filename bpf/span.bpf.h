/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Which inbound exchange is this thread working on? The exchange probe writes
 * it, every probe may ask.
 */
#pragma once

#include "kernel.h"
#include <bpf/bpf_helpers.h>

#include "compat.bpf.h"
#include "connection.bpf.h"

/*
 * The inbound exchange that a thread began to read last. It is open until its
 * answer begins, which its connection tells: nothing is written here for that.
 */
struct thread_exchange {
	__u64 cookie;
	__u32 number;
	__u16 asks; /* the thread has sent requests of its own */
	__u16 many; /* it has had several open at once: what it does is no longer one exchange's for
		       sure */
};

#ifdef OLD_KERNEL

/* Of a tid that came back the exchange is over, or its connection gone. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32); /* tid */
	__type(value, struct thread_exchange);
} thread_exchanges SEC(".maps");

static __always_inline struct thread_exchange *thread_exchange(bool make)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct thread_exchange *t = bpf_map_lookup_elem(&thread_exchanges, &tid);
	struct thread_exchange none = {};

	if (t || !make)
		return t;
	bpf_map_update_elem(&thread_exchanges, &tid, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&thread_exchanges, &tid);
}

#else

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct thread_exchange);
} thread_exchanges SEC(".maps");

/* The current thread's; NULL: it has none, or there is no memory. */
static __always_inline struct thread_exchange *thread_exchange(bool make)
{
	return bpf_task_storage_get(&thread_exchanges, bpf_get_current_task_btf(), NULL,
				    make ? BPF_LOCAL_STORAGE_GET_F_CREATE : 0);
}

#endif

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

/* Whether what this thread does is one exchange's. */
static __always_inline bool thread_trusted(const struct thread_exchange *t, __u32 pid)
{
	return !t->many && !bpf_map_lookup_elem(&handing_over, &pid);
}

/*
 * The one inbound exchange that what this thread does now belongs to; of
 * several, and where threads prove nothing, none. *t* is what
 * thread_exchange() found.
 */
static __always_inline bool thread_exchange_proven(const struct thread_exchange *t, __u32 pid)
{
	struct connection *c;

	if (!t || !thread_trusted(t, pid))
		return false;
	c = bpf_map_lookup_elem(&connections, &t->cookie);
	if (!c || !is_open(c, t->cookie, t->number))
		return false;
	c->sample.asked = 1;
	return true;
}
