// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Loss on the TCP connections of selected processes, one event per episode:
 * from the first transmission of bytes that were sent again to their
 * acknowledgement. Costs nothing while nothing is lost.
 *
 * Timers and interrupts send again, in nobody's process: whose a socket is says
 * bpf/socket.bpf.h, never the current task.
 *
 * Hooks, raw tracepoints with BTF: tcp_retransmit_skb begins or prolongs an
 * episode, tcp_probe sees its acknowledgement, tcp_retransmit_synack and
 * inet_sock_set_state the handshake, tcp_cong_state_set what this host dropped
 * itself, tcp_destroy_sock the end. Only the first and the last are needed; a
 * sweep finds acknowledgements later.
 */
#include "kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "compat.bpf.h"
#include "ring.bpf.h"
#include "socket.bpf.h"
#include "tcp.h"

char LICENSE[] SEC("license") = "GPL";

RING(tcp_episodes, 1 << 20);
EVENT(tcp_episode);
EVENT(tcp_attempt);
RING(tcp_connections, 1 << 20);
EVENT(tcp_connection);
EVENT(tcp_command);

__u64 tcp_open;      /* entries of `episodes`: while 0, no acknowledgement is looked at */
__u64 tcp_untracked; /* retransmissions for which `episodes` had no room */

struct episode {
	__u32 busy;       /* lock: the sweep against the socket's own context */
	__u32 duplicates; /* dsack_dups before */
	struct tcp_episode event;
};

enum { SHORTEST_STALL_NS = 1000000 };

static const struct episode no_episode = {};

/* Address of the struct sock -> its episode: one at a time. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct episode);
} episodes SEC(".maps");

/* ---- one episode ---- */

static __always_inline bool lock(struct episode *p)
{
	for (int i = 0; i < 128; i++)
		if (take(&p->busy))
			return true;
	return false;
}

static __always_inline bool before(__u32 a, __u32 b)
{
	return (__s32)(a - b) < 0;
}

static __always_inline struct episode *episode_of(const struct sock *sk)
{
	__u64 at = (__u64)sk;

	return bpf_map_lookup_elem(&episodes, &at);
}

static __always_inline void drop(const struct sock *sk)
{
	__u64 at = (__u64)sk;

	if (!bpf_map_delete_elem(&episodes, &at))
		__sync_fetch_and_add(&tcp_open, -1);
}

static __always_inline void local_address(__u8 to[16], const struct sock *sk)
{
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET) {
		to[10] = to[11] = 0xff;
		*(__be32 *)&to[12] = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
	} else {
		bpf_core_read(to, 16, &sk->__sk_common.skc_v6_rcv_saddr);
	}
}

static __always_inline void peer_address(__u8 to[16], const struct sock *sk)
{
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET) {
		to[10] = to[11] = 0xff;
		*(__be32 *)&to[12] = BPF_CORE_READ(sk, __sk_common.skc_daddr);
	} else {
		bpf_core_read(to, 16, &sk->__sk_common.skc_v6_daddr);
	}
}

__u32 ticks_per_s; /* 0: not known yet, or at all */

/*
 * CONFIG_HZ, which programs are not told where the kernel's configuration
 * cannot be read: that of the usual ones by which ticks and clock agree on the
 * time since boot. Ticks begin at -300 s (INITIAL_JIFFIES).
 */
static __always_inline __u32 find_ticks_per_s(void)
{
	static const __u32 usual[] = { 100, 250, 300, 1000 };
	__u64 ticks = bpf_jiffies64(), ns = bpf_ktime_get_ns();

	for (int i = 0; i < 4; i++) {
		__u64 since = (ticks - (__u32)(-300 * usual[i])) * (1000000000 / usual[i]);
		__u64 apart = since > ns ? since - ns : ns - since;

		if (apart < ns / 16)
			return usual[i];
	}
	return 0;
}

static __always_inline __u64 ticks_us(__u32 ticks)
{
	if (!ticks_per_s)
		ticks_per_s = find_ticks_per_s();
	return ticks_per_s ? (__u64)ticks * 1000000 / ticks_per_s : 0;
}

static __always_inline __u32 rto_us(const struct sock *sk)
{
	return ticks_us(BPF_CORE_READ((struct inet_connection_sock *)sk, icsk_rto));
}

