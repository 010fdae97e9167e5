/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Which rule does the current process match? Decided where it execs, so that a
 * process is selected before its first instruction, however short it lives.
 */
#pragma once

#include "kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "compat.bpf.h"
#include "target.bpf.h"

/* By enum select_kind. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SELECT_KINDS);
	__type(key, __u32);
	__type(value, struct select_table);
} select_tables SEC(".maps");

/* By number; 0 has the excludes, and matches when any kind does. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SELECT_RULES + 1);
	__type(key, __u32);
	__type(value, struct select_rule);
} select_rules SEC(".maps");

/* Set before load. */
const volatile bool select_matches = false; /* there is a rule or an exclude to match */
const volatile __u32 select_kinds = 0;      /* a bit for each kind that any of them asks about */
const volatile __u32 select_count = 0;      /* rules */
const volatile __u32 select_words = SELECT_WORDS;
const volatile bool select_excludes = false;

#define ASKED(kind) (select_kinds & (1 << (kind)))

enum {
	NAME_LEN = 255,
	PIECE_LEN = 256,
	EXE_DEPTH = 40,
	CGROUP_DEPTH = 24,
};

/* Does not fit the stack. */
struct selecting {
	__u64 state[SELECT_WORDS];
	__u64 reached[SELECT_ACCEPT_LEN];
	__u32 cut;
	__u32 _pad;
	char text[SELECT_TEXT_LEN + PIECE_LEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct selecting);
} select_scratch SEC(".maps");

static __always_inline struct selecting *selecting(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&select_scratch, &zero);
}

/*
 * Feed text[from, from + len) to the automaton of a kind, PIECE_LEN bytes at
 * most. Not static: the verifier looks at it once, not at each call.
 */
__noinline int select_feed(__u32 kind, __u32 from, __u32 len)
{
	struct select_table *table = bpf_map_lookup_elem(&select_tables, &kind);
	struct selecting *s = selecting();

	if (!table || !s)
		return 0;
	for (__u32 i = 0; i < PIECE_LEN && i < len; i++) {
		__u32 at = (from + i) & (SELECT_TEXT_LEN - 1);
		__u32 byte = (__u8)s->text[at];
		__u64 carry = 0;

#pragma unroll
		for (__u32 w = 0; w < SELECT_WORDS; w++) {
			__u64 old = s->state[w];

			if (w >= select_words)
				break;
			s->state[w] = ((old << 1 | carry) & table->step[byte * SELECT_WORDS + w]) |
				      (old & table->stay[w]);
			carry = old >> 63;
		}
	}
	return 0;
}

/* Match text[from, to) with the patterns of a kind. */
static __always_inline void match(struct selecting *s, __u32 kind, __u32 from, __u32 to)
{
	__u32 key = kind; /* older kernels forget what is on the stack */
	struct select_table *table = bpf_map_lookup_elem(&select_tables, &key);

	if (!table)
		return;
	for (__u32 w = 0; w < SELECT_WORDS; w++)
		s->state[w] = table->first[w];
	for (int piece = 0; piece < SELECT_TEXT_LEN / PIECE_LEN && from < to; piece++) {
		select_feed(kind, from, to - from);
		from += PIECE_LEN;
	}
	for (__u32 w = 0; w < SELECT_WORDS; w++)
		s->reached[kind * SELECT_WORDS + w] |= s->state[w];
}

/* Put "/name" in front of text[at...); 0: no room. */
static __always_inline __u32 put_in_front(struct selecting *s, __u32 at, const void *name)
{
	char *piece = &s->text[SELECT_TEXT_LEN];
	long len = bpf_probe_read_kernel_str(piece, PIECE_LEN, name) - 1;
	__u32 size;

	if (len <= 0 || len > NAME_LEN || at <= len)
		return 0;
	size = len;
	at = (at - size - 1) & (SELECT_TEXT_LEN - 1);
	s->text[at] = '/';
	CLAMP(size, NAME_LEN);
	bpf_probe_read_kernel(&s->text[at + 1], size, name);
	return at;
}

/*
 * What /proc/PID/exe shows: up from the file's name to the root of its mount,
 * on to where that is mounted, and so on. A container's is as it is in there.
 * Behind it a NUL and the file's name alone, for patterns that are about that.
 */
__noinline int select_exe(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct file *file = BPF_CORE_READ(task, mm, exe_file);
	struct dentry *dentry = BPF_CORE_READ(file, f_path.dentry);
	void *vfsmount = BPF_CORE_READ(file, f_path.mnt);
	struct mount *mount = vfsmount - bpf_core_field_offset(struct mount, mnt);
	struct selecting *s = selecting();
	__u32 at;

	if (!s)
		return 0;
	at = put_in_front(s, SELECT_TEXT_LEN, BPF_CORE_READ(dentry, d_name.name));
	s->text[at & (SELECT_TEXT_LEN - 1)] = 0;
	for (int i = 0; i < EXE_DEPTH && at; i++) {
		struct dentry *parent = BPF_CORE_READ(dentry, d_parent);

		if (dentry == BPF_CORE_READ(mount, mnt.mnt_root) || dentry == parent) {
			struct mount *up = BPF_CORE_READ(mount, mnt_parent);

			if (up == mount)
				return at;
			dentry = BPF_CORE_READ(mount, mnt_mountpoint);
			mount = up;
			continue;
		}
		at = put_in_front(s, at, BPF_CORE_READ(dentry, d_name.name));
		dentry = parent;
	}
	s->cut = 1;
	return 0;
}

/* Before Linux commit 633488947ef6 ("kernfs: Use RCU to access kernfs_node::parent", 6.15). */
struct kernfs_node___parent {
	struct kernfs_node *parent;
} __attribute__((preserve_access_index));

