/* SPDX-License-Identifier: Apache-2.0 */
/* needs: http1.c intern.c */
/*
 * Any two byte strings as a request and a response, each in a heap block of its exact size, so that
 * AddressSanitizer sees the first byte read too many. Then the same with some bytes standing for
 * whole words: chance alone finds no "transfer-encoding" in a minute.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../otelbpf/native/http1.h"
#include "../../otelbpf/native/intern.h"

#define CHECK(condition)          \
	do {                      \
		if (!(condition)) \
			abort();  \
	} while (0)

enum {
	SMALL_ENTRIES = 40, /* more than intern.c makes room for at first */
	SMALL_BYTES = 3000, /* likewise, and less than an input may hold */
};

static const char *const WORDS[] = {
	"GET / HTTP/1.1\r\n",
	"HTTP/1.1 200 OK\r\n",
	"\r\n",
	"\r\n\r\n",
	" HTTP/1.0\n",
	"CONNECT ",
	"OPTIONS * ",
	"http://user@host/path?query#fragment",
	"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	"Host: ",
	"User-Agent: ",
	"Expect: 100-continue\r\n",
	"Upgrade: ",
	"Content-Length: ",
	"Content-Type: text/event-stream",
	"Transfer-Encoding: ",
	"Connection: ",
	"chunked",
	"close",
	"traceparent: ",
	"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	"cc-0000000000000000",
	"tracestate: ",
	"0000000000000000",
	"9007199254740992",
};

enum {
	N_WORDS = sizeof(WORDS) / sizeof(WORDS[0]),
	FIRST_WORD = 0x80, /* bytes from here on stand for words */
};

static uint8_t *exact_copy(const uint8_t *at, size_t len)
{
	uint8_t *copy = malloc(len);

	CHECK(copy || !len);
	if (len)
		memcpy(copy, at, len);
	return copy;
}

static void check_inside(struct http1_slice slice, const uint8_t *buf, uint32_t len)
{
	if (slice.len)
		CHECK(slice.at >= buf && slice.len <= len &&
		      (size_t)(slice.at - buf) <= len - slice.len);
}

static void check_round_trip(struct intern *table, const uint8_t *at, uint32_t len)
{
	uint32_t before = intern_count(table), id = intern_id(table, at, len), found;
	const uint8_t *bytes;

	if (!len) {
		CHECK(id == 0);
		return;
	}
	CHECK(intern_id(table, at, len) == id);
	if (id == UINT32_MAX) {
		CHECK(intern_count(table) == before);
		return;
	}
	CHECK(id >= 1 && id <= before + 1 && id <= intern_count(table));
	bytes = intern_at(table, id, &found);
	CHECK(found == len && !memcmp(bytes, at, len));
}

static void check_request(struct intern *table, const uint8_t *at, uint32_t len)
{
	uint8_t *buf = exact_copy(at, len);
	struct http1_request out, again;
	int kind = http1_parse_request(buf, len, &out);
	const struct {
		const struct http1_slice *here, *there;
	} slices[] = {
		{ &out.method, &again.method },         { &out.path, &again.path },
		{ &out.query, &again.query },           { &out.host, &again.host },
		{ &out.user_agent, &again.user_agent }, { &out.tracestate, &again.tracestate },
	};
	const size_t n_slices = sizeof(slices) / sizeof(slices[0]);
	const size_t rest = offsetof(struct http1_request, content_length);

	CHECK(kind >= HTTP1_NONE && kind <= HTTP1_HTTP2);
	CHECK(out.content_length >= -1 && out.content_length <= INT64_C(1) << 53);
	for (size_t i = 0; i < n_slices; i++) {
		check_inside(*slices[i].here, buf, len);
		check_round_trip(table, slices[i].here->at, slices[i].here->len);
	}
	if (kind == HTTP1_HEAD) {
		CHECK(out.head_len > 0 && out.head_len <= len);
		CHECK(out.version == 10 || out.version == 11);
		/* what follows the head changes nothing, and nothing less is a head */
		CHECK(http1_parse_request(buf, out.head_len, &again) == HTTP1_HEAD);
		for (size_t i = 0; i < n_slices; i++) {
			check_inside(*slices[i].here, buf, out.head_len);
			CHECK(slices[i].here->at == slices[i].there->at);
			CHECK(slices[i].here->len == slices[i].there->len);
		}
		/* from here to the last member there is no padding */
		CHECK(!memcmp((char *)&out + rest, (char *)&again + rest,
			      offsetof(struct http1_request, upgrade) + 1 - rest));
		CHECK(http1_parse_request(buf, out.head_len - 1, &again) == HTTP1_CUT);
	} else {
		CHECK(out.head_len == 0);
	}
	if (kind == HTTP1_HEAD || kind == HTTP1_CUT) {
		CHECK(out.method.len >= 1 && out.method.len <= 32);
		http1_method(out.method.at, out.method.len);
	}
	free(buf);
}

static void check_response(const uint8_t *at, uint32_t len)
{
	uint8_t *buf = exact_copy(at, len);
	struct http1_response out, again;
	int kind = http1_parse_response(buf, len, &out);

	CHECK(kind >= HTTP1_NONE && kind <= HTTP1_HTTP2);
	CHECK(out.content_length >= -1 && out.content_length <= INT64_C(1) << 53);
	if (kind == HTTP1_HEAD) {
		CHECK(out.head_len > 0 && out.head_len <= len);
		CHECK(out.status >= 100 && out.status <= 999);
		CHECK(http1_parse_response(buf, out.head_len, &again) == HTTP1_HEAD);
		CHECK(!memcmp(&out, &again, offsetof(struct http1_response, close) + 1));
		CHECK(http1_parse_response(buf, out.head_len - 1, &again) == HTTP1_CUT);
	} else {
		CHECK(out.head_len == 0);
	}
	free(buf);
}

static void check_messages(struct intern *table, const uint8_t *data, size_t size, size_t request)
{
	request = request % (size + 1);
	check_request(table, data, (uint32_t)request);
	check_response(data + request, (uint32_t)(size - request));
}

static void check_words(struct intern *table, const uint8_t *data, size_t size, size_t request)
{
	size_t len = 0, longest = 1;
	uint8_t *text;

	for (size_t i = 0; i < N_WORDS; i++) {
		if (strlen(WORDS[i]) > longest)
			longest = strlen(WORDS[i]);
	}
	text = malloc(size * longest + 1);
	CHECK(text);
	for (size_t i = 0; i < size; i++) {
		size_t word = (size_t)data[i] - FIRST_WORD;

		if (data[i] >= FIRST_WORD && word < N_WORDS) {
			memcpy(text + len, WORDS[word], strlen(WORDS[word]));
			len += strlen(WORDS[word]);
		} else {
			text[len++] = data[i];
		}
	}
	check_messages(table, text, len, request);
	free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct intern *table;
	size_t request;

	if (size < 2)
		return 0;
	table = intern_new(SMALL_ENTRIES, SMALL_BYTES);
	CHECK(table);
	request = (size_t)(data[0] << 8 | data[1]);
	data += 2;
	size -= 2;
	check_messages(table, data, size, request);
	check_words(table, data, size, request);
	/* every short piece too: more strings than the table holds */
	for (size_t at = 0; at < size; at += 1 + data[at] % 64) {
		size_t left = size - at, len = 1 + data[at] % 64;

		check_round_trip(table, data + at, (uint32_t)(len < left ? len : left));
	}
	intern_clear(table);
	CHECK(intern_count(table) == 0);
	check_round_trip(table, data, (uint32_t)size);
	intern_free(table);
	return 0;
}
