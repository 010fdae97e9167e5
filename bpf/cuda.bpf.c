// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Calls of CUDA's runtime and driver libraries: who, what, how long, with which
 * result. User space finds the functions and attaches cuda_enter and cuda_leave
 * to each; the cookie says which one was called, and `apis` how it is read.
 *
 * Hooks: uprobes and uretprobes with cookies (Linux 5.15); for what processes
 * map, tp_btf/sched_process_{fork,exec,exit} and tp_btf/vm_unmapped_area.
 */
#include "kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "arguments.bpf.h"
#include "cuda.h"
#include "ring.bpf.h"
#include "span.bpf.h"
#include "target.bpf.h"

char LICENSE[] SEC("license") = "GPL";

RING(cuda_calls, 8 << 20);
RING(cuda_names, 4 << 20);
RING(cuda_processes, 256 << 10);
EVENT(cuda_api);
EVENT(cuda_call);
EVENT(cuda_key);
EVENT(cuda_count);
EVENT(cuda_size_key);
EVENT(cuda_sizes);
EVENT(cuda_memory_key);
EVENT(cuda_memory);
EVENT(cuda_site_key);
EVENT(cuda_site);
EVENT(cuda_name);
EVENT(cuda_process);
EVENT(cuda_command);

__u64 cuda_uncounted; /* calls that the metrics miss: `cuda_counts` was full */
__u64 cuda_untracked; /* allocations that the ledger misses: `cuda_memories` was full */
__u64 cuda_unpaired;  /* calls whose beginning or end was not seen */
__u64 cuda_nested;    /* calls that CUDA made inside another one, a part of that */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CUDA_APIS);
	__type(key, __u32);
	__type(value, struct cuda_api);
} apis SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct cuda_key);
	__type(value, struct cuda_count);
} cuda_counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct cuda_size_key);
	__type(value, struct cuda_sizes);
} cuda_copies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct cuda_memory_key);
	__type(value, struct cuda_memory);
} cuda_memories SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct cuda_site_key);
	__type(value, struct cuda_site);
} cuda_sites SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 8192);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, CUDA_STACK_DEPTH * sizeof(__u64));
} cuda_stacks SEC(".maps");

/*
 * Selected processes that user space was told of. 1: it is about to look, and
 * needs no second event; it sets 0 when it does.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, __u32);
} cuda_watched SEC(".maps");

/* How often probes were hit, by whomever. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} cuda_hits SEC(".maps");

/* Grows when probes were taken off and put on again: returns between were not seen. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} cuda_epoch SEC(".maps");

/* A call that stores what it finds at *out: the name of a kernel, or whose handle it is. */
struct naming {
	__u64 out;
	__u64 about; /* the name's address, or the target */
};

/* What a thread is doing in CUDA. Goes with the thread. */
struct cuda_thread {
	__u64 sp; /* the stack pointer at the call's first instruction; 0: in no call */
	__u64 out;
	__u64 pitch;
	struct cuda_memory freed;
	struct naming naming[2]; /* by layer: one inside the other */
	struct cuda_call call;
	__u64 captured; /* the stream that this thread records into a graph, plus 1 */
	__u32 epoch;    /* of the call */
	__u16 device;   /* plus 1 */
	__u8 _pad[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct cuda_thread);
} cuda_threads SEC(".maps");

struct name_record {
	struct cuda_name head;
	__u8 text[CUDA_NAME_LEN];
};

/* A record being made; a sleepable program may be moved away from its CPU's. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct name_record);
} cuda_naming SEC(".maps");

static __always_inline struct cuda_thread *this_thread(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct cuda_thread *t;

	t = bpf_task_storage_get(&cuda_threads, task, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (t && !t->call.pid) {
		__u64 id = bpf_get_current_pid_tgid();

		t->call.pid = id >> 32;
		t->call.tid = id;
		t->call.process_start_ns = task->group_leader->start_boottime;
	}
	return t;
}

/* ---- a call begins ---- */

/* cudaLaunchConfig_t and CUlaunchConfig: the same up to the stream, on a little-endian machine. */
struct launch_config {
	__u32 grid[3];
	__u32 block[3];
	__u32 shared;
	__u32 _pad;
	__u64 stream;
};

