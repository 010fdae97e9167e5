/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The kernel as otelbpf sees it: every field we read, and nothing else.
 * CO-RE relocates by name, so member order and omitted members are harmless.
 */
#pragma once
#define __VMLINUX_H__       /* tells bpf_tracing.h that pt_regs has the kernel's field names */
#pragma clang system_header /* -Wpadded is for our structs, not theirs */

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u16 __sum16;
typedef __u32 __wsum;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_STACK_TRACE = 7,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
};

enum { BPF_ANY = 0, BPF_NOEXIST = 1, BPF_F_NO_PREALLOC = 1 };
enum { BPF_RB_AVAIL_DATA = 0, BPF_RB_NO_WAKEUP = 1, BPF_RB_FORCE_WAKEUP = 2 };
enum { BPF_LOCAL_STORAGE_GET_F_CREATE = 1 };
enum { BPF_F_USER_STACK = 1 << 8 };
enum { MAP_ANONYMOUS = 0x20 };
enum { AF_INET = 2, AF_INET6 = 10 };
enum { IPPROTO_TCP = 6 };
enum { MSG_PEEK = 2 };
enum { RCV_SHUTDOWN = 1, SEND_SHUTDOWN = 2 };

enum { TCPCB_EVER_RETRANS = 0x80 };
enum { TCP_CA_CWR = 2, TCP_CA_Recovery = 3, TCP_CA_Loss = 4 };

enum {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_SYN_RECV = 3,
	TCP_FIN_WAIT1 = 4,
	TCP_CLOSE = 7,
	TCP_LAST_ACK = 9,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	__s64 counter;
} atomic64_t;

struct in6_addr {
	union {
		__u8 u6_addr8[16];
	} in6_u;
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
	__u8 sk_shutdown;
	int sk_err;
};

/* The same name since 5.10, other values and other fields: read through CO-RE only. */
enum iter_type {
	ITER_IOVEC = 1,
	ITER_UBUF = 0,
};

struct iovec;

struct iov_iter {
	__u8 iter_type;
	unsigned long iov_offset;
	const struct iovec *__iov;
	void *ubuf;
	unsigned long nr_segs;
};

/* Before Linux commit 747b1f65d39a ("iov_iter: overlay struct iovec and ubuf/len", 6.4). */
struct iov_iter___iov {
	const struct iovec *iov;
};

/* Before Linux commit 8cd54c1c8480 ("iov_iter: separate direction from flavour", 5.14). */
struct iov_iter___type {
	unsigned int type;
};

struct msghdr {
	struct iov_iter msg_iter;
};

struct bpf_map;
struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__bpf_map_elem {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	void *key;
	void *value;
};

struct inet_connection_sock {
	__u32 icsk_rto; /* in ticks */
	__u8 icsk_ca_state : 5;
	__u8 icsk_retransmits;
	__u8 icsk_backoff;
};

struct request_sock {
	struct sock_common __req_common;
};

struct tcp_request_sock {
	__u64 snt_synack; /* microseconds: when the first SYN-ACK was sent */
	__u32 snt_isn;
};

struct rb_node {
	unsigned long __rb_parent_color;
	struct rb_node *rb_right;
};

struct sk_buff {
	struct rb_node rbnode; /* in the queue of what was sent */
	__u64 skb_mstamp_ns;   /* when it was, last */
	char cb[48];
};

/* What TCP keeps in sk_buff.cb. */
struct tcp_skb_cb {
	__u32 seq;
	__u32 end_seq;
	__u16 tcp_gso_segs;
	__u8 sacked;
	__u32 ack_seq;
};

struct tcp_sock {
	__u64 bytes_received;
	__u64 bytes_sent;
	__u64 bytes_retrans;
	__u64 first_tx_mstamp; /* microseconds */
	__u8 chrono_type : 2;  /* of which since chrono_start, in ticks: enum tcp_chrono */
	__u32 chrono_start;
	__u32 chrono_stat[3]; /* ticks of each so far */
	__u32 snd_una;
	__u32 srtt_us; /* eighths */
	__u32 dsack_dups;
	__u32 packets_out;
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 snd_nxt;
	__u32 write_seq;
	__u64 tcp_clock_cache; /* CLOCK_MONOTONIC of the last look at the clock */
};

struct signal_struct {
	atomic_t live;
};

struct qstr {
	const unsigned char *name;
};

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
};

struct vfsmount {
	struct dentry *mnt_root;
};

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct file {
	struct path f_path;
};

struct kernfs_node {
	struct kernfs_node *__parent;
	const char *name;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
};

/* The values depend on the kernel's configuration: read through CO-RE only. */
enum cgroup_subsys_id {
	cpu_cgrp_id = 1,
	memory_cgrp_id = 2,
	pids_cgrp_id = 3,
};

struct css_set {
	struct cgroup_subsys_state *subsys[1];
	struct cgroup *dfl_cgrp;
};

struct mm_struct {
	struct file *exe_file;
	unsigned long arg_start;
	unsigned long arg_end;
	unsigned long env_start;
	unsigned long env_end;
};

struct task_struct {
	int pid;
	int tgid;
	struct task_struct *group_leader;
	struct signal_struct *signal;
	struct mm_struct *mm;
	struct css_set *cgroups;
	__u64 start_boottime;
	char comm[16];
};

struct linux_binprm {
	const char *filename;
};

#ifdef __TARGET_ARCH_x86
struct pt_regs {
	unsigned long r10;
	unsigned long r9;
	unsigned long r8;
	unsigned long ax;
	unsigned long cx;
	unsigned long dx;
	unsigned long si;
	unsigned long di;
	unsigned long orig_ax;
	unsigned long ip;
	unsigned long cs;
	unsigned long sp;
	unsigned long bp;
};
#endif

#ifdef __TARGET_ARCH_arm64
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};

struct pt_regs {
	__u64 regs[31];
	__u64 pstate;
	__s32 syscallno;
};
#endif

#pragma clang attribute pop
