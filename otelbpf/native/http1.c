/* SPDX-License-Identifier: Apache-2.0 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "http1.h"

enum {
	METHOD_MAX = 32,
	LEADING_LINES_MAX = 2, /* RFC 9112 2.2: some clients end a body with a line too many */
	PREFACE_LEN = 16,
	PREFACE_TELLING = 8, /* fewer bytes of the preface prove nothing */
	TRACEPARENT_LEN = 55,
};

static const int64_t CONTENT_LENGTH_MAX = INT64_C(1) << 53; /* a double counts no further */
static const char PREFACE[] = "PRI * HTTP/2.0\r\n";
static const struct http1_slice ABSENT = { 0 };

/* A digit's value and a mark that it is one. Lower case only: so says W3C Trace Context. */
enum { HEX = 0x10 };
static const uint8_t hex[256] = {
	['0'] = HEX | 0,  ['1'] = HEX | 1,  ['2'] = HEX | 2,  ['3'] = HEX | 3,
	['4'] = HEX | 4,  ['5'] = HEX | 5,  ['6'] = HEX | 6,  ['7'] = HEX | 7,
	['8'] = HEX | 8,  ['9'] = HEX | 9,  ['a'] = HEX | 10, ['b'] = HEX | 11,
	['c'] = HEX | 12, ['d'] = HEX | 13, ['e'] = HEX | 14, ['f'] = HEX | 15,
};

static inline int is_digit(uint8_t c)
{
	return (uint8_t)(c - '0') < 10;
}

static inline int is_alpha(uint8_t c)
{
	return (uint8_t)((c | 0x20) - 'a') < 26;
}

static inline int is_tchar(uint8_t c)
{
	static const char marks[] = "!#$%&'*+-.^_`|~";

	return is_alpha(c) || is_digit(c) || memchr(marks, c, sizeof(marks) - 1) != NULL;
}

static inline int is_blank(uint8_t c)
{
	return c == ' ' || c == '\t';
}

static inline uint8_t lower(uint8_t c)
{
	return (uint8_t)(c - 'A') < 26 ? c | 0x20 : c;
}

static inline struct http1_slice slice(const uint8_t *at, const uint8_t *end)
{
	return (struct http1_slice){ at, (uint32_t)(end - at) };
}

static inline struct http1_slice trim(const uint8_t *at, const uint8_t *end)
{
	while (at < end && is_blank(*at))
		at++;
	while (at < end && is_blank(end[-1]))
		end--;
	return slice(at, end);
}

/* `name` in lower case; `len` is a constant wherever this is inlined. */
static inline int same(const uint8_t *at, const char *name, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (lower(at[i]) != (uint8_t)name[i])
			return 0;
	}
	return 1;
}

#define IS(slice, text) \
	((slice).len == sizeof(text) - 1 && same((slice).at, text, sizeof(text) - 1))

/*
 * Is this the header of that name? One look at where its colon would have to be rejects nearly
 * every other, so the colon is never searched for. Moves the slice on to the value.
 */
static inline int is_header(struct http1_slice *line, const char *name, size_t len)
{
	if (line->len <= len || line->at[len] != ':' || !same(line->at, name, len))
		return 0;
	*line = trim(line->at + len + 1, line->at + line->len);
	return 1;
}

#define IS_HEADER(line, name) is_header(line, name, sizeof(name) - 1)

/* CUT: the buffer ends first. HEAD: it was the blank line. NONE: there are more. */
static inline int next_line(const uint8_t **at, const uint8_t *end, struct http1_slice *line)
{
	const uint8_t *lf = memchr(*at, '\n', (size_t)(end - *at));

	if (!lf)
		return HTTP1_CUT;
	*line = slice(*at, lf > *at && lf[-1] == '\r' ? lf - 1 : lf);
	*at = lf + 1;
	return line->len ? HTTP1_NONE : HTTP1_HEAD;
}

/* Steps to the next element of a comma-separated list that is not empty; 0 at its end. */
static int next_element(struct http1_slice *list, struct http1_slice *element)
{
	while (list->len) {
		const uint8_t *end = list->at + list->len;
		const uint8_t *comma = memchr(list->at, ',', list->len);

		*element = trim(list->at, comma ? comma : end);
		*list = slice(comma ? comma + 1 : end, end);
		if (element->len)
			return 1;
	}
	return 0;
}

/* A field that is certain only while its header came once. */
static void keep_single(struct http1_slice *field, struct http1_slice value, uint8_t *seen)
{
	*field = *seen ? ABSENT : value;
	*seen = 1;
}