/* A new episode, locked; NULL when there is no room. */
static __always_inline struct episode *begin(const struct sock *sk)
{
	__u64 at = (__u64)sk;
	struct episode *p;

	if (bpf_map_update_elem(&episodes, &at, &no_episode, BPF_NOEXIST))
		return NULL;
	__sync_fetch_and_add(&tcp_open, 1);
	p = bpf_map_lookup_elem(&episodes, &at);
	if (!p || !lock(p))
		return NULL;
	p->event.local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	p->event.peer_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	local_address(p->event.local_addr, sk);
	peer_address(p->event.peer_addr, sk);
	p->duplicates = BPF_CORE_READ((struct tcp_sock *)sk, dsack_dups);
	return p;
}

/* [from, to) was time lost, as far as it is not counted yet. */
static __always_inline void lost(struct tcp_episode *e, __u64 from, __u64 to)
{
	if (from < e->covered_ns)
		from = e->covered_ns;
	if (to > from) {
		e->lost_ns += to - from;
		e->covered_ns = to;
	}
}

static __always_inline bool is_acked(const struct tcp_episode *e, const struct sock *sk)
{
	return e->end_seq != e->seq &&
	       !before(BPF_CORE_READ((struct tcp_sock *)sk, snd_una), e->end_seq);
}

/* Tell what there is; false: it is nobody's yet. The caller holds the lock, or is the only one. */
static __always_inline bool tell(struct episode *p, const struct sock *sk)
{
	struct followed_socket *whose = followed(sk);
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct tcp_episode *e = &p->event;

	if (!whose)
		return false;
	if (!e->count && e->lost_ns < SHORTEST_STALL_NS)
		return true; /* another reason to slow down, as ECN is */
	e->cookie = whose->id;
	e->pid = whose->pid;
	e->process_start_ns = whose->process_start_ns;
	e->error = whose->error;
	if (whose->role == FOLLOWED_CLIENT)
		e->flags |= TCP_CLIENT;
	else if (whose->role == FOLLOWED_SERVER)
		e->flags |= TCP_SERVER;
	e->srtt_us = BPF_CORE_READ(tp, srtt_us) >> 3;
	e->rto_us = rto_us(sk);
	e->duplicates = BPF_CORE_READ(tp, dsack_dups) - p->duplicates;
	OUTPUT(tcp_episodes, e, sizeof(*e));
	return true;
}

/* It is over; what may still come is the peer's word that it was for nothing. */
static __always_inline void end(struct episode *p, const struct sock *sk, enum tcp_end how)
{
	p->event.end_ns = bpf_ktime_get_ns();
	p->event.end = how;
	p->event.flags |= TCP_EARLY;
	tell(p, sk);
	p->event.flags &= ~TCP_EARLY;
}

/* Everything that was sent again, or for the first time after all, was acknowledged. */
static __always_inline void acked(struct episode *p, const struct sock *sk)
{
	struct tcp_episode *e = &p->event;

	if (!e->count) {
		e->last_ns = BPF_CORE_READ((struct tcp_sock *)sk, first_tx_mstamp) * 1000;
		lost(e, e->first_ns, e->last_ns);
	}
	end(p, sk, TCP_END_ACKED);
}

static __always_inline void note_attempt(struct tcp_episode *e, const struct sock *sk,
					 const struct tcp_attempt *attempt, __u32 segments,
					 __u64 first_ns, bool head_of_line)
{
	struct inet_connection_sock *icsk = (void *)sk;
	__u32 n = e->n_attempts;

	if (!e->count) {
		if (e->flags & TCP_LOCAL_DROP)
			first_ns = e->first_ns;
		e->first_ns = first_ns;
		e->seq = attempt->seq;
		e->end_seq = e->head_end_seq = attempt->end_seq;
	} else {
		if (before(attempt->seq, e->seq))
			e->seq = attempt->seq;
		if (before(e->end_seq, attempt->end_seq))
			e->end_seq = attempt->end_seq;
		if (first_ns < e->first_ns)
			e->first_ns = first_ns;
	}
	e->count += segments;
	e->last_ns = attempt->time_ns;
	e->ca_state = attempt->ca_state;
	e->backoff = BPF_CORE_READ(icsk, icsk_backoff);
	if (head_of_line)
		lost(e, first_ns, attempt->time_ns);
	if (n < TCP_ATTEMPTS) {
		*(struct tcp_attempt *)&e->attempts[n * sizeof(*attempt)] = *attempt;
		e->n_attempts = n + 1;
	}
}

