// SPDX-License-Identifier: Apache-2.0
/*
 * From exchange records to HTTP/1 rows.
 *
 * The kernel pairs bytes by direction and knows no protocol, so it cuts where
 * HTTP does not: at 100 Continue, where an answer overtakes the request's body,
 * and wherever a response pauses. Here the heads are known, so a record whose
 * exchange is not over is *held* until the rest of it comes. All other records,
 * nearly all of them, pass straight through.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <linux/types.h>

#include "exchange.h"
#include "http1.h"
#include "instrumented.h"
#include "intern.h"
#include "sampling.h"
#include "trace.h"
#include "assemble.h"

enum {
	RECORD_HEADER = 8,
	MAX_HEADS = EXCHANGE_REQUEST_LEN + EXCHANGE_RESPONSE_LEN,
	MAX_IGNORE = 4096,
	MAX_STRINGS = 32768,
	MAX_STRING_BYTES = 4 << 20,
	MAX_SHAPES = 16384,
	/* One record adds two rows at most, or a page of counts. */
	MAX_COUNTS = 4096 / sizeof(struct exchange_count),
	MAX_LINES = 4096 / (sizeof(struct exchange_count) + sizeof(struct exchange_line)),
	STRINGS_FOR_ONE = 3 * MAX_LINES,
	BYTES_FOR_ONE = 4096 + 128,
	MAX_COUNTED = 16384,
	MAX_LESSONS = 1024,
	HELD_SLOTS = 16384, /* a power of two */
	MAX_HELD = 8192,
	MAX_SAMPLERS = 256,
	CONTEXT_SETS = 16384, /* a power of two */
	CONTEXT_WAYS = 4,
	OTLP_GRPC_PORT = 4317, /* as registered */
	FLAG_SAMPLED = 0x01,
	FLAG_RANDOM = 0x02, /* W3C Trace Context level 2: the id's last 56 bits are */
	FLAG_HAS_IS_REMOTE = 0x100,
	FLAG_IS_REMOTE = 0x200,
};

/* How long an exchange whose end cannot be told from its bytes must have been quiet to be called
 * over. */
static const uint64_t quiet_ns = 2000000000;

/*
 * The trace of an inbound exchange that is still open, for its children. It is
 * found by the exchange, and by the traceparent that its process received.
 */
struct context {
	uint64_t key;      /* a hash of either; 0: free */
	uint64_t exchange; /* hash of cookie and number; 0: several came with this traceparent */
	uint8_t trace_id[16], span_id[8], remote_id[8];
	uint32_t flags, trace_state, age;
	uint32_t _pad;
};

/* One exchange so far. The event's counts are sums over the parts; `base` are those of the parts
 * before the last. */
struct held {
	struct exchange_event event;
	uint32_t last_number;
	uint32_t base_sends;
	uint64_t base_request, base_response;
	int unknown_end; /* its bytes cannot tell that it is over: quiet does */
	uint8_t heads[];
};

struct otb_http {
	uint64_t seed[2];
	int keep_query, repeat_sdk;
	uint32_t max_rows, n_rows, n_ignore, n_held, clock;
	struct http_counts counts;
	uint32_t n_samplers;
	struct exchange_sampler samplers[MAX_SAMPLERS]; /* by rule */
	struct intern *strings, *shapes;
	struct instrumented instrumented, relays; /* relays: of the spans of others */
	struct held **held;                       /* HELD_SLOTS, open addressing by cookie */
	struct context (*contexts)[CONTEXT_WAYS];
	uint64_t ignore[MAX_IGNORE];
	uint32_t n_counted, n_lessons;
	struct exchange_count counted[MAX_COUNTED];
	struct http_lesson lessons[MAX_LESSONS];
	struct http_row rows[];
};

static void span_id(const struct otb_http *h, const struct exchange_event *e, uint8_t out[8])
{
	uint64_t id = exchange_hash(h->seed[0], e->cookie, e->number);

	memcpy(out, &id, 8);
}

static void new_trace_id(const struct otb_http *h, const struct exchange_event *e, uint8_t out[16])
{
	uint64_t high = exchange_hash(h->seed[1], e->cookie, e->number);
	uint64_t low = trace_id_end(high, h->seed[0]);

	memcpy(out, &high, 8);
	memcpy(out + 8, &low, 8);
}

otb_http *otb_http_new(const uint64_t seed[2], uint32_t max_rows, int keep_query)
{
	otb_http *h = calloc(1, sizeof(*h) + max_rows * sizeof(h->rows[0]));

	if (!h)
		return NULL;
	memcpy(h->seed, seed, sizeof(h->seed));
	h->max_rows = max_rows;
	h->keep_query = keep_query;
	h->n_samplers = 1;
	h->samplers[0].parent_based = 1; /* parentbased_always_on */
	h->strings = intern_new(MAX_STRINGS, MAX_STRING_BYTES);
	h->shapes = intern_new(MAX_SHAPES, MAX_SHAPES * sizeof(struct http_shape));
	h->held = calloc(HELD_SLOTS, sizeof(*h->held));
	h->contexts = calloc(CONTEXT_SETS, sizeof(*h->contexts));
	if (!h->strings || !h->shapes || !h->held || !h->contexts) {
		otb_http_free(h);
		return NULL;
	}
	return h;
}

void otb_http_sample(otb_http *h, const struct exchange_sampler *samplers, uint32_t n)
{
	h->n_samplers = n < MAX_SAMPLERS ? n : MAX_SAMPLERS;
	memcpy(h->samplers, samplers, h->n_samplers * sizeof(samplers[0]));
}

void otb_http_repeat_sdk(otb_http *h)
{
	h->repeat_sdk = 1;
}

