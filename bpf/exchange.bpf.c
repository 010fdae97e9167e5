// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Pairs what flows one way on a TCP connection with what flows back: one event
 * per exchange. Knows no protocol; user space reads the heads.
 *
 *   IDLE ──request bytes──▶ REQUEST ──response bytes──▶ RESPONSE ──request bytes──▶ (emit) REQUEST
 *                                                          │ pause: sweep emits, state stays
 *                                                          ▼ close: emit
 *
 * Hooks, capture rung A: tp_btf/sock_send_length, tp_btf/sock_recv_length
 * (Linux 6.3) after the socket call did its work, in the caller's context;
 * tp_btf/inet_sock_set_state for connects, closes and resets. Rungs are doors:
 * each finds (sock, struct buffer, length) its own way and calls on_data().
 */
#include "kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "buffer.bpf.h"
#include "exchange.h"
#include "ring.bpf.h"
#include "span.bpf.h"
#include "target.bpf.h"

char LICENSE[] SEC("license") = "GPL";

RING(exchange_events, 8 << 20);
EVENT(exchange_event);
EVENT(exchange_command);

__u64 exchange_untracked; /* exchanges not begun: `connections` was full */
__u64 exchange_torn;      /* exchanges given up: two CPUs at once, see lock() */

enum direction { SEND = 0, RECV = 1 };
enum state { IDLE = 0, REQUEST = 1, RESPONSE = 2 };

struct connection {
	__u32 busy;     /* lock */
	__u32 open_tid; /* the thread whose thread_exchanges counts this exchange; 0: none */
	__u8 state;
	__u8 role;
	__u8 ignored;
	__u8 torn;
	__u8 fresh;
	__u8 announced;    /* an EXCHANGE_OPEN went out */
	__u8 crowded;      /* one is to go out with the first bytes */
	__u8 swept;        /* an EXCHANGE_IDLE went out */
	__u64 swept_bytes; /* response bytes when it did */
	struct exchange_event event;
	__u8 heads[EXCHANGE_HEADS_LEN]; /* the request's, then the response's; follows the event on
					   its way out */
};

static const struct connection no_connection = {};

/* Socket cookie -> connection. Cookies are never used twice, so no entry can be another socket's. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct connection);
} connections SEC(".maps");

/* Keep the compiler from proving a bound in a way that the verifier cannot follow. */
#define CLAMP(var, max) \
	asm volatile("if %0 <= %[limit] goto +1; %0 = %[limit]" : "+r"(var) : [limit] "i"(max))

/*
 * Two CPUs may work on one connection: a thread that sends and one that
 * receives, or the sweep. bpf_spin_lock forbids the helpers we need inside. The
 * section takes well under a microsecond; who cannot get in marks the
 * connection torn, and what cannot be paired any more is given up and counted.
 */
static __always_inline bool lock(struct connection *c)
{
	for (int i = 0; i < 128; i++)
		if (!__sync_val_compare_and_swap(&c->busy, 0, 1))
			return true;
	c->torn = 1;
	return false;
}

static __always_inline bool trylock(struct connection *c)
{
	return !__sync_val_compare_and_swap(&c->busy, 0, 1);
}

static __always_inline void unlock(struct connection *c)
{
	__sync_lock_test_and_set(&c->busy, 0);
}

static __always_inline void emit(struct connection *c, __u8 reason)
{
	struct exchange_event *e = &c->event;
	__u64 size;

	e->reason = reason;
	size = (__u64)e->request_len + e->response_len;
	if (c->swept) {
		e->flags |= EXCHANGE_RESENT;
		size = 0;
	}
	CLAMP(size, EXCHANGE_REQUEST_LEN + EXCHANGE_RESPONSE_LEN);
	OUTPUT(exchange_events, e, sizeof(*e) + size);
}

/* Tell user space the request's head early: a child will ask for its trace. */
static __always_inline void emit_open(struct connection *c)
{
	__u64 size = c->event.request_len;

	c->announced = 1;
	c->event.reason = EXCHANGE_OPEN;
	CLAMP(size, EXCHANGE_REQUEST_LEN);
	OUTPUT(exchange_events, &c->event, sizeof(c->event) + size);
}

static __always_inline void announce(__u64 cookie, __u32 number)
{
	struct connection *c = bpf_map_lookup_elem(&connections, &cookie);

	if (!c || c->announced || !lock(c))
		return;
	if (!c->announced && c->state == REQUEST && c->event.number == number)
		emit_open(c);
	unlock(c);
}

/* The thread no longer works on this exchange: it began to answer, or cannot any more. */
static __always_inline void end_of_work(struct connection *c)
{
	if (c->open_tid)
		thread_exchange_end(c->open_tid, c->event.cookie, c->event.number);
	c->open_tid = 0;
}

