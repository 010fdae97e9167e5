/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What was selected. process.bpf.c keeps `targets` true over fork, exec and
 * exit; every other object reuses the same maps by name.
 */
#pragma once

#include "kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "select.h"

/* pid -> number of the rule that selected it; SELECT_NONE: excluded, whatever port it uses. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, __u32);
} targets SEC(".maps");

/* -> number of the rule. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct select_port);
	__type(value, __u32);
} ports SEC(".maps");

const volatile __u32 agent_pid = 0;         /* never observed, whatever the selectors say */
const volatile bool ports_selected = false; /* `ports` has entries */
const volatile __u64 port_rules = 0;        /* a bit for each rule of which `ports` has entries */
const volatile bool may_leave = false; /* a process may be selected now, and later be no longer */

static __always_inline bool has_ports(__u32 rule)
{
	return port_rules && port_rules >> (rule & 63) & 1;
}

/* Is all that this process does ours to look at? */
static __always_inline bool pid_selected(__u32 pid)
{
	__u32 *rule = bpf_map_lookup_elem(&targets, &pid);

	return rule && *rule && !has_ports(*rule) && pid != agent_pid;
}

static __always_inline __u32 port_rule(__u16 port, __u16 rule)
{
	struct select_port key = { .port = port, .rule = rule };
	__u32 *number = bpf_map_lookup_elem(&ports, &key);

	return number ? *number : SELECT_NONE;
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
	__u32 *rule = bpf_map_lookup_elem(&targets, &pid), number;
	__u16 port;

	if (!ports_selected)
		return rule && *rule && pid != agent_pid;
	if ((rule && !*rule) || pid == agent_pid)
		return false;
	port = BPF_CORE_READ(sk, __sk_common.skc_num);
	if (port_rule(port, SELECT_EXCLUDED))
		return false;
	if (rule && (!has_ports(*rule) || port_rule(port, *rule)))
		return true;
	number = port_rule(port, SELECT_NONE);
	if (number && !rule) /* so that its rule is known */
		bpf_map_update_elem(&targets, &pid, &number, BPF_NOEXIST);
	return number;
}