void otb_http_free(otb_http *h)
{
	if (h->held)
		for (int i = 0; i < HELD_SLOTS; i++)
			free(h->held[i]);
	free(h->held);
	free(h->contexts);
	if (h->strings)
		intern_free(h->strings);
	if (h->shapes)
		intern_free(h->shapes);
	free(h);
}

/* ---- processes that report their requests themselves ---- */

static void sdk_seen(otb_http *h, const struct exchange_event *e)
{
	if (!h->repeat_sdk)
		instrumented_add(&h->instrumented, e->pid, e->process_start_ns);
}

/* A proxy or a Collector: the spans that it sends are not its own. */
static void relay_seen(otb_http *h, const struct exchange_event *e)
{
	instrumented_add(&h->relays, e->pid, e->process_start_ns);
}

static int has_sdk(const otb_http *h, const struct exchange_event *e)
{
	return instrumented_has(&h->instrumented, e->pid, e->process_start_ns) &&
	       !instrumented_has(&h->relays, e->pid, e->process_start_ns);
}

/* An SDK's span, not ours. */
static int sdk_serves(const otb_http *h, const struct exchange_event *e)
{
	return e->role == EXCHANGE_SERVER && has_sdk(h, e);
}

/* ---- contexts: the traces of open inbound exchanges ---- */

static uint64_t traceparent_hash(const struct otb_http *h, const struct exchange_event *e,
				 const struct http1_request *q)
{
	uint64_t part[3], x;

	memcpy(part, q->trace_id, 16);
	memcpy(part + 2, q->parent_id, 8);
	x = mix(mix(mix(h->seed[1] ^ part[0]) ^ part[1]) ^ part[2]);
	x = mix(x ^ e->process_start_ns ^ (uint64_t)e->pid << 32);
	return x ? x : 1;
}

static struct context *find_context(otb_http *h, uint64_t key)
{
	struct context *set = h->contexts[key & (CONTEXT_SETS - 1)];

	for (int i = 0; i < CONTEXT_WAYS; i++)
		if (set[i].key == key)
			return &set[i];
	return NULL;
}

static struct context *new_context(otb_http *h, uint64_t key)
{
	struct context *set = h->contexts[key & (CONTEXT_SETS - 1)], *oldest = &set[0];

	for (int i = 0; i < CONTEXT_WAYS; i++) {
		if (!set[i].key || set[i].key == key) {
			oldest = &set[i];
			break;
		}
		if ((int32_t)(set[i].age - oldest->age) < 0)
			oldest = &set[i];
	}
	memset(oldest, 0, sizeof(*oldest));
	oldest->key = key;
	oldest->age = h->clock++;
	return oldest;
}

/* *to* keeps its key. */
static void copy_context(struct context *to, const struct context *from)
{
	uint64_t key = to->key;

	*to = *from;
	to->key = key;
}

/* ---- heads ---- */

struct message {
	struct http1_request request;
	struct http1_response response;
	int request_kind;
	int response_kind; /* HTTP1_NONE: no response, or none that is HTTP */
	uint32_t interim;  /* bytes of 1xx heads before the final one */
};

static void read_heads(const struct exchange_event *e, const uint8_t *heads, struct message *m)
{
	const uint8_t *response = heads + e->request_len;
	uint32_t len = e->response_len;

	m->request_kind = http1_parse_request(heads, e->request_len, &m->request);
	m->response_kind = HTTP1_NONE;
	m->interim = 0;
	if (!len)
		return;
	m->response_kind = http1_parse_response(response, len, &m->response);
	/* 103 Early Hints and the like: the answer follows in the same direction. */
	while (m->response_kind == HTTP1_HEAD && m->response.status < 200 &&
	       m->response.status != 101 && m->interim + m->response.head_len < len) {
		m->interim += m->response.head_len;
		m->response_kind =
			http1_parse_response(response + m->interim, len - m->interim, &m->response);
	}
}

enum completeness { INCOMPLETE, COMPLETE, UNKNOWN };

/* Only 1xx so far: the answer is still to come. */
static int interim(const struct message *m)
{
	return m->response_kind == HTTP1_HEAD && m->response.status < 200 &&
	       m->response.status != 101;
}

static int answered(const struct message *m)
{
	return (m->response_kind == HTTP1_HEAD || m->response_kind == HTTP1_CUT) && !interim(m);
}

/* The last *n* bytes of what was captured whole, as the kernel keeps them of what was not. */
static uint64_t tail_of(const uint8_t *head, uint32_t n)
{
	uint64_t tail = 0;

	if (n > 8) {
		head += n - 8;
		n = 8;
	}
	memcpy((uint8_t *)&tail + 8 - n, head, n);
	return tail;
}

static enum completeness chunks_end(uint64_t bytes, uint32_t head_len, uint32_t captured,
				    const uint8_t *head, uint64_t tail)
{
	static const char end[] = "0\r\n\r\n";

	if (bytes == head_len)
		return INCOMPLETE; /* not one chunk yet */
	if (bytes == captured)
		tail = tail_of(head, captured);
	if (!tail)
		return UNKNOWN; /* sendfile, or more pieces than the kernel side follows */
	if (!memcmp((const uint8_t *)&tail + 3, end, 5))
		return COMPLETE;
	/* Trailers, or data that looks like their end. */
	return memcmp((const uint8_t *)&tail + 4, end + 1, 4) ? INCOMPLETE : UNKNOWN;
}

static enum completeness request_end(const struct exchange_event *e, const uint8_t *heads,
				     const struct message *m)
{
	const struct http1_request *q = &m->request;
	uint64_t body = q->content_length > 0 ? (uint64_t)q->content_length : 0;

	if (m->request_kind == HTTP1_CUT && e->request_bytes == e->request_len)
		return INCOMPLETE; /* all of it is here, and it has no blank line */
	if (q->chunked)
		return chunks_end(e->request_bytes, q->head_len, e->request_len, heads,
				  e->request_tail);
	return body && e->request_bytes < q->head_len + body ? INCOMPLETE : COMPLETE;
}

