// SPDX-License-Identifier: Apache-2.0
/* libbpf, as far as we need it: objects, constants, programs, maps. */
#include <errno.h>
#include <malloc.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

#include "shim.h"

enum { MAX_LINKS = 128, LOG_SIZE = 1 << 16 };

static char log_text[LOG_SIZE];
static size_t log_len;

/* Keep the end: what the verifier says last is why it refused. */
static int keep_log(enum libbpf_print_level level, const char *format, va_list args)
{
	int n;

	if (level == LIBBPF_DEBUG)
		return 0;
	if (log_len > LOG_SIZE / 2) {
		memmove(log_text, log_text + log_len - LOG_SIZE / 4, LOG_SIZE / 4);
		log_len = LOG_SIZE / 4;
	}
	n = vsnprintf(log_text + log_len, LOG_SIZE - log_len, format, args);
	if (n < 0)
		return 0;
	if ((size_t)n >= LOG_SIZE - log_len)
		n = (int)(LOG_SIZE - log_len - 1);
	log_len += (size_t)n;
	log_text[log_len] = 0;
	return n;
}

void otb_init(void)
{
	libbpf_set_strict_mode(LIBBPF_STRICT_ALL);
	libbpf_set_print(keep_log);
}

const char *otb_log(void)
{
	return log_text;
}

void otb_log_clear(void)
{
	log_len = 0;
	log_text[0] = 0;
}

uint32_t otb_libbpf_version(void)
{
	return libbpf_major_version() << 16 | libbpf_minor_version();
}

void otb_trim(void)
{
	malloc_trim(0);
}

struct otb_object {
	struct bpf_object *bpf;
	struct bpf_link *links[MAX_LINKS];
	int n_links;
};

otb_object *otb_open(const char *path)
{
	otb_object *obj = calloc(1, sizeof(*obj));

	if (!obj)
		return NULL;
	obj->bpf = bpf_object__open_file(path, NULL);
	if (!obj->bpf) {
		int err = errno;

		free(obj);
		errno = err;
		return NULL;
	}
	return obj;
}

const void *otb_btf(otb_object *obj, uint32_t *len)
{
	return btf__raw_data(bpf_object__btf(obj->bpf), len);
}

int otb_programs(otb_object *obj, const char **names, int max)
{
	struct bpf_program *prog;
	int n = 0;

	bpf_object__for_each_program(prog, obj->bpf) {
		if (n < max)
			names[n] = bpf_program__name(prog);
		n++;
	}
	return n;
}

/* Where a global variable lives: its map and its place in the value. */
static struct bpf_map *find_variable(otb_object *obj, const char *name, const char *section,
				     uint32_t *offset, uint32_t *size)
{
	const struct btf *btf = bpf_object__btf(obj->bpf);
	int id = btf__find_by_name_kind(btf, section, BTF_KIND_DATASEC);
	const struct btf_type *datasec;
	const struct btf_var_secinfo *var;
	struct bpf_map *map;

	if (id < 0)
		return NULL;
	datasec = btf__type_by_id(btf, (uint32_t)id);
	var = btf_var_secinfos(datasec);
	for (int i = 0; i < btf_vlen(datasec); i++) {
		const struct btf_type *type = btf__type_by_id(btf, var[i].type);

		if (strcmp(btf__name_by_offset(btf, type->name_off), name))
			continue;
		*offset = var[i].offset;
		*size = var[i].size;
		bpf_object__for_each_map(map, obj->bpf) {
			/* Called "exchange.rodata": libbpf puts the object's name in front. */
			const char *dot = strchr(bpf_map__name(map), '.');

			if (dot && !strcmp(dot, section))
				return map;
		}
	}
	return NULL;
}

int otb_set_const(otb_object *obj, const char *name, uint64_t value)
{
	uint32_t offset, size;
	size_t whole;
	struct bpf_map *map = find_variable(obj, name, ".rodata", &offset, &size);
	char *data;

	if (!map)
		return -ENOENT;
	data = (char *)bpf_map__initial_value(map, &whole);
	if (!data || size > sizeof(value) || offset + size > whole)
		return -EINVAL;
	memcpy(data + offset, &value, size); /* little-endian, as BPF is here */
	return 0;
}

int otb_set_max_entries(otb_object *obj, const char *name, uint32_t n)
{
	struct bpf_map *map = bpf_object__find_map_by_name(obj->bpf, name);

	return map ? bpf_map__set_max_entries(map, n) : -ENOENT;
}

int otb_share_map(otb_object *obj, const char *name, int fd)
{
	struct bpf_map *map = bpf_object__find_map_by_name(obj->bpf, name);

	return map ? bpf_map__reuse_fd(map, fd) : -ENOENT;
}

int otb_autoload(otb_object *obj, const char *program, int load)
{
	struct bpf_program *prog = bpf_object__find_program_by_name(obj->bpf, program);

	return prog ? bpf_program__set_autoload(prog, load) : -ENOENT;
}

int otb_load(otb_object *obj)
{
	return bpf_object__load(obj->bpf);
}

int otb_attach(otb_object *obj, const char *program)
{
	struct bpf_program *prog = bpf_object__find_program_by_name(obj->bpf, program);
	struct bpf_link *link;

	if (!prog)
		return -ENOENT;
	if (obj->n_links == MAX_LINKS)
		return -E2BIG;
	link = bpf_program__attach(prog);
	if (!link)
		return -errno;
	obj->links[obj->n_links++] = link;
	return 0;
}

int otb_map_fd(otb_object *obj, const char *map)
{
	return bpf_object__find_map_fd_by_name(obj->bpf, map);
}

