/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * An exchange that will be no span is only counted: what the metrics ask of one
 * fits into a struct exchange_count, and many of those make one record. Reads of
 * the heads what that takes. Whatever looks unusual goes out in full: user space
 * has the last word, and comes to the same numbers.
 *
 * Functions that are not static are verified once, for all their callers.
 * Include after struct connection.
 */
#pragma once

#include "connection.bpf.h"

/* Set before load: the seeds of user space's ids. */
const volatile __u64 id_seed_0 = 0, id_seed_1 = 0;
const volatile __u32 batches_mask = 0; /* and how many batches there are, less one */

__u64 exchange_counted;
__u64 exchange_counted_lost;

#ifdef OLD_KERNEL /* user space samples: global functions take no pointers before 5.12 */

static __always_inline int sample_decide(struct connection *c)
{
	return UNCLEAR;
}

static __always_inline bool sample_keeps(struct connection *c)
{
	return true;
}

enum counted { NOT_COUNTED = 0, COUNTED = 1, COUNT_LATER = 2 };

static __always_inline int sample_count(struct connection *c, __u32 reason)
{
	return NOT_COUNTED;
}

#else

#include "trace.h"

enum {
	TRACEPARENT_LEN = 55,
	MAX_WORDS = EXCHANGE_REQUEST_LEN / 8,
	MAX_PATH_WORDS = 48,
	MAX_HOST_WORDS = 8,
	BATCH_LEN = 2048,
	BATCH_ROOM = EXCHANGE_COUNTS_LEN, /* for one more behind it */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32); /* rule */
	__type(value, struct exchange_sampler);
} samplers SEC(".maps");

/* What user space has a number for: series of the metrics. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, EXCHANGE_CLASSES);
	__type(key, __u64);
	__type(value, __u32);
} classes SEC(".maps");

/* A CPU's counts since its last record of them. The first 8 bytes stay 0: no event's cookie is. */
struct batch {
	__u32 busy;
	__u32 items;
	__u64 used;
	__u8 bytes[BATCH_ROOM];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set before load: a power of two */
	__type(key, __u32);
	__type(value, struct batch);
} batches SEC(".maps");

/* ---- eight bytes at a time ---- */

#define ALL(byte)   (0x0101010101010101ull * (byte))
/* Through a pointer of this type: of bytes, the compiler would load one after the other. */
static __always_inline __u64 load(const __u64 *at)
{
	return *at;
}

/* Eight bytes of the heads; `beyond` is behind them. */
#define WORD(c, at) load((const void *)&(c)->heads[(at) & (EXCHANGE_HEADS_LEN - 1)])

/* 0x80 in each byte of *word* that is *byte*. */
static __always_inline __u64 where(__u64 word, __u8 byte)
{
	word ^= ALL(byte);
	return ~(((word & ALL(0x7f)) + ALL(0x7f)) | word | ALL(0x7f));
}

/* The byte that the lowest 0x80 is in. */
static __always_inline __u32 first(__u64 found)
{
	return (((found & -found) >> 7) * 0x0001020304050607ull) >> 56;
}

static __always_inline __u64 low_bytes(__u64 word, __u32 n)
{
	return n >= 8 ? word : word & ((1ull << 8 * n) - 1);
}

static __always_inline __u64 stir(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
	return hash ^ hash >> 32;
}

/* A constant word of text, in memory's order, with the letters' 0x20 set: W("content-"). */
#define W(text)                                                                     \
	((__u64)(text)[0] | (__u64)(text)[1] << 8 | (__u64)(text)[2] << 16 |        \
	 (__u64)(text)[3] << 24 | (__u64)(text)[4] << 32 | (__u64)(text)[5] << 40 | \
	 (__u64)(text)[6] << 48 | (__u64)(text)[7] << 56)
#define LOWER ALL(0x20)

/* ---- heads ---- */

static __always_inline bool is_digit(__u8 c)
{
	return (__u8)(c - '0') < 10;
}

/* A value begins at *at*: behind blanks, of which there is one nearly always. */
static __always_inline __u32 skip_blank(const struct connection *c, __u32 at)
{
	return (WORD(c, at) & 0xff) == ' ' ? at + 1 : at;
}

static __always_inline void read_length(const struct connection *c, struct head *h, __u32 at,
					__u32 end)
{
	__u64 word, n = 0;
	__u32 len;

	at = skip_blank(c, at);
	len = end - at;
	if (h->length != NO_LENGTH || len - 1 > 7) {
		h->odd = 1; /* twice, none, or 100 MB and more */
		return;
	}
	word = WORD(c, at);
	for (int i = 0; i < 8; i++) {
		if (i >= len)
			break;
		if (!is_digit(word))
			h->odd = 1;
		n = n * 10 + (word & 0xf);
		word >>= 8;
	}
	h->length = n;
}