/* A second request behind the first, in the same direction. Two bytes more are an old client's
 * CRLF. */
static int pipelined(const struct exchange_event *e, const struct message *m)
{
	const struct http1_request *q = &m->request;
	uint64_t body = q->content_length > 0 ? (uint64_t)q->content_length : 0;

	return m->request_kind == HTTP1_HEAD && !q->chunked &&
	       e->request_bytes > q->head_len + body + 2;
}

static enum completeness response_end(const struct exchange_event *e, const uint8_t *heads,
				      const struct message *m)
{
	const struct http1_response *r = &m->response;
	uint64_t bytes = e->response_bytes - m->interim;

	if (m->response_kind != HTTP1_HEAD && m->response_kind != HTTP1_CUT)
		return UNKNOWN;
	if (m->response_kind == HTTP1_CUT && e->response_bytes == e->response_len)
		return INCOMPLETE;
	if (r->status < 200 && r->status != 101)
		return INCOMPLETE; /* interim */
	if (r->status == 204 || r->status == 304 ||
	    http1_method(m->request.method.at, m->request.method.len) == HTTP1_METHOD_HEAD)
		return COMPLETE;
	if (r->chunked)
		return chunks_end(e->response_bytes, m->interim + r->head_len, e->response_len,
				  heads + e->request_len, e->response_tail);
	if (r->content_length >= 0)
		return bytes >= (uint64_t)r->content_length +
					       (r->head_len ? r->head_len
							    : e->response_len - m->interim)
			       ? COMPLETE
			       : INCOMPLETE;
	if (r->head_len)
		return INCOMPLETE; /* until the connection closes */
	return UNKNOWN;
}

/* ---- held exchanges ---- */

static uint32_t held_slot(const otb_http *h, uint64_t cookie)
{
	uint32_t i = (uint32_t)mix(cookie ^ h->seed[1]) & (HELD_SLOTS - 1);

	while (h->held[i] && h->held[i]->event.cookie != cookie)
		i = (i + 1) & (HELD_SLOTS - 1);
	return i;
}

static struct held *find_held(const otb_http *h, uint64_t cookie)
{
	return h->n_held ? h->held[held_slot(h, cookie)] : NULL;
}

static void drop_held(otb_http *h, struct held *p)
{
	uint32_t hole = held_slot(h, p->event.cookie), i = hole;

	free(p);
	h->held[hole] = NULL;
	h->n_held--;
	/* Close the gap: an entry behind it may have come here by probing. */
	for (;;) {
		uint32_t home;

		i = (i + 1) & (HELD_SLOTS - 1);
		if (!h->held[i])
			return;
		home = (uint32_t)mix(h->held[i]->event.cookie ^ h->seed[1]) & (HELD_SLOTS - 1);
		if (((i - home) & (HELD_SLOTS - 1)) < ((i - hole) & (HELD_SLOTS - 1)))
			continue;
		h->held[hole] = h->held[i];
		h->held[i] = NULL;
		hole = i;
	}
}

/* False: there is no room, and the caller must make do with what there is. */
static int hold(otb_http *h, const struct exchange_event *e, const uint8_t *heads, int unknown_end)
{
	size_t len = (size_t)e->request_len + e->response_len;
	struct held *p;

	if (h->n_held >= MAX_HELD) {
		h->counts.held_full++;
		return 0;
	}
	/* A later part may bring the response's head: room for that too. */
	p = malloc(sizeof(*p) + e->request_len + EXCHANGE_RESPONSE_LEN);
	if (!p) {
		h->counts.held_full++;
		return 0;
	}
	p->event = *e;
	p->last_number = e->number;
	p->base_sends = 0;
	p->base_request = p->base_response = 0;
	p->unknown_end = unknown_end;
	memcpy(p->heads, heads, len);
	h->held[held_slot(h, e->cookie)] = p;
	h->n_held++;
	return 1;
}

/* ---- rows ---- */

/* Without memory a text is left out rather than the row. */
static uint32_t intern(otb_http *h, const void *at, uint32_t len)
{
	uint32_t id = intern_id(h->strings, at, len);

	return id == UINT32_MAX ? 0 : id;
}

static uint32_t text(otb_http *h, struct http1_slice s)
{
	return intern(h, s.at, s.len);
}

static const struct context *local_context(otb_http *h, const struct exchange_event *e)
{
	return e->role == EXCHANGE_CLIENT && e->parent_cookie
		       ? find_context(h,
				      exchange_hash(h->seed[0], e->parent_cookie, e->parent_number))
		       : NULL;
}

/* Two inbound exchanges with one traceparent: handed on, it names neither. */
static void came_again(otb_http *h, const struct exchange_event *e, const struct http1_request *q)
{
	struct context *c = find_context(h, traceparent_hash(h, e, q));

	if (c && c->exchange != exchange_hash(h->seed[0], e->cookie, e->number))
		c->exchange = 0;
}

/*
 * The inbound exchange whose own traceparent this client hands on as it came:
 * then this span is between the two.
 */
static const struct context *passed_context(otb_http *h, const struct exchange_event *e,
					    const struct http1_request *q,
					    const struct context *local)
{
	const struct context *c;

	if (e->role != EXCHANGE_CLIENT)
		return NULL;
	if (local && !memcmp(local->remote_id, q->parent_id, 8) &&
	    !memcmp(local->trace_id, q->trace_id, 16))
		return local;
	c = find_context(h, traceparent_hash(h, e, q));
	return c && c->exchange ? c : NULL;
}

/* ---- sampling ---- */

static const struct exchange_sampler *sampler_of(const otb_http *h, const struct exchange_event *e)
{
	return &h->samplers[e->rule < h->n_samplers ? e->rule : 0];
}

