/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* The rules of the selection, as the agent writes them. Read by clang, gcc and cffi: no directives.
 */

/* The texts of a process that patterns are about. */
enum select_kind {
	SELECT_EXE = 0,       /* path of its executable */
	SELECT_COMMAND = 1,   /* its arguments, with a space between them */
	SELECT_CGROUP = 2,    /* paths of its control groups */
	SELECT_CONTAINER = 3, /* the same paths: a rule may ask for a cgroup and a container */
	SELECT_KINDS = 4,
};

enum select_limits {
	SELECT_WORDS = 8, /* 64 positions of patterns each */
	SELECT_WORD_BITS = 64,
	SELECT_TABLE_LEN = 2048, /* SELECT_WORDS for each byte */
	SELECT_ACCEPT_LEN = 32,  /* SELECT_WORDS for each kind */
	SELECT_RULES = 63,
	SELECT_TEXT_LEN = 4096, /* longer texts are for user space to look at */
};

/* What stands for a rule's number. */
enum select_rule_number {
	SELECT_NONE = 0,
	SELECT_EXCLUDED = 65535,  /* a rule of ports: those never looked at */
	SELECT_UNDECIDED = 65534, /* a text was too long */
};

/*
 * All patterns of one kind as one automaton, a bit for each position: after a
 * byte, bits move on by one where `step` says that the position takes the byte,
 * and stay where a * lets them.
 */
struct select_table {
	__u64 first[SELECT_WORDS]; /* set before the first byte */
	__u64 stay[SELECT_WORDS];
	__u64 step[SELECT_TABLE_LEN];
};

/* A process matches when for each of `kinds` one of the positions in `accept` is reached. */
struct select_rule {
	__u64 accept[SELECT_ACCEPT_LEN];
	__u32 kinds;   /* a bit for each */
	__u32 matches; /* 0: found by other means than by patterns */
};

/* A local port, host byte order, and whose: a process's rule, or SELECT_NONE for anybody's. */
struct select_port {
	__u16 port;
	__u16 rule;
};