static int64_t read_content_length(struct http1_slice value)
{
	int64_t n = 0;

	if (!value.len)
		return -1;
	for (uint32_t i = 0; i < value.len; i++) {
		if (!is_digit(value.at[i]))
			return -1;
		n = n * 10 + (value.at[i] - '0');
		if (n > CONTENT_LENGTH_MAX)
			return -1;
	}
	return n;
}

/* How long the body is: the same few headers in both directions. */
struct framing {
	int64_t content_length;
	uint8_t has_length;
	uint8_t has_coding;
	uint8_t chunked;
};

static int read_framing(struct http1_slice line, struct framing *framing)
{
	struct http1_slice coding;

	if (IS_HEADER(&line, "content-length")) {
		int64_t n = read_content_length(line);

		/* once -1 it stays -1: nothing that is malformed equals a later good one */
		if (framing->has_length && n != framing->content_length)
			n = -1;
		framing->content_length = n;
		framing->has_length = 1;
		return 1;
	}
	if (IS_HEADER(&line, "transfer-encoding")) {
		framing->has_coding = 1;
		while (next_element(&line, &coding))
			framing->chunked = IS(coding, "chunked");
		return 1;
	}
	return 0;
}

/* RFC 9112 6.3: a transfer coding overrides the length. */
static int64_t framed_length(const struct framing *framing)
{
	return framing->has_length && !framing->has_coding ? framing->content_length : -1;
}

static uint8_t unhex(const uint8_t *at, uint8_t *into, size_t bytes)
{
	uint8_t all = HEX;

	for (size_t i = 0; i < bytes; i++) {
		uint8_t high = hex[at[2 * i]], low = hex[at[2 * i + 1]];

		all &= high & low;
		into[i] = (uint8_t)(high << 4 | (low & 0x0f));
	}
	return all;
}

static int all_zero(const uint8_t *at, size_t len)
{
	uint8_t any = 0;

	for (size_t i = 0; i < len; i++)
		any |= at[i];
	return !any;
}

/* W3C Trace Context level 2, 3.2 and 4.2.2: version-traceid-parentid-flags. */
static uint8_t read_traceparent(struct http1_slice value, struct http1_request *out)
{
	const uint8_t *at = value.at;
	uint8_t version;

	if (value.len < TRACEPARENT_LEN || at[2] != '-' || at[35] != '-' || at[52] != '-')
		return 0;
	if (!unhex(at, &version, 1) || !unhex(at + 3, out->trace_id, 16) ||
	    !unhex(at + 36, out->parent_id, 8) || !unhex(at + 53, &out->trace_flags, 1))
		return 0;
	if (version == 0xff || all_zero(out->trace_id, 16) || all_zero(out->parent_id, 8))
		return 0;
	/* versions to come may say more after another dash */
	return value.len == TRACEPARENT_LEN || (version && at[TRACEPARENT_LEN] == '-');
}

/* Printable ASCII, as W3C Trace Context 3.3.1 has it. */
static int is_tracestate(struct http1_slice value)
{
	for (uint32_t i = 0; i < value.len; i++) {
		uint8_t c = value.at[i];

		if ((c < 0x20 && c != '\t') || c > 0x7e)
			return 0;
	}
	return 1;
}

static struct http1_slice valid_host(struct http1_slice host)
{
	for (uint32_t i = 0; i < host.len; i++) {
		uint8_t c = host.at[i];

		if (c <= 0x20 || c == 0x7f || c == '/' || c == '@')
			return ABSENT;
	}
	return host;
}

static inline int is_target_byte(uint8_t c)
{
	return c > 0x20 && c != 0x7f;
}

/* Where the authority of scheme://authority/path begins; NULL: not of that form. */
static const uint8_t *after_scheme(const uint8_t *at, const uint8_t *end)
{
	if (!is_alpha(*at))
		return NULL;
	while (at < end &&
	       (is_alpha(*at) || is_digit(*at) || *at == '+' || *at == '-' || *at == '.'))
		at++;
	return end - at > 3 && !memcmp(at, "://", 3) ? at + 3 : NULL;
}

/*
 * Splits a target of one or more bytes. `cut`: more of it may lie beyond the buffer. Returns 0 for
 * what has none of the four forms of RFC 9112 3.2; a word is not one, so that the first words of
 * other text protocols do not pass for a request that was cut.
 */