static int at_or_over(const struct exchange_sampler *s, const uint8_t trace_id[16])
{
	uint64_t end;

	memcpy(&end, trace_id + 8, 8);
	return trace_randomness(end) >= s->threshold;
}

/* Decides over a new trace. Returns its W3C flags, and the id of its tracestate. */
static uint32_t sample_root(otb_http *h, const struct exchange_event *e, const uint8_t trace_id[16],
			    uint32_t *trace_state)
{
	const struct exchange_sampler *s = sampler_of(h, e);
	char state[TRACE_STATE_ROOT_LEN];

	*trace_state = 0;
	if (e->flags & EXCHANGE_UNSAMPLED || !at_or_over(s, trace_id))
		return FLAG_RANDOM;
	if (s->ratio)
		*trace_state = intern(h, state, trace_state_root(s->threshold, state));
	return FLAG_SAMPLED | FLAG_RANDOM;
}

/* Likewise for one that came with a traceparent. */
static uint32_t sample_child(otb_http *h, const struct exchange_event *e,
			     const struct http1_request *q, uint32_t *trace_state)
{
	const struct exchange_sampler *s = sampler_of(h, e);
	const uint8_t *at = q->tracestate.at;
	uint32_t flags = q->trace_flags & ~(uint32_t)FLAG_SAMPLED, len = q->tracestate.len;
	char state[EXCHANGE_REQUEST_LEN + TRACE_STATE_ROOT_LEN];
	uint64_t randomness;
	int yes;

	*trace_state = text(h, q->tracestate);
	if (e->flags & EXCHANGE_UNSAMPLED)
		return flags;
	if (s->parent_based)
		return q->trace_flags;
	yes = trace_state_randomness(at, len, &randomness) ? randomness >= s->threshold
							   : at_or_over(s, q->trace_id);
	if (!yes)
		return flags;
	if (s->ratio)
		*trace_state = intern(
			h, state, trace_state_with(at, len, s->threshold, state, sizeof(state)));
	return flags | FLAG_SAMPLED;
}

/* Is it to become a span though its trace is not sampled? */
static int kept(const otb_http *h, const struct exchange_event *e, const struct http_shape *shape)
{
	const struct exchange_sampler *s = sampler_of(h, e);
	int failed = shape->error || shape->status >= (e->role == EXCHANGE_SERVER ? 500 : 400);

	return (s->keep_errors && failed) ||
	       (s->slower_ns && e->end_ns - e->start_ns > s->slower_ns);
}

/* The parent's parent, of a server's exchange whose client is at the other end. */
static const struct context *root_context(otb_http *h, const struct exchange_event *e)
{
	return e->role == EXCHANGE_SERVER && e->root_cookie
		       ? find_context(h, exchange_hash(h->seed[0], e->root_cookie, e->root_number))
		       : NULL;
}

static struct exchange_event asked_by(const struct exchange_event *e)
{
	return (struct exchange_event){ .cookie = e->parent_cookie,
					.number = e->parent_number,
					.rule = e->root_rule,
					.flags = e->flags };
}

/* Did the client hand on what it was itself asked with? Then our client span is between the two. */
static int asked_in_passing(otb_http *h, const struct exchange_event *e,
			    const struct http1_request *q)
{
	const struct context *root = root_context(h, e);

	return root && !memcmp(root->remote_id, q->parent_id, 8) &&
	       !memcmp(root->trace_id, q->trace_id, 16);
}

/*
 * The trace of a server's exchange whose request brought no context: that of the
 * client's exchange at the other end, if that is here; else a new one. Returns
 * where it came from; *to* has no parent yet.
 */
static enum http_parent own_trace(otb_http *h, const struct exchange_event *e, struct context *to,
				  uint8_t parent_id[8])
{
	struct exchange_event asked = asked_by(e);
	const struct context *root = root_context(h, e);

	if (e->role != EXCHANGE_SERVER || !e->parent_cookie || (e->root_cookie && !root)) {
		new_trace_id(h, e, to->trace_id);
		to->flags = sample_root(h, e, to->trace_id, &to->trace_state);
		return HTTP_PARENT_NONE;
	}
	span_id(h, &asked, parent_id);
	if (root) {
		memcpy(to->trace_id, root->trace_id, 16);
		to->flags = root->flags & 0xff;
		to->trace_state = root->trace_state;
	} else {
		new_trace_id(h, &asked, to->trace_id);
		to->flags = sample_root(h, &asked, to->trace_id, &to->trace_state);
	}
	return HTTP_PARENT_CONNECTION;
}

/*
 * A request that goes on with the trace of the inbound one, under a span that is
 * not its caller's: an SDK took the inbound context up and made that span.
 */
static int taken_up(const struct context *local, const struct http1_request *q)
{
	static const uint8_t none[8];

	return local && memcmp(local->remote_id, none, 8) &&
	       memcmp(local->remote_id, q->parent_id, 8) &&
	       !memcmp(local->trace_id, q->trace_id, 16);
}

static void join_trace(otb_http *h, const struct exchange_event *e, const struct message *m,
		       struct http_row *row, struct http_shape *shape)
{
	const struct http1_request *q = &m->request;
	const struct context *local = local_context(h, e), *passed;
	struct exchange_event asked;
	struct context own = {};