/* ---- data, and a client's SYN ---- */

/* Why the kernel sends again is not told, but what it is doing is. */
static __always_inline __u8 retransmit_type(const struct sock *sk, struct tcp_attempt *a, bool head)
{
	if (BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_SYN_SENT)
		return TCP_RETRANSMIT_SYN;
	if (a->ca_state == TCP_CA_Loss)
		return a->retries && head ? TCP_RETRANSMIT_TIMEOUT : TCP_RETRANSMIT_LOSS_RECOVERY;
	if (a->ca_state == TCP_CA_Recovery)
		return TCP_RETRANSMIT_FAST;
	return TCP_RETRANSMIT_TAIL_LOSS_PROBE;
}

/*
 * When the segment behind the head of the line was sent, if only once; 0: there
 * is none. The head is the leftmost node of a red-black tree, so what follows
 * it is its right child, which has no children, or its parent.
 */
static __always_inline __u64 next_sent_ns(const struct sk_buff *head)
{
	struct rb_node *next = BPF_CORE_READ(head, rbnode.rb_right);
	const struct tcp_skb_cb *cb;
	const struct sk_buff *skb;

	if (!next)
		next = (void *)(BPF_CORE_READ(head, rbnode.__rb_parent_color) & ~3ul);
	if (!next)
		return 0;
	skb = (void *)next - bpf_core_field_offset(struct sk_buff, rbnode);
	cb = (const void *)&skb->cb;
	return BPF_CORE_READ(cb, sacked) & TCPCB_EVER_RETRANS ? 0
							      : BPF_CORE_READ(skb, skb_mstamp_ns);
}

/*
 * When what is sent again was sent first. Its own time is overwritten by now.
 * first_tx_mstamp is that of the oldest segment in flight, but moves with every
 * segment that arrives behind a lost one; what was sent right behind that one is better then.
 */
static __always_inline __u64 first_sent_ns(const struct sock *sk, const struct sk_buff *skb,
					   bool head)
{
	__u64 first = BPF_CORE_READ((struct tcp_sock *)sk, first_tx_mstamp) * 1000;
	__u64 next = head ? next_sent_ns(skb) : 0;

	return next && next < first ? next : first;
}

static __always_inline void on_retransmit(const struct sock *sk, const struct sk_buff *skb)
{
	const struct tcp_skb_cb *cb = (const void *)&skb->cb;
	struct inet_connection_sock *icsk = (void *)sk;
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct followed_socket *whose = followed(sk);
	struct tcp_attempt a = {};
	__u32 segments = BPF_CORE_READ(cb, tcp_gso_segs);
	__u64 first_ns;
	struct episode *p;
	bool head;

	if (!whose)
		return;
	a.time_ns = bpf_ktime_get_ns();
	a.seq = BPF_CORE_READ(cb, seq);
	a.end_seq = BPF_CORE_READ(cb, end_seq);
	a.rto_us = rto_us(sk);
	a.ca_state = BPF_CORE_READ_BITFIELD_PROBED(icsk, icsk_ca_state);
	a.retries = BPF_CORE_READ(icsk, icsk_retransmits);
	head = a.seq == BPF_CORE_READ(tp, snd_una);
	a.type = retransmit_type(sk, &a, head);
	/* Of what is in flight now, so not overwritten by what is sent again. */
	first_ns = a.type == TCP_RETRANSMIT_SYN ? whose->begin_ns : first_sent_ns(sk, skb, head);

	p = episode_of(sk);
	if (p && p->event.end_ns) {
		tell(p, sk);
		drop(sk);
		p = NULL;
	}
	if (p) {
		if (!lock(p))
			return;
	} else {
		p = begin(sk);
	}
	if (!p) {
		__sync_fetch_and_add(&tcp_untracked, 1);
		return;
	}
	note_attempt(&p->event, sk, &a, segments ? segments : 1, first_ns, head);
	if (a.type != TCP_RETRANSMIT_SYN)
		p->event.bytes += a.end_seq - a.seq;
	give(&p->busy);
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit2, const struct sock *sk, const struct sk_buff *skb)
{
	on_retransmit(sk, skb);
	return 0;
}

