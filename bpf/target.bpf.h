/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What was selected. process.bpf.c keeps `targets` true over fork, exec and
 * exit; every other object reuses the same map by name.
 */
#pragma once

#include "kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* pid -> number of the rule that selected it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, __u32);
} targets SEC(".maps");

/* Selected local TCP ports, host byte order. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u16);
	__type(value, __u32);
} ports SEC(".maps");

const volatile __u32 agent_pid = 0; /* never observed, whatever the selectors say */
const volatile bool ports_selected = false;

static __always_inline bool pid_selected(__u32 pid)
{
	return bpf_map_lookup_elem(&targets, &pid) && pid != agent_pid;
}

/* Of what selected it; 0: only a port of it is. */
static __always_inline __u32 rule_of(__u32 pid)
{
	__u32 *rule = bpf_map_lookup_elem(&targets, &pid);

	return rule ? *rule : 0;
}

/* Is this socket, used by this process, ours to look at? */
static __always_inline bool sock_selected(__u32 pid, struct sock *sk)
{
	__u16 port;

	if (pid_selected(pid))
		return true;
	if (!ports_selected || pid == agent_pid)
		return false;
	port = BPF_CORE_READ(sk, __sk_common.skc_num);
	return bpf_map_lookup_elem(&ports, &port);
}