	span_id(h, e, row->span_id);
	if (e->role == EXCHANGE_CLIENT && e->parent_cookie && !local &&
	    !(e->flags & EXCHANGE_UNSAMPLED) && !has_sdk(h, e))
		h->counts.parents_missed++;
	if (q->has_traceparent) {
		memcpy(row->trace_id, q->trace_id, 16);
		row->flags = sample_child(h, e, q, &shape->trace_state);
		passed = passed_context(h, e, q, local);
		if (passed) {
			memcpy(row->parent_id, passed->span_id, 8);
			shape->parent = passed == local ? HTTP_PARENT_THREAD : HTTP_PARENT_PASSED;
		} else if (asked_in_passing(h, e, q)) {
			asked = asked_by(e);
			span_id(h, &asked, row->parent_id);
			shape->parent = HTTP_PARENT_CONNECTION;
			row->flags |= FLAG_IS_REMOTE;
			came_again(h, e, q);
		} else {
			memcpy(row->parent_id, q->parent_id, 8);
			shape->parent = HTTP_PARENT_HEADER;
			if (e->role == EXCHANGE_SERVER) {
				row->flags |= FLAG_IS_REMOTE;
				came_again(h, e, q);
			} else if (taken_up(local, q)) {
				sdk_seen(h, e);
			}
		}
	} else if (local) {
		row->flags = local->flags & 0xff;
		memcpy(row->trace_id, local->trace_id, 16);
		memcpy(row->parent_id, local->span_id, 8);
		shape->trace_state = local->trace_state;
		shape->parent = HTTP_PARENT_THREAD;
	} else {
		shape->parent = own_trace(h, e, &own, row->parent_id);
		memcpy(row->trace_id, own.trace_id, 16);
		row->flags = own.flags;
		shape->trace_state = own.trace_state;
		if (shape->parent == HTTP_PARENT_CONNECTION)
			row->flags |= FLAG_IS_REMOTE;
		else if (e->role == EXCHANGE_SERVER && e->parent_cookie)
			h->counts.parents_missed++;
	}
	row->flags |= FLAG_HAS_IS_REMOTE;
	if (kept(h, e, shape))
		row->flags |= FLAG_SAMPLED;
}

/* Methods whose requests have one: there a missing length is one that could not be read. */
static int has_body(const struct http1_request *q)
{
	int method = http1_method(q->method.at, q->method.len);

	return method == HTTP1_METHOD_POST || method == HTTP1_METHOD_PUT ||
	       method == HTTP1_METHOD_PATCH;
}

static void body_sizes(const struct exchange_event *e, const struct message *m,
		       enum completeness end, struct http_row *row)
{
	const struct http1_request *q = &m->request;
	const struct http1_response *r = &m->response;

	row->request_body = row->response_body = UINT64_MAX;
	if (q->content_length >= 0 && !q->chunked)
		row->request_body = (uint64_t)q->content_length;
	else if (q->head_len && !q->chunked && !has_body(q))
		row->request_body = 0; /* no length and no coding: no body (RFC 9112, 6.3) */
	if (!answered(m))
		return;
	if (r->status == 204 || r->status == 304 ||
	    http1_method(q->method.at, q->method.len) == HTTP1_METHOD_HEAD)
		row->response_body = 0;
	else if (r->chunked)
		return; /* the wire's bytes hold the chunks' sizes too */
	else if (r->content_length >= 0 && end != INCOMPLETE)
		row->response_body = (uint64_t)r->content_length;
	else if (r->head_len && e->response_bytes >= (uint64_t)m->interim + r->head_len)
		row->response_body = e->response_bytes - m->interim - r->head_len;
}

static uint16_t error_of(const struct exchange_event *e, const struct message *m,
			 enum completeness end)
{
	uint16_t why = e->error ? e->error : HTTP_ERROR_CLOSED;

	if (!e->first_ns || (interim(m) && e->reason == EXCHANGE_CLOSED))
		return why;
	if (e->reason != EXCHANGE_CLOSED || end == COMPLETE || m->response.event_stream)
		return HTTP_ERROR_NONE; /* clients end event streams by leaving */
	if (end == INCOMPLETE && (m->response.chunked || m->response.content_length >= 0))
		return why; /* cut short */
	return e->error;
}

/* What is longer than TCP's sequence space cannot be told by its numbers. */
static uint32_t bytes_sent(const struct exchange_event *e)
{
	uint64_t sent = e->role == EXCHANGE_CLIENT ? e->request_bytes : e->response_bytes;

	return sent < INT32_MAX ? (uint32_t)sent : INT32_MAX;
}

static void add_row(otb_http *h, const struct exchange_event *e, uint32_t last_number,
		    const struct message *m, enum completeness end)
{
	struct http_row *row = &h->rows[h->n_rows];
	struct http_shape shape;
	const struct http1_request *q = &m->request;
	uint32_t id;

	memset(&shape, 0, sizeof(shape));
	memset(row, 0, sizeof(*row));
	shape.process_start_ns = e->process_start_ns;
	shape.pid = e->pid;
	shape.role = e->role;
	shape.method = text(h, q->method);
	shape.method_id = (uint8_t)http1_method(q->method.at, q->method.len);
	shape.path = text(h, q->path);
	if (h->keep_query)
		shape.query = text(h, q->query);
	shape.host = text(h, q->host);
	shape.user_agent = text(h, q->user_agent);
	shape.peer_addr = intern(h, e->peer_addr, sizeof(e->peer_addr));
	if (e->role == EXCHANGE_SERVER) {
		shape.local_port = e->local_port;
		if (!shape.host)
			shape.local_addr = intern(h, e->local_addr, sizeof(e->local_addr));
	} else {
		shape.peer_port = e->peer_port;
	}
	shape.version = q->version ? q->version : answered(m) ? m->response.version : 0;
	shape.status = answered(m) ? m->response.status : 0;
	shape.error = error_of(e, m, end);
	shape.instrumented = (uint8_t)sdk_serves(h, e);
	if (shape.status / 100 == 2 && exports_spans(q)) {
		if (e->role == EXCHANGE_CLIENT)
			sdk_seen(h, e);
		else
			relay_seen(h, e);
	}
	join_trace(h, e, m, row, &shape);
	body_sizes(e, m, end, row);

	row->cookie = e->cookie;
	row->number = e->number;
	row->parts = (uint16_t)(last_number - e->number + 1);
	row->role = e->role;
	row->send_seq = e->send_seq;
	row->sent = bytes_sent(e);
	row->start_ns = e->start_ns;
	row->end_ns = e->end_ns;
	row->first_ns = e->first_ns;
	row->peer_port = e->peer_port;
	id = intern_id(h->shapes, &shape, sizeof(shape));
	if (id == UINT32_MAX) {
		h->counts.malformed++; /* no memory */
		return;
	}
	row->shape = id - 1;
	h->n_rows++;
	h->counts.rows++;
}