static __always_inline void read_launch(struct pt_regs *ctx, struct cuda_call *c)
{
	__u64 grid = argument(ctx, 2), block = argument(ctx, 4), rest[2] = {};

	c->function = argument(ctx, 1);
	c->grid_x = grid;
	c->grid_y = grid >> 32;
	c->grid_z = argument(ctx, 3); /* the high half is whatever was there */
	c->block_x = block;
	c->block_y = block >> 32;
	c->block_z = argument(ctx, 5);
	read_arguments_7_8(ctx, rest);
	c->shared_bytes = rest[0];
	c->stream = rest[1];
}

static __always_inline void read_launch_config(struct pt_regs *ctx, struct cuda_call *c)
{
	struct launch_config config = {};

	bpf_probe_read_user(&config, sizeof(config), (void *)argument(ctx, 1));
	c->function = argument(ctx, 2);
	c->grid_x = config.grid[0];
	c->grid_y = config.grid[1];
	c->grid_z = config.grid[2];
	c->block_x = config.block[0];
	c->block_y = config.block[1];
	c->block_z = config.block[2];
	c->shared_bytes = config.shared;
	c->stream = config.stream;
}

static __always_inline void read_launch_driver(struct pt_regs *ctx, struct cuda_call *c)
{
	c->function = argument(ctx, 1);
	c->grid_x = argument(ctx, 2);
	c->grid_y = argument(ctx, 3);
	c->grid_z = argument(ctx, 4);
	c->block_x = argument(ctx, 5);
	c->block_y = argument(ctx, 6);
	c->block_z = argument(ctx, 7);
	c->shared_bytes = argument(ctx, 8);
	c->stream = argument(ctx, 9);
}

static __always_inline void read_sizes(struct pt_regs *ctx, struct cuda_call *c,
				       const struct cuda_api *api)
{
	__u8 family = api->family;

	c->grid_x = c->grid_y = c->grid_z = 0;
	c->block_x = c->block_y = c->block_z = c->shared_bytes = 0;
	c->stream = argument(ctx, api->stream_arg);
	c->pointer = argument(ctx, api->pointer_arg);
	c->function = family == CUDA_GRAPH_LAUNCH ? c->pointer : 0;
	c->bytes = argument(ctx, api->size_arg);
	if (api->flags & CUDA_API_NARROW)
		c->bytes = (__u32)c->bytes;
	if (api->factor_arg)
		c->bytes *= argument(ctx, api->factor_arg);
	if (api->flags & CUDA_API_KIND)
		c->kind = api->kind_arg;
	else if (api->kind_arg)
		c->kind = argument(ctx, api->kind_arg) + 1;
}

static __always_inline struct cuda_memory_key memory_key(const struct cuda_call *c,
							 const struct cuda_api *api)
{
	struct cuda_memory_key key = {
		.pointer = c->pointer,
		.pid = c->pid,
		.space = (api->flags & CUDA_API_HANDLE) != 0,
	};

	return key;
}

static __always_inline void count_site(const struct cuda_memory *m, __u32 pid, __s64 sign)
{
	struct cuda_site_key key = { .process_start_ns = m->process_start_ns,
				     .pid = pid,
				     .stack = m->stack,
				     .api = m->api };
	struct cuda_site *site = bpf_map_lookup_elem(&cuda_sites, &key);

	if (!site) {
		struct cuda_site none = {};

		bpf_map_update_elem(&cuda_sites, &key, &none, BPF_NOEXIST);
		site = bpf_map_lookup_elem(&cuda_sites, &key);
		if (!site)
			return;
	}
	__sync_fetch_and_add(&site->live_bytes, sign * (__s64)m->bytes);
	__sync_fetch_and_add(&site->live, sign);
	if (sign > 0) {
		__sync_fetch_and_add(&site->allocated_bytes, m->bytes);
		__sync_fetch_and_add(&site->allocated, 1);
	}
}

/*
 * Off the ledger before the library knows of it: as soon as it does, another
 * thread may be given the same address. If it refuses, restore() undoes this.
 */
