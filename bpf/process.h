/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What process.bpf.c tells identity/. Read by clang, gcc and cffi: no directives. */

enum process_kind {
	PROCESS_FORK = 1,
	PROCESS_EXIT = 2,
	PROCESS_LEFT = 3,      /* it became a program that is not selected */
	PROCESS_UNDECIDED = 4, /* user space has to look: its texts were too long, or it moved */
};

enum process_limits {
	PROCESS_COMM_LEN = 16,
	PROCESS_FILE_LEN = 256,
	PROCESS_ARGS_LEN = 1024,
	PROCESS_ENV_LEN = 4096,
};

/* A selected process forked, or its last thread ended. */
struct process_event {
	__u64 start_ns;   /* CLOCK_BOOTTIME at which the process (the child) started */
	__u32 pid;        /* the child's for a fork */
	__u32 parent_pid; /* of a fork only */
	__u16 rule;       /* that selected it; of a PROCESS_UNDECIDED, what selected its family */
	__u8 kind;        /* enum process_kind */
	__u8 _pad[5];
};

/* A selected process became another program. */
struct exec_event {
	__u64 start_ns; /* CLOCK_BOOTTIME */
	__u32 pid;
	__u32 rule; /* that selected it */
	__u16 args_len;
	__u16 env_len;
	__u8 _pad[4];
	char comm[PROCESS_COMM_LEN];
	char filename[PROCESS_FILE_LEN];
	__u8 args[PROCESS_ARGS_LEN]; /* NUL-separated; only args_len bytes count */
	__u8 env[PROCESS_ENV_LEN];   /* NUL-separated; only env_len bytes count */
};
