// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Pairs what flows one way on a TCP connection with what flows back: one event
 * per exchange. Knows no protocol; user space reads the heads.
 *
 *   IDLE ──request bytes──▶ REQUEST ──response bytes──▶ RESPONSE ──request bytes──▶ (emit) REQUEST
 *                                                          │ pause: sweep emits, state stays
 *                                                          ▼ close: emit
 *
 * Hooks: tp_btf/inet_sock_set_state and tp_btf/tcp_destroy_sock (Linux 5.5) for
 * connects, closes, resets and ends, and for the data one of three rungs. A rung is a door: it
 * finds (sock, struct buffer, length) its own way and calls on_data().
 *
 *   A  tp_btf/sock_{send,recv}_length (6.3): after the socket call, one program
 *   B  fentry and fexit of tcp_{sendmsg,recvmsg,sendpage}: needs trampolines
 *   C  kprobe and kretprobe of the same: needs CONFIG_KPROBES
 */
#include "kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "buffer.bpf.h"
#include "compat.bpf.h"
#include "connection.bpf.h"
#include "peer.bpf.h"
#include "ring.bpf.h"
#include "socket.bpf.h"
#include "span.bpf.h"
#include "target.bpf.h"

char LICENSE[] SEC("license") = "GPL";

RING(exchange_events, 8 << 20);
EVENT(exchange_event);
EVENT(exchange_command);
EVENT(exchange_sampler);
EVENT(exchange_count);
EVENT(exchange_line);

#include "count.bpf.h"

__u64 exchange_untracked; /* requests on connections for which `connections` had no room */
__u64 exchange_torn;      /* exchanges given up: two CPUs at once, see lock() */

enum direction { SEND = 0, RECV = 1 };
static const struct connection no_connection = {};

/*
 * A connection's name. The kernel's socket cookie, where programs may ask for
 * it (tracing programs since 5.12, kprobes never); else one of our own, found
 * by the socket's address. Every socket passes tcp_destroy_sock before its
 * memory is used again, so no entry is another socket's.
 */
const volatile bool cookies = true; /* set before load */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u64);
} socket_ids SEC(".maps");

static __always_inline __u64 known_socket_id(struct sock *sk)
{
	__u64 at = (__u64)sk, *id;

	if (cookies)
		return sk->__sk_common.skc_cookie.counter;
	id = bpf_map_lookup_elem(&socket_ids, &at);
	return id ? *id : 0;
}

static __always_inline __u64 socket_id(struct sock *sk)
{
	__u64 at = (__u64)sk, id;

	if (cookies)
		return bpf_get_socket_cookie(sk);
	id = known_socket_id(sk);
	if (id)
		return id;
	id = bpf_ktime_get_ns() << 8 | (bpf_get_smp_processor_id() & 0xff);
	bpf_map_update_elem(&socket_ids, &at, &id, BPF_ANY);
	return id;
}

static __always_inline void forget_socket(struct sock *sk)
{
	__u64 at = (__u64)sk;

	if (!cookies)
		bpf_map_delete_elem(&socket_ids, &at);
}

/* The record's size: without its heads, if user space has them already. */
static __always_inline __u64 prepare(struct connection *c, __u8 reason)
{
	struct exchange_event *e = &c->event;
	__u64 size = (__u64)e->request_len + e->response_len;

	e->reason = reason;
	if (c->swept) {
		e->flags |= EXCHANGE_RESENT;
		if (c->swept_len == e->response_len)
			size = 0;
	}
	CLAMP(size, EXCHANGE_REQUEST_LEN + EXCHANGE_RESPONSE_LEN);
	return sizeof(*e) + size;
}

/* Tell user space the request's head early: a child will ask for its trace. */
static __always_inline void emit_open(struct connection *c)
{
	__u64 size = c->event.request_len;

	join_client(c);
	c->announced = 1;
	c->event.reason = EXCHANGE_OPEN;
	CLAMP(size, EXCHANGE_REQUEST_LEN);
	OUTPUT(exchange_events, &c->event, sizeof(c->event) + size);
}

/* No child will ask for its trace. */
static __always_inline bool only_counted(struct connection *c)
{
	return sample_decide(c) == UNSAMPLED && !sample_keeps(c);
}