static __always_inline void begin_free(struct cuda_thread *t, const struct cuda_api *api)
{
	struct cuda_memory_key key = memory_key(&t->call, api);
	struct cuda_memory *m = bpf_map_lookup_elem(&cuda_memories, &key);

	t->freed.process_start_ns = 0;
	t->call.bytes = 0;
	if (!m)
		return;
	t->freed = *m;
	t->call.bytes = m->bytes;
	bpf_map_delete_elem(&cuda_memories, &key);
	count_site(&t->freed, t->call.pid, -1);
}

static __always_inline void count_hit(void)
{
	__u32 zero = 0;
	__u64 *hits = bpf_map_lookup_elem(&cuda_hits, &zero);

	if (hits)
		*hits += 1; /* one may be missed when a thread is moved here in between: it is an
			       estimate's */
}

SEC("uprobe")
int cuda_enter(struct pt_regs *ctx)
{
	__u32 number = bpf_get_attach_cookie(ctx), pid = bpf_get_current_pid_tgid() >> 32;
	struct cuda_api *api = bpf_map_lookup_elem(&apis, &number);
	struct thread_exchange *exchange;
	__u32 zero = 0, *epoch;
	struct cuda_thread *t;
	struct cuda_call *c;

	count_hit();
	if (!api || !pid_selected(pid))
		return 0;
	t = this_thread();
	epoch = bpf_map_lookup_elem(&cuda_epoch, &zero);
	if (!t || !epoch)
		return 0;
	if (t->epoch != *epoch) {
		t->epoch = *epoch;
		t->sp = 0;
	}
	/* Deeper on the stack than a call that has not returned: inside of it. */
	if (t->sp && stack_pointer(ctx) < t->sp) {
		__sync_fetch_and_add(&cuda_nested, 1);
		return 0;
	}
	if (t->sp)
		__sync_fetch_and_add(&cuda_unpaired,
				     1); /* it was left by longjmp or an exception */
	t->sp = stack_pointer(ctx);

	c = &t->call;
	c->api = number;
	c->bytes = 0;
	c->kind = 0;
	c->pointer = 0;
	c->flags = 0;
	if (api->family == CUDA_LAUNCH)
		read_launch(ctx, c);
	else if (api->family == CUDA_LAUNCH_CONFIG)
		read_launch_config(ctx, c);
	else if (api->family == CUDA_LAUNCH_DRIVER)
		read_launch_driver(ctx, c);
	else
		read_sizes(ctx, c, api);
	t->out = 0;
	if (api->family == CUDA_FREE) {
		begin_free(t, api);
	} else if (api->family == CUDA_ALLOC && !(api->flags & CUDA_API_VALUE)) {
		t->out = c->pointer;
		t->pitch = argument(ctx, 2);
		c->pointer = 0;
	} else if (api->family == CUDA_ELAPSED) {
		t->out = argument(ctx, 1);
	}
	if (t->captured && t->captured == c->stream + 1)
		c->flags = CUDA_CALL_CAPTURED;

	exchange = thread_exchange(false);
	c->cookie = 0;
	c->number = 0;
	if (thread_exchange_proven(exchange, pid)) {
		c->cookie = exchange->cookie;
		c->number = exchange->number;
	}
	c->start_ns = bpf_ktime_get_ns(); /* last: what came before is our doing */
	return 0;
}

/* ---- a call ends ---- */

/* The bucket i for which value <= 1 << (first + i * step), the last one for all that are more. */
static __always_inline __u32 bucket(__u64 value, __u32 first, __u32 step)
{
	__u32 bits = 0, i;

	value = value ? value - 1 : 0;
	if (value >> 32)
		bits += 32, value >>= 32;
	if (value >> 16)
		bits += 16, value >>= 16;
	if (value >> 8)
		bits += 8, value >>= 8;
	if (value >> 4)
		bits += 4, value >>= 4;
	if (value >> 2)
		bits += 2, value >>= 2;
	if (value >> 1)
		bits += 1, value >>= 1;
	bits += value; /* now value <= 1 << bits */
	i = bits <= first ? 0 : (bits - first + step - 1) / step;
	return i < CUDA_BUCKETS ? i : CUDA_BUCKETS - 1;
}