/*
 * Since Linux commit ad892e912b84 ("tcp: trace retransmit failures in
 * tcp_retransmit_skb", 6.17) it also tells of attempts that sent nothing.
 */
SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit3, const struct sock *sk, const struct sk_buff *skb, int err)
{
	if (!err)
		on_retransmit(sk, skb);
	return 0;
}

/* Every segment that arrives on an established connection, before it is looked at. */
SEC("tp_btf/tcp_probe")
int BPF_PROG(tcp_acked, struct sock *sk, struct sk_buff *skb)
{
	const struct tcp_skb_cb *cb = (const void *)&skb->cb;
	struct tcp_episode *e;
	struct episode *p;

	if (!tcp_open)
		return 0;
	p = episode_of(sk);
	if (!p || p->event.end_ns)
		return 0;
	e = &p->event;
	if (!before(BPF_CORE_READ(cb, ack_seq), e->end_seq) && lock(p)) {
		acked(p, sk);
		give(&p->busy);
	}
	return 0;
}

/*
 * What this host drops itself, in a full queue of its own, is not sent again
 * but tried again: no tcp_retransmit_skb. TCP only slows down (tcp_enter_cwr()
 * in __tcp_transmit_skb()), and with nothing else in flight nothing but a timer
 * goes on.
 */
SEC("tp_btf/tcp_cong_state_set")
int BPF_PROG(tcp_slowed, struct sock *sk, __u8 state)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	__u32 next, queued;
	struct episode *p;

	if (state != TCP_CA_CWR || sk->__sk_common.skc_state == TCP_SYN_SENT || !followed(sk))
		return 0;
	next = BPF_CORE_READ(tp, snd_nxt);
	queued = BPF_CORE_READ(tp, write_seq) - next;
	if (BPF_CORE_READ(tp, packets_out) || !queued)
		return 0;
	p = episode_of(sk);
	if (p && !p->event.end_ns)
		return 0;
	if (p) {
		tell(p, sk);
		drop(sk);
	}
	p = begin(sk);
	if (!p)
		return 0;
	p->event.flags = TCP_LOCAL_DROP;
	p->event.first_ns = bpf_ktime_get_ns();
	p->event.ca_state = state;
	p->event.seq = next;
	p->event.end_seq = p->event.head_end_seq = next + queued;
	give(&p->busy);
	return 0;
}

/* ---- the handshake, and the end ---- */

enum { CHRONO_RWND_LIMITED = 2, CHRONO_SNDBUF_LIMITED = 3 }; /* enum tcp_chrono */

/* Ticks that the connection spent in a state so far. */
static __always_inline __u32 chrono(const struct sock *sk, __u32 state)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	__u32 ticks = state == CHRONO_RWND_LIMITED ? BPF_CORE_READ(tp, chrono_stat[1])
						   : BPF_CORE_READ(tp, chrono_stat[2]);

	if (BPF_CORE_READ_BITFIELD_PROBED(tp, chrono_type) == state)
		ticks += (__u32)bpf_jiffies64() - BPF_CORE_READ(tp, chrono_start);
	return ticks;
}

const volatile bool tell_connections = true; /* set before load */

