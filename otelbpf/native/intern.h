/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Byte strings to dense ids and back. cffi reads this file as gcc does, so it has no directives;
 * include <stdint.h> before it.
 *
 * Ids count up from 1 in the order of first sight and hold until intern_clear(). The strings lie
 * back to back in that order: keys of one fixed size are one array that begins at id 1. Not
 * thread-safe.
 */

struct intern;

/*
 * A table that never holds more than so many strings, or bytes in them; max_entries over 2^30 is
 * 2^30. Memory is taken as it is needed and given back by intern_clear(). NULL: no memory, or a
 * kernel without random numbers.
 */
struct intern *intern_new(uint32_t max_entries, uint32_t max_bytes);
void intern_free(struct intern *table);

/*
 * 0 for len 0; UINT32_MAX, and nothing stored, when the table is full or memory is short. New bytes
 * must not come out of the table itself.
 */
uint32_t intern_id(struct intern *table, const void *bytes, uint32_t len);

/* Good until the next intern_id() or intern_clear(); NULL and length 0 for what is no id. */
const uint8_t *intern_at(const struct intern *table, uint32_t id, uint32_t *len);

uint32_t intern_count(const struct intern *table); /* ids 1..count are valid */
void intern_clear(struct intern *table);