static __always_inline void count(const struct cuda_call *c, bool launch)
{
	struct cuda_key key = { .function = launch ? c->function : 0,
				.process_start_ns = c->process_start_ns,
				.pid = c->pid,
				.error = c->error,
				.api = c->api,
				.kind = c->kind,
				.flags = c->flags };
	struct cuda_count *n = bpf_map_lookup_elem(&cuda_counts, &key);
	__u64 duration = c->end_ns - c->start_ns;
	__u32 i;

	if (!n) {
		static const struct cuda_count none = {};

		bpf_map_update_elem(&cuda_counts, &key, &none, BPF_NOEXIST);
		n = bpf_map_lookup_elem(&cuda_counts, &key);
		if (!n) {
			__sync_fetch_and_add(&cuda_uncounted, 1);
			return;
		}
	}
	/* Atomic: another thread may be given this CPU in the middle of it. */
	__sync_fetch_and_add(&n->calls, 1);
	__sync_fetch_and_add(&n->duration_ns, duration);
	if (c->bytes)
		__sync_fetch_and_add(&n->bytes, c->bytes);
	i = bucket(duration, CUDA_FIRST_BUCKET, 1);
	if (i < CUDA_BUCKETS)
		__sync_fetch_and_add(&n->durations[i], 1);
}

static __always_inline void count_copy(const struct cuda_call *c)
{
	struct cuda_size_key key = { .process_start_ns = c->process_start_ns,
				     .pid = c->pid,
				     .kind = c->kind };
	struct cuda_sizes *n = bpf_map_lookup_elem(&cuda_copies, &key);
	__u32 i;

	if (!n) {
		static const struct cuda_sizes none = {};

		bpf_map_update_elem(&cuda_copies, &key, &none, BPF_NOEXIST);
		n = bpf_map_lookup_elem(&cuda_copies, &key);
		if (!n)
			return; /* cuda_counts is full, too, and says so */
	}
	__sync_fetch_and_add(&n->bytes, c->bytes);
	i = bucket(c->bytes, CUDA_SIZE_STEP, CUDA_SIZE_STEP);
	if (i < CUDA_BUCKETS)
		__sync_fetch_and_add(&n->sizes[i], 1);
}

static __always_inline void allocated(struct pt_regs *ctx, struct cuda_thread *t,
				      const struct cuda_api *api)
{
	struct cuda_call *c = &t->call;
	struct cuda_memory_key key;
	struct cuda_memory m = { .process_start_ns = c->process_start_ns,
				 .stack = c->stack,
				 .api = c->api };

	if (t->out)
		bpf_probe_read_user(&c->pointer, sizeof(c->pointer), (void *)t->out);
	if (api->flags & CUDA_API_PITCH) {
		__u64 pitch = 0;

		bpf_probe_read_user(&pitch, sizeof(pitch), (void *)t->pitch);
		c->bytes = pitch * c->bytes;
	}
	if (!c->pointer)
		return; /* of no bytes */
	m.bytes = c->bytes;
	key = memory_key(c, api);
	if (bpf_map_update_elem(&cuda_memories, &key, &m, BPF_ANY)) {
		__sync_fetch_and_add(&cuda_untracked, 1);
		return;
	}
	count_site(&m, c->pid, 1);
}

/* It could not be freed after all. */
static __always_inline void restore(struct cuda_thread *t, const struct cuda_api *api)
{
	struct cuda_memory_key key = memory_key(&t->call, api);

	t->call.bytes = 0;
	if (!t->freed.process_start_ns)
		return;
	if (!bpf_map_update_elem(&cuda_memories, &key, &t->freed, BPF_NOEXIST))
		count_site(&t->freed, t->call.pid, 1);
}