static __always_inline struct kernfs_node *parent_of(struct kernfs_node *node)
{
	struct kernfs_node___parent *old = (void *)node;

	if (bpf_core_field_exists(old->parent))
		return BPF_CORE_READ(old, parent);
	return BPF_CORE_READ(node, __parent);
}

/* A hierarchy: version 2's, or of these controllers in version 1. */
enum hierarchy { UNIFIED, PIDS, MEMORY, CPU, HIERARCHIES };

static __always_inline struct cgroup *cgroup_of(struct task_struct *task, __u32 hierarchy)
{
	struct css_set *set = BPF_CORE_READ(task, cgroups);
	struct cgroup_subsys_state *state = NULL;
	__u32 controller = 0;

	if (hierarchy == UNIFIED)
		return BPF_CORE_READ(set, dfl_cgrp);
	if (hierarchy == PIDS) {
		if (!bpf_core_enum_value_exists(enum cgroup_subsys_id, pids_cgrp_id))
			return NULL;
		controller = bpf_core_enum_value(enum cgroup_subsys_id, pids_cgrp_id);
	} else if (hierarchy == MEMORY) {
		if (!bpf_core_enum_value_exists(enum cgroup_subsys_id, memory_cgrp_id))
			return NULL;
		controller = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);
	} else {
		if (!bpf_core_enum_value_exists(enum cgroup_subsys_id, cpu_cgrp_id))
			return NULL;
		controller = bpf_core_enum_value(enum cgroup_subsys_id, cpu_cgrp_id);
	}
	bpf_probe_read_kernel(&state, sizeof(state),
			      (void *)set + bpf_core_field_offset(struct css_set, subsys) +
				      controller * sizeof(state));
	return state ? BPF_CORE_READ(state, cgroup) : NULL;
}

/* What /proc/PID/cgroup shows of one hierarchy. */
__noinline int select_cgroup(__u32 hierarchy)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct cgroup *cgroup = cgroup_of(task, hierarchy);
	struct kernfs_node *node = cgroup ? BPF_CORE_READ(cgroup, kn) : NULL;
	struct selecting *s = selecting();
	__u32 at = SELECT_TEXT_LEN;

	/* in version 2 a controller's cgroup is the unified one, or one above it */
	if (!s || !node || (hierarchy != UNIFIED && cgroup == cgroup_of(task, UNIFIED)))
		return 0;
	for (int i = 0; i < CGROUP_DEPTH; i++) {
		struct kernfs_node *parent = parent_of(node);

		if (!parent)
			break;
		at = put_in_front(s, at, BPF_CORE_READ(node, name));
		if (!at || i == CGROUP_DEPTH - 1) {
			s->cut = 1;
			return 0;
		}
		node = parent;
	}
	if (at == SELECT_TEXT_LEN) {
		at = SELECT_TEXT_LEN - 1;
		s->text[SELECT_TEXT_LEN - 1] = '/';
	}
	return at;
}

static __always_inline bool reaches(struct selecting *s, struct select_rule *rule, __u32 kind)
{
	__u64 any = 0;

	for (__u32 w = 0; w < SELECT_WORDS; w++)
		any |= s->reached[kind * SELECT_WORDS + w] & rule->accept[kind * SELECT_WORDS + w];
	return any;
}

/* The number of the first rule that what was reached is enough for; SELECT_EXCLUDED; SELECT_NONE. */
__noinline int select_rule_of(void)
{
	struct selecting *s = selecting();

	if (!s)
		return SELECT_NONE;
	for (__u32 number = 0; number <= SELECT_RULES && number <= select_count; number++) {
		struct select_rule *rule;
		__u32 key = number, kinds = 0;

		/* In a register: Linux 5.10 calls a loop endless that counts on the stack. */
		asm volatile("" : "+r"(number));
		rule = bpf_map_lookup_elem(&select_rules, &key);
		if (!rule)
			break;
#pragma unroll
		for (__u32 kind = 0; kind < SELECT_KINDS; kind++)
			kinds |= (__u32)reaches(s, rule, kind) << kind;
		if (!number && kinds)
			return SELECT_EXCLUDED;
		if (number && rule->matches && (kinds & rule->kinds) == rule->kinds)
			return number;
	}
	return SELECT_NONE;
}

/* The rule of the current process, which has just become what it is; or enum select_rule_number. */
static __always_inline __u32 select_current(struct mm_struct *mm)
{
	struct selecting *s = selecting();
	__u32 from;

	if (!s)
		return SELECT_NONE;
	s->cut = 0;
	for (int i = 0; i < SELECT_ACCEPT_LEN; i++)
		s->reached[i] = 0;
	if (ASKED(SELECT_EXE)) {
		from = select_exe();
		if (!s->cut)
			match(s, SELECT_EXE, from, SELECT_TEXT_LEN);
	}
	if (ASKED(SELECT_COMMAND)) {
		__u64 start = mm->arg_start, len = mm->arg_end - start;

		if (len > SELECT_TEXT_LEN || bpf_probe_read_user(s->text, len, (void *)start))
			s->cut = 1;
		else if (len) /* each argument ends in a NUL, which the tables take for a space */
			match(s, SELECT_COMMAND, 0, len - 1);
	}
	if (ASKED(SELECT_CGROUP) || ASKED(SELECT_CONTAINER)) {
		for (__u32 hierarchy = 0; hierarchy < HIERARCHIES; hierarchy++) {
			from = select_cgroup(hierarchy);
			if (!from)
				continue;
			match(s, SELECT_CGROUP, from, SELECT_TEXT_LEN);
			match(s, SELECT_CONTAINER, from, SELECT_TEXT_LEN);
		}
	}
	return s->cut ? SELECT_UNDECIDED : select_rule_of();
}