static __always_inline void finish(struct connection *c, __u8 reason)
{
	end_of_work(c);
	emit(c, reason);
	c->state = IDLE;
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
	} else if (b->kind == BUFFER_IOV) {
		for (int i = 0; i < 4; i++) {
			struct user_iovec v;
			__u64 piece;

			if (i >= b->pieces || !left)
				break;
			if (bpf_probe_read_user(&v, sizeof(v), (void *)(b->base + i * sizeof(v)))) {
				e->flags |= EXCHANGE_FAULT;
				break;
			}
			piece = v.len < left ? v.len : left;
			left -= piece;
			if (!piece)
				continue;
			if (room) {
				got = copy_piece(c, at, room, v.base, piece, response);
				have += got;
				at += got;
				room -= got;
				if (got < piece)
					room = 0; /* full, or a fault: what follows would not join
						     on */
			}
			end = v.base + piece;
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
 * While several inbound exchanges are open on a thread that sends requests too,
 * as in a proxy, no parent can be told here. But their heads go out early, so
 * that user space can recognise a traceparent that was handed on unchanged.
 */
static __always_inline void begin_work(struct connection *c)
{
	struct exchange_event *e = &c->event;
	struct thread_exchanges *t = thread_exchanges_of(e->tid);

	if (t && t->asks && t->open) {
		if (t->open == 1)
			announce(t->cookies, t->numbers);
		c->crowded = 1;
	}
	thread_exchange_begin(e->tid, e->cookie, e->number);
	c->open_tid = e->tid;
}

/* The one inbound exchange open on this thread is the parent; of several, none. */
static __always_inline void find_parent(struct exchange_event *e)
{
	struct thread_exchanges *t = thread_exchanges_of(e->tid);

	if (!t)
		return;
	t->asks = 1;
	if (t->open != 1)
		return;
	e->parent_cookie = t->cookies;
	e->parent_number = t->numbers;
	announce(e->parent_cookie, e->parent_number);
}

static __always_inline void begin(struct connection *c, __u64 now, __u8 role)
{
	struct exchange_event *e = &c->event;
	__u64 id = bpf_get_current_pid_tgid();
	struct task_struct *task = (void *)bpf_get_current_task_btf();

	c->state = REQUEST;
	c->announced = 0;
	c->crowded = 0;
	c->swept = 0;
	e->number++;
	e->start_ns = now;
	e->request_ns = now;
	e->first_ns = 0;
	e->end_ns = now;
	e->request_bytes = 0;
	e->response_bytes = 0;
	e->request_tail = 0;
	e->response_tail = 0;
	e->process_start_ns = task->group_leader->start_boottime;
	e->parent_cookie = 0;
	e->parent_number = 0;
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
		find_parent(e);
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
	if (b->kind == BUFFER_IOV) {
		struct user_iovec v;

		if (bpf_probe_read_user(&v, sizeof(v), (void *)b->base) || v.len < 4)
			return MIDDLE;
		from = v.base;
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
	struct tcp_sock *tp = (void *)bpf_skc_to_tcp_sock(sk);
	enum message message;
	__u32 unread;

	if (!tp)
		return;
	unread = tp->rcv_nxt - tp->copied_seq;
	/* Not exact by one: a FIN right behind the bytes counts in some of these. */
	if (way == RECV && !tp->bytes_sent && tp->bytes_received + 1 - unread - n <= 2) {
		c->role = EXCHANGE_SERVER;
		c->fresh = 1;
		return;
	}
	if (way == SEND && !tp->bytes_received && tp->bytes_sent <= n) {
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
	if (!c) {
		__sync_fetch_and_add(&exchange_untracked, 1);
		return NULL;
	}
	c->role = role;
	c->fresh = role != EXCHANGE_UNKNOWN;
	c->event.cookie = cookie;
	return c;
}

/* A client's local port is not chosen before its handshake, so not when the connection is made. */
static __always_inline void read_addresses(struct connection *c, struct sock *sk)
{
	struct sock_common *s = &sk->__sk_common;
	struct exchange_event *e = &c->event;

	e->local_port = s->skc_num;
	e->peer_port = bpf_ntohs(s->skc_dport);
	if (s->skc_family == AF_INET) {
		e->local_addr[10] = e->local_addr[11] = 0xff;
		e->peer_addr[10] = e->peer_addr[11] = 0xff;
		*(__be32 *)&e->local_addr[12] = s->skc_rcv_saddr;
		*(__be32 *)&e->peer_addr[12] = s->skc_daddr;
	} else {
		*(struct in6_addr *)e->local_addr = s->skc_v6_rcv_saddr;
		*(struct in6_addr *)e->peer_addr = s->skc_v6_daddr;
	}
}

/* The body behind every rung's door: *n* > 0 bytes moved *way* on *sk*, by the current task. */
static __always_inline void on_data(struct sock *sk, const struct buffer *b, __u64 n,
				    enum direction way)
{
	__u64 cookie = bpf_get_socket_cookie(sk), now;
	struct connection *c = bpf_map_lookup_elem(&connections, &cookie);
	struct exchange_event *e;

	if (!c)
		c = new_connection(cookie, EXCHANGE_UNKNOWN);
	if (!c || c->ignored || !lock(c))
		return;
	e = &c->event;
	if (c->torn) {
		if (c->state != IDLE) {
			__sync_fetch_and_add(&exchange_torn, 1);
			end_of_work(c);
		}
		c->torn = 0;
		c->fresh = 0;
		c->state = IDLE;
		c->role = EXCHANGE_UNKNOWN;
	}
	if (!e->peer_port)
		read_addresses(c, sk);
	if (c->role == EXCHANGE_UNKNOWN)
		learn_role(c, sk, way, b, n);
	if (c->role == EXCHANGE_UNKNOWN)
		goto out;

	now = bpf_ktime_get_ns();
	if (request_direction(c->role, way)) {
		if (c->state == RESPONSE)
			finish(c, EXCHANGE_NEXT);
		if (c->state == IDLE)
			begin(c, now, c->role);
		capture(c, b, n, false);
		e->request_bytes += n;
		e->request_ns = now;
		if (c->crowded && !c->announced)
			emit_open(c);
	} else if (c->state != IDLE) { /* else the request was before our time, or nobody asked */
		if (c->state == REQUEST) {
			c->state = RESPONSE;
			e->first_ns = now;
			end_of_work(c);
		}
		capture(c, b, n, true);
		e->response_bytes += n;
		e->response_sends++;
		e->end_ns = now;
	}
out:
	unlock(c);
}

/* Rung A's door. */
static __always_inline void door_a(struct sock *sk, int ret, enum direction way)
{
	__u16 family = sk->__sk_common.skc_family;
	struct buffer b;

	if ((family != AF_INET && family != AF_INET6) || sk->sk_protocol != IPPROTO_TCP)
		return;
	if (ret <= 0 && way == RECV)
		return; /* each event loop's last read */
	if (!sock_selected(bpf_get_current_pid_tgid() >> 32, sk))
		return;
	b = syscall_buffer(ret);
	if (ret > 0)
		on_data(sk, &b, ret, way);
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

/* Nothing more can come in this exchange, or in any on this connection. */
static __always_inline void on_end(struct sock *sk, struct connection *c, int state)
{
	struct exchange_event *e = &c->event;
	bool over;

	/*
	 * A server that shuts down its sending side has answered. A client that
	 * does may still read its response, unless it closed both sides.
	 */
	over = state == TCP_CLOSE || c->role == EXCHANGE_SERVER ||
	       (sk->sk_shutdown & (RCV_SHUTDOWN | SEND_SHUTDOWN)) == (RCV_SHUTDOWN | SEND_SHUTDOWN);
	if (!over || c->state == IDLE || c->ignored || c->torn)
		return;
	e->error = sk->sk_err;
	if (c->state == REQUEST)
		e->end_ns = bpf_ktime_get_ns();
	finish(c, EXCHANGE_CLOSED);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(exchange_state, struct sock *sk, int before, int after)
{
	struct connection *c;
	__u64 cookie;

	if (after == TCP_SYN_SENT) {
		/* In connect(): the one moment that tells a client for sure. */
		if (sk->sk_protocol == IPPROTO_TCP &&
		    pid_selected(bpf_get_current_pid_tgid() >> 32))
			new_connection(bpf_get_socket_cookie(sk), EXCHANGE_CLIENT);
		return 0;
	}
	if (after != TCP_FIN_WAIT1 && after != TCP_LAST_ACK && after != TCP_CLOSE)
		return 0;
	cookie = sk->__sk_common.skc_cookie.counter;
	if (!cookie)
		return 0; /* nobody ever asked for it: not ours */
	c = bpf_map_lookup_elem(&connections, &cookie);
	if (!c)
		return 0;
	if (lock(c)) {
		on_end(sk, c, after);
		unlock(c);
	} else if (after == TCP_CLOSE) {
		end_of_work(c);
	}
	if (after == TCP_CLOSE)
		bpf_map_delete_elem(&connections, &cookie);
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
	    !paused(c, command) || !trylock(c))
		return 0;
	if (c->state == RESPONSE && !c->torn && paused(c, command)) {
		emit(c, EXCHANGE_IDLE);
		c->swept = 1;
		c->swept_bytes = c->event.response_bytes;
	}
	unlock(c);
	return 0;
}

/* Send the exchanges whose response has paused. User space knows whether they are complete. */
SEC("syscall")
int exchange_sweep(struct exchange_command *in)
{
	struct exchange_command command = { .idle_ns = in->idle_ns };

	bpf_for_each_map_elem(&connections, sweep_one, &command, 0);
	return 0;
}

/* From now on this connection costs a look-up and no more. */
SEC("syscall")
int exchange_ignore(struct exchange_command *in)
{
	__u64 cookie = in->cookie;
	struct connection *c = bpf_map_lookup_elem(&connections, &cookie);

	if (c && lock(c)) {
		end_of_work(c);
		c->ignored = 1;
		c->state = IDLE;
		unlock(c);
	}
	return 0;
}