static int read_target(struct http1_slice target, int cut, struct http1_request *out,
		       int *has_authority)
{
	const uint8_t *at = target.at, *end = target.at + target.len, *mark;

	if (http1_method(out->method.at, out->method.len) == HTTP1_METHOD_CONNECT) {
		*has_authority = 1;
		if (!cut)
			out->host = valid_host(target);
		return 1;
	}
	if (*at == '*') {
		out->path = target;
		return target.len == 1;
	}
	if (*at != '/') {
		const uint8_t *authority = after_scheme(at, end);

		if (!authority)
			return 0;
		*has_authority = 1;
		at = authority;
		while (at < end && *at != '/' && *at != '?' && *at != '#') {
			if (*at++ == '@')
				authority = at;
		}
		if (at < end || !cut)
			out->host = valid_host(slice(authority, at));
	}
	mark = memchr(at, '#', (size_t)(end - at));
	if (mark)
		end = mark;
	mark = memchr(at, '?', (size_t)(end - at));
	out->path = slice(at, mark ? mark : end);
	if (mark)
		out->query = slice(mark + 1, end);
	return 1;
}

/* Steps over "HTTP/1.x". HEAD: done. CUT: the buffer ends inside it. NONE: something else. */
static int read_version(const uint8_t **at, const uint8_t *end, uint8_t *version)
{
	static const char name[] = "HTTP/1.";
	const size_t len = sizeof(name) - 1, left = (size_t)(end - *at);
	uint8_t minor;

	if (memcmp(*at, name, left < len ? left : len) != 0)
		return HTTP1_NONE;
	if (left <= len)
		return HTTP1_CUT;
	minor = (*at)[len];
	if (minor != '0' && minor != '1')
		return HTTP1_NONE;
	*version = (uint8_t)(10 + minor - '0');
	*at += len + 1;
	return HTTP1_HEAD;
}

/* Steps over the request line. HEAD: done. CUT, NONE: as for the whole request. */
static int read_request_line(const uint8_t **cursor, const uint8_t *end, struct http1_request *out,
			     int *has_authority)
{
	const uint8_t *at = *cursor, *start;
	int kind;

	for (int i = 0; i < LEADING_LINES_MAX && at < end; i++) {
		if (*at == '\n')
			at++;
		else if (*at == '\r' && end - at > 1 && at[1] == '\n')
			at += 2;
	}
	start = at;
	while (at < end && at - start <= METHOD_MAX && is_tchar(*at))
		at++;
	if (at == start || at == end || at - start > METHOD_MAX || *at != ' ')
		return HTTP1_NONE;
	out->method = slice(start, at);
	if (out->method.len == 3 && !memcmp(start, PREFACE, 3))
		return HTTP1_NONE; /* RFC 9113 11.6: PRI is kept for HTTP/2 */

	start = ++at;
	while (at < end && is_target_byte(*at))
		at++;
	if (at == start || (at < end && *at != ' '))
		return HTTP1_NONE;
	if (!read_target(slice(start, at), at == end, out, has_authority))
		return HTTP1_NONE;
	if (at == end || ++at == end)
		return HTTP1_CUT;

	kind = read_version(&at, end, &out->version);
	if (kind != HTTP1_HEAD)
		return kind;
	if (at < end && *at == '\r')
		at++;
	if (at == end)
		return HTTP1_CUT;
	if (*at != '\n')
		return HTTP1_NONE;
	*cursor = at + 1;
	return HTTP1_HEAD;
}

/* What is not HTTP/1 but worth a name of its own; NONE: neither. */
static int recognise(const uint8_t *buf, uint32_t len)
{
	if (len >= 3 && buf[0] == 0x16 && buf[1] == 3 && buf[2] <= 4)
		return HTTP1_TLS;
	if (len >= PREFACE_TELLING && !memcmp(buf, PREFACE, len < PREFACE_LEN ? len : PREFACE_LEN))
		return HTTP1_HTTP2;
	return HTTP1_NONE;
}

