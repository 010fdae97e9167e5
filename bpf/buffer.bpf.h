/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Where a socket call's bytes are in user memory. Two ways to find them:
 *
 * - Rung A: sock_send_length and sock_recv_length (Linux 6.3) carry no buffer,
 *   but the system call's number and arguments are still in the task's saved
 *   registers.
 * - Rungs B and C hold a msghdr: its iterator says it. The call advances the
 *   iterator, so it is read when the call begins.
 */
#pragma once

#include "kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "compat.bpf.h"

enum buffer_kind {
	BUFFER_NONE = 0, /* sendfile, splice, io_uring: bytes can be counted, not read */
	BUFFER_FLAT = 1,
	BUFFER_IOV = 2,  /* of a struct iovec[] in user memory */
	BUFFER_KIOV = 3, /* of the kernel's copy of one */
};

struct buffer {
	__u64 base;   /* address of the bytes, or of a struct iovec[] */
	__u64 pieces; /* length of that array */
	__u32 kind;
	__u32 _pad;
};

struct user_iovec {
	__u64 base;
	__u64 len;
};

enum { MAX_PIECES = 4 };

/* The first pieces, in one read: each costs as much as all four. */
static __always_inline bool read_iovecs(const struct buffer *b, struct user_iovec v[MAX_PIECES])
{
	__u64 size = b->pieces < MAX_PIECES ? b->pieces * sizeof(*v) : MAX_PIECES * sizeof(*v);
	const void *at = (const void *)b->base;

	CLAMP(size, MAX_PIECES * sizeof(struct user_iovec));
	return !(b->kind == BUFFER_KIOV ? bpf_probe_read_kernel(v, size, at)
					: bpf_probe_read_user(v, size, at));
}

static __always_inline struct buffer msghdr_buffer(struct msghdr *msg)
{
	struct buffer b = { .kind = BUFFER_NONE };
	struct iov_iter *i = &msg->msg_iter;
	__u32 type;

	if (bpf_core_field_exists(i->iter_type))
		type = BPF_CORE_READ(msg, msg_iter.iter_type);
	else /* the lowest bit is the direction */
		type = BPF_CORE_READ((struct iov_iter___type *)i, type) & ~1u;
	if (bpf_core_enum_value_exists(enum iter_type, ITER_UBUF) &&
	    type == bpf_core_enum_value(enum iter_type, ITER_UBUF)) {
		b.kind = BUFFER_FLAT;
		b.base = (__u64)BPF_CORE_READ(i, ubuf) + BPF_CORE_READ(i, iov_offset);
	} else if (type == bpf_core_enum_value(enum iter_type, ITER_IOVEC) &&
		   !BPF_CORE_READ(i, iov_offset)) {
		b.kind = BUFFER_KIOV;
		b.pieces = BPF_CORE_READ(i, nr_segs);
		if (bpf_core_field_exists(i->__iov))
			b.base = (__u64)BPF_CORE_READ(i, __iov);
		else
			b.base = (__u64)BPF_CORE_READ((struct iov_iter___iov *)i, iov);
	}
	return b;
}

/* The ABI's struct user_msghdr, up to what we read. */
struct user_msghdr {
	__u64 name;
	__u64 name_len;
	__u64 iov;
	__u64 iov_len;
};

enum { USER_MMSGHDR_SIZE = 64 };

/* System call numbers are ABI. Only these may be taken for buffers: sendfile's second argument is a
 * descriptor. */
#ifdef __TARGET_ARCH_x86
enum {
	NR_read = 0,
	NR_write = 1,
	NR_readv = 19,
	NR_writev = 20,
	NR_sendto = 44,
	NR_recvfrom = 45,
	NR_sendmsg = 46,
	NR_recvmsg = 47,
	NR_sendmmsg = 307,
	NR_preadv2 = 327,
	NR_pwritev2 = 328,
};
enum { USER_CS_64 = 0x33 }; /* a 32-bit program's numbers mean other calls */

static __always_inline bool syscall_args(__u64 *nr, __u64 *second, __u64 *third)
{
	struct pt_regs *regs = (void *)bpf_task_pt_regs(bpf_get_current_task_btf());

	*nr = regs->orig_ax;
	*second = regs->si;
	*third = regs->dx;
	return (regs->cs & 0xffff) == USER_CS_64;
}
#endif

#ifdef __TARGET_ARCH_arm64
enum {
	NR_read = 63,
	NR_write = 64,
	NR_readv = 65,
	NR_writev = 66,
	NR_sendto = 206,
	NR_recvfrom = 207,
	NR_sendmsg = 211,
	NR_recvmsg = 212,
	NR_sendmmsg = 269,
	NR_preadv2 = 286,
	NR_pwritev2 = 287,
};
enum { PSR_MODE32_BIT = 0x10 };

static __always_inline bool syscall_args(__u64 *nr, __u64 *second, __u64 *third)
{
	struct pt_regs *regs = (void *)bpf_task_pt_regs(bpf_get_current_task_btf());

	*nr = regs->syscallno;
	*second = regs->regs[1];
	*third = regs->regs[2];
	return !(regs->pstate & PSR_MODE32_BIT);
}
#endif

static __always_inline void buffer_of_msghdr(struct buffer *b, __u64 at)
{
	struct user_msghdr m;

	if (bpf_probe_read_user(&m, sizeof(m), (void *)at))
		return;
	b->kind = BUFFER_IOV;
	b->base = m.iov;
	b->pieces = m.iov_len;
}

/* A thread inside sendmmsg(): the tracepoint fires once for each message. */
struct sendmmsg_place {
	__u64 vec;
	__u32 next;
	__u32 _pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32); /* tid */
	__type(value, struct sendmmsg_place);
} sendmmsg_places SEC(".maps");

/*
 * The kernel stops at the first message that fails or is sent in part, so the
 * count starts again there, and where the vector ends.
 */
static __always_inline void buffer_of_sendmmsg(struct buffer *b, __u64 vec, __u64 n, int ret)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct sendmmsg_place *seen = bpf_map_lookup_elem(&sendmmsg_places, &tid), place = {};
	struct user_iovec first;

	if (seen && seen->vec == vec)
		place = *seen;
	place.vec = vec;
	if (ret > 0)
		buffer_of_msghdr(b, vec + (__u64)place.next * USER_MMSGHDR_SIZE);
	place.next++;
	if (ret <= 0 || place.next >= n ||
	    (b->pieces == 1 && !bpf_probe_read_user(&first, sizeof(first), (void *)b->base) &&
	     first.len > (__u64)ret))
		place.next = 0;
	bpf_map_update_elem(&sendmmsg_places, &tid, &place, BPF_ANY);
}

/* The buffer of the system call that this thread is in; *ret* is what it moved. */
static __always_inline struct buffer syscall_buffer(int ret)
{
	struct buffer b = { .kind = BUFFER_NONE };
	__u64 nr, second, third;

	if (!syscall_args(&nr, &second, &third))
		return b;
	switch (nr) {
	case NR_read:
	case NR_write:
	case NR_sendto:
	case NR_recvfrom:
		b.kind = BUFFER_FLAT;
		b.base = second;
		break;
	case NR_readv:
	case NR_writev:
	case NR_preadv2:
	case NR_pwritev2:
		b.kind = BUFFER_IOV;
		b.base = second;
		b.pieces = third;
		break;
	case NR_sendmsg:
	case NR_recvmsg:
		buffer_of_msghdr(&b, second);
		break;
	case NR_sendmmsg:
		buffer_of_sendmmsg(&b, second, third, ret);
		break;
	}
	return b;
}
