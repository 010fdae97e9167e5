/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Whose socket is this? Timers and interrupts run in nobody's process, so what
 * they do is told by the socket. The exchange probe writes this map in the
 * socket's own process, once per connection; process.bpf.c owns it.
 */
#pragma once

#include "kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

struct followed_socket {
	__u64 id;               /* what the exchange probe calls the connection */
	__u64 process_start_ns; /* CLOCK_BOOTTIME */
	__u64 begin_ns;         /* connect(), or the first bytes; 0: before our time */
	__u64 connected_ns;     /* a client's; 0: not seen */
	__u64 told_sent; /* what the tcp probe told so far; its own business, as the rest is */
	__u64 told_received;
	__u32 told_receive_window;
	__u32 told_send_buffer;
	__u32 pid;
	__u16 error;
	__u16 local_port; /* 0: not known; a closed socket has none any more */
	__u8 role;        /* enum exchange_role */
	__u8 resets;
	__u8 opening; /* connect() has begun and is not over */
	__u8 named;   /* id is the kernel's cookie */
	__u8 _pad[4];
};

/* The values of enum exchange_role. */
enum followed_role { FOLLOWED_CLIENT = 2, FOLLOWED_SERVER = 1 };

/* Address of the struct sock -> whose it is. The end of a socket takes its entry with it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct followed_socket);
} followed_sockets SEC(".maps");

/* NULL: nobody's who is selected, or the memory is another socket's by now. */
static __always_inline struct followed_socket *followed(const struct sock *sk)
{
	__u64 at = (__u64)sk;
	struct followed_socket *f = bpf_map_lookup_elem(&followed_sockets, &at);

	if (f && f->named && f->id != (__u64)BPF_CORE_READ(sk, __sk_common.skc_cookie.counter))
		return NULL;
	return f;
}