/* ---- counts ---- */

/* A line as if the kernel side had sent all of its exchange: the same shape for the metrics. */
static uint32_t line_shape(otb_http *h, const struct exchange_line *line, const uint8_t *at)
{
	static const char before_host[] = " HTTP/1.1\r\nHost: ", end[] = "\r\n\r\n";
	uint8_t head[EXCHANGE_REQUEST_LEN + sizeof(before_host) + sizeof(end)], *to = head;
	struct http1_request q;
	struct http_shape shape;

	if (line->line_len + line->host_len > EXCHANGE_REQUEST_LEN)
		return UINT32_MAX;
	memcpy(to, at, line->line_len);
	to += line->line_len;
	memcpy(to, before_host, sizeof(before_host) - 1);
	to += sizeof(before_host) - 1;
	memcpy(to, at + line->line_len, line->host_len);
	to += line->host_len;
	memcpy(to, end, sizeof(end) - 1);
	to += sizeof(end) - 1;
	if (http1_parse_request(head, (uint32_t)(to - head), &q) != HTTP1_HEAD ||
	    q.head_len != to - head)
		return UINT32_MAX;
	memset(&shape, 0, sizeof(shape));
	shape.process_start_ns = line->process_start_ns;
	shape.pid = line->pid;
	shape.role = line->role;
	shape.method = text(h, q.method);
	shape.method_id = (uint8_t)http1_method(q.method.at, q.method.len);
	shape.path = text(h, q.path);
	shape.host = line->role == EXCHANGE_CLIENT ? text(h, q.host) : 0;
	shape.version = line->version;
	shape.status = line->status;
	return intern_id(h->shapes, &shape, sizeof(shape));
}

static void on_line(otb_http *h, struct exchange_count *count, const struct exchange_line *line,
		    const uint8_t *at)
{
	uint32_t before = intern_count(h->shapes), id;

	id = line->role == EXCHANGE_SERVER || line->role == EXCHANGE_CLIENT
		     ? line_shape(h, line, at)
		     : UINT32_MAX;
	if (id == UINT32_MAX) {
		h->counts.uncounted++;
		return;
	}
	if (intern_count(h->shapes) == before && h->n_lessons < MAX_LESSONS)
		h->lessons[h->n_lessons++] =
			(struct http_lesson){ .key = line->key, .shape = id - 1 };
	count->class = HTTP_BY_SHAPE | (id - 1);
	h->counted[h->n_counted++] = *count;
	h->counts.counted++;
}

/* What follows the zeros of a record of counts. */
static void on_counts(otb_http *h, const uint8_t *at, uint32_t len)
{
	struct exchange_count count;
	struct exchange_line line;
	uint32_t text_len;

	for (uint32_t n = 0; len >= sizeof(count) && n < MAX_COUNTS; n++) {
		memcpy(&count, at, sizeof(count));
		at += sizeof(count);
		len -= sizeof(count);
		if (count.class) {
			count.class &= HTTP_BY_SHAPE - 1;
			h->counted[h->n_counted++] = count;
			h->counts.counted++;
			continue;
		}
		if (len < sizeof(line))
			return;
		memcpy(&line, at, sizeof(line));
		at += sizeof(line);
		len -= sizeof(line);
		text_len = (uint32_t)line.line_len + line.host_len;
		if (text_len > len)
			return;
		on_line(h, &count, &line, at);
		text_len = (text_len + 7) & ~7u;
		if (text_len > len)
			return;
		at += text_len;
		len -= text_len;
	}
}

/* ---- records ---- */

static void ignore(otb_http *h, const struct exchange_event *e)
{
	if (h->n_ignore < MAX_IGNORE)
		h->ignore[h->n_ignore++] = e->cookie;
}

/* True when this can never be a row; counted then. */
static int not_covered(otb_http *h, const struct exchange_event *e, const struct message *m)
{
	if (!e->request_len) {
		h->counts.malformed++;
		return 1;
	}
	switch (m->request_kind) {
	case HTTP1_TLS:
		h->counts.tls++;
		ignore(h, e);
		return 1;
	case HTTP1_HTTP2:
		h->counts.http2++;
		if (e->role == EXCHANGE_CLIENT && e->peer_port == OTLP_GRPC_PORT)
			sdk_seen(h, e);
		if (e->role == EXCHANGE_SERVER && e->local_port == OTLP_GRPC_PORT)
			relay_seen(h, e);
		ignore(h, e);
		return 1;
	case HTTP1_NONE:
		h->counts.unknown++;
		/* Not for one odd exchange among others: it may be the rest of one that was lost. */
		if (e->flags & EXCHANGE_FRESH ? e->number == 1 : e->number > 2)
			ignore(h, e);
		return 1;
	}
	if (pipelined(e, m)) {
		h->counts.pipelined++;
		return 1;
	}
	if (!e->response_bytes)
		return 0;
	if (m->response_kind == HTTP1_NONE) {
		h->counts.malformed++;
		return 1;
	}
	if (m->response.status == 101 ||
	    (m->response.status / 100 == 2 &&
	     http1_method(m->request.method.at, m->request.method.len) == HTTP1_METHOD_CONNECT)) {
		h->counts.upgrade++;
		ignore(h, e);
		return 1;
	}
	return 0;
}

/* Does more of this exchange follow, as part of it or behind a cut in it? */
static int goes_on(const struct exchange_event *e, const uint8_t *heads, const struct message *m,
		   enum completeness response, int *unknown_end)
{
	enum completeness request;