static __always_inline void read_coding(const struct connection *c, struct head *h, __u32 at,
					__u32 end)
{
	at = skip_blank(c, at);
	if (h->chunked || end - at != 7 ||
	    low_bytes(WORD(c, at) | LOWER, 7) != low_bytes(W("chunked "), 7))
		h->odd = 1;
	h->chunked = 1;
}

static __always_inline struct head *head_of(struct connection *c, bool response)
{
	return response ? &c->sample.response : &c->sample.request;
}

/* One line of a head, without its end. The first is left to others. */
__noinline int read_line(struct connection *c, __u32 at, __u32 end, bool response)
{
	struct head *h;
	__u64 w, v;

	if (!c)
		return 0;
	h = head_of(c, response);
	w = WORD(c, at) | LOWER;
	switch (w & 0xff) {
	case 'c':
		if (w == W("content-") &&
		    low_bytes(WORD(c, at + 8) | LOWER, 7) == low_bytes(W("length: "), 7))
			read_length(c, h, at + 15, end);
		break;
	case 't':
		v = WORD(c, at + 8) | LOWER;
		if (w == W("transfer") && v == W("-encodin") &&
		    low_bytes(WORD(c, at + 16) | LOWER, 2) == ('g' | ':' << 8)) {
			read_coding(c, h, at + 18, end);
		} else if (w == W("tracepar") && low_bytes(v, 4) == low_bytes(W("ent:    "), 4)) {
			if (h->parent_at)
				h->odd = 1;
			h->parent_at = skip_blank(c, at + 12);
			if (end - h->parent_at != TRACEPARENT_LEN)
				h->odd = 1;
		} else if (w == W("tracesta") && low_bytes(v, 3) == ('t' | 'e' << 8 | ':' << 16)) {
			h->has_state = 1;
		}
		break;
	case 'h':
		if (low_bytes(w, 5) == low_bytes(W("host:   "), 5)) {
			if (h->host_at)
				h->odd = 1;
			h->host_at = skip_blank(c, at + 5);
			h->host_len = end - h->host_at;
		}
		break;
	case 'e':
		if (!response && low_bytes(w, 7) == low_bytes(W("expect: "), 7))
			h->odd = 1;
		break;
	}
	return 0;
}

/* The word at *at* has line feeds: *found*. Returns 1 after the blank line, and when there is no
 * sense in going on. */
__noinline int read_lines(struct connection *c, __u32 at, __u64 found, bool response)
{
	struct head *h;

	if (!c)
		return 1;
	h = head_of(c, response);
	for (int i = 0; i < 2 && found; i++, found &= found - 1) {
		__u32 lf = at + first(found), stop = lf;

		if (lf >= h->end)
			return 1;
		if (lf > h->line && (WORD(c, lf - 1) & 0xff) == '\r')
			stop = lf - 1;
		if (stop == h->line) {
			h->len = lf + 1 - h->begin;
			return 1;
		}
		if (h->line != h->begin)
			read_line(c, h->line, stop, response);
		h->line = lf + 1;
	}
	if (found)
		h->odd = 1; /* lines as short as that are not HTTP's */
	return found != 0;
}

__noinline int read_head(struct connection *c, bool response)
{
	struct head *h;
	__u32 at, end;

	if (!c)
		return 0;
	h = head_of(c, response);
	at = response ? c->event.request_len : 0;
	end = at + (response ? c->event.response_len : c->event.request_len);
	*h = (struct head){ .length = NO_LENGTH, .begin = at, .line = at, .end = end };
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_WORDS && at < end; i++, at += 8) {
		__u64 found = where(WORD(c, at), '\n');

		if (found && read_lines(c, at, found, response))
			break;
	}
	return 0;
}

/* Where the blank is that ends the query, or the line. */
__noinline int skip_query(struct connection *c, __u32 at)
{
	if (!c)
		return 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_WORDS; i++, at += 8) {
		__u64 found = where(WORD(c, at), ' ') | where(WORD(c, at), '\n');

		if (found)
			return at + first(found);
	}
	return at;
}

/* Hashes what names a client's server. */
__noinline int read_host(struct connection *c)
{
	__u32 at, left;

	if (!c)
		return 0;
	at = c->sample.request.host_at;
	left = c->sample.request.host_len;
	if (!left || left > 8 * MAX_HOST_WORDS)
		return 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_HOST_WORDS; i++) {
		c->sample.line = stir(c->sample.line, low_bytes(WORD(c, at), left));
		if (left <= 8)
			break;
		left -= 8;
		at += 8;
	}
	c->sample.line = stir(c->sample.line, c->sample.request.host_len);
	return 1;
}

