// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Fork, exec and exit of selected processes. Keeps `targets` true without a
 * delay (a child is selected before it runs), and tells user space who a
 * process is while it still exists: what lives 5 ms cannot be looked up later.
 *
 * Hooks: tp_btf/sched_process_{fork,exec,exit} (Linux 5.5), and where a rule asks
 * for a cgroup tp_btf/cgroup_attach_task.
 */
#include "kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "process.h"
#include "ring.bpf.h"
#include "select.bpf.h"
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

/* pid -> number of the rule, of who was selected with all its descendants, whatever they become. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, __u32);
} families SEC(".maps");

__u64 targets_full; /* processes that were to be selected, and found no room */

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

/* Ask user space to look at a process, now: until then nothing of it is looked at that was not. */
static __always_inline void undecided(__u32 pid, __u64 start_ns, __u32 *family)
{
	struct process_event e = { .kind = PROCESS_UNDECIDED, .pid = pid, .start_ns = start_ns };

	if (family)
		e.rule = *family;
	OUTPUT_NOW(process_events, &e, sizeof(e));
}

/* Keep what selected a process; no rule: forget it. */
static __always_inline void keep(void *map, __u32 pid, __u32 *rule)
{
	if (!rule)
		bpf_map_delete_elem(map, &pid); /* the pid may have been somebody else's */
	else if (bpf_map_update_elem(map, &pid, rule, BPF_ANY))
		__sync_fetch_and_add(&targets_full, 1);
}

/* What selects a process that has become another program; SELECT_NONE: nothing, or not yet. */
static __always_inline __u32 rule_after_exec(struct task_struct *task, struct mm_struct *mm)
{
	__u32 pid = task->tgid, rule;
	__u32 *before = bpf_map_lookup_elem(&targets, &pid);
	__u32 *family = bpf_map_lookup_elem(&families, &pid);
	bool was = before && *before;

	if (!select_matches)
		return was ? *before : SELECT_NONE;
	rule = select_current(mm);
	if (rule == SELECT_UNDECIDED) {
		undecided(pid, task->group_leader->start_boottime, family);
		rule = select_excludes ? SELECT_EXCLUDED : SELECT_NONE;
	}
	if (rule == SELECT_EXCLUDED) {
		rule = SELECT_NONE;
		keep(&targets, pid, ports_selected ? &rule : NULL);
	} else {
		if (rule == SELECT_NONE && family)
			rule = *family;
		keep(&targets, pid, rule ? &rule : NULL);
	}
	if (was && !rule) {
		struct process_event e = { .kind = PROCESS_LEFT, .pid = pid };

		e.start_ns = task->group_leader->start_boottime;
		OUTPUT(process_events, &e, sizeof(e));
	}
	return rule;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(process_fork, struct task_struct *parent, struct task_struct *child)
{
	struct process_event e = { .kind = PROCESS_FORK };
	__u32 *rule, *family;

	e.pid = child->tgid;
	e.parent_pid = parent->tgid;
	if (e.pid == e.parent_pid)
		return 0; /* a thread */
	if (e.parent_pid == agent_pid)
		return 0;
	family = bpf_map_lookup_elem(&families, &e.parent_pid);
	rule = bpf_map_lookup_elem(&targets, &e.parent_pid);
	keep(&families, e.pid, family);
	keep(&targets, e.pid, rule);
	e.start_ns = child->start_boottime;
	if (rule && *rule) {
		e.rule = *rule;
		OUTPUT(process_events, &e, sizeof(e));
	}
	/* clone3() may put the child into another cgroup */
	if ((ASKED(SELECT_CGROUP) || ASKED(SELECT_CONTAINER)) && child->cgroups != parent->cgroups)
		undecided(e.pid, e.start_ns, family);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(process_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	__u32 zero = 0, pid = task->tgid, rule;
	struct mm_struct *mm = task->mm;
	struct exec_event *e;

	if (pid == agent_pid)
		return 0;
	rule = rule_after_exec(task, mm);
	if (!rule)
		return 0;
	e = bpf_map_lookup_elem(&exec_scratch, &zero);
	if (!e)
		return 0;
	e->pid = pid;
	e->rule = rule;
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
	__u32 *rule;

	e.pid = task->tgid;
	if (task->signal->live.counter)
		return 0; /* not the last thread */
	bpf_map_delete_elem(&families, &e.pid);
	rule = bpf_map_lookup_elem(&targets, &e.pid);
	if (!rule)
		return 0;
	e.rule = *rule;
	bpf_map_delete_elem(&targets, &e.pid);
	if (!e.rule)
		return 0;
	e.start_ns = task->group_leader->start_boottime;
	OUTPUT(process_events, &e, sizeof(e));
	return 0;
}

/* A process was moved to another cgroup, in one of the hierarchies. */
SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(process_moved, struct cgroup *to, const char *path, struct task_struct *task)
{
	__u32 pid = task->tgid;

	if (pid != agent_pid)
		undecided(pid, task->group_leader->start_boottime,
			  bpf_map_lookup_elem(&families, &pid));
	return 0;
}
