// SPDX-License-Identifier: Apache-2.0
/*
 * Drops the segments that a test chose, where they arrive: what is dropped on
 * the way out creates no retransmission. Notes what it saw, and when.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum { PASS = 0, SHOT = 2, SEEN = 4096 };
enum { DATA = 0, SYN = 1, ANY = 2 };

struct rule {
	__u16 port;  /* a server's */
	__u8 from;   /* 1: what comes from it; 0: what goes to it */
	__u8 what;   /* DATA: with payload; SYN: SYN and SYN-ACK; ANY */
	__u32 skip;  /* let this many pass first */
	__u32 drop;  /* then drop this many */
	__u32 dropped;
};

struct seen {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 seq;
	__u32 len; /* of the payload */
	__u16 port; /* the client's */
	__u8 from;
	__u8 dropped;
	__u32 syn;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2); /* where packets arrive, where they leave */
	__type(key, __u32);
	__type(value, struct rule);
} rules SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SEEN);
	__type(key, __u32);
	__type(value, struct seen);
} seen_log SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} logged SEC(".maps");

static __always_inline int chosen(struct rule *r, int from, int syn, __u32 len)
{
	if (!r->drop || r->from != from)
		return 0;
	if (r->what == SYN ? !syn : r->what == DATA && !len)
		return 0;
	if (r->skip) {
		__sync_fetch_and_add(&r->skip, -1);
		return 0;
	}
	__sync_fetch_and_add(&r->drop, -1);
	__sync_fetch_and_add(&r->dropped, 1);
	return 1;
}

static __always_inline int look(struct __sk_buff *skb, __u32 leaving)
{
	void *end = (void *)(long)skb->data_end, *at;
	struct ethhdr *eth = (void *)(long)skb->data;
	struct seen seen = {};
	__u32 zero = 0, *n, total, i;
	struct tcphdr *tcp;
	struct rule *r;

	at = eth + 1;
	if (at > end)
		return PASS;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = at;

		if ((void *)(ip + 1) > end || ip->protocol != IPPROTO_TCP)
			return PASS;
		at = (void *)ip + 20; /* no options here */
		total = bpf_ntohs(ip->tot_len) - 20;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = at;

		if ((void *)(ip + 1) > end || ip->nexthdr != IPPROTO_TCP)
			return PASS;
		at = ip + 1;
		total = bpf_ntohs(ip->payload_len);
	} else {
		return PASS;
	}
	tcp = at;
	r = bpf_map_lookup_elem(&rules, &leaving);
	n = bpf_map_lookup_elem(&logged, &zero);
	if ((void *)(tcp + 1) > end || !r || !n)
		return PASS;
	if (tcp->dest != bpf_htons(r->port) && tcp->source != bpf_htons(r->port))
		return PASS;
	seen.time_ns = bpf_ktime_get_ns();
	seen.seq = bpf_ntohl(tcp->seq);
	seen.len = total - tcp->doff * 4;
	seen.from = tcp->source == bpf_htons(r->port);
	seen.port = bpf_ntohs(seen.from ? tcp->dest : tcp->source);
	seen.syn = tcp->syn;
	seen.dropped = chosen(r, seen.from, tcp->syn, seen.len);
	if (leaving ? seen.dropped : seen.len || tcp->syn) {
		i = __sync_fetch_and_add(n, 1);
		bpf_map_update_elem(&seen_log, &i, &seen, BPF_ANY);
	}
	return seen.dropped ? SHOT : PASS;
}

SEC("tc")
int dropper(struct __sk_buff *skb)
{
	return look(skb, 0);
}

SEC("tc")
int dropper_out(struct __sk_buff *skb)
{
	return look(skb, 1);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