/* Hashes the request line up to the query. Returns 0 for one that is not as most are. */
__noinline int read_request_line(struct connection *c)
{
	__u64 word, hash = id_seed_1, found;
	__u32 method, at = 0, stop = 0, version;

	if (!c)
		return 0;
	word = WORD(c, 0);
	found = where(word, ' ');
	if (!found || (__u8)(word - 'A') >= 26)
		return 0; /* a method longer than OPTIONS, or none */
	method = first(found);
	if ((WORD(c, method + 1) & 0xff) != '/')
		return 0;
	found &= found - 1; /* the blank behind the method */
	found |= where(word, '?') | where(word, '#');
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_PATH_WORDS; i++) {
		if (found) {
			stop = at + first(found);
			hash = stir(hash, low_bytes(word, first(found)));
			break;
		}
		hash = stir(hash, word);
		at += 8;
		word = WORD(c, at);
		found = where(word, ' ') | where(word, '?') | where(word, '#');
	}
	if (!stop)
		return 0;
	c->sample.path_end = stop;
	version = stop;
	if ((WORD(c, stop) & 0xff) != ' ')
		version = skip_query(c, stop);
	word = WORD(c, version + 1);
	if ((WORD(c, version) & 0xff) != ' ' || (word | 1ull << 56) != W("HTTP/1.1"))
		return 0;
	c->sample.version = (word >> 56) - '0' + 10;
	word = WORD(c, version + 9);
	if ((word & 0xff) != '\n' && (word & 0xffff) != ('\r' | '\n' << 8))
		return 0;
	c->sample.line = stir(hash, (__u64)stop << 8 | c->sample.version);
	return c->event.role != EXCHANGE_CLIENT || read_host(c);
}

/* ---- decisions ---- */

/* The value of a lower-case hexadecimal digit; over 15: it is none. */
static __always_inline __u32 hex(__u8 c)
{
	if (is_digit(c))
		return c - '0';
	return (__u8)(c - 'a') < 6 ? c - 'a' + 10 : 16;
}

/* The number of *n* hexadecimal digits; the top bit is set when they are not. */
static __always_inline __u64 read_hex(const struct connection *c, __u32 at, int n)
{
	__u64 value = 0;
	__u32 bad = 0;

	for (int i = 0; i < n; i++) {
		__u32 digit = hex(WORD(c, at + i));

		bad |= digit;
		value = value << 4 | (digit & 15);
	}
	return bad & 16 ? 1ull << 63 : value;
}

static __always_inline struct exchange_sampler *sampler_of(__u32 rule)
{
	struct exchange_sampler *how = bpf_map_lookup_elem(&samplers, &rule);

	rule = 0;
	return how ? how : bpf_map_lookup_elem(&samplers, &rule);
}

static __always_inline enum decision by_traceparent(const struct connection *c,
						    const struct exchange_sampler *how)
{
	__u32 at = c->sample.request.parent_at;
	__u64 number;

	/* The ids' digits are not looked at: one that is not valid is what its flag says. */
	if ((WORD(c, at) & 0xffffff) != ('0' | '0' << 8 | '-' << 16) ||
	    (WORD(c, at + 35) & 0xff) != '-' || (WORD(c, at + 52) & 0xff) != '-')
		return UNCLEAR;
	if (!how->parent_based) {
		if (c->sample.request.has_state && how->ratio)
			return UNCLEAR; /* which may have randomness of its own */
		number = read_hex(c, at + 21, 14);
		if (number >> 63)
			return UNCLEAR;
		return number >= how->threshold ? SAMPLED : UNSAMPLED;
	}
	number = read_hex(c, at + 53, 2);
	if (number >> 63)
		return UNCLEAR;
	return number & 1 ? SAMPLED : UNSAMPLED;
}

static __always_inline enum decision decide(struct connection *c,
					    const struct exchange_sampler *how)
{
	const struct exchange_event *e = &c->event;
	__u64 cookie = e->cookie, begin, end;
	__u32 len = e->request_len, number = e->number;

	if (len > EXCHANGE_REQUEST_LEN)
		return UNCLEAR;
	read_head(c, false);
	if (!c->sample.request.len && len < EXCHANGE_REQUEST_LEN)
		return UNDECIDED; /* the rest of it is still to come */
	if (!c->sample.request.len || c->sample.request.odd || c->sample.request.chunked ||
	    !read_request_line(c))
		return UNCLEAR;
	if (c->sample.request.parent_at)
		return by_traceparent(c, how);
	if (e->role == EXCHANGE_CLIENT ? e->parent_cookie : e->root_cookie)
		return c->sample.parent ? c->sample.parent : UNCLEAR;
	if (e->parent_cookie) { /* the trace is the client's, at the other end */
		cookie = e->parent_cookie;
		number = e->parent_number;
		how = sampler_of(e->root_rule);
		if (!how)
			return UNCLEAR;
	}
	begin = exchange_hash(id_seed_1, cookie, number);
	end = trace_id_end(begin, id_seed_0);
	return trace_randomness(end) >= how->threshold ? SAMPLED : UNSAMPLED;
}