int otb_misses(otb_object *obj, uint64_t *value)
{
	struct bpf_program *program;

	*value = 0;
	bpf_object__for_each_program(program, obj->bpf) {
		struct bpf_prog_info info = {};
		uint32_t size = sizeof(info);
		int fd = bpf_program__fd(program);

		if (fd >= 0 && !bpf_obj_get_info_by_fd(fd, &info, &size))
			*value += info.recursion_misses;
	}
	return 0;
}

int otb_global(otb_object *obj, const char *name, uint64_t *value)
{
	uint32_t offset, size, zero = 0;
	struct bpf_map *map = find_variable(obj, name, ".bss", &offset, &size);
	char *whole;
	int err;

	if (!map || size != sizeof(*value))
		return -ENOENT;
	whole = malloc(bpf_map__value_size(map));
	if (!whole)
		return -ENOMEM;
	err = bpf_map_lookup_elem(bpf_map__fd(map), &zero, whole);
	if (!err)
		memcpy(value, whole + offset, sizeof(*value));
	free(whole);
	return err;
}

int otb_run(otb_object *obj, const char *program, void *context, uint32_t size)
{
	struct bpf_program *prog = bpf_object__find_program_by_name(obj->bpf, program);
	LIBBPF_OPTS(bpf_test_run_opts, opts, .ctx_in = context, .ctx_size_in = size);

	return prog ? bpf_prog_test_run_opts(bpf_program__fd(prog), &opts) : -ENOENT;
}

int otb_kernel_params(const char *function)
{
	struct btf *btf = btf__load_vmlinux_btf();
	const struct btf_type *type;
	int id, n;

	if (!btf)
		return -errno;
	id = btf__find_by_name_kind(btf, function, BTF_KIND_FUNC);
	if (id < 0) {
		btf__free(btf);
		return id;
	}
	type = btf__type_by_id(btf, btf__type_by_id(btf, (uint32_t)id)->type);
	n = btf_vlen(type);
	btf__free(btf);
	return n;
}

/* The kernel's BTF has "typedef void (*btf_trace_NAME)(void *, ...)" for each
 * (include/trace/bpf_probe.h). */
int otb_tracepoint_params(const char *tracepoint)
{
	struct btf *btf = btf__load_vmlinux_btf();
	const struct btf_type *type;
	char name[128];
	int id, n;

	if (!btf)
		return -errno;
	snprintf(name, sizeof(name), "btf_trace_%s", tracepoint);
	id = btf__find_by_name_kind(btf, name, BTF_KIND_TYPEDEF);
	if (id < 0) {
		btf__free(btf);
		return id;
	}
	type = btf__type_by_id(btf, btf__type_by_id(btf, (uint32_t)id)->type); /* the pointer */
	n = btf_vlen(btf__type_by_id(btf, type->type)) - 1;
	btf__free(btf);
	return n;
}

int otb_iterate(otb_object *obj, const char *program, const char *map)
{
	struct bpf_program *prog = bpf_object__find_program_by_name(obj->bpf, program);
	union bpf_iter_link_info which = { .map.map_fd = (uint32_t)otb_map_fd(obj, map) };
	LIBBPF_OPTS(bpf_iter_attach_opts, opts, .link_info = &which,
		    .link_info_len = sizeof(which));
	char nothing[64];
	struct bpf_link *link;
	int fd, err = 0;
	ssize_t got;

	if (!prog)
		return -ENOENT;
	link = bpf_program__attach_iter(prog, &opts);
	if (!link)
		return -errno;
	fd = bpf_iter_create(bpf_link__fd(link));
	if (fd < 0) {
		err = -errno;
	} else {
		do {
			got = read(fd, nothing, sizeof(nothing));
		} while (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR)));
		err = got < 0 ? -errno : 0;
		close(fd);
	}
	bpf_link__destroy(link);
	return err;
}

int otb_enable_stats(void)
{
	return bpf_enable_stats(BPF_STATS_RUN_TIME);
}

int otb_program_time(otb_object *obj, const char *program, uint64_t *runs, uint64_t *time_ns)
{
	struct bpf_program *prog = bpf_object__find_program_by_name(obj->bpf, program);
	struct bpf_prog_info info = {};
	uint32_t size = sizeof(info);
	int err = -ENOENT;

	if (prog && bpf_program__fd(prog) >= 0)
		err = bpf_obj_get_info_by_fd(bpf_program__fd(prog), &info, &size);
	*runs = info.run_cnt;
	*time_ns = info.run_time_ns;
	return err;
}

void otb_detach(otb_object *obj)
{
	for (int i = 0; i < obj->n_links; i++)
		bpf_link__destroy(obj->links[i]);
	obj->n_links = 0;
}

void otb_close(otb_object *obj)
{
	otb_detach(obj);
	bpf_object__close(obj->bpf);
	free(obj);
}

struct bpf_program *otb_program(otb_object *obj, const char *name)
{
	return bpf_object__find_program_by_name(obj->bpf, name);
}

int otb_map_batch(int fd, const void *token, void *next, void *keys, void *values, uint32_t *n)
{
	LIBBPF_OPTS(bpf_map_batch_opts, opts);
	int err = bpf_map_lookup_batch(fd, (void *)token, next, keys, values, n, &opts);

	return err == -ENOENT ? 1 : err;
}

int otb_map_get(int fd, const void *key, void *value)
{
	return bpf_map_lookup_elem(fd, key, value);
}

int otb_cpus(void)
{
	return libbpf_num_possible_cpus();
}

int otb_map_set(int fd, const void *key, const void *value)
{
	return bpf_map_update_elem(fd, key, value, BPF_ANY);
}

int otb_map_delete(int fd, const void *key)
{
	return bpf_map_delete_elem(fd, key);
}
