/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What tcp.bpf.c tells user space. Read by clang, gcc and cffi: no directives.
 * Widest members first: -Wpadded stays silent. Times are CLOCK_MONOTONIC unless
 * they say otherwise; sequence numbers are the socket's own, and wrap.
 */

enum tcp_limits {
	TCP_ATTEMPTS = 16, /* told one by one; more are counted */
	TCP_ATTEMPTS_LEN = 384,
};

enum tcp_retransmit {
	TCP_RETRANSMIT_SYN = 1,
	TCP_RETRANSMIT_SYN_ACK = 2,
	TCP_RETRANSMIT_TAIL_LOSS_PROBE = 3,
	TCP_RETRANSMIT_TIMEOUT = 4,
	TCP_RETRANSMIT_FAST = 5,
	TCP_RETRANSMIT_LOSS_RECOVERY = 6,
	TCP_RETRANSMIT_TYPES = 7,
};

/* How an episode ended. */
enum tcp_end {
	TCP_END_ACKED = 1,     /* everything that was sent again was acknowledged */
	TCP_END_CONNECTED = 2, /* the handshake is over */
	TCP_END_CLOSED = 3,    /* the connection ended before that */
};

enum tcp_flags {
	TCP_CLIENT = 1,     /* this side connected */
	TCP_SERVER = 2,     /* this side accepted */
	TCP_EARLY = 8,      /* told again when the peer had time to say that it was for nothing */
	TCP_LOCAL_DROP = 4, /* this host dropped the first transmission: nothing to send again */
};

/* One retransmission. */
struct tcp_attempt {
	__u64 time_ns;
	__u32 seq; /* [seq, end_seq) */
	__u32 end_seq;
	__u32 rto_us;  /* the timer at that time, backed off */
	__u8 type;     /* enum tcp_retransmit */
	__u8 ca_state; /* the kernel's enum tcp_ca_state */
	__u8 retries;  /* timeouts in a row so far: icsk_retransmits */
	__u8 _pad;
};

/* A loss episode: from the first transmission of lost bytes to their acknowledgement. */
struct tcp_episode {
	__u64 cookie;           /* as in struct exchange_event */
	__u64 process_start_ns; /* CLOCK_BOOTTIME; with pid, names a process for good */
	__u64 first_ns;         /* first transmission */
	__u64 last_ns;          /* last retransmission */
	__u64 end_ns;           /* acknowledged, connected, or closed */
	__u64 lost_ns;    /* union of [first transmission, retransmission) of the bytes at the head
			     of the line */
	__u64 covered_ns; /* end of that union */
	__u32 pid;
	__u32 seq; /* what was sent again: [seq, end_seq) */
	__u32 end_seq;
	__u32 head_end_seq; /* end of the first of it */
	__u32 count;        /* segments sent again */
	__u32 bytes;        /* payload sent again */
	__u32 srtt_us;      /* at the end, as the next two */
	__u32 rto_us;
	__u32 duplicates; /* segments that the peer says it had already (DSACK); at first: before */
	__u16 local_port; /* host byte order */
	__u16 peer_port;
	__u16 error;   /* errno of the connection when it closed */
	__u8 flags;    /* enum tcp_flags */
	__u8 end;      /* enum tcp_end */
	__u8 ca_state; /* at the last retransmission, as the next */
	__u8 backoff;
	__u8 n_attempts; /* of `attempts` */
	__u8 _pad;
	__u8 local_addr[16]; /* IPv6, or IPv4-mapped IPv6 */
	__u8 peer_addr[16];
	__u8 attempts[TCP_ATTEMPTS_LEN]; /* struct tcp_attempt[TCP_ATTEMPTS] */
};

/* What a record of a connection is about. */
enum tcp_moment {
	TCP_CONNECTED = 1, /* a client's handshake is over */
	TCP_SAMPLED = 2,   /* while it lives */
	TCP_CLOSED = 3,
};

enum tcp_reset { TCP_RESET_SENT = 1, TCP_RESET_RECEIVED = 2 };

/* A connection. Bytes and times are those since its last record. */
struct tcp_connection {
	__u64 cookie;
	__u64 process_start_ns; /* CLOCK_BOOTTIME */
	__u64 begin_ns;         /* connect(), or the first bytes; 0: before our time */
	__u64 connected_ns;     /* a client's handshake; 0: not seen */
	__u64 time_ns;
	__u64 sent_bytes;        /* once */
	__u64 received_bytes;    /* in order */
	__u64 receive_window_us; /* waited for room at the peer (tcp_chrono) */
	__u64 send_buffer_us;    /* waited for the application to send, with a full send buffer */
	__u32 pid;
	__u32 srtt_us; /* 0: not known */
	__u16 local_port;
	__u16 peer_port;
	__u16 error;  /* errno that the socket was told */
	__u8 moment;  /* enum tcp_moment */
	__u8 role;    /* enum exchange_role */
	__u8 resets;  /* enum tcp_reset */
	__u8 opening; /* it never was established */
	__u8 _pad[6];
	__u8 peer_addr[16];
};

/* In and out of the sweep. */
struct tcp_command {
	__u64 linger_ns; /* how long after its end an episode waits for a DSACK */
};
