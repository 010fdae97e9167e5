/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exchange records in, rows of HTTP/1 exchanges out. Read by gcc and cffi: no
 * directives; include <stdint.h> and the process's exchange.h before it.
 *
 * A row is one finished exchange. What many rows share is interned: strings to
 * ids, and the combination of everything but ids, times and sizes to a *shape*.
 * So user space formats each distinct thing once, and works on whole columns.
 */

enum http_parent {
	HTTP_PARENT_NONE = 0,   /* a root */
	HTTP_PARENT_HEADER = 1, /* the traceparent of this exchange's own request */
	HTTP_PARENT_THREAD = 2, /* the inbound exchange open on the thread that sent the request */
	HTTP_PARENT_PASSED = 3, /* the inbound exchange that came with this very traceparent */
	HTTP_PARENT_CONNECTION = 4, /* the client's exchange, at the connection's other end */
};

enum http_error {
	HTTP_ERROR_NONE = 0,
	HTTP_ERROR_CLOSED = 0xffff, /* the connection ended too early, without an errno */
};

/* Everything that rows may share; 0 wherever unknown. Text is an id of otb_http_string(). */
struct http_shape {
	uint64_t process_start_ns; /* CLOCK_BOOTTIME */
	uint32_t path;             /* this and the next three have the most distinct values */
	uint32_t query;            /* only when asked for */
	uint32_t user_agent;
	uint32_t peer_addr; /* 16 raw bytes */
	uint32_t pid;
	uint32_t method; /* as sent */
	uint32_t host;
	uint32_t trace_state;
	uint32_t local_addr;  /* 16 raw bytes; a server without a Host header */
	uint16_t local_port;  /* a server's */
	uint16_t peer_port;   /* a client's: the server's port */
	uint16_t status;      /* 0: not answered */
	uint16_t error;       /* errno, or enum http_error */
	uint8_t role;         /* enum exchange_role */
	uint8_t version;      /* 10, 11 */
	uint8_t parent;       /* enum http_parent */
	uint8_t method_id;    /* enum http1_method_id */
	uint8_t instrumented; /* a server's: its process reports its requests itself */
	uint8_t _pad[3];
};

/* Beside the numbers that the caller gave: exchange_count.class is this and a shape's index. */
enum http_count {
	HTTP_BY_SHAPE = 0x40000000,
};

/* A line that came again: worth a number. */
struct http_lesson {
	uint64_t key;
	uint32_t shape; /* index, from 0 */
	uint8_t _pad[4];
};

struct http_row {
	uint64_t cookie;   /* with number, what other events call this exchange */
	uint64_t start_ns; /* CLOCK_MONOTONIC, this and the next two */
	uint64_t end_ns;
	uint64_t first_ns;      /* first response byte; 0: not answered */
	uint64_t request_body;  /* bytes; UINT64_MAX: unknown */
	uint64_t response_body; /* bytes; UINT64_MAX: unknown */
	uint8_t trace_id[16];
	uint8_t span_id[8];
	uint8_t parent_id[8];
	uint32_t flags; /* OTLP Span.flags */
	uint32_t shape; /* index, from 0 */
	uint32_t number;
	uint32_t send_seq; /* TCP sequence number of the first byte that this side sent */
	uint32_t sent; /* bytes from there on; those of a client's request or a server's response */
	uint16_t parts; /* numbers that the kernel gave it, from *number* on */
	uint16_t peer_port;
	uint8_t role; /* enum exchange_role */
	uint8_t _pad[3];
};

/*
 * Each record ends as one of these: records = rows + opened + repeated + merged +
 * malformed + tls + http2 + upgrade + pipelined + unknown + held.
 */
struct http_counts {
	uint64_t records;
	uint64_t rows;
	uint64_t opened;    /* announcements of an exchange still open */
	uint64_t repeated;  /* a finished exchange, reported again when the next began */
	uint64_t merged;    /* more of a held exchange */
	uint64_t malformed; /* no head captured, or an answer that is not HTTP */
	uint64_t tls;       /* exchanges that are not covered, by kind, from here on */
	uint64_t http2;
	uint64_t upgrade;
	uint64_t pipelined;
	uint64_t unknown;
	uint64_t held;           /* now waiting for more of themselves */
	uint64_t parents_missed; /* a parent was open, but its head was lost */
	uint64_t held_full;      /* finished early: too many were held */
	uint64_t counted;        /* exchanges that are no records of their own */
	uint64_t uncounted;      /* of such: no HTTP after all */
};

typedef struct otb_http otb_http;

/* *seed* makes ids of this agent its own; NULL: no memory. */
otb_http *otb_http_new(const uint64_t seed[2], uint32_t max_rows, int keep_query);
/* Samplers by number of rule; the first is for rules that have none. Without, parentbased_always_on.
 */
void otb_http_sample(otb_http *h, const struct exchange_sampler *samplers, uint32_t n);
void otb_http_free(otb_http *h);
/* Never take a server's requests for reported by an SDK, whatever it does. */
void otb_http_repeat_sdk(otb_http *h);

/*
 * Read framed records (otb_ring_drain) until they end or the rows are full;
 * returns the bytes used. Rows stay valid until the next call.
 */
uint32_t otb_http_feed(otb_http *h, const uint8_t *records, uint32_t len);
/* Finish what was held without knowing its end; *all* finishes everything. Call until it adds no
 * row. */
void otb_http_flush(otb_http *h, uint64_t now_ns, int all);

const struct http_row *otb_http_rows(const otb_http *h, uint32_t *n);
/* What is no row: exchanges for the metrics only. Valid as long as rows are. */
const struct exchange_count *otb_http_counted(const otb_http *h, uint32_t *n);
const struct http_lesson *otb_http_lessons(const otb_http *h, uint32_t *n);
const uint8_t *otb_http_shape(const otb_http *h,
			      uint32_t index); /* the bytes of a struct http_shape */
uint32_t otb_http_shapes(const otb_http *h);
const uint8_t *otb_http_string(const otb_http *h, uint32_t id, uint32_t *len);
const struct http_counts *otb_http_counts(const otb_http *h);

/* Connections of the last feed that nobody can read, to be ignored in the kernel. */
const uint64_t *otb_http_ignore(const otb_http *h, uint32_t *n);

/* True when strings or shapes are nearly full: take the rows, drop every cached id, then forget. */
int otb_http_full(const otb_http *h);
void otb_http_forget(otb_http *h);