/* Will the exchange be a span? Returns an enum decision. */
__noinline int sample_decide(struct connection *c)
{
	struct exchange_sampler *how;

	if (!c)
		return UNCLEAR;
	if (c->sample.decision)
		return c->sample.decision;
	how = sampler_of(c->event.rule);
	if (!how || !how->threshold)
		c->sample.decision = UNCLEAR;
	else
		c->sample.decision = decide(c, how);
	if (c->sample.decision == UNSAMPLED)
		c->event.flags |= EXCHANGE_UNSAMPLED;
	return c->sample.decision;
}

/* Do some exchanges become spans whose traces are not sampled? Their children must find them. */
static __always_inline bool sample_keeps(const struct connection *c)
{
	const struct exchange_sampler *how = sampler_of(c->event.rule);

	return !how || how->keep_errors || how->slower_ns;
}

/* ---- counts ---- */

/* Under the batch's lock. */
static __always_inline void send_batch(struct batch *b)
{
	__u64 size = b->used, flags = BPF_RB_NO_WAKEUP;

	if (!b->items)
		return;
	if (bpf_ringbuf_query(&exchange_events, BPF_RB_AVAIL_DATA) > exchange_events_high)
		flags = BPF_RB_FORCE_WAKEUP;
	CLAMP(size, BATCH_ROOM);
	if (bpf_ringbuf_output(&exchange_events, b->bytes, size, flags))
		__sync_fetch_and_add(&exchange_counted_lost, b->items);
	__sync_fetch_and_add(&exchange_counted, b->items);
	b->items = 0;
	b->used = 8;
}

/* False: somebody else was at it, which takes an interrupt at the wrong moment. */
static __always_inline bool add_count(struct connection *c, const struct exchange_count *count,
				      const struct exchange_line *line)
{
	__u32 cpu = bpf_get_smp_processor_id() & batches_mask;
	struct batch *b = bpf_map_lookup_elem(&batches, &cpu);
	__u64 at, more;

	if (!b || !take(&b->busy))
		return false;
	at = b->used;
	if (at < 8)
		at = 8;
	CLAMP(at, BATCH_LEN);
	*(struct exchange_count *)&b->bytes[at] = *count;
	at += sizeof(*count);
	if (!count->class) {
		*(struct exchange_line *)&b->bytes[at] = *line;
		at += sizeof(*line);
		more = line->line_len;
		CLAMP(more, EXCHANGE_REQUEST_LEN);
		bpf_probe_read_kernel(&b->bytes[at], more, c->heads);
		at += more;
		more = line->host_len;
		CLAMP(more, 8 * MAX_HOST_WORDS);
		if (more) {
			bpf_probe_read_kernel(
				&b->bytes[at], more,
				&c->heads[c->sample.request.host_at & (EXCHANGE_REQUEST_LEN - 1)]);
			at += more;
		}
		at = (at + 7) & ~7ull;
	}
	b->used = at;
	b->items++;
	if (at > BATCH_LEN - sizeof(*count))
		send_batch(b);
	give(&b->busy);
	return true;
}

/* Chunks that have ended, for sure. */
static __always_inline bool last_chunk(const struct connection *c, __u32 at)
{
	const struct exchange_event *e = &c->event;
	__u64 tail = e->response_tail;

	if (e->response_bytes == e->response_len)
		tail = e->response_len < 8 ? 0 : WORD(c, at + e->response_len - 8);
	return tail >> 24 == (W("0\r\n\r\n   ") & 0xffffffffff);
}

enum counted {
	NOT_COUNTED = 0, /* it has to go out in full */
	COUNTED = 1,
	COUNT_LATER = 2, /* the response goes on */
};

