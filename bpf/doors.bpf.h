/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Rungs B and C's doors: fentry and fexit, or kprobe and kretprobe, of TCP's send
 * and receive. A part of exchange.bpf.c, whose on_data() they call.
 */
#pragma once

/* A call of tcp_sendmsg or tcp_recvmsg that a thread is in: rungs B and C. */
struct call {
	struct sock *sk;
	struct buffer buffer;
	__u32 flags;
	__u32 _pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32); /* tid */
	__type(value, struct call);
} calls SEC(".maps");

static __always_inline void call_begins(struct sock *sk, struct msghdr *msg, int flags)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct call call = { .sk = sk, .flags = flags };
	__u32 tid = id;

	if (!sock_selected(id >> 32, sk)) {
		/* A return that was missed may have left one of this thread's calls on a selected
		 * socket. */
		if (ports_selected)
			bpf_map_delete_elem(&calls, &tid);
		return;
	}
	if (msg)
		call.buffer = msghdr_buffer(msg);
	bpf_map_update_elem(&calls, &tid, &call, BPF_ANY);
}

/* A kretprobe has lost its arguments; where they are still there, the verifier trusts them more. */
static __always_inline void call_ends(struct sock *sk, bool have_sk, int ret, enum direction way)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tid = id;
	struct call *call = bpf_map_lookup_elem(&calls, &tid);
	struct buffer buffer;
	struct moved m;

	if (!call)
		return; /* not selected */
	if (!have_sk)
		sk = call->sk;
	buffer = call->buffer;
	if (call->flags & MSG_PEEK && way == RECV)
		ret = 0;
	bpf_map_delete_elem(&calls, &tid);
	if (ret > 0) {
		m = moved_core(sk, ret, way);
		on_data(sk, connection_of(sk), &buffer, &m, way);
	}
}

/*
 * tcp_recvmsg() lost arguments over time: nonblock in 5.19 (Linux commit
 * ec095263a965), addr_len in 7.2. The agent counts them in the kernel's BTF.
 */
const volatile __u32 recv_args = 5; /* set before load */

SEC("fentry/tcp_sendmsg")
int BPF_PROG(exchange_fentry_send, struct sock *sk, struct msghdr *msg)
{
	call_begins(sk, msg, 0);
	return 0;
}

SEC("fexit/tcp_sendmsg")
int BPF_PROG(exchange_fexit_send, struct sock *sk, struct msghdr *msg, unsigned long size, int ret)
{
	call_ends(sk, true, ret, SEND);
	return 0;
}

/* The context may be read at constant offsets only: keep the compiler from choosing one first. */
#define PICK(value, from)                                         \
	({                                                        \
		value = (from);                                   \
		asm volatile("# " #from : "+r"(value)::"memory"); \
	})

SEC("fentry/tcp_recvmsg")
int exchange_fentry_recv(__u64 *ctx)
{
	__u64 flags;

	if (recv_args == 6)
		PICK(flags, ctx[4]);
	else
		PICK(flags, ctx[3]);
	call_begins((struct sock *)ctx[0], (struct msghdr *)ctx[1], flags);
	return 0;
}

SEC("fexit/tcp_recvmsg")
int exchange_fexit_recv(__u64 *ctx)
{
	__u64 ret;

	if (recv_args == 6)
		PICK(ret, ctx[6]);
	else if (recv_args == 5)
		PICK(ret, ctx[5]);
	else
		PICK(ret, ctx[4]);
	call_ends((struct sock *)ctx[0], true, ret, RECV);
	return 0;
}

/* What sendfile() calls before 6.5: bytes to count, no buffer. */
SEC("fexit/tcp_sendpage")
int BPF_PROG(exchange_fexit_sendpage, struct sock *sk, void *page, int offset, unsigned long size,
	     int flags, int ret)
{
	struct buffer none = { .kind = BUFFER_NONE };
	struct moved m;

	if (ret <= 0 || !sock_selected(bpf_get_current_pid_tgid() >> 32, sk))
		return 0;
	m = moved_core(sk, ret, SEND);
	on_data(sk, connection_of(sk), &none, &m, SEND);
	return 0;
}

SEC("kprobe/tcp_sendmsg")
int BPF_KPROBE(exchange_kprobe_send, struct sock *sk, struct msghdr *msg)
{
	call_begins(sk, msg, 0);
	return 0;
}

SEC("kretprobe/tcp_sendmsg")
int BPF_KRETPROBE(exchange_kretprobe_send, int ret)
{
	call_ends(NULL, false, ret, SEND);
	return 0;
}

SEC("kprobe/tcp_recvmsg")
int BPF_KPROBE(exchange_kprobe_recv, struct sock *sk, struct msghdr *msg)
{
	__u64 flags;

	if (recv_args == 6)
		PICK(flags, PT_REGS_PARM5(ctx));
	else
		PICK(flags, PT_REGS_PARM4(ctx));
	call_begins(sk, msg, flags);
	return 0;
}

SEC("kretprobe/tcp_recvmsg")
int BPF_KRETPROBE(exchange_kretprobe_recv, int ret)
{
	call_ends(NULL, false, ret, RECV);
	return 0;
}

SEC("kprobe/tcp_sendpage")
int BPF_KPROBE(exchange_kprobe_sendpage, struct sock *sk)
{
	call_begins(sk, NULL, 0);
	return 0;
}

SEC("kretprobe/tcp_sendpage")
int BPF_KRETPROBE(exchange_kretprobe_sendpage, int ret)
{
	call_ends(NULL, false, ret, SEND);
	return 0;
}
