/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Both ends of a connection on this host: then the request that a server reads
 * is the one that a client sent, whatever its headers say. The ends find each
 * other by their addresses, and TCP's sequence numbers prove it: both ends count the same
 * bytes, from a start that is random for each connection (RFC 6528).
 */
#pragma once

#include "kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "connection.bpf.h"

struct ends {
	__u8 client_addr[16];
	__u8 server_addr[16];
	__u16 client_port;
	__u16 server_port;
};

/* Of client sockets, their cookies. Network namespaces may share addresses: the sequence tells. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct ends);
	__type(value, __u64);
} clients SEC(".maps");

/* Addresses as events have them: IPv6, or IPv4-mapped IPv6. */
static __always_inline void socket_addresses(struct sock *sk, __u8 local[16], __u8 peer[16])
{
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET) {
		local[10] = local[11] = peer[10] = peer[11] = 0xff;
		*(__be32 *)&local[12] = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
		*(__be32 *)&peer[12] = BPF_CORE_READ(sk, __sk_common.skc_daddr);
	} else {
		bpf_probe_read_kernel(local, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_probe_read_kernel(peer, 16, &sk->__sk_common.skc_v6_daddr);
	}
}

static __always_inline void show_client(struct sock *sk, __u64 cookie)
{
	struct ends ends = {};

	ends.client_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	ends.server_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	socket_addresses(sk, ends.client_addr, ends.server_addr);
	bpf_map_update_elem(&clients, &ends, &cookie, BPF_ANY);
}

/* The client may have shown itself late: it is looked for twice. */
static __always_inline void find_client(struct connection *c)
{
	const struct exchange_event *e = &c->event;
	struct ends ends = { .client_port = e->peer_port, .server_port = e->local_port };
	__u64 *cookie;

	if (c->peer || e->number > 2)
		return;
	__builtin_memcpy(ends.client_addr, e->peer_addr, 16);
	__builtin_memcpy(ends.server_addr, e->local_addr, 16);
	cookie = bpf_map_lookup_elem(&clients, &ends);
	if (cookie)
		c->peer = *cookie;
}

/*
 * The client's exchange becomes the parent of the server's. Its program may run
 * after ours, so this is tried at each step, until user
 * space was told of the exchange.
 */
static __always_inline void join_client(struct connection *c)
{
	struct exchange_event *e = &c->event;
	const struct exchange_event *asked;
	struct connection *p;
	__u64 peer = c->peer; /* on the stack: 5.10's iterators give memory that is no key */

	if (!peer || e->parent_cookie || c->announced || c->swept || e->role != EXCHANGE_SERVER ||
	    c->sample.decision == UNSAMPLED)
		return;
	p = bpf_map_lookup_elem(&connections, &peer);
	if (!p || !lock_patiently(p))
		return;
	asked = &p->event;
	if (is_still(p, peer) && asked->role == EXCHANGE_CLIENT && asked->number &&
	    asked->send_seq == c->recv_seq) {
		e->parent_cookie = asked->cookie;
		e->parent_number = asked->number;
		e->root_cookie = asked->parent_cookie;
		e->root_number = asked->parent_number;
		e->root_rule = asked->rule;
		c->sample.parent = p->sample.parent;
	}
	unlock(p);
}
