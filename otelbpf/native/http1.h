/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Heads of HTTP/1 messages, from bytes that nobody vouches for. cffi reads this file as gcc does,
 * so it has no directives; include <stdint.h> and <stddef.h> before it.
 *
 * The parsers allocate nothing, keep nothing, and read each byte a bounded number of times. After
 * anything but HTTP1_HEAD and HTTP1_CUT what is in `out` says nothing. A field that cannot be known
 * for certain is absent, never guessed: headers of which there may be one only and of which there
 * are two, a value that the end of the buffer cuts, text with bytes that have no place in it.
 */

struct http1_slice {
	const uint8_t *at; /* into the caller's buffer */
	uint32_t len;      /* 0: absent, whatever `at` is */
};

enum http1_kind {
	HTTP1_NONE = 0,  /* not HTTP/1 */
	HTTP1_HEAD = 1,  /* the whole head, blank line included, is inside the buffer */
	HTTP1_CUT = 2,   /* the beginning of a head that goes on past the buffer */
	HTTP1_TLS = 3,   /* a TLS handshake record */
	HTTP1_HTTP2 = 4, /* the HTTP/2 connection preface, or 8 or more of its bytes */
};

/* The methods that the semantic conventions know. */
enum http1_method_id {
	HTTP1_METHOD_OTHER = 0,
	HTTP1_METHOD_CONNECT = 1,
	HTTP1_METHOD_DELETE = 2,
	HTTP1_METHOD_GET = 3,
	HTTP1_METHOD_HEAD = 4,
	HTTP1_METHOD_OPTIONS = 5,
	HTTP1_METHOD_PATCH = 6,
	HTTP1_METHOD_POST = 7,
	HTTP1_METHOD_PUT = 8,
	HTTP1_METHOD_TRACE = 9,
	HTTP1_METHOD_QUERY = 10,
};

struct http1_request {
	struct http1_slice method;
	struct http1_slice path;  /* absent: CONNECT, or an absolute form without one */
	struct http1_slice query; /* without the question mark */
	struct http1_slice host;  /* with the port, without user information */
	struct http1_slice user_agent;
	struct http1_slice tracestate; /* only beside a valid traceparent */
	int64_t content_length; /* -1: absent, malformed, conflicting, or overridden by a coding */
	uint32_t head_len;      /* up to and with the blank line; 0: cut */
	uint8_t trace_id[16];   /* this and the next two: only with has_traceparent */
	uint8_t parent_id[8];
	uint8_t trace_flags;
	uint8_t has_traceparent; /* exactly one, valid by W3C Trace Context level 2 */
	uint8_t version;         /* 10, 11; 0: cut before it, and perhaps inside the target */
	uint8_t chunked;         /* the last transfer coding is */
	uint8_t expect_continue;
	uint8_t upgrade; /* there is an Upgrade header */
};

struct http1_response {
	int64_t content_length; /* as in a request */
	uint32_t head_len;      /* as in a request */
	uint16_t status;        /* 100 to 999; 0: cut before its end */
	uint8_t version;        /* 10, 11; 0: cut before it */
	uint8_t chunked;
	uint8_t event_stream; /* the content type is text/event-stream */
	uint8_t upgrade;
	uint8_t close; /* Connection says so */
};

/* Both return an enum http1_kind. */
int http1_parse_request(const uint8_t *buf, uint32_t len, struct http1_request *out);
int http1_parse_response(const uint8_t *buf, uint32_t len, struct http1_response *out);

/* Returns an enum http1_method_id. Methods are case-sensitive. */
int http1_method(const uint8_t *at, uint32_t len);