static __always_inline void note_state(struct cuda_thread *t, __u8 family)
{
	struct cuda_call *c = &t->call;

	if (family == CUDA_DEVICE)
		t->device = (__u16)c->pointer + 1;
	else if (family == CUDA_CAPTURE_BEGIN)
		t->captured = c->stream + 1;
	else if (family == CUDA_CAPTURE_END)
		t->captured = 0;
	else if (family == CUDA_ELAPSED)
		bpf_probe_read_user(&c->elapsed, sizeof(c->elapsed), (void *)t->out);
}

enum { NOT_READY = 600 };

static __always_inline bool failed(const struct cuda_call *c, __u8 family)
{
	return c->error && !(family == CUDA_QUERY && c->error == NOT_READY);
}

SEC("uretprobe")
int cuda_leave(struct pt_regs *ctx)
{
	__u32 number = bpf_get_attach_cookie(ctx);
	struct cuda_api *api = bpf_map_lookup_elem(&apis, &number);
	struct task_struct *task = bpf_get_current_task_btf();
	struct cuda_thread *t = bpf_task_storage_get(&cuda_threads, task, NULL, 0);
	struct cuda_call *c;
	bool fails;

	/* Nobody selected it, or it began before we were attached, or it is inside another call. */
	if (!api || !t || !t->sp || t->call.api != number || returned_from(ctx) != t->sp)
		return 0;
	c = &t->call;
	c->end_ns = bpf_ktime_get_ns();
	t->sp = 0;
	c->error = return_value(ctx);
	c->stack = 0;
	fails = failed(c, api->family);
	if (fails || api->family == CUDA_ALLOC) {
		long stack = bpf_get_stackid(ctx, &cuda_stacks, BPF_F_USER_STACK);

		c->stack = stack >= 0 ? stack + 1 : 0;
	}
	if (api->family == CUDA_FREE) {
		if (fails)
			restore(t, api);
	} else if (!fails) {
		if (api->family == CUDA_ALLOC)
			allocated(ctx, t, api);
		else if (api->family == CUDA_COPY)
			count_copy(c);
		else
			note_state(t, api->family);
	}
	c->device = t->device - 1;
	count(c, api->family >= CUDA_LAUNCH && api->family <= CUDA_LAUNCH_DRIVER);
	if (fails || api->flags & CUDA_API_TOLD)
		OUTPUT(cuda_calls, c, sizeof(*c));
	return 0;
}

/* ---- names of kernels ---- */

/* The text at *from*, of a page that may not be there yet: .rodata of a library just mapped. */
static __always_inline void tell_name(__u8 kind, __u64 handle, __u64 from)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct name_record *r;
	__u64 next = (from | 4095) + 1;
	__u64 len;
	long got;
	char page;

	r = bpf_task_storage_get(&cuda_naming, task, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!r || bpf_copy_from_user(&page, 1, (void *)from))
		return;
	got = bpf_probe_read_user_str(r->text, sizeof(r->text), (void *)from);
	if (got < 0 && !bpf_copy_from_user(&page, 1, (void *)next))
		got = bpf_probe_read_user_str(r->text, sizeof(r->text), (void *)from);
	if (got <= 1)
		return;
	len = got - 1;
	if (len > CUDA_NAME_LEN)
		return;
	r->head.process_start_ns = task->group_leader->start_boottime;
	r->head.handle = handle;
	r->head.target = 0;
	r->head.pid = task->tgid;
	r->head.len = len;
	r->head.kind = kind;
	OUTPUT(cuda_names, r, sizeof(r->head) + len);
}

/* __cudaRegisterFunction(module, host function, device function, name, …), from constructors */
SEC("uprobe.s")
int cuda_register(struct pt_regs *ctx)
{
	if (pid_selected(bpf_get_current_pid_tgid() >> 32))
		tell_name(CUDA_NAME_REGISTERED, argument(ctx, 2), argument(ctx, 4));
	return 0;
}

static __always_inline struct naming *naming_of(struct cuda_thread *t, __u64 cookie)
{
	return cookie & 1 ? &t->naming[1] : &t->naming[0];
}

