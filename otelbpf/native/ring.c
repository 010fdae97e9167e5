// SPDX-License-Identifier: Apache-2.0
/*
 * The reader of a BPF ring buffer, after kernel/bpf/ringbuf.c.
 *
 * libbpf's maps the data twice in a row, so that no record wraps for who reads it in place. We copy
 * each anyway, so once is enough: a mapped page counts as resident memory, 8 MiB of them for the
 * largest ring. And a record that does not fit stays where it is, instead of being gone already.
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

struct otb_ring {
	int fd;
	uint32_t size, capacity;
	size_t page;
	uint64_t *consumed; /* ours to write */
	const uint64_t *produced;
	const uint8_t *data;
	uint8_t buf[];
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
	ring = calloc(1, sizeof(*ring) + capacity);
	if (!ring)
		return NULL;
	ring->fd = map_fd;
	ring->size = info.max_entries;
	ring->capacity = capacity;
	ring->page = (size_t)sysconf(_SC_PAGESIZE);
	at = mmap(NULL, ring->page, PROT_READ | PROT_WRITE, MAP_SHARED, map_fd, 0);
	if (at == MAP_FAILED)
		goto failed;
	ring->consumed = at;
	at = mmap(NULL, ring->page + ring->size, PROT_READ, MAP_SHARED, map_fd, (off_t)ring->page);
	if (at == MAP_FAILED)
		goto failed;
	ring->produced = at;
	ring->data = (const uint8_t *)at + ring->page;
	return ring;
failed:
	otb_ring_free(ring);
	return NULL;
}

int otb_ring_fd(otb_ring *ring)
{
	return ring->fd;
}

/* Copy out of the ring from position *at* on, around its end. */
static void copy(const otb_ring *ring, uint8_t *to, uint64_t at, uint32_t len)
{
	uint32_t from = (uint32_t)at & (ring->size - 1), first = ring->size - from;

	if (first > len)
		first = len;
	memcpy(to, ring->data + from, first);
	memcpy(to + first, ring->data, len - first);
}

const uint8_t *otb_ring_drain(otb_ring *ring, uint32_t *len, int *more)
{
	uint64_t at = *ring->consumed; /* nobody else writes it */
	uint64_t end = __atomic_load_n(ring->produced, __ATOMIC_ACQUIRE);

	*len = 0;
	*more = 0;
	while (at < end) {
		const uint8_t *record = ring->data + (at & (ring->size - 1));
		uint32_t word = __atomic_load_n((const uint32_t *)record, __ATOMIC_ACQUIRE);
		uint32_t header[2] = { word & ~BPF_RINGBUF_DISCARD_BIT, 0 };
		uint32_t whole = BPF_RINGBUF_HDR_SZ + round8(header[0]);

		if (word & BPF_RINGBUF_BUSY_BIT)
			break; /* still being written; what is behind it waits for it */
		if (!(word & BPF_RINGBUF_DISCARD_BIT)) {
			if (whole > ring->capacity - *len) {
				*more = 1;
				break;
			}
			memcpy(ring->buf + *len, header, sizeof(header));
			copy(ring, ring->buf + *len + sizeof(header), at + sizeof(header),
			     header[0]);
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

	if (ring->consumed)
		munmap(ring->consumed, ring->page);
	if (ring->produced)
		munmap((void *)ring->produced, ring->page + ring->size);
	free(ring);
	errno = err;
}