	*unknown_end = 0;
	if (e->reason == EXCHANGE_CLOSED)
		return 0;
	request = request_end(e, heads, m);
	if (request == INCOMPLETE || interim(m))
		return 1;
	/* A request that may have a rest keeps even what seems to be over until the next one shows
	 * it. */
	*unknown_end = response != INCOMPLETE && (request == UNKNOWN || response == UNKNOWN);
	if (request == UNKNOWN)
		return 1;
	return e->reason != EXCHANGE_NEXT && response != COMPLETE;
}

static void finish_held(otb_http *h, struct held *p)
{
	struct message m;

	read_heads(&p->event, p->heads, &m);
	if (!not_covered(h, &p->event, &m))
		add_row(h, &p->event, p->last_number, &m, response_end(&p->event, p->heads, &m));
	drop_held(h, p);
}

static void settle_held(otb_http *h, struct held *p)
{
	struct message m;

	read_heads(&p->event, p->heads, &m);
	if (!goes_on(&p->event, p->heads, &m, response_end(&p->event, p->heads, &m),
		     &p->unknown_end))
		finish_held(h, p);
}

/* Newer counts of the part that was last; *heads* is NULL when they have not grown. */
static void update_held(struct held *p, const struct exchange_event *e, const uint8_t *heads)
{
	struct exchange_event *all = &p->event;

	/* More of the response's head has come, unless the response began in an earlier part. */
	if (heads && !p->base_response) {
		all->response_len = e->response_len;
		memcpy(p->heads + all->request_len, heads + e->request_len, e->response_len);
	}

	all->request_bytes = p->base_request + e->request_bytes;
	all->response_bytes = p->base_response + e->response_bytes;
	all->response_sends = p->base_sends + e->response_sends;
	all->request_ns = e->request_ns;
	all->request_tail = e->request_tail;
	all->response_tail = e->response_tail;
	all->end_ns = e->end_ns;
	all->error = e->error;
	all->reason = e->reason;
	if (!all->first_ns) {
		all->first_ns = e->first_ns;
		if (e->role == EXCHANGE_SERVER)
			all->send_seq = e->send_seq;
	}
}

/* What the pairing took for a new exchange is the rest of the held one's request, and its answer. */
static void merge_held(otb_http *h, struct held *p, const struct exchange_event *part,
		       const uint8_t *heads)
{
	struct exchange_event e = *part, *all = &p->event;
	const uint8_t *response = heads + e.request_len;
	struct message m;

	/* Together they are more than what was captured, so the tails count from now on. */
	if (e.request_bytes == e.request_len)
		e.request_tail = tail_of(heads, e.request_len);
	if (e.response_bytes == e.response_len)
		e.response_tail = tail_of(response, e.response_len);
	read_heads(all, p->heads, &m);
	p->base_request = all->request_bytes;
	p->last_number = e.number;
	if (interim(&m) || !all->response_len) {
		p->base_response = 0;
		p->base_sends = 0;
		all->first_ns = 0; /* of the answer, not of what was before it */
	} else {
		p->base_response = all->response_bytes;
		p->base_sends = all->response_sends;
		if (!e.response_bytes) {
			e.end_ns = all->end_ns;
			e.response_tail = all->response_tail;
		}
	}
	update_held(p, &e, heads);
	h->counts.merged++;
	settle_held(h, p);
}

static void on_open(otb_http *h, const struct exchange_event *e, const uint8_t *heads)
{
	struct http1_request q;
	int kind = http1_parse_request(heads, e->request_len, &q);
	const struct held *p = find_held(h, e->cookie);
	struct exchange_event first = *e;
	struct context *c, *same, first_context;
	uint8_t parent_id[8];

	h->counts.opened++;
	if (p && (kind == HTTP1_NONE || p->event.number != e->number)) {
		/* A later part of a held exchange: its children are that exchange's. */
		first = p->event;
		kind = http1_parse_request(p->heads, p->event.request_len, &q);
	}
	if (kind != HTTP1_HEAD && kind != HTTP1_CUT)
		return;
	if (kind == HTTP1_CUT && first.request_bytes == first.request_len)
		return; /* the traceparent may be still to come */
	if (sdk_serves(h, &first) && !q.has_traceparent)
		return; /* it is a span of its process's own, whose ids nobody told us */
	c = new_context(h, exchange_hash(h->seed[0], e->cookie, e->number));
	c->exchange = c->key;
	span_id(h, &first, c->span_id);
	if (!q.has_traceparent) {
		own_trace(h, &first, c, parent_id);
		return;
	}
	c->flags = sample_child(h, &first, &q, &c->trace_state);
	memcpy(c->trace_id, q.trace_id, 16);
	memcpy(c->remote_id, q.parent_id, 8);
	if (sdk_serves(h, &first)) /* beside its span, which is not ours, rather than below it */
		memcpy(c->span_id, q.parent_id, 8);
	same = find_context(h, traceparent_hash(h, e, &q));
	if (same) {
		if (same->exchange != c->exchange)
			same->exchange = 0;
		return;
	}
	first_context = *c; /* making room may take its place */
	same = new_context(h, traceparent_hash(h, e, &q));
	copy_context(same, &first_context);
}

/* Is this new part the rest of the held exchange, and not the next one? */
static int continues(const struct held *p, const struct exchange_event *part, const uint8_t *heads)
{
	struct http1_request q;
	int kind = http1_parse_request(heads, part->request_len, &q);
	int begins = kind == HTTP1_HEAD || kind == HTTP1_CUT;
	enum completeness request;
	struct message m;

	if (part->number != p->last_number + 1)
		return 0; /* what was between was lost */
	read_heads(&p->event, p->heads, &m);
	request = request_end(&p->event, p->heads, &m);
	if (request == INCOMPLETE) /* an expectation that was refused: the body never comes */
		return !(begins && m.request.expect_continue && answered(&m));
	return !begins && (request == UNKNOWN || interim(&m));
}