/* False: that exchange is no longer open. */
static __always_inline bool announce(__u64 cookie, __u32 number, __u8 *decision)
{
	struct connection *c = bpf_map_lookup_elem(&connections, &cookie);
	bool open;

	if (!c || !lock_patiently(c))
		return false;
	open = is_open(c, cookie, number);
	if (open)
		join_client(c);
	if (open && decision)
		*decision = sample_decide(c);
	if (open && !c->announced && !only_counted(c))
		emit_open(c);
	unlock(c);
	return open;
}

/* What two CPUs did to this connection cannot be paired any more. */
static __always_inline void give_up(struct connection *c)
{
	if (c->state != IDLE)
		__sync_fetch_and_add(&exchange_torn, 1);
	c->torn = 0;
	c->fresh = 0;
	c->state = IDLE;
	c->role = EXCHANGE_UNKNOWN;
}

static __always_inline void finish(struct connection *c, __u8 reason)
{
	__u64 size;

	join_client(c);
	c->state = IDLE;
	if (sample_count(c, reason) == COUNTED)
		return;
	size = prepare(c, reason);
	OUTPUT(exchange_events, &c->event, size);
}

/* Copy [from, from + n) of user memory behind the *have* bytes captured in this direction. */
static __always_inline __u16 copy_piece(struct connection *c, __u64 at, __u64 room, __u64 from,
					__u64 n, bool response)
{
	if (n > room)
		n = room;
	if (response) {
		CLAMP(n, EXCHANGE_RESPONSE_LEN);
		CLAMP(at, EXCHANGE_HEADS_LEN - EXCHANGE_RESPONSE_LEN);
	} else {
		CLAMP(n, EXCHANGE_REQUEST_LEN);
		CLAMP(at, EXCHANGE_HEADS_LEN - EXCHANGE_REQUEST_LEN);
	}
	if (!n)
		return 0;
	if (bpf_probe_read_user(&c->heads[at], n, (void *)from)) {
		c->event.flags |= EXCHANGE_FAULT;
		return 0;
	}
	return n;
}

/*
 * Capture what fits of *n* bytes that just moved. *total* is this direction's
 * count before them; capturing goes on only while nothing was left out.
 */
static __always_inline void capture(struct connection *c, const struct buffer *b, __u64 n,
				    bool response)
{
	struct exchange_event *e = &c->event;
	__u64 total = response ? e->response_bytes : e->request_bytes;
	__u64 have = response ? e->response_len : e->request_len;
	__u64 limit = response ? EXCHANGE_RESPONSE_LEN : EXCHANGE_REQUEST_LEN;
	__u64 at = response ? (__u64)e->request_len + have : have;
	__u64 room = have == total ? limit - have : 0;
	__u64 left = n, end = 0, last = 0, word = 0, got;
	bool whole = n <= room;

	if (b->kind == BUFFER_FLAT) {
		got = copy_piece(c, at, room, b->base, n, response);
		have += got;
		end = b->base + n;
		last = n;
	} else if (b->kind != BUFFER_NONE) {
		struct user_iovec v[MAX_PIECES] = {};

		if (!read_iovecs(b, v))
			e->flags |= EXCHANGE_FAULT;
		for (int i = 0; i < MAX_PIECES; i++) {
			__u64 piece = v[i].len < left ? v[i].len : left;

			left -= piece;
			if (!piece)
				continue;
			if (room) {
				got = copy_piece(c, at, room, v[i].base, piece, response);
				have += got;
				at += got;
				room -= got;
				if (got < piece)
					room = 0; /* full, or a fault: what follows would not join
						     on */
			}
			end = v[i].base + piece;
			last = piece;
		}
		if (left)
			end = 0;
	}
	if (response)
		e->response_len = have;
	else
		e->request_len = have;

	if (whole && !c->swept)
		return; /* user space finds the last bytes in the head itself */
	if (last > 8)
		last = 8;
	if (!end || !last || bpf_probe_read_user(&word, last, (void *)(end - last)))
		last = word = 0; /* unknown: all zeros ends no chunk */
	if (last && last < 8) {
		__u64 before = response ? e->response_tail : e->request_tail;

		word = before >> (8 * last) | word << (64 - 8 * last);
	}
	if (response)
		e->response_tail = word;
	else
		e->request_tail = word;
}

/*
 * On a thread that has several inbound exchanges open and sends requests too, as
 * in a proxy, no parent can be told here. But their heads go out early, so
 * that user space can recognise a traceparent that was handed on unchanged.
 */
