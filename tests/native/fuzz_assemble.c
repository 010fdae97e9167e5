/* SPDX-License-Identifier: Apache-2.0 */
/* needs: assemble.c http1.c instrumented.c intern.c sampling.c */
/*
 * Any sequence of exchange records, fed, flushed and forgotten in any order, to two assemblers: one
 * gets each record by itself, the other as many as there are before the next operation, with room
 * for two rows only. They must agree, and every record must be accounted for. Each feed is a heap
 * block of its exact size, so that AddressSanitizer sees the first byte read too many.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <linux/types.h>

#include "exchange.h"
#include "assemble.h"

#define CHECK(condition)          \
	do {                      \
		if (!(condition)) \
			abort();  \
	} while (0)

enum {
	COOKIES = 5,
	MAX_BATCH = 64 << 10,
	FRAME = 8,
	FEW_ROWS = 2, /* the least that feed can work with */
	MORE_ROWS = 64,
	MAX_THOROUGH = 16, /* flushes and forgets: each walks through all tables */
};

static const char *const REQUESTS[] = {
	"",
	"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"HEAD /h?q HTTP/1.1\r\nHost: [::1]:8\r\n\r\n",
	"POST /p HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
	"POST /p HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
	"PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
	"CONNECT a:1 HTTP/1.1\r\n\r\n",
	"GET /t HTTP/1.1\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
	"tracestate: v=1\r\nUser-Agent: u\r\n\r\n",
	"GET /cut HTTP/1.1\r\nCookie: ",
	"12345",
	"3\r\nabc\r\n",
	"0\r\n\r\n",
	"\r\n",
	"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	"\x16\x03\x01\x02",
	"*1\r\n$4\r\nPING\r\n",
};

static const char *const RESPONSES[] = {
	"",
	"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
	"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
	"HTTP/1.0 404 Not Found\r\n\r\n",
	"HTTP/1.1 100 Continue\r\n\r\n",
	"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n",
	"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
	"HTTP/1.1 204 No Content\r\n\r\n",
	"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
	"HTTP/1.1 500 No\r\nX: ",
	"HTTP/1.1 2",
	"3\r\nabc\r\n",
	"0\r\n\r\n",
	"junk",
};

struct input {
	const uint8_t *at, *end;
};

static uint8_t next(struct input *in)
{
	return in->at < in->end ? *in->at++ : 0;
}

static uint32_t numbers[COOKIES];
static uint64_t moved[COOKIES][2]; /* request and response bytes of the last record */
static uint64_t now_ns;
static int plausible; /* no junk was long enough to be an event */

/* Up to three fragments, or raw bytes, behind each other; returns their length, and in *last the
 * final 8 bytes. */
static uint32_t message(struct input *in, const char *const *words, uint32_t n_words, uint8_t *to,
			uint32_t room, __u64 *last)
{
	uint32_t len = 0, pieces = next(in) % 4;
	uint8_t tail[8] = { 0 };

	for (uint32_t i = 0; i < pieces; i++) {
		uint32_t word = next(in);
		const uint8_t *from = (const uint8_t *)words[word % n_words];
		uint32_t n = (uint32_t)strlen(words[word % n_words]), repeat = 1;

		if (word >= 0xf0) { /* raw, perhaps much of it */
			n = next(in) % 16;
			n = n < (size_t)(in->end - in->at) ? n : (uint32_t)(in->end - in->at);
			from = in->at;
			in->at += n;
			repeat = 1 + (word & 7) * 20;
		}
		while (n && repeat--) {
			uint32_t fits = n < room - len ? n : room - len;

			memcpy(to + len, from, fits);
			len += fits;
		}
	}
	memcpy(tail + 8 - (len < 8 ? len : 8), to + len - (len < 8 ? len : 8), len < 8 ? len : 8);
	memcpy(last, tail, 8);
	return len;
}

