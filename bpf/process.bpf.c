// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Fork, exec and exit of selected processes. Keeps `targets` true without a
 * delay (a child is selected before it runs), and tells user space who a
 * process is while it still exists: what lives 5 ms cannot be looked up later.
 *
 * Hooks: tp_btf/sched_process_{fork,exec,exit} (Linux 5.5).
 */
#include "kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "process.h"
#include "ring.bpf.h"
#include "socket.bpf.h"
#include "target.bpf.h"

char LICENSE[] SEC("license") = "GPL";

RING(process_events, 256 << 10);
EVENT(process_event);
RING(exec_events, 512 << 10);
EVENT(exec_event);

/* An exec_event does not fit the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct exec_event);
} exec_scratch SEC(".maps");

/* Copy [from, to) of the user's memory, at most *limit* bytes; 0 when it cannot be read. */
static __always_inline __u16 read_strings(void *dst, __u64 limit, __u64 from, __u64 to)
{
	__u64 len = to - from;

	if (to <= from)
		return 0;
	if (len > limit)
		len = limit;
	return bpf_probe_read_user(dst, len, (void *)from) ? 0 : len;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(process_fork, struct task_struct *parent, struct task_struct *child)
{
	struct process_event e = { .kind = PROCESS_FORK };
	__u32 *rule;

	e.pid = child->tgid;
	e.parent_pid = parent->tgid;
	if (e.pid == e.parent_pid)
		return 0; /* a thread */
	rule = bpf_map_lookup_elem(&targets, &e.parent_pid);
	if (!rule || e.parent_pid == agent_pid)
		return 0;
	bpf_map_update_elem(&targets, &e.pid, rule, BPF_ANY);
	e.start_ns = child->start_boottime;
	OUTPUT(process_events, &e, sizeof(e));
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(process_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	__u32 zero = 0, pid = task->tgid;
	struct exec_event *e;
	struct mm_struct *mm;

	if (!pid_selected(pid))
		return 0;
	e = bpf_map_lookup_elem(&exec_scratch, &zero);
	if (!e)
		return 0;
	mm = task->mm;
	e->pid = pid;
	e->start_ns = task->group_leader->start_boottime;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	bpf_probe_read_kernel_str(e->filename, sizeof(e->filename), bprm->filename);
	e->args_len = read_strings(e->args, sizeof(e->args), mm->arg_start, mm->arg_end);
	e->env_len = read_strings(e->env, sizeof(e->env), mm->env_start, mm->env_end);
	OUTPUT(exec_events, e, sizeof(*e));
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(process_exit, struct task_struct *task)
{
	struct process_event e = { .kind = PROCESS_EXIT };

	e.pid = task->tgid;
	if (task->signal->live.counter || !bpf_map_lookup_elem(&targets, &e.pid))
		return 0; /* not the last thread, or not ours */
	bpf_map_delete_elem(&targets, &e.pid);
	e.start_ns = task->group_leader->start_boottime;
	OUTPUT(process_events, &e, sizeof(e));
	return 0;
}
