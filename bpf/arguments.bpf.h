/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* A user function's arguments, at its first instruction and when it has returned. */
#pragma once

#include "kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* Arguments of at most 8 bytes each, numbered from 1; 0 for the 0th, which is none. */
#ifdef __TARGET_ARCH_x86 /* System V ABI: rsp points at the return address */
enum { NR_mmap = 9 };

static __always_inline __u64 stack_pointer(struct pt_regs *ctx)
{
	return ctx->sp;
}

/* The stack pointer that the function which just returned began with. */
static __always_inline __u64 returned_from(struct pt_regs *ctx)
{
	return ctx->sp - 8;
}

static __always_inline __u32 return_value(struct pt_regs *ctx)
{
	return ctx->ax;
}

static __always_inline __u64 argument(struct pt_regs *ctx, __u32 n)
{
	__u64 value = 0;

	switch (n) {
	case 0:
		return 0;
	case 1:
		return ctx->di;
	case 2:
		return ctx->si;
	case 3:
		return ctx->dx;
	case 4:
		return ctx->cx;
	case 5:
		return ctx->r8;
	case 6:
		return ctx->r9;
	default:
		bpf_probe_read_user(&value, sizeof(value), (void *)(ctx->sp + 8 * (n - 6)));
		return value;
	}
}

/* The 7th and the 8th at once. */
static __always_inline void read_arguments_7_8(struct pt_regs *ctx, __u64 values[2])
{
	bpf_probe_read_user(values, 16, (void *)(ctx->sp + 8));
}

static __always_inline bool maps_file(struct task_struct *task)
{
	struct pt_regs *regs = (void *)bpf_task_pt_regs(task);

	return regs->orig_ax == NR_mmap && !(regs->r10 & MAP_ANONYMOUS);
}
#endif

#ifdef __TARGET_ARCH_arm64 /* AAPCS64 */
enum { NR_mmap = 222 };

static __always_inline __u64 stack_pointer(struct pt_regs *ctx)
{
	return ((struct user_pt_regs *)ctx)->sp;
}

static __always_inline __u64 returned_from(struct pt_regs *ctx)
{
	return stack_pointer(ctx);
}

static __always_inline __u32 return_value(struct pt_regs *ctx)
{
	return ((struct user_pt_regs *)ctx)->regs[0];
}

static __always_inline __u64 argument(struct pt_regs *ctx, __u32 n)
{
	struct user_pt_regs *regs = (struct user_pt_regs *)ctx;
	__u64 value = 0;

	switch (n) {
	case 0:
		return 0;
	case 1:
		return regs->regs[0];
	case 2:
		return regs->regs[1];
	case 3:
		return regs->regs[2];
	case 4:
		return regs->regs[3];
	case 5:
		return regs->regs[4];
	case 6:
		return regs->regs[5];
	case 7:
		return regs->regs[6];
	case 8:
		return regs->regs[7];
	default:
		bpf_probe_read_user(&value, sizeof(value), (void *)(regs->sp + 8 * (n - 9)));
		return value;
	}
}

static __always_inline void read_arguments_7_8(struct pt_regs *ctx, __u64 values[2])
{
	values[0] = argument(ctx, 7);
	values[1] = argument(ctx, 8);
}

static __always_inline bool maps_file(struct task_struct *task)
{
	struct pt_regs *regs = (void *)bpf_task_pt_regs(task);

	return regs->syscallno == NR_mmap && !(regs->regs[3] & MAP_ANONYMOUS);
}
#endif
