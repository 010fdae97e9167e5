// SPDX-License-Identifier: Apache-2.0
/*
 * The reader of a BPF ring buffer, after kernel/bpf/ringbuf.c.
 *
 * libbpf's maps all of the data, twice in a row, so that no record wraps for who reads it in place.
 * All of that counts as resident memory from then on, and several rings of 8 MiB may never hold a
 * record. We copy each record anyway: so a window is mapped where there is one, and moved along.
 * And a record that does not fit stays where it is, instead of being gone already.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/bpf.h>

#include <bpf/bpf.h>

#include "shim.h"

enum { WINDOW = 256 << 10 }; /* less is moved more often, at 10 us a time */

struct otb_ring {
	int fd;
	uint32_t size, capacity;
	size_t page;
	uint64_t *consumed; /* ours to write */
	const uint64_t *produced;
	uint8_t *window; /* NULL, or `window_size` bytes of the ring from `window_at` on */
	uint32_t window_at, window_size;
	uint8_t *buf;
};

static uint32_t round8(uint32_t size)
{
	return (size + 7) & ~7u;
}

otb_ring *otb_ring_new(int map_fd, uint32_t capacity, uint32_t largest)
{
	uint32_t least = BPF_RINGBUF_HDR_SZ + round8(largest), info_size;
	struct bpf_map_info info = {};
	otb_ring *ring;
	void *at;

	info_size = sizeof(info);
	if (bpf_obj_get_info_by_fd(map_fd, &info, &info_size))
		return NULL;
	if (info.type != BPF_MAP_TYPE_RINGBUF) {
		errno = EINVAL;
		return NULL;
	}
	if (capacity < least)
		capacity = least;
	ring = calloc(1, sizeof(*ring));
	if (!ring)
		return NULL;
	ring->fd = map_fd;
	ring->size = info.max_entries;
	ring->capacity = capacity;
	ring->page = (size_t)sysconf(_SC_PAGESIZE);
	ring->window_size = ring->size < WINDOW ? ring->size : WINDOW;
	/* Not from the heap, whose pages may be resident from something before. */
	at = mmap(NULL, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		goto failed;
	ring->buf = at;
	at = mmap(NULL, ring->page, PROT_READ | PROT_WRITE, MAP_SHARED, map_fd, 0);
	if (at == MAP_FAILED)
		goto failed;
	ring->consumed = at;
	at = mmap(NULL, ring->page, PROT_READ, MAP_SHARED, map_fd, (off_t)ring->page);
	if (at == MAP_FAILED)
		goto failed;
	ring->produced = at;
	return ring;
failed:
	otb_ring_free(ring);
	return NULL;
}

int otb_ring_fd(otb_ring *ring)
{
	return ring->fd;
}

/* What is at position *at*, and how many bytes of it can be read here; NULL: no memory. */
static const uint8_t *look(otb_ring *ring, uint64_t at, uint32_t *len)
{
	uint32_t here = (uint32_t)at & (ring->size - 1), from = here & ~(ring->window_size - 1);

	if (!ring->window || ring->window_at != from) {
		off_t offset = (off_t)(2 * ring->page) + from;
		void *window;

		if (ring->window)
			munmap(ring->window, ring->window_size);
		ring->window = NULL;
		window = mmap(NULL, ring->window_size, PROT_READ, MAP_SHARED, ring->fd, offset);
		if (window == MAP_FAILED)
			return NULL;
		ring->window = window;
		ring->window_at = from;
	}
	*len = from + ring->window_size - here;
	return ring->window + (here - from);
}

static int copy(otb_ring *ring, uint8_t *to, uint64_t at, uint32_t len)
{
	while (len) {
		uint32_t some;
		const uint8_t *from = look(ring, at, &some);

		if (!from)
			return -1;
		if (some > len)
			some = len;
		memcpy(to, from, some);
		to += some;
		at += some;
		len -= some;
	}
	return 0;
}

const uint8_t *otb_ring_drain(otb_ring *ring, uint32_t *len, int *more)
{
	uint64_t at = *ring->consumed; /* nobody else writes it */
	uint64_t end = __atomic_load_n(ring->produced, __ATOMIC_ACQUIRE);
	uint32_t some;

	*len = 0;
	*more = 0;
	while (at < end) {
		const uint8_t *record =
			look(ring, at, &some); /* aligned: its header is in one window */
		uint32_t word, header[2] = { 0, 0 }, whole;

		if (!record)
			break; /* it is still there the next time */
		word = __atomic_load_n((const uint32_t *)record, __ATOMIC_ACQUIRE);
		if (word & BPF_RINGBUF_BUSY_BIT)
			break; /* still being written; what is behind it waits for it */
		header[0] = word & ~BPF_RINGBUF_DISCARD_BIT;
		whole = BPF_RINGBUF_HDR_SZ + round8(header[0]);
		if (!(word & BPF_RINGBUF_DISCARD_BIT)) {
			uint8_t *to = ring->buf + *len;

			if (whole > ring->capacity - *len) {
				*more = 1;
				break;
			}
			memcpy(to, header, sizeof(header));
			if (copy(ring, to + sizeof(header), at + sizeof(header), header[0]))
				break;
			*len += whole;
		}
		at += whole;
		__atomic_store_n(ring->consumed, at,
				 __ATOMIC_RELEASE); /* room for new ones, at once */
	}
	return ring->buf;
}

void otb_ring_free(otb_ring *ring)
{
	int err = errno; /* why it could not be made */

	if (ring->buf)
		munmap(ring->buf, ring->capacity);
	if (ring->consumed)
		munmap(ring->consumed, ring->page);
	if (ring->produced)
		munmap((void *)ring->produced, ring->page);
	if (ring->window)
		munmap(ring->window, ring->window_size);
	free(ring);
	errno = err;
}
