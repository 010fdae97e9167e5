/* SPDX-License-Identifier: Apache-2.0 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "intern.h"

enum {
	FIRST_SLOTS = 64,
	FIRST_BYTES = 1024,
	MAX_ENTRIES = 1 << 30, /* twice as many slots, and 32 bits of hash must still reach them */
};

struct intern {
	uint64_t key[4];
	uint64_t *slots; /* hash << 32 | id; 0: free. A power of two of them, half in use at most */
	uint32_t *ends;  /* by id: where its string ends and the next one begins; half as many */
	uint8_t *bytes;
	uint32_t n_slots, capacity; /* of slots and ends; of bytes */
	uint32_t count;
	uint32_t max_entries, max_bytes;
};

struct intern *intern_new(uint32_t max_entries, uint32_t max_bytes)
{
	struct intern *table = calloc(1, sizeof(*table));

	if (!table)
		return NULL;
	if (getrandom(table->key, sizeof(table->key), 0) != sizeof(table->key)) {
		free(table);
		return NULL;
	}
	table->max_entries = max_entries < MAX_ENTRIES ? max_entries : MAX_ENTRIES;
	table->max_bytes = max_bytes;
	return table;
}

void intern_clear(struct intern *table)
{
	free(table->slots);
	free(table->ends);
	free(table->bytes);
	table->slots = NULL;
	table->ends = NULL;
	table->bytes = NULL;
	table->n_slots = 0;
	table->capacity = 0;
	table->count = 0;
}

void intern_free(struct intern *table)
{
	if (!table)
		return;
	intern_clear(table);
	free(table);
}

static inline uint64_t read64(const uint8_t *at)
{
	uint64_t value;

	memcpy(&value, at, sizeof(value));
	return value;
}

static inline uint64_t read32(const uint8_t *at)
{
	uint32_t value;

	memcpy(&value, at, sizeof(value));
	return value;
}

static inline uint64_t mix(uint64_t a, uint64_t b)
{
	__extension__ typedef unsigned __int128 wide;
	wide product = (wide)a * b;

	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/*
 * Multiply and fold, 16 bytes at a time. Whoever chooses request paths must not choose where they
 * collide: every factor holds a word of the secret key, because one that were a published constant
 * could be made 0 from outside, and then the product forgets the other.
 */
static inline uint64_t hash(const uint64_t key[4], const uint8_t *at, uint32_t len)
{
	uint64_t state = key[0] ^ len, a, b;

	if (len > 16) {
		uint32_t left = len;

		do {
			state = mix(read64(at) ^ key[1], read64(at + 8) ^ state);
			at += 16;
			left -= 16;
		} while (left > 16);
		a = read64(at + left - 16);
		b = read64(at + left - 8);
	} else if (len >= 8) {
		a = read64(at);
		b = read64(at + len - 8);
	} else if (len >= 4) {
		a = read32(at);
		b = read32(at + len - 4);
	} else {
		a = (uint64_t)at[0] << 16 | (uint64_t)at[len / 2] << 8 | at[len - 1];
		b = 0;
	}
	return mix(mix(a ^ key[2], b ^ state) ^ key[3], state ^ key[1]);
}

/* Room for one more entry; 0: no memory, and the table is as it was. */
static int grow_slots(struct intern *table)
{
	uint32_t n = table->n_slots ? table->n_slots * 2 : FIRST_SLOTS;
	uint64_t *slots = calloc(n, sizeof(*slots));
	uint32_t *ends = realloc(table->ends, (n / 2 + 1) * sizeof(*ends));

	if (ends)
		table->ends = ends; /* larger than told, should the slots be missing */
	if (!slots || !ends) {
		free(slots);
		return 0;
	}
	ends[0] = 0;
	for (uint32_t i = 0; i < table->n_slots; i++) {
		uint64_t slot = table->slots[i];
		uint32_t to = (uint32_t)(slot >> 32) & (n - 1);

		if (!slot)
			continue;
		while (slots[to])
			to = (to + 1) & (n - 1);
		slots[to] = slot;
	}
	free(table->slots);
	table->slots = slots;
	table->n_slots = n;
	return 1;
}

/* Room for so many bytes, which max_bytes allows; 0: no memory. */
static int grow_bytes(struct intern *table, uint32_t needed)
{
	uint64_t n = table->capacity ? table->capacity : FIRST_BYTES;
	uint8_t *bytes;

	while (n < needed)
		n *= 2;
	if (n > table->max_bytes)
		n = table->max_bytes;
	bytes = realloc(table->bytes, n);
	if (!bytes)
		return 0;
	table->bytes = bytes;
	table->capacity = (uint32_t)n;
	return 1;
}

uint32_t intern_id(struct intern *table, const void *bytes, uint32_t len)
{
	uint32_t tag, slot, used, id;
	uint64_t seen;

	if (!len)
		return 0;
	if (!table->n_slots && !grow_slots(table))
		return UINT32_MAX;
	tag = (uint32_t)hash(table->key, bytes, len);
	slot = tag & (table->n_slots - 1);
	while ((seen = table->slots[slot])) {
		id = (uint32_t)seen;
		if (seen >> 32 == tag && table->ends[id] - table->ends[id - 1] == len &&
		    !memcmp(table->bytes + table->ends[id - 1], bytes, len))
			return id;
		slot = (slot + 1) & (table->n_slots - 1);
	}

	used = table->ends[table->count];
	if (table->count == table->max_entries || len > table->max_bytes - used)
		return UINT32_MAX;
	if (used + len > table->capacity && !grow_bytes(table, used + len))
		return UINT32_MAX;
	if (table->count == table->n_slots / 2) {
		if (!grow_slots(table))
			return UINT32_MAX;
		slot = tag & (table->n_slots - 1);
		while (table->slots[slot])
			slot = (slot + 1) & (table->n_slots - 1);
	}
	id = ++table->count;
	memcpy(table->bytes + used, bytes, len);
	table->ends[id] = used + len;
	table->slots[slot] = (uint64_t)tag << 32 | id;
	return id;
}

const uint8_t *intern_at(const struct intern *table, uint32_t id, uint32_t *len)
{
	if (!id || id > table->count) {
		*len = 0;
		return NULL;
	}
	*len = table->ends[id] - table->ends[id - 1];
	return table->bytes + table->ends[id - 1];
}

uint32_t intern_count(const struct intern *table)
{
	return table->count;
}