static void on_record(otb_http *h, const struct exchange_event *e, const uint8_t *heads)
{
	struct held *p = find_held(h, e->cookie);
	enum completeness end;
	struct message m;
	int unknown_end;

	if (e->flags & EXCHANGE_RESENT) {
		if (p && p->last_number == e->number) {
			h->counts.merged++;
			update_held(p, e, heads);
			settle_held(h, p);
		} else {
			h->counts.repeated++;
		}
		return;
	}
	if (p) {
		if (continues(p, e, heads)) {
			merge_held(h, p, e, heads);
			return;
		}
		finish_held(h, p);
	}
	read_heads(e, heads, &m);
	if (not_covered(h, e, &m))
		return;
	end = response_end(e, heads, &m);
	if (!goes_on(e, heads, &m, end, &unknown_end) || !hold(h, e, heads, unknown_end))
		add_row(h, e, e->number, &m, end);
}

uint32_t otb_http_feed(otb_http *h, const uint8_t *records, uint32_t len)
{
	static const uint64_t no_cookie = 0;
	uint32_t at = 0;

	h->n_rows = 0;
	h->n_ignore = 0;
	h->n_counted = 0;
	h->n_lessons = 0;
	/* One record finishes at most two exchanges: what was held, and itself. */
	while (len - at >= RECORD_HEADER && h->n_rows + 2 <= h->max_rows &&
	       h->n_counted + MAX_COUNTS <= MAX_COUNTED && !otb_http_full(h)) {
		const uint8_t *body = records + at + RECORD_HEADER, *heads;
		struct exchange_event e;
		uint32_t size, captured;

		memcpy(&size, records + at, sizeof(size));
		if (size > len - at - RECORD_HEADER)
			return len; /* cut short; a ring's records never are */
		at += RECORD_HEADER + ((size + 7) & ~7u);
		if (at > len)
			at = len;
		if (size >= sizeof(no_cookie) && !memcmp(body, &no_cookie, sizeof(no_cookie))) {
			on_counts(h, body + sizeof(no_cookie), size - sizeof(no_cookie));
			continue;
		}
		h->counts.records++;
		if (size < sizeof(e)) {
			h->counts.malformed++;
			continue;
		}
		memcpy(&e, body, sizeof(e));
		heads = body + sizeof(e);
		captured = (uint32_t)e.request_len + e.response_len;
		if (e.flags & EXCHANGE_RESENT && e.reason != EXCHANGE_OPEN &&
		    size - sizeof(e) < captured)
			heads = NULL; /* not repeated */
		if ((heads && captured > size - sizeof(e)) ||
		    e.request_len > EXCHANGE_REQUEST_LEN ||
		    e.response_len > EXCHANGE_RESPONSE_LEN || e.request_len > e.request_bytes ||
		    e.response_len > e.response_bytes) {
			h->counts.malformed++;
			continue;
		}
		if (e.reason == EXCHANGE_OPEN)
			on_open(h, &e, heads);
		else
			on_record(h, &e, heads);
	}
	h->counts.held = h->n_held;
	return at;
}

void otb_http_flush(otb_http *h, uint64_t now_ns, int all)
{
	h->n_rows = 0;
	h->n_ignore = 0;
	h->n_counted = 0;
	h->n_lessons = 0;
	for (uint32_t i = 0;
	     h->n_held && i < HELD_SLOTS && h->n_rows < h->max_rows && !otb_http_full(h); i++) {
		struct held *p = h->held[i];

		if (!p || !(all || (p->unknown_end && now_ns > p->event.end_ns + quiet_ns)))
			continue;
		finish_held(h, p);
		i--; /* closing the gap may have put another one here */
	}
	h->counts.held = h->n_held;
}

const struct http_row *otb_http_rows(const otb_http *h, uint32_t *n)
{
	*n = h->n_rows;
	return h->rows;
}

const struct exchange_count *otb_http_counted(const otb_http *h, uint32_t *n)
{
	*n = h->n_counted;
	return h->counted;
}

const struct http_lesson *otb_http_lessons(const otb_http *h, uint32_t *n)
{
	*n = h->n_lessons;
	return h->lessons;
}

const uint8_t *otb_http_shape(const otb_http *h, uint32_t index)
{
	uint32_t len;

	return intern_at(h->shapes, index + 1, &len);
}

uint32_t otb_http_shapes(const otb_http *h)
{
	return intern_count(h->shapes);
}

const uint8_t *otb_http_string(const otb_http *h, uint32_t id, uint32_t *len)
{
	return intern_at(h->strings, id, len);
}

const struct http_counts *otb_http_counts(const otb_http *h)
{
	return &h->counts;
}

const uint64_t *otb_http_ignore(const otb_http *h, uint32_t *n)
{
	*n = h->n_ignore;
	return h->ignore;
}

static size_t bytes_used(const struct intern *table)
{
	uint32_t n = intern_count(table), len;
	const uint8_t *first = intern_at(table, 1, &len), *last = intern_at(table, n, &len);

	return n ? (size_t)(last - first) + len : 0;
}

int otb_http_full(const otb_http *h)
{
	return intern_count(h->strings) + STRINGS_FOR_ONE > MAX_STRINGS ||
	       intern_count(h->shapes) + MAX_LINES > MAX_SHAPES ||
	       bytes_used(h->strings) + BYTES_FOR_ONE > MAX_STRING_BYTES;
}

void otb_http_forget(otb_http *h)
{
	intern_clear(h->strings);
	intern_clear(h->shapes);
	for (int i = 0; i < CONTEXT_SETS; i++)
		for (int way = 0; way < CONTEXT_WAYS; way++)
			h->contexts[i][way].trace_state = 0;
}
