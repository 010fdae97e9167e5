/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What exchange.bpf.c tells user space. Read by clang, gcc and cffi: no
 * directives. Widest members first: -Wpadded stays silent.
 */

enum exchange_limits {
	EXCHANGE_REQUEST_LEN = 1024,
	EXCHANGE_RESPONSE_LEN = 512,
	EXCHANGE_HEADS_LEN = 2048, /* a power of two over both, for the verifier */
	EXCHANGE_CLASSES = 16384,
	EXCHANGE_COUNTS_LEN = 4096, /* more than a record of counts has */
};

enum exchange_role {
	EXCHANGE_UNKNOWN = 0,
	EXCHANGE_SERVER = 1,
	EXCHANGE_CLIENT = 2,
};

/* Why a record was sent. */
enum exchange_reason {
	EXCHANGE_NEXT = 1,   /* the next request began: this exchange is over */
	EXCHANGE_CLOSED = 2, /* the connection ended: this exchange is over */
	EXCHANGE_IDLE = 3,   /* the response paused; more of it may follow */
	EXCHANGE_OPEN = 4,   /* still open: a child may need its request head now */
};

enum exchange_flags {
	EXCHANGE_RESENT =
		1, /* an IDLE record of this exchange went before; heads are not repeated */
	EXCHANGE_FRESH = 2,     /* the connection was seen from its first byte */
	EXCHANGE_FAULT = 4,     /* some of the captured bytes could not be read */
	EXCHANGE_UNSAMPLED = 8, /* its trace is not sampled: for the metrics only */
};

/*
 * Request bytes one way, then response bytes the other way, on one TCP
 * connection. Followed by request_len bytes of the request and response_len of
 * the response, each from its first byte. Times are CLOCK_MONOTONIC, of the last
 * segment when bytes come in, of the socket call when they go out.
 */
struct exchange_event {
	__u64 cookie;     /* the socket's */
	__u64 start_ns;   /* first request byte */
	__u64 request_ns; /* last request byte */
	__u64 first_ns;   /* first response byte; 0: not answered */
	__u64 end_ns;     /* last response byte; the close when not answered */
	__u64 request_bytes;
	__u64 response_bytes;
	__u64 request_tail;  /* the last 8 request bytes in memory order; only when request_bytes >
				request_len */
	__u64 response_tail; /* likewise, and in a RESENT record */
	__u64 process_start_ns; /* CLOCK_BOOTTIME; with pid, names a process for good */
	__u64 parent_cookie; /* a client's: the inbound exchange open on the thread; a server's: the
				client's exchange, when that is on this host; 0: none, or several */
	__u64 root_cookie;   /* a server's: its parent's parent */
	__u32 root_number;
	__u32 parent_number;
	__u32 number; /* 1, 2, … on this connection */
	__u32 pid;
	__u32 tid;
	__u32 response_sends; /* socket calls that carried the response */
	__u32 send_seq;   /* TCP sequence number of this side's first byte: a client's request, a
			     server's response */
	__u16 local_port; /* host byte order */
	__u16 peer_port;
	__u16 request_len;
	__u16 response_len;
	__u16 error;     /* errno of the connection, or 0 */
	__u16 rule;      /* what selected the process; 0: its port did */
	__u16 root_rule; /* a server's: what selected its parent's process */
	__u8 role;
	__u8 reason;
	__u8 flags;
	__u8 _pad[3];
	__u8 local_addr[16]; /* IPv6, or IPv4-mapped IPv6 */
	__u8 peer_addr[16];
};

/*
 * An exchange that is no span. A record of these begins with 8 zero bytes, where
 * an exchange_event has its cookie.
 */
struct exchange_count {
	__u32 class; /* the number that user space gave to its line's key; 0: not yet, a line
			follows */
	__u32 duration_ns;
	__u32 request_body;  /* bytes; 0xffffffff: unknown */
	__u32 response_body; /* likewise */
};

/* What it was. Followed by the request line up to the query, the Host, and zeros up to 8 bytes. */
struct exchange_line {
	__u64 key; /* the same for all exchanges with the same of everything here */
	__u64 process_start_ns;
	__u32 pid;
	__u16 status;
	__u16 line_len;
	__u16 host_len; /* a client's */
	__u8 role;
	__u8 version; /* 10, 11 */
	__u8 _pad[4];
};

/* Which exchanges of one rule's processes become spans. */
struct exchange_sampler {
	__u64 threshold;   /* a trace is sampled when the last 56 bits of its id are this or more */
	__u64 slower_ns;   /* sampled or not, longer ones do; 0: no */
	__u8 parent_based; /* what has a parent does as its parent */
	__u8 ratio;        /* threshold stands for a probability, which is told on */
	__u8 keep_errors;  /* sampled or not, failed ones do */
	__u8 _pad[5];
};

/* In and out of the programs that user space runs: sweep, ignore. */
struct exchange_command {
	__u64 cookie;  /* ignore: this connection speaks a protocol nobody reads */
	__u64 idle_ns; /* sweep: how long a response must have paused */
};