static __always_inline void tell_connection(struct followed_socket *f, const struct sock *sk,
					    enum tcp_moment moment)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	__u32 window = chrono(sk, CHRONO_RWND_LIMITED), buffer = chrono(sk, CHRONO_SNDBUF_LIMITED);
	__u64 sent = BPF_CORE_READ(tp, bytes_sent) - BPF_CORE_READ(tp, bytes_retrans),
	      received = BPF_CORE_READ(tp, bytes_received);
	struct tcp_connection c = {
		.cookie = f->id,
		.process_start_ns = f->process_start_ns,
		.begin_ns = f->begin_ns,
		.connected_ns = f->connected_ns,
		.time_ns = bpf_ktime_get_ns(),
		.pid = f->pid,
		.srtt_us = BPF_CORE_READ(tp, srtt_us) >> 3,
		.local_port =
			f->local_port ? f->local_port : BPF_CORE_READ(sk, __sk_common.skc_num),
		.peer_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport)),
		.error = f->error,
		.moment = moment,
		.role = f->role,
		.resets = f->resets,
		.opening = f->opening,
	};

	if (!tell_connections)
		return;
	c.sent_bytes = sent - f->told_sent;
	c.received_bytes = received - f->told_received;
	if (moment == TCP_SAMPLED && !c.sent_bytes && !c.received_bytes)
		return; /* idle */
	c.receive_window_us = ticks_us(window - f->told_receive_window);
	c.send_buffer_us = ticks_us(buffer - f->told_send_buffer);
	f->told_sent = sent;
	f->told_received = received;
	f->told_receive_window = window;
	f->told_send_buffer = buffer;
	peer_address(c.peer_addr, sk);
	OUTPUT(tcp_connections, &c, sizeof(c));
}

enum { SYN_ACKS = 4 };
static const __s64 UNUSED_NS = 60000000000;

/* SYN-ACKs that were sent again, for a connection that is not there yet. */
struct syn_acks {
	__u64 first_ns;
	__u64 again_ns[SYN_ACKS];
	__u32 count;
	__u32 _pad;
};

__u64 last_syn_ack_ns; /* long ago: nothing to look for */

