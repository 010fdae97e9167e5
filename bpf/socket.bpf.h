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
	__u64 begin_ns;         /* connect(), or the first bytes seen */
	__u64 connected_ns;     /* a client's; 0: before our time */
	__u32 pid;
	__u16 error; /* errno that the socket was told */
	__u8 role;   /* enum exchange_role */
	__u8 resets; /* enum followed_reset */
};

/* The values of enum exchange_role. */
enum followed_role { FOLLOWED_CLIENT = 2, FOLLOWED_SERVER = 1 };
enum followed_reset { RESET_SENT = 1, RESET_RECEIVED = 2 };

/* Address of the struct sock -> whose it is. The end of a socket takes its entry with it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct followed_socket);
} followed_sockets SEC(".maps");

static __always_inline struct followed_socket *followed(const struct sock *sk)
{
	__u64 at = (__u64)sk;

	return bpf_map_lookup_elem(&followed_sockets, &at);
}