/* Appends one framed record; most are such as the kernel sends. */
static uint32_t record(struct input *in, uint8_t *to)
{
	static const uint64_t extras[] = { 0, 0, 0, 0, 1, 5, 3000, UINT64_MAX / 2 };
	static const char end_of_chunks[] = "\r\n\r0\r\n\r\n";
	uint8_t how = next(in), which = next(in),
		heads[EXCHANGE_REQUEST_LEN + EXCHANGE_RESPONSE_LEN];
	uint32_t cookie = which % COOKIES, size;
	struct exchange_event e = {
		.cookie = cookie + 1, .pid = 7, .tid = 7, .local_port = 80, .peer_port = 9
	};

	numbers[cookie] += (which >> 4) % 3;
	e.number = numbers[cookie];
	e.role = cookie & 1 ? EXCHANGE_CLIENT : EXCHANGE_SERVER;
	e.reason = 1 + (how >> 1) % (cookie & 1 ? 3 : 4); /* only servers are announced */
	e.flags = how >> 3 & 7;
	e.error = how & 0x40 ? 104 : 0;
	if (how & 0x80 && e.role == EXCHANGE_CLIENT) {
		uint32_t parent = next(in) % COOKIES & ~1u;

		e.parent_cookie = parent + 1;
		e.parent_number = numbers[parent];
	}
	e.request_len = (uint16_t)message(in, REQUESTS, sizeof(REQUESTS) / sizeof(REQUESTS[0]),
					  heads, EXCHANGE_REQUEST_LEN, &e.request_tail);
	e.response_len =
		(uint16_t)message(in, RESPONSES, sizeof(RESPONSES) / sizeof(RESPONSES[0]),
				  heads + e.request_len, EXCHANGE_RESPONSE_LEN, &e.response_tail);
	which = next(in);
	e.request_bytes = e.request_len + extras[which & 7];
	e.response_bytes = e.response_len + extras[which >> 3 & 7];
	if (which & 0x40)
		memcpy(&e.request_tail, end_of_chunks, 8);
	if (which & 0x80)
		memcpy(&e.response_tail, end_of_chunks, 8);
	if (e.flags & EXCHANGE_RESENT) { /* the same again, or more of it */
		e.request_bytes = moved[cookie][0];
		if (e.response_bytes < moved[cookie][1])
			e.response_bytes = moved[cookie][1];
	}
	if (!e.response_bytes && (e.reason == EXCHANGE_NEXT || e.reason == EXCHANGE_IDLE))
		e.reason = EXCHANGE_CLOSED; /* neither comes before an answer */
	moved[cookie][0] = e.request_bytes;
	moved[cookie][1] = e.response_bytes;
	e.start_ns = now_ns += 10;
	e.request_ns = now_ns;
	e.end_ns = now_ns += 10;
	e.first_ns = e.response_bytes ? e.start_ns + 5 : 0;
	e.peer_addr[10] = e.peer_addr[11] = e.local_addr[10] = e.local_addr[11] = 0xff;

	size = sizeof(e) + (e.flags & EXCHANGE_RESENT ? 0 : e.request_len + e.response_len);
	memset(to, 0, FRAME);
	memcpy(to, &size, sizeof(size));
	memcpy(to + FRAME, &e, sizeof(e));
	memcpy(to + FRAME + sizeof(e), heads, size - sizeof(e));
	return FRAME + ((size + 7) & ~7u);
}

/* A record that no kernel sends: any size, any bytes. */
static uint32_t junk(struct input *in, uint8_t *to)
{
	uint32_t size = next(in),
		 n = size < (size_t)(in->end - in->at) ? size : (uint32_t)(in->end - in->at);

	plausible &= size < sizeof(struct exchange_event);
	memset(to, 0, FRAME + 256);
	memcpy(to, &size, sizeof(size));
	memcpy(to + FRAME, in->at, n);
	in->at += n;
	return FRAME + ((size + 7) & ~7u);
}

static int all_zero(const uint8_t *at, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (at[i])
			return 0;
	return 1;
}

static void check_string(const otb_http *h, uint32_t id, uint32_t want)
{
	uint32_t len;
	const uint8_t *at;

	if (!id)
		return;
	at = otb_http_string(h, id, &len);
	CHECK(at && len && (!want || len == want));
}