static __always_inline void begin_work(struct connection *c)
{
	struct exchange_event *e = &c->event;
	struct thread_exchange *t = thread_exchange(true);

	if (!t)
		return;
	if (!t->many && t->cookie != e->cookie && exchange_open(t->cookie, t->number)) {
		t->many = 1;
		if (t->asks)
			announce(t->cookie, t->number, NULL);
	}
	c->crowded = t->many && t->asks;
	t->cookie = e->cookie;
	t->number = e->number;
}

static __always_inline void note_hand_over(__u32 pid)
{
	__u32 yes = 1;

	if (!bpf_map_lookup_elem(&handing_over, &pid))
		bpf_map_update_elem(&handing_over, &pid, &yes, BPF_ANY);
}

/* The one inbound exchange open on this thread is the parent; of several, none. */
static __always_inline void find_parent(struct connection *c)
{
	struct exchange_event *e = &c->event;
	struct thread_exchange *t = thread_exchange(false);

	if (!t)
		return;
	t->asks = 1;
	if (!thread_trusted(t, e->pid) || !announce(t->cookie, t->number, &c->sample.parent))
		return;
	e->parent_cookie = t->cookie;
	e->parent_number = t->number;
}

static __always_inline void begin(struct connection *c, __u64 now, __u8 role)
{
	struct exchange_event *e = &c->event;
	__u64 id = bpf_get_current_pid_tgid();
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	c->state = REQUEST;
	c->announced = 0;
	c->crowded = 0;
	c->swept = 0;
	sample_begins(&c->sample);
	e->number++;
	e->start_ns = now;
	e->request_ns = now;
	e->first_ns = 0;
	e->end_ns = now;
	e->request_bytes = 0;
	e->response_bytes = 0;
	e->request_tail = 0;
	e->response_tail = 0;
	if (e->pid != id >> 32) { /* a connection that stays in one process pays for this once */
		e->process_start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
		e->rule = rule_of(id >> 32);
	}
	e->parent_cookie = 0;
	e->parent_number = 0;
	e->root_cookie = 0;
	e->root_number = 0;
	e->pid = id >> 32;
	e->tid = id;
	e->response_sends = 0;
	e->request_len = 0;
	e->response_len = 0;
	e->error = 0;
	e->role = role;
	e->flags = c->fresh ? EXCHANGE_FRESH : 0;
	if (role == EXCHANGE_SERVER)
		begin_work(c);
	else
		find_parent(c);
}

/* The first bytes of a message on a connection older than us. Anything else is the middle of
 * something. */
enum message { MIDDLE = 0, SOME_REQUEST = 1, SOME_RESPONSE = 2 };

static __always_inline enum message sniff(const struct buffer *b, __u64 n)
{
	__u64 from = b->base;
	__u8 c[4] = {};

	if (n < 4 || b->kind == BUFFER_NONE)
		return MIDDLE;
	if (b->kind != BUFFER_FLAT) {
		struct user_iovec v[MAX_PIECES] = {};

		if (!read_iovecs(b, v) || v[0].len < 4)
			return MIDDLE;
		from = v[0].base;
	}
	if (bpf_probe_read_user(c, sizeof(c), (void *)from))
		return MIDDLE;
	if (c[0] == 'H' && c[1] == 'T' && c[2] == 'T' && c[3] == 'P')
		return SOME_RESPONSE;
	for (int i = 0; i < 3; i++)
		if (c[i] < 'A' || c[i] > 'Z')
			return MIDDLE;
	return SOME_REQUEST;
}

static __always_inline bool request_direction(__u8 role, enum direction way)
{
	return (role == EXCHANGE_SERVER) == (way == RECV);
}

/*
 * Who asks on this connection? Known when we saw its first byte, or its
 * connect; on an older one, from the first message that shows it.
 */
static __always_inline void learn_role(struct connection *c, struct sock *sk, enum direction way,
				       const struct buffer *b, __u64 n)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	__u64 sent = BPF_CORE_READ(tp, bytes_sent), received = BPF_CORE_READ(tp, bytes_received);
	__u32 unread = BPF_CORE_READ(tp, rcv_nxt) - BPF_CORE_READ(tp, copied_seq);
	enum message message;

	/* Not exact by one: a FIN right behind the bytes counts in some of these. */
	if (way == RECV && !sent && received + 1 - unread - n <= 2) {
		c->role = EXCHANGE_SERVER;
		c->fresh = 1;
		return;
	}
	if (way == SEND && !received && sent <= n) {
		c->role = EXCHANGE_CLIENT;
		c->fresh = 1;
		return;
	}
	message = sniff(b, n);
	if (message == MIDDLE)
		return;
	c->role = (message == SOME_REQUEST) == (way == RECV) ? EXCHANGE_SERVER : EXCHANGE_CLIENT;
}