int http1_parse_request(const uint8_t *buf, uint32_t len, struct http1_request *out)
{
	struct framing framing = { 0 };
	struct http1_slice line, host = ABSENT;
	uint8_t hosts = 0, user_agents = 0, tracestates = 0, traceparents = 0;
	const uint8_t *at = buf, *end;
	int kind, has_authority = 0;

	memset(out, 0, sizeof(*out));
	out->content_length = -1;
	kind = recognise(buf, len);
	if (kind != HTTP1_NONE || !len)
		return kind;
	end = buf + len;
	kind = read_request_line(&at, end, out, &has_authority);
	if (kind != HTTP1_HEAD)
		return kind;

	while ((kind = next_line(&at, end, &line)) == HTTP1_NONE) {
		switch (line.at[0] | 0x20) {
		case 'c':
			read_framing(line, &framing);
			break;
		case 'e':
			if (IS_HEADER(&line, "expect"))
				out->expect_continue |= IS(line, "100-continue");
			break;
		case 'h':
			if (IS_HEADER(&line, "host"))
				keep_single(&host, line, &hosts);
			break;
		case 't':
			if (read_framing(line, &framing))
				break;
			if (IS_HEADER(&line, "traceparent")) {
				out->has_traceparent = !traceparents && read_traceparent(line, out);
				traceparents = 1;
			} else if (IS_HEADER(&line, "tracestate")) {
				keep_single(&out->tracestate, line, &tracestates);
			}
			break;
		case 'u':
			if (IS_HEADER(&line, "user-agent"))
				keep_single(&out->user_agent, line, &user_agents);
			else if (IS_HEADER(&line, "upgrade"))
				out->upgrade = 1;
			break;
		}
	}
	if (!has_authority) /* RFC 9112 3.2.2: the target outranks the header */
		out->host = valid_host(host);
	if (!out->has_traceparent || !is_tracestate(out->tracestate))
		out->tracestate = ABSENT;
	out->content_length = framed_length(&framing);
	out->chunked = framing.chunked;
	if (kind == HTTP1_HEAD)
		out->head_len = (uint32_t)(at - buf);
	return kind;
}

/* Steps over the status line. HEAD: done. CUT, NONE: as for the whole response. */
static int read_status_line(const uint8_t **cursor, const uint8_t *end, struct http1_response *out)
{
	const uint8_t *at = *cursor, *lf;
	unsigned int status = 0;
	int kind = read_version(&at, end, &out->version);

	if (kind != HTTP1_HEAD)
		return kind;
	if (at == end)
		return HTTP1_CUT;
	if (*at++ != ' ')
		return HTTP1_NONE;
	for (int i = 0; i < 3; i++, at++) {
		if (at == end)
			return HTTP1_CUT;
		if (!is_digit(*at))
			return HTTP1_NONE;
		status = status * 10 + (*at - '0');
		if (!status)
			return HTTP1_NONE; /* no class of statuses begins with 0 */
	}
	if (at < end && *at != ' ' && *at != '\r' && *at != '\n')
		return HTTP1_NONE;
	out->status = (uint16_t)status;
	lf = memchr(at, '\n', (size_t)(end - at));
	if (!lf)
		return HTTP1_CUT;
	*cursor = lf + 1;
	return HTTP1_HEAD;
}

int http1_parse_response(const uint8_t *buf, uint32_t len, struct http1_response *out)
{
	struct framing framing = { 0 };
	struct http1_slice line, option;
	const uint8_t *at = buf, *end;
	int kind;

	memset(out, 0, sizeof(*out));
	out->content_length = -1;
	kind = recognise(buf, len);
	if (kind != HTTP1_NONE || !len)
		return kind;
	end = buf + len;
	kind = read_status_line(&at, end, out);
	if (kind != HTTP1_HEAD)
		return kind;

	while ((kind = next_line(&at, end, &line)) == HTTP1_NONE) {
		switch (line.at[0] | 0x20) {
		case 'c':
			if (read_framing(line, &framing))
				break;
			if (IS_HEADER(&line, "content-type")) {
				const uint8_t *stop = memchr(line.at, ';', line.len);

				line = trim(line.at, stop ? stop : line.at + line.len);
				out->event_stream = IS(line, "text/event-stream");
			} else if (IS_HEADER(&line, "connection")) {
				while (next_element(&line, &option))
					out->close |= IS(option, "close");
			}
			break;
		case 't':
			read_framing(line, &framing);
			break;
		case 'u':
			if (IS_HEADER(&line, "upgrade"))
				out->upgrade = 1;
			break;
		}
	}
	out->content_length = framed_length(&framing);
	out->chunked = framing.chunked;
	if (kind == HTTP1_HEAD)
		out->head_len = (uint32_t)(at - buf);
	return kind;
}

#define METHOD(name) \
	(!memcmp(at, #name, sizeof(#name) - 1) ? HTTP1_METHOD_##name : HTTP1_METHOD_OTHER)

int http1_method(const uint8_t *at, uint32_t len)
{
	switch (len) {
	case 3:
		return *at == 'G' ? METHOD(GET) : METHOD(PUT);
	case 4:
		return *at == 'H' ? METHOD(HEAD) : METHOD(POST);
	case 5:
		switch (*at) {
		case 'P':
			return METHOD(PATCH);
		case 'Q':
			return METHOD(QUERY);
		default:
			return METHOD(TRACE);
		}
	case 6:
		return METHOD(DELETE);
	case 7:
		return *at == 'C' ? METHOD(CONNECT) : METHOD(OPTIONS);
	default:
		return HTTP1_METHOD_OTHER;
	}
}
