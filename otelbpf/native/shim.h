/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libbpf as Python sees it. build_ffi.py hands this file to cffi as it is, and
 * object.c includes it, so the two cannot disagree; hence no directives.
 *
 * Functions that can fail return 0 or a file descriptor, or -errno; otb_log()
 * then holds what libbpf and the verifier said about it.
 */
typedef struct otb_object otb_object;
typedef struct otb_ring otb_ring;
typedef struct otb_uprobes otb_uprobes;
struct bpf_program;

void otb_init(void);       /* once, before anything else */
const char *otb_log(void); /* everything said since otb_log_clear() */
void otb_log_clear(void);
uint32_t otb_libbpf_version(void); /* major << 16 | minor */
void otb_trim(void);               /* give back what loading took: the kernel's BTF, and more */

otb_object *otb_open(const char *path);              /* NULL: not a BPF object; see errno */
const void *otb_btf(otb_object *obj, uint32_t *len); /* lives as long as obj */
int otb_programs(otb_object *obj, const char **names, int max);        /* number of programs */
int otb_set_const(otb_object *obj, const char *name, uint64_t value);  /* before otb_load() */
int otb_set_max_entries(otb_object *obj, const char *map, uint32_t n); /* before otb_load() */
int otb_share_map(otb_object *obj, const char *map, int fd);           /* before otb_load() */
int otb_autoload(otb_object *obj, const char *program, int load);      /* before otb_load() */
int otb_load(otb_object *obj);
int otb_attach(otb_object *obj, const char *program);
int otb_map_fd(otb_object *obj, const char *map);
int otb_global(otb_object *obj, const char *name, uint64_t *value); /* a variable of .bss */
/* Runs of its programs that the kernel left out, because the same program had been interrupted on
 * that CPU (bpf_prog_info.recursion_misses, Linux 5.12). */
int otb_misses(otb_object *obj, uint64_t *value);
int otb_run(otb_object *obj, const char *program, void *context, uint32_t size);
int otb_kernel_params(const char *function);       /* number of parameters, from the kernel's BTF */
int otb_tracepoint_params(const char *tracepoint); /* likewise, of its raw form; -ENOENT: none */
int otb_iterate(otb_object *obj, const char *program,
		const char *map); /* run an iterator over a map, once */
int otb_enable_stats(void);       /* a descriptor: programs are timed while it is open */
int otb_program_time(otb_object *obj, const char *program, uint64_t *runs, uint64_t *time_ns);
void otb_detach(otb_object *obj);
void otb_close(otb_object *obj); /* detaches and unloads everything */

/* Functions of user programs, by a file and offsets in it; each run of the program has its cookie. */
int otb_uprobe_multi(void); /* 1: this kernel takes many offsets in one link */
int otb_want_multi(otb_object *obj, const char *program); /* before otb_load() */
otb_uprobes *otb_attach_uprobes(otb_object *obj, const char *program, const char *path,
				const uint64_t *offsets, const uint64_t *cookies, uint32_t n,
				int at_return); /* NULL: see errno; all are attached, or none */
void otb_detach_uprobes(otb_uprobes *probes);
struct bpf_program *otb_program(otb_object *obj, const char *name); /* within the shim */

/*
 * Up to *n entries of a hash map, after those that *token stands for (NULL: from
 * the start); then *n is how many there were, and *next the token for more.
 * 1: that was all.
 */
int otb_map_batch(int fd, const void *token, void *next, void *keys, void *values, uint32_t *n);
int otb_map_get(int fd, const void *key, void *value);
int otb_cpus(void); /* as many values has an entry of a per-CPU map */
/* A socket that is in the network namespace of that path. */
int otb_socket_in(const char *netns, int family, int type, int protocol);

int otb_map_set(int fd, const void *key, const void *value);
int otb_map_delete(int fd, const void *key);

/*
 * A ring and the buffer into which its records are copied, each behind a
 * uint32_t with its size and one of padding, rounded up to 8 bytes.
 */
otb_ring *otb_ring_new(int map_fd, uint32_t capacity, uint32_t largest); /* NULL: see errno */
int otb_ring_fd(otb_ring *ring);                                         /* readable when woken */
const uint8_t *otb_ring_drain(otb_ring *ring, uint32_t *len,
			      int *more); /* valid until the next call */
void otb_ring_free(otb_ring *ring);

/* A C++ symbol in readable form; 0: it is none, or there is nobody to ask. */
int otb_demangle(const char *symbol, char *out, uint32_t size);