static __always_inline int count(struct connection *c, __u32 reason)
{
	struct exchange_event *e = &c->event;
	const struct exchange_sampler *how = sampler_of(c->event.rule);
	const struct head *q = &c->sample.request, *r = &c->sample.response;
	struct exchange_count out = {};
	struct exchange_line line = {};
	__u32 at = e->request_len, len = e->response_len, status, *class;
	__u64 word, took = e->end_ns - e->start_ns, body;
	bool complete, bodiless;

	if (!how || at > EXCHANGE_REQUEST_LEN || len > EXCHANGE_RESPONSE_LEN || len < 12 ||
	    took >= NO_LENGTH)
		return NOT_COUNTED;
	if (e->request_bytes != (__u64)q->len + (q->length == NO_LENGTH ? 0 : q->length))
		return NOT_COUNTED;
	word = WORD(c, 0);
	if (q->length == NO_LENGTH && (word & 0xff) == 'P')
		return NOT_COUNTED; /* POST and the like: no length is not no body */

	if ((WORD(c, at) | 1ull << 56) != W("HTTP/1.1"))
		return NOT_COUNTED;
	word = WORD(c, at + 8);
	if ((word & 0xff) != ' ' || !is_digit(word >> 8) || !is_digit(word >> 16) ||
	    !is_digit(word >> 24))
		return NOT_COUNTED;
	status = (word >> 8 & 15) * 100 + (word >> 16 & 15) * 10 + (word >> 24 & 15);
	word = word >> 32 & 0xff;
	if (status < 200 || (word != ' ' && word != '\r' && word != '\n'))
		return NOT_COUNTED;
	if ((how->keep_errors && status >= (e->role == EXCHANGE_SERVER ? 500 : 400)) ||
	    (how->slower_ns && took > how->slower_ns))
		return NOT_COUNTED;

	read_head(c, true);
	if (r->odd || (r->chunked && r->length != NO_LENGTH) ||
	    (!r->len && e->response_len != EXCHANGE_RESPONSE_LEN))
		return NOT_COUNTED;
	bodiless = status == 204 || status == 304 ||
		   low_bytes(WORD(c, 0), 5) == low_bytes(W("HEAD    "), 5);
	body = e->response_bytes - r->len;
	if (bodiless)
		complete = true;
	else if (r->chunked)
		complete = r->len != e->response_bytes && last_chunk(c, at);
	else if (r->length != NO_LENGTH)
		complete = e->response_bytes >= (__u64)r->length + (r->len ? r->len : len);
	else
		complete = false; /* until the connection closes */

	if (reason == EXCHANGE_IDLE && !complete)
		return r->len && !r->chunked && r->length != NO_LENGTH ? COUNT_LATER : NOT_COUNTED;
	if (reason == EXCHANGE_CLOSED && !complete &&
	    (e->error || !r->len || r->chunked || r->length != NO_LENGTH))
		return NOT_COUNTED; /* cut short, perhaps */

	out.duration_ns = took;
	out.request_body = q->length == NO_LENGTH ? 0 : q->length;
	if (bodiless)
		out.response_body = 0;
	else if (r->chunked)
		out.response_body = NO_LENGTH;
	else if (r->length != NO_LENGTH && complete)
		out.response_body = r->length;
	else if (!r->len)
		out.response_body = NO_LENGTH;
	else if (body >= NO_LENGTH)
		return NOT_COUNTED;
	else
		out.response_body = body;

	line.key = stir(c->sample.line, e->process_start_ns);
	line.key = mix(line.key ^ ((__u64)e->pid << 32 | (__u32)e->role << 16 | status));
	class = bpf_map_lookup_elem(&classes, &line.key);
	if (class) {
		out.class = *class;
	} else {
		line.process_start_ns = e->process_start_ns;
		line.pid = e->pid;
		line.status = status;
		line.line_len = c->sample.path_end;
		line.host_len = e->role == EXCHANGE_CLIENT ? q->host_len : 0;
		line.role = e->role;
		line.version = c->sample.version;
	}
	return add_count(c, &out, &line) ? COUNTED : NOT_COUNTED;
}

/*
 * Counts the exchange if it will be no span and there is nothing unusual to it.
 * *reason* is an enum exchange_reason. Returns an enum counted.
 */
__noinline int sample_count(struct connection *c, __u32 reason)
{
	if (!c)
		return NOT_COUNTED;
	if (c->sample.told)
		return COUNTED;
	if (sample_decide(c) != UNSAMPLED || c->sample.asked)
		return NOT_COUNTED;
	if (reason == EXCHANGE_IDLE && c->sample.waiting == c->event.response_bytes)
		return COUNT_LATER;
	switch (count(c, reason)) {
	case COUNTED:
		c->sample.told = 1;
		return COUNTED;
	case COUNT_LATER:
		c->sample.waiting = c->event.response_bytes;
		return COUNT_LATER;
	}
	return NOT_COUNTED;
}

#endif
