/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * A TCP connection and the exchange that is open on it. The exchange probe
 * writes them; other probes may look.
 */
#pragma once

#include "kernel.h"
#include <bpf/bpf_helpers.h>

#include "compat.bpf.h"
#include "exchange.h"
#include "sample.bpf.h"

enum state { IDLE = 0, REQUEST = 1, RESPONSE = 2 };

struct connection {
	__u32 busy; /* lock */
	__u8 state;
	__u8 role;
	__u8 ignored;
	__u8 torn;
	__u8 fresh;
	__u8 announced; /* an EXCHANGE_OPEN went out */
	__u8 crowded;   /* one is to go out with the first bytes */
	__u8 swept;     /* an EXCHANGE_IDLE went out */
	__u8 closed;    /* no bytes come any more, but some may still be unread */
	__u8 _pad[3];
	__u32 recv_seq;    /* a server's: TCP sequence number of the request's first byte */
	__u16 swept_len;   /* of the response's head, when it did */
	__u16 error;       /* errno of the connection when it closed */
	__u64 swept_bytes; /* response bytes when it did */
	__u64 peer; /* cookie of the client at the other end, when it is here; 0: not known */
	struct sample sample;
	struct exchange_event event;
	__u8 heads[EXCHANGE_HEADS_LEN]; /* the request's, then the response's; follows the event on
					   its way out */
	__u64 beyond;                   /* eight of them may be read from any place */
};

/* Socket cookie -> connection. Cookies are never used twice, so no entry can be another socket's. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct connection);
} connections SEC(".maps");

/*
 * Two CPUs may work on one connection: a thread that sends and one that
 * receives, or the sweep. bpf_spin_lock forbids the helpers we need inside. The
 * section takes well under a microsecond; who cannot get in marks the
 * connection torn, and what cannot be paired any more is given up and counted.
 */
/* For who only wants to look: that it does not get in changes nothing. */
static __always_inline bool lock_patiently(struct connection *c)
{
	for (int i = 0; i < 128; i++)
		if (take(&c->busy))
			return true;
	return false;
}

static __always_inline bool lock(struct connection *c)
{
	if (lock_patiently(c))
		return true;
	c->torn = 1;
	return false;
}

/* Memory of a deleted entry is used again at once: look at the name after locking. */
static __always_inline bool is_still(const struct connection *c, __u64 cookie)
{
	return c->event.cookie == cookie;
}

static __always_inline void unlock(struct connection *c)
{
	give(&c->busy);
}

/* Is this inbound exchange being worked on? Its answer has not begun. */
static __always_inline bool is_open(const struct connection *c, __u64 cookie, __u32 number)
{
	return c->state == REQUEST && c->event.number == number && is_still(c, cookie);
}

static __always_inline bool exchange_open(__u64 cookie, __u32 number)
{
	const struct connection *c = bpf_map_lookup_elem(&connections, &cookie);

	return c && is_open(c, cookie, number);
}