/* Our initial sequence number and the ports: what of a request its socket inherits for sure. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct syn_acks);
} syn_acks SEC(".maps");

static __always_inline __u64 request_key(__u32 isn, const struct sock_common *c)
{
	return (__u64)isn << 32 | (__u32)BPF_CORE_READ(c, skc_dport) << 16 |
	       BPF_CORE_READ(c, skc_num);
}

SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(tcp_syn_ack, const struct sock *listener, const struct request_sock *req)
{
	const struct tcp_request_sock *treq = (const void *)req;
	__u64 key = request_key(BPF_CORE_READ(treq, snt_isn), &req->__req_common);
	__u64 now = bpf_ktime_get_ns();
	struct syn_acks *s = bpf_map_lookup_elem(&syn_acks, &key), first = {};

	if (!s) {
		first.first_ns = BPF_CORE_READ(treq, snt_synack) * 1000;
		first.again_ns[0] = now;
		first.count = 1;
		bpf_map_update_elem(&syn_acks, &key, &first, BPF_ANY);
	} else {
		s->again_ns[s->count & (SYN_ACKS - 1)] = now;
		s->count++;
	}
	last_syn_ack_ns = now;
	return 0;
}

/* Whose the new connection is shows when it is used: the sweep waits for that. */
static __always_inline void accepted(struct sock *sk)
{
	__u64 key, now = bpf_ktime_get_ns();
	struct tcp_attempt a = { .type = TCP_RETRANSMIT_SYN_ACK };
	struct syn_acks *s;
	struct episode *p;

	if (!last_syn_ack_ns || now - last_syn_ack_ns > UNUSED_NS)
		return;
	a.end_seq = BPF_CORE_READ((struct tcp_sock *)sk, snd_una);
	a.seq = a.end_seq - 1;
	key = request_key(a.seq, &sk->__sk_common);
	s = bpf_map_lookup_elem(&syn_acks, &key);
	p = s ? begin(sk) : NULL;
	if (!p)
		return;
	for (__u32 i = 0; i < SYN_ACKS; i++) {
		if (i >= s->count)
			break;
		a.time_ns = s->again_ns[i];
		note_attempt(&p->event, sk, &a, 1, s->first_ns, true);
	}
	p->event.count = s->count;
	end(p, sk, TCP_END_CONNECTED);
	give(&p->busy);
	bpf_map_delete_elem(&syn_acks, &key);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_state, struct sock *sk, int was, int is)
{
	struct followed_socket *whose;
	struct episode *p;

	if (is != TCP_ESTABLISHED)
		return 0;
	if (was == TCP_SYN_RECV)
		accepted(sk);
	if (was != TCP_SYN_SENT)
		return 0;
	whose = followed(sk);
	if (!whose)
		return 0;
	whose->connected_ns = bpf_ktime_get_ns();
	whose->opening = 0;
	tell_connection(whose, sk, TCP_CONNECTED);
	p = tcp_open ? episode_of(sk) : NULL;
	if (p && lock(p)) {
		end(p, sk, TCP_END_CONNECTED);
		give(&p->busy);
	}
	return 0;
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(tcp_destroy, struct sock *sk)
{
	struct episode *p = tcp_open ? episode_of(sk) : NULL;
	struct followed_socket *whose = followed(sk);
	__u64 at = (__u64)sk;

	if (p && lock(p)) {
		if (!p->event.end_ns && is_acked(&p->event, sk))
			acked(p, sk);
		else if (!p->event.end_ns)
			end(p, sk, TCP_END_CLOSED);
		tell(p, sk);
		drop(sk);
	}
	if (whose)
		tell_connection(whose, sk, TCP_CLOSED);
	bpf_map_delete_elem(&followed_sockets, &at);
	return 0;
}

/* What it was told of is asked for once: reading it clears it. */
SEC("tp_btf/inet_sk_error_report")
int BPF_PROG(tcp_error, struct sock *sk)
{
	struct followed_socket *whose = followed(sk);

	if (whose && sk->sk_err)
		whose->error = sk->sk_err;
	return 0;
}

/* Its arguments changed over time, and may be NULL: an address is enough. */
SEC("tp_btf/tcp_send_reset")
int tcp_reset_sent(__u64 *ctx)
{
	__u64 at = ctx[0];
	struct followed_socket *whose = bpf_map_lookup_elem(&followed_sockets, &at);

	if (whose)
		whose->resets |= TCP_RESET_SENT;
	return 0;
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(tcp_reset_received, struct sock *sk)
{
	struct followed_socket *whose = followed(sk);

	if (whose)
		whose->resets |= TCP_RESET_RECEIVED;
	return 0;
}

/*
 * Tell the episodes that are over. Those whose acknowledgement no hook saw are
 * looked at here: their socket is still there, or tcp_destroy had told them.
 */
static long sweep_one(void *map, __u64 *key, struct episode *p, struct tcp_command *command)
{
	const struct sock *sk = (const void *)*key;
	struct tcp_episode *e = &p->event;
	__u64 now = bpf_ktime_get_ns();
	__s64 waited;

	if (!take(&p->busy))
		return 0;
	if (!e->end_ns && is_acked(e, sk))
		acked(p, sk);
	waited = now - e->end_ns;
	if (e->end_ns && waited >= (__s64)command->linger_ns && (tell(p, sk) || waited > UNUSED_NS))
		drop(sk); /* the next one's memory: not ours to unlock */
	else
		give(&p->busy);
	return 0;
}

/* A look at a connection that may be gone by now: then it is another one's memory, or none's. */
static long sample_one(void *map, __u64 *key, struct followed_socket *f, void *unused)
{
	const struct sock *sk = (const void *)*key;

	f = followed(sk);
	if (f && !f->opening)
		tell_connection(f, sk, TCP_SAMPLED);
	return 0;
}

#ifdef OLD_KERNEL

const volatile __u64 sweep_linger_ns =
	100000000; /* set before load: an iterator takes no argument */

SEC("iter/bpf_map_elem")
int tcp_sweep(struct bpf_iter__bpf_map_elem *ctx)
{
	struct tcp_command command = { .linger_ns = sweep_linger_ns };
	struct episode *p = ctx->value;
	__u64 *key = ctx->key;

	if (key && p)
		sweep_one(NULL, key, p, &command);
	return 0;
}

SEC("iter/bpf_map_elem")
int tcp_sample(struct bpf_iter__bpf_map_elem *ctx)
{
	struct followed_socket *f = ctx->value;
	__u64 *key = ctx->key;

	if (key && f)
		sample_one(NULL, key, f, NULL);
	return 0;
}

#else

SEC("syscall")
int tcp_sample(struct tcp_command *in)
{
	bpf_for_each_map_elem(&followed_sockets, sample_one, NULL, 0);
	return 0;
}

SEC("syscall")
int tcp_sweep(struct tcp_command *in)
{
	struct tcp_command command = { .linger_ns = in->linger_ns };

	bpf_for_each_map_elem(&episodes, sweep_one, &command, 0);
	return 0;
}

#endif