/* (handle *, …, name or target): cookie bit 0 is the layer, the rest the argument's number. */
SEC("uprobe")
int cuda_name_enter(struct pt_regs *ctx)
{
	__u64 cookie = bpf_get_attach_cookie(ctx);
	struct cuda_thread *t;
	struct naming *n;

	if (!pid_selected(bpf_get_current_pid_tgid() >> 32))
		return 0;
	t = this_thread();
	if (!t)
		return 0;
	n = naming_of(t, cookie);
	n->out = argument(ctx, 1);
	n->about = argument(ctx, cookie >> 1);
	return 0;
}

static __always_inline __u64 named_handle(struct pt_regs *ctx, __u64 *about)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct cuda_thread *t = bpf_task_storage_get(&cuda_threads, task, NULL, 0);
	__u64 handle = 0;
	struct naming *n;

	if (!t)
		return 0;
	n = naming_of(t, bpf_get_attach_cookie(ctx));
	if (!n->out || return_value(ctx))
		return 0;
	bpf_probe_read_user(&handle, sizeof(handle), (void *)n->out);
	*about = n->about;
	n->out = 0;
	return handle;
}

SEC("uretprobe.s")
int cuda_name_leave(struct pt_regs *ctx)
{
	__u64 name, handle = named_handle(ctx, &name);

	if (handle)
		tell_name(CUDA_NAME_GIVEN, handle, name);
	return 0;
}

SEC("uretprobe")
int cuda_alias_leave(struct pt_regs *ctx)
{
	struct cuda_name e = { .kind = CUDA_NAME_ALIAS };
	struct task_struct *task = bpf_get_current_task_btf();

	e.handle = named_handle(ctx, &e.target);
	if (!e.handle || e.handle == e.target)
		return 0;
	e.process_start_ns = task->group_leader->start_boottime;
	e.pid = task->tgid;
	OUTPUT(cuda_names, &e, sizeof(e));
	return 0;
}

/* ---- who may use CUDA ---- */

static __always_inline void tell_process(struct task_struct *task, __u32 kind, __u32 parent_pid)
{
	struct cuda_process e = { .kind = kind, .parent_pid = parent_pid, .pid = task->tgid };

	e.process_start_ns = task->group_leader->start_boottime;
	OUTPUT_NOW(cuda_processes, &e, sizeof(e));
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(cuda_fork, struct task_struct *parent, struct task_struct *child)
{
	__u32 pid = child->tgid, no = 0;

	if (parent->tgid == child->tgid || !pid_selected(parent->tgid))
		return 0;
	bpf_map_update_elem(&cuda_watched, &pid, &no, BPF_ANY);
	tell_process(child, CUDA_PROCESS_FORKED, parent->tgid);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(cuda_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	if (pid_selected(task->tgid))
		tell_process(task, CUDA_PROCESS_EXECED, 0);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(cuda_exit, struct task_struct *task)
{
	__u32 pid = task->tgid;

	/* Not `targets`: process.bpf.c may have been here before us. */
	if (!task->signal->live.counter && !bpf_map_delete_elem(&cuda_watched, &pid))
		tell_process(task, CUDA_PROCESS_EXITED, 0);
	return 0;
}

/*
 * Every mmap without a fixed address passes here, before it is carried out.
 * Which file it was is for user space to see: it looks at all of them at once.
 */
SEC("tp_btf/vm_unmapped_area")
int BPF_PROG(cuda_map, unsigned long addr)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u32 pid = task->tgid, yes = 1, *watched;

	if (!pid_selected(pid) || !maps_file(task))
		return 0;
	watched = bpf_map_lookup_elem(&cuda_watched, &pid);
	if (watched && *watched)
		return 0;
	bpf_map_update_elem(&cuda_watched, &pid, &yes, BPF_ANY);
	tell_process(task, CUDA_PROCESS_MAPPED, 0);
	return 0;
}

static long forget_one(void *map, struct cuda_memory_key *key, struct cuda_memory *memory,
		       struct cuda_command *command)
{
	if (key->pid == command->pid)
		bpf_map_delete_elem(map, key);
	return 0;
}

/* The process is gone, and its memory with it. */
SEC("syscall")
int cuda_forget(struct cuda_command *in)
{
	struct cuda_command command = { .pid = in->pid };

	bpf_for_each_map_elem(&cuda_memories, forget_one, &command, 0);
	return 0;
}
