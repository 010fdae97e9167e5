// SPDX-License-Identifier: Apache-2.0
/* Attaching to functions of user programs, at offsets of a file, in every process that maps it. */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "shim.h"

/*
 * One link for any number of offsets: Linux commit 89ae89f53d20 ("bpf: Add
 * multi uprobe link", 6.6). libbpf knows it since 1.3 and kernel headers since
 * 6.6, so this is its own declaration of that part of union bpf_attr.
 */
enum { TRACE_UPROBE_MULTI = 48, UPROBE_MULTI_RETURN = 1 };

struct link_uprobe_multi {
	uint32_t prog_fd;
	uint32_t target_fd;
	uint32_t attach_type;
	uint32_t link_flags;
	uint64_t path;
	uint64_t offsets;
	uint64_t ref_ctr_offsets;
	uint64_t cookies;
	uint32_t cnt;
	uint32_t flags;
	uint32_t pid;
	uint32_t _pad;
};

struct otb_uprobes {
	int multi; /* the link's descriptor, or -1 */
	uint32_t n;
	struct bpf_link *links[];
};

static int link_multi(int prog_fd, const char *path, const uint64_t *offsets,
		      const uint64_t *cookies, uint32_t n, int at_return)
{
	struct link_uprobe_multi attr = {
		.prog_fd = (uint32_t)prog_fd,
		.attach_type = TRACE_UPROBE_MULTI,
		.path = (uintptr_t)path,
		.offsets = (uintptr_t)offsets,
		.cookies = (uintptr_t)cookies,
		.cnt = n,
		.flags = at_return ? UPROBE_MULTI_RETURN : 0,
	};

	return (int)syscall(SYS_bpf, BPF_LINK_CREATE, &attr, sizeof(attr));
}

int otb_uprobe_multi(void)
{
	/* r0 = 0; exit */
	struct bpf_insn nothing[] = { { .code = 0xb7 }, { .code = 0x95 } };
	LIBBPF_OPTS(bpf_prog_load_opts, opts, .expected_attach_type = TRACE_UPROBE_MULTI);
	int prog = bpf_prog_load(BPF_PROG_TYPE_KPROBE, NULL, "GPL", nothing, 2, &opts), link;
	uint64_t zero = 0;

	if (prog < 0)
		return 0;
	/* A folder cannot be probed: who knows that has understood the rest. */
	link = link_multi(prog, "/", &zero, NULL, 1, 0);
	link = link < 0 ? errno : 0;
	close(prog);
	return link == EBADF;
}

int otb_want_multi(otb_object *obj, const char *program)
{
	struct bpf_program *prog = otb_program(obj, program);

	if (!prog)
		return -ENOENT;
	return bpf_program__set_expected_attach_type(prog, TRACE_UPROBE_MULTI);
}

static void one_by_one(otb_uprobes *probes, const struct bpf_program *prog, const char *path,
		       const uint64_t *offsets, const uint64_t *cookies, uint32_t n, int at_return)
{
	for (probes->n = 0; probes->n < n; probes->n++) {
		LIBBPF_OPTS(bpf_uprobe_opts, opts, .bpf_cookie = cookies[probes->n],
			    .retprobe = at_return != 0);
		struct bpf_link *link =
			bpf_program__attach_uprobe_opts(prog, -1, path, offsets[probes->n], &opts);

		if (!link)
			return;
		probes->links[probes->n] = link;
	}
}

otb_uprobes *otb_attach_uprobes(otb_object *obj, const char *program, const char *path,
				const uint64_t *offsets, const uint64_t *cookies, uint32_t n,
				int at_return)
{
	struct bpf_program *prog = otb_program(obj, program);
	otb_uprobes *probes;
	int err;

	if (!prog) {
		errno = ENOENT;
		return NULL;
	}
	probes = calloc(1, sizeof(*probes) + n * sizeof(probes->links[0]));
	if (!probes)
		return NULL;
	probes->multi = -1;
	if (bpf_program__expected_attach_type(prog) == TRACE_UPROBE_MULTI) {
		probes->multi =
			link_multi(bpf_program__fd(prog), path, offsets, cookies, n, at_return);
		if (probes->multi >= 0)
			return probes;
	} else {
		one_by_one(probes, prog, path, offsets, cookies, n, at_return);
		if (probes->n == n)
			return probes;
	}
	err = errno;
	otb_detach_uprobes(probes);
	errno = err;
	return NULL;
}

void otb_detach_uprobes(otb_uprobes *probes)
{
	if (probes->multi >= 0)
		close(probes->multi);
	for (uint32_t i = 0; i < probes->n; i++)
		bpf_link__destroy(probes->links[i]);
	free(probes);
}
