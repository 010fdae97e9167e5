// SPDX-License-Identifier: Apache-2.0
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "sampling.h"

enum { RANDOM_DIGITS = 14 };

struct text {
	const uint8_t *at;
	uint32_t len;
};

/* The next piece of *from* up to *mark*, without the white space around it; 0: there is none. */
static int next_piece(struct text *from, char mark, struct text *piece)
{
	const uint8_t *stop;

	if (!from->at)
		return 0;
	stop = memchr(from->at, mark, from->len);
	piece->at = from->at;
	piece->len = stop ? (uint32_t)(stop - from->at) : from->len;
	from->len -= piece->len + !!stop;
	from->at = stop ? stop + 1 : NULL;
	for (; piece->len && (*piece->at == ' ' || *piece->at == '\t'); piece->len--)
		piece->at++;
	while (piece->len &&
	       (piece->at[piece->len - 1] == ' ' || piece->at[piece->len - 1] == '\t'))
		piece->len--;
	return 1;
}

static int begins(struct text text, const char *with)
{
	size_t len = strlen(with);

	return text.len >= len && !memcmp(text.at, with, len);
}

/* The value of the ot member; 0: there is none. */
static int find_ot(const uint8_t *at, uint32_t len, struct text *out)
{
	struct text all = { len ? at : NULL, len };

	while (next_piece(&all, ',', out)) {
		if (begins(*out, "ot=")) {
			out->at += 3;
			out->len -= 3;
			return 1;
		}
	}
	return 0;
}

/* The digits of a threshold without the zeros at its end. */
static int threshold_digits(uint64_t threshold, char out[RANDOM_DIGITS + 1])
{
	int len = RANDOM_DIGITS;

	snprintf(out, RANDOM_DIGITS + 1, "%014llx", (unsigned long long)threshold);
	while (len > 1 && out[len - 1] == '0')
		len--;
	out[len] = 0;
	return len;
}

uint32_t trace_state_root(uint64_t threshold, char out[TRACE_STATE_ROOT_LEN])
{
	char digits[RANDOM_DIGITS + 1];

	threshold_digits(threshold, digits);
	return (uint32_t)snprintf(out, TRACE_STATE_ROOT_LEN, "ot=th:%s", digits);
}

static int add(char *out, uint32_t room, uint32_t *len, const char *before, struct text text)
{
	size_t more = strlen(before);

	if (*len + more + text.len > room)
		return 0;
	memcpy(out + *len, before, more);
	memcpy(out + *len + more, text.at, text.len);
	*len += (uint32_t)more + text.len;
	return 1;
}

uint32_t trace_state_with(const uint8_t *at, uint32_t len, uint64_t threshold, char *out,
			  uint32_t room)
{
	struct text all = { len ? at : NULL, len }, ot, piece;
	char root[TRACE_STATE_ROOT_LEN];
	uint32_t used = 0;
	int fits;

	piece = (struct text){ (const uint8_t *)root, trace_state_root(threshold, root) };
	fits = add(out, room, &used, "", piece);
	if (find_ot(at, len, &ot)) {
		while (next_piece(&ot, ';', &piece))
			if (piece.len && !begins(piece, "th:"))
				fits = fits && add(out, room, &used, ";", piece);
	}
	while (next_piece(&all, ',', &piece))
		if (piece.len && !begins(piece, "ot="))
			fits = fits && add(out, room, &used, ",", piece);
	return fits ? used : 0;
}

int trace_state_randomness(const uint8_t *at, uint32_t len, uint64_t *out)
{
	struct text ot, piece;

	if (!find_ot(at, len, &ot))
		return 0;
	while (next_piece(&ot, ';', &piece)) {
		uint64_t value = 0;

		if (!begins(piece, "rv:") || piece.len != 3 + RANDOM_DIGITS)
			continue;
		for (uint32_t i = 3; i < piece.len; i++) {
			uint8_t c = piece.at[i];

			if (c >= '0' && c <= '9')
				value = value << 4 | (uint64_t)(c - '0');
			else if (c >= 'a' && c <= 'f')
				value = value << 4 | (uint64_t)(c - 'a' + 10);
			else
				return 0;
		}
		*out = value;
		return 1;
	}
	return 0;
}