static __always_inline struct connection *new_connection(__u64 cookie, __u8 role)
{
	struct connection *c;

	bpf_map_update_elem(&connections, &cookie, &no_connection, BPF_NOEXIST);
	c = bpf_map_lookup_elem(&connections, &cookie);
	if (!c)
		return NULL;
	c->role = role;
	c->fresh = role != EXCHANGE_UNKNOWN;
	c->event.cookie = cookie;
	return c;
}

const volatile bool follow_sockets = false; /* set before load: another probe asks whose they are */

/* Called in the process that uses the socket. */
static __always_inline void follow(struct sock *sk, const struct connection *c, __u64 flags)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct followed_socket whose = {
		.id = c->event.cookie,
		.begin_ns = c->fresh ? bpf_ktime_get_ns() : 0,
		.pid = bpf_get_current_pid_tgid() >> 32,
		.local_port = c->event.local_port,
		.role = c->role,
		.opening = flags == BPF_ANY,
		.named = cookies,
	};
	__u64 at = (__u64)sk;

	if (!follow_sockets)
		return;
	whose.process_start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	bpf_map_update_elem(&followed_sockets, &at, &whose, flags);
}

/* A process handed the connection to another one. */
static __always_inline void follow_to(struct sock *sk, const struct exchange_event *e)
{
	struct followed_socket *whose = follow_sockets ? followed(sk) : NULL;

	if (whose) {
		whose->pid = e->pid;
		whose->process_start_ns = e->process_start_ns;
	}
}

/* A client's local port is not chosen before its handshake, so not when the connection is made. */
static __always_inline void read_addresses(struct connection *c, struct sock *sk)
{
	struct exchange_event *e = &c->event;

	e->local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	e->peer_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	socket_addresses(sk, e->local_addr, e->peer_addr);
}

static __always_inline struct connection *connection_of(struct sock *sk)
{
	__u64 id = known_socket_id(sk);

	return id ? bpf_map_lookup_elem(&connections, &id) : NULL;
}

/* What a socket call did. */
struct moved {
	__u64 n;          /* bytes, > 0 */
	__u64 ns;         /* CLOCK_MONOTONIC */
	__u32 write_seq;  /* TCP's sequence number after them, when they were sent */
	__u32 copied_seq; /* likewise, when they were received */
};

/* As moved() says it, where fields cannot be read directly. */
static __always_inline struct moved moved_core(struct sock *sk, __u64 n, enum direction way)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct moved m = { .n = n };

	if (way == SEND) {
		m.ns = bpf_ktime_get_ns();
		m.write_seq = BPF_CORE_READ(tp, write_seq);
	} else {
		m.ns = BPF_CORE_READ(tp, tcp_clock_cache);
		m.copied_seq = BPF_CORE_READ(tp, copied_seq);
	}
	return m;
}

/*
 * The body behind every rung's door: bytes moved *way* on *sk*, by the current task. *c* is what
 * connection_of() found.
 */
static __always_inline void on_data(struct sock *sk, struct connection *c, const struct buffer *b,
				    const struct moved *m, enum direction way)
{
	__u64 n = m->n, now = m->ns;
	struct exchange_event *e;
	bool first;
	__u32 pid;

	if (!c) {
		c = new_connection(socket_id(sk), EXCHANGE_UNKNOWN);
		if (!c && sniff(b, n) == SOME_REQUEST)
			__sync_fetch_and_add(&exchange_untracked, 1);
	}
	if (!c || c->ignored || !lock(c))
		return;
	e = &c->event;
	if (c->torn)
		give_up(c);
	first = !e->peer_port;
	if (first)
		read_addresses(c, sk);
	if (c->role == EXCHANGE_UNKNOWN)
		learn_role(c, sk, way, b, n);
	if (first) {
		follow(sk, c, BPF_NOEXIST);
		if (c->role == EXCHANGE_CLIENT)
			show_client(sk, e->cookie);
	}
	if (c->role == EXCHANGE_UNKNOWN)
		goto out;

	if (request_direction(c->role, way)) {
		if (c->state == RESPONSE)
			finish(c, EXCHANGE_NEXT);
		if (c->state == IDLE) {
			pid = e->pid;
			begin(c, now, c->role);
			if (pid && pid != e->pid)
				follow_to(sk, e);
			if (way == SEND) {
				e->send_seq = m->write_seq - (__u32)n;
			} else {
				c->recv_seq = m->copied_seq - (__u32)n;
				find_client(c);
				join_client(c);
			}
		}
		capture(c, b, n, false);
		e->request_bytes += n;
		e->request_ns = now;
		if (c->crowded && !c->announced && !only_counted(c))
			emit_open(c);
	} else if (c->state != IDLE) { /* else the request was before our time, or nobody asked */
		if (c->state == REQUEST) {
			c->state = RESPONSE;
			e->first_ns = now;
			if (way == SEND)
				e->send_seq = m->write_seq - (__u32)n;
			join_client(c);
			if (c->role == EXCHANGE_SERVER &&
			    e->tid != (__u32)bpf_get_current_pid_tgid())
				note_hand_over(e->pid);
		}
		capture(c, b, n, true);
		e->response_bytes += n;
		e->response_sends++;
		e->end_ns = now;
	}
out:
	unlock(c);
}

