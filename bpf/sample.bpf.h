/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Which exchanges will be spans? The others are only counted (count.bpf.h).
 */
#pragma once

#include "kernel.h"
#include <bpf/bpf_helpers.h>

enum decision {
	UNDECIDED = 0,
	SAMPLED = 1,
	UNSAMPLED = 2,
	UNCLEAR = 3, /* for user space to tell */
};

enum { NO_LENGTH = 0xffffffff };

/* What has been read of a head. */
struct head {
	__u16 begin, end, line;
	__u16 len;    /* with the blank line; 0: not seen */
	__u32 length; /* Content-Length */
	__u16 host_at, host_len;
	__u16 parent_at; /* of traceparent's value; 0: none */
	__u8 chunked;
	__u8 has_state;
	__u8 odd; /* it has something that only user space understands */
	__u8 _pad[3];
};

/* A connection's exchange, as far as it was looked at. */
struct sample {
	struct head request, response;
	__u64 line;    /* hash of the request line without its query, and of a client's Host */
	__u64 waiting; /* response bytes when it was looked at and not complete */
	__u16 path_end;
	__u8 version;
	__u8 _pad;
	/* From here on it begins anew with each exchange. */
	__u8 decision; /* enum decision */
	__u8 parent;   /* the decision over the inbound exchange that this one belongs to */
	__u8 told;
	__u8 asked; /* another probe's event belongs to it */
};

static __always_inline void sample_begins(struct sample *s)
{
	s->waiting = 0;
	s->decision = UNDECIDED;
	s->parent = UNDECIDED;
	s->told = 0;
	s->asked = 0;
}