static void check_row(const otb_http *h, const struct http_row *row)
{
	struct http_shape shape;

	CHECK(row->shape < otb_http_shapes(h));
	memcpy(&shape, otb_http_shape(h, row->shape), sizeof(shape));
	CHECK(!all_zero(row->trace_id, 16) && !all_zero(row->span_id, 8));
	CHECK(all_zero(row->parent_id, 8) == (shape.parent == HTTP_PARENT_NONE));
	CHECK(shape.method && shape.parent <= HTTP_PARENT_PASSED);
	if (plausible) {
		CHECK(memcmp(row->parent_id, row->span_id, 8) != 0);
		CHECK(row->end_ns >= row->start_ns);
		CHECK(!shape.status || row->first_ns);
		CHECK(!row->first_ns || row->first_ns >= row->start_ns);
		CHECK(shape.role && shape.role <= EXCHANGE_CLIENT);
	}
	CHECK(shape.status != 101);
	CHECK(!shape.query);
	check_string(h, shape.method, 0);
	check_string(h, shape.path, 0);
	check_string(h, shape.host, 0);
	check_string(h, shape.user_agent, 0);
	check_string(h, shape.trace_state, 0);
	check_string(h, shape.peer_addr, 16);
	check_string(h, shape.local_addr, 16);
}

/* One of the two assemblers, and what all its rows were. */
struct side {
	otb_http *h;
	uint64_t rows;
	uint64_t digest;
};

static void check_side(struct side *s)
{
	const struct http_counts *c = otb_http_counts(s->h);
	uint32_t n, n_ignore;
	const struct http_row *rows = otb_http_rows(s->h, &n);

	for (uint32_t i = 0; i < n; i++) {
		uint8_t bytes[sizeof(*rows)];

		check_row(s->h, &rows[i]);
		memcpy(bytes, &rows[i], sizeof(bytes));
		for (size_t at = 0; at < sizeof(bytes); at++)
			s->digest = (s->digest ^ bytes[at]) * 0x100000001b3u;
	}
	s->rows += n;
	CHECK(s->rows == c->rows);
	CHECK(c->records == c->rows + c->opened + c->repeated + c->merged + c->malformed + c->tls +
				    c->http2 + c->upgrade + c->pipelined + c->unknown + c->held);
	otb_http_ignore(s->h, &n_ignore);
	CHECK(n_ignore <= c->records);
	CHECK(!otb_http_full(s->h));
}

static void feed(struct side *s, const uint8_t *from, uint32_t len)
{
	uint8_t *exact = malloc(len);
	uint32_t used = 0;

	CHECK(exact);
	memcpy(exact, from, len);
	while (used < len) {
		uint32_t n = otb_http_feed(s->h, exact + used, len - used);

		CHECK(n > 0 && n <= len - used);
		used += n;
		check_side(s);
	}
	free(exact);
}

static void flush(struct side *s, int all)
{
	uint32_t n;

	do {
		otb_http_flush(s->h, now_ns, all);
		check_side(s);
		otb_http_rows(s->h, &n);
	} while (n);
	CHECK(!all || !otb_http_counts(s->h)->held);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t batch[MAX_BATCH];
	static const uint64_t seed[2] = { 1, 2 };
	struct input in = { data, data + size };
	struct side one = { otb_http_new(seed, MORE_ROWS, 0), 0, 0 },
		    two = { otb_http_new(seed, FEW_ROWS, 0), 0, 0 };
	uint32_t len = 0, thorough = MAX_THOROUGH;

	CHECK(one.h && two.h);
	memset(numbers, 0, sizeof(numbers));
	memset(moved, 0, sizeof(moved));
	now_ns = 1000;
	plausible = 1;
	while (in.at < in.end) {
		uint8_t op = next(&in);
		int is_record = op >= 16;

		if (is_record || op < 2) {
			uint32_t n = is_record ? record(&in, batch + len) : junk(&in, batch + len);

			feed(&one, batch + len, n);
			len += n;
		}
		if (!is_record || in.at == in.end ||
		    len + FRAME + sizeof(struct exchange_event) + 2048 > MAX_BATCH) {
			if (len)
				feed(&two, batch, len);
			len = 0;
		}
		if (op < 2 || op >= 8 || !thorough)
			continue;
		thorough--;
		if (op < 6) {
			now_ns += 3000000000u * (op & 1); /* longer than an unknown end waits */
			flush(&one, op >= 4);
			flush(&two, op >= 4);
		} else {
			otb_http_forget(one.h);
			otb_http_forget(two.h);
		}
	}
	CHECK(!memcmp(otb_http_counts(one.h), otb_http_counts(two.h), sizeof(struct http_counts)));
	CHECK(one.digest == two.digest);
	flush(&one, 1);
	flush(&two, 1);
	otb_http_free(one.h);
	otb_http_free(two.h);
	return 0;
}