#ifndef OLD_KERNEL

/*
 * TCP has looked at the clock for these bytes (tcp_mstamp_refresh()), which
 * costs us nothing. What is received came with the last segment, or before.
 * What is sent went out just now, unless some of it still waits.
 */
static __always_inline struct moved moved(const struct tcp_sock *tp, __u64 n, enum direction way)
{
	struct moved m = { .n = n,
			   .ns = tp->tcp_clock_cache,
			   .write_seq = tp->write_seq,
			   .copied_seq = tp->copied_seq };

	if (way == SEND && tp->snd_nxt != m.write_seq)
		m.ns = bpf_ktime_get_ns();
	return m;
}

/* Rung A's door. */
static __always_inline void door_a(struct sock *sk, int ret, enum direction way)
{
	__u16 family = sk->__sk_common.skc_family;
	struct tcp_sock *tp;
	struct connection *c;
	struct buffer b;
	struct moved m;
	__u32 pid;

	if ((family != AF_INET && family != AF_INET6) || sk->sk_protocol != IPPROTO_TCP)
		return;
	if (ret <= 0 && way == RECV)
		return; /* each event loop's last read */
	c = connection_of(sk);
	pid = bpf_get_current_pid_tgid() >> 32;
	/* Who began this connection's last exchange was selected: no need to ask again, or rarely. */
	if ((may_leave || !(c && c->event.pid == pid)) && !sock_selected(pid, sk))
		return;
	b = syscall_buffer(ret);
	tp = bpf_skc_to_tcp_sock(sk);
	if (ret > 0 && tp) {
		m = moved(tp, ret, way);
		on_data(sk, c, &b, &m, way);
	}
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(exchange_send, struct sock *sk, int ret, int flags)
{
	door_a(sk, ret, SEND);
	return 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(exchange_recv, struct sock *sk, int ret, int flags)
{
	if (!(flags & MSG_PEEK))
		door_a(sk, ret, RECV);
	return 0;
}

#endif

#include "doors.bpf.h"

/* Nothing more can come in this exchange. */
static __always_inline void on_end(struct sock *sk, struct connection *c)
{
	struct exchange_event *e = &c->event;

	if (c->torn)
		give_up(c);
	if (c->state == IDLE || c->ignored)
		return;
	e->error = c->closed ? c->error : sk->sk_err;
	if (c->state == REQUEST && !c->closed)
		e->end_ns = bpf_ktime_get_ns();
	finish(c, EXCHANGE_CLOSED);
}

/*
 * A server that shuts down its sending side has answered. A client that does
 * may still read its response, unless it closed both sides itself: in LAST_ACK
 * the other may be the peer's doing. After a reset or the last FIN, what has
 * arrived may still be read: that ends with the socket.
 */
static __always_inline void on_state(struct sock *sk, struct connection *c, int state)
{
	if (state == TCP_CLOSE) {
		c->error = sk->sk_err; /* reading it clears it */
		c->closed = 1;
		if (c->state == REQUEST)
			c->event.end_ns = bpf_ktime_get_ns();
	} else if (c->role == EXCHANGE_SERVER ||
		   (state == TCP_FIN_WAIT1 && sk->sk_shutdown == (RCV_SHUTDOWN | SEND_SHUTDOWN))) {
		on_end(sk, c);
	}
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(exchange_state, struct sock *sk, int before, int after)
{
	struct connection *c;

	if (after == TCP_SYN_SENT) {
		/* In connect(): the one moment that tells a client for sure. */
		if (sk->sk_protocol != IPPROTO_TCP ||
		    !pid_selected(bpf_get_current_pid_tgid() >> 32))
			return 0;
		c = new_connection(socket_id(sk), EXCHANGE_CLIENT);
		if (c) {
			c->event.peer_port = 0; /* a socket may connect again, to someone else */
			follow(sk, c, BPF_ANY);
		}
		return 0;
	}
	if (before == TCP_SYN_SENT && after == TCP_ESTABLISHED) {
		c = connection_of(sk); /* before the server can read anything of it */
		if (c)
			show_client(sk, c->event.cookie);
		return 0;
	}
	if (after != TCP_FIN_WAIT1 && after != TCP_LAST_ACK && after != TCP_CLOSE)
		return 0;
	c = connection_of(sk);
	if (c && lock(c)) {
		on_state(sk, c, after);
		unlock(c);
	}
	return 0;
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(exchange_destroy, struct sock *sk)
{
	__u64 id = known_socket_id(sk);
	struct connection *c;

	if (!id)
		return 0; /* nobody ever asked for it: not ours */
	c = bpf_map_lookup_elem(&connections, &id);
	if (c) {
		if (lock(c)) {
			on_end(sk, c);
			unlock(c);
		} else {
			give_up(c);
		}
		bpf_map_delete_elem(&connections, &id);
	}
	forget_socket(sk);
	return 0;
}

/* Signed: another CPU may have stamped the connection after we read the clock. */
static __always_inline bool paused(const struct connection *c,
				   const struct exchange_command *command)
{
	return (__s64)(bpf_ktime_get_ns() - c->event.end_ns) >= (__s64)command->idle_ns;
}

static long sweep_one(void *map, __u64 *key, struct connection *c, struct exchange_command *command)
{
	/* Cheap look first: most connections are idle, and a lock would disturb their owners. */
	if (c->state != RESPONSE || (c->swept && c->swept_bytes == c->event.response_bytes) ||
	    c->sample.told || c->sample.waiting == c->event.response_bytes || !paused(c, command) ||
	    !take(&c->busy))
		return 0;
	if (c->state != RESPONSE || c->torn || !paused(c, command))
		goto out;
	join_client(c);
	if (sample_count(c, EXCHANGE_IDLE) == NOT_COUNTED) {
		__u64 size = prepare(c, EXCHANGE_IDLE);

		/* Without room the next sweep tries again. */
		if (!TRY_OUTPUT(exchange_events, &c->event, size)) {
			c->swept = 1;
			c->swept_bytes = c->event.response_bytes;
			c->swept_len = c->event.response_len;
		}
	}
out:
	unlock(c);
	return 0;
}

#ifdef OLD_KERNEL

/* set before load: an iterator takes no argument */
const volatile __u64 sweep_idle_ns = 20000000;

/* Send the exchanges whose response has paused: run by reading from the iterator. */
SEC("iter/bpf_map_elem")
int exchange_sweep(struct bpf_iter__bpf_map_elem *ctx)
{
	struct exchange_command command = { .idle_ns = sweep_idle_ns };
	struct connection *c = ctx->value;

	if (c)
		sweep_one(NULL, NULL, c, &command);
	return 0;
}

#else

static long sweep_batch(void *map, __u32 *key, struct batch *b, void *none)
{
	if (b->items && take(&b->busy)) { /* else what is there goes with the next */
		send_batch(b);
		give(&b->busy);
	}
	return 0;
}

/* Send the exchanges whose response has paused. User space knows whether they are complete. */
SEC("syscall")
int exchange_sweep(struct exchange_command *in)
{
	struct exchange_command command = { .idle_ns = in->idle_ns };

	bpf_for_each_map_elem(&connections, sweep_one, &command, 0);
	bpf_for_each_map_elem(&batches, sweep_batch, NULL, 0);
	return 0;
}

/* From now on this connection costs a look-up and no more. */
SEC("syscall")
int exchange_ignore(struct exchange_command *in)
{
	__u64 cookie = in->cookie;
	struct connection *c = bpf_map_lookup_elem(&connections, &cookie);

	if (c && lock(c)) {
		c->ignored = is_still(c, cookie);
		c->state = IDLE;
		unlock(c);
	}
	return 0;
}

#endif
