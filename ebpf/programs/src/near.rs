//! Packets in the midst of a connection that nobody translates, most of all there are: short ways for them.
//!
//! Where those between two pods go is kept with the sender's socket.
//! What a socket knows, the kernel removes with it, and no other connection finds it: so what follows in an established
//! connection asks for none of what was found for packets before it, which is no translation, both pods, and the interface
//! or node of the other one. It is found anew every second (see [`epoch`]), should the other pod be gone and another one
//! have its address.

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{bpf_sk_fullsock, bpf_sk_storage_get, bpf_tcp_sock};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::TcContext;
use hawser_ebpf_common::PROTO_TCP;
use hawser_ebpf_common::ct::CtKey;
use hawser_ebpf_common::endpoint::Endpoint4;
use hawser_ebpf_common::lb::Address6;
use hawser_ebpf_common::metrics::reason;

use crate::ct::{self, epoch, now_ns};
use crate::family::Family;
use crate::far;
use crate::forward;
use crate::frame::Frame;
use crate::packet::{ETH_LEN, Packet, Part, TCP_FIN, TCP_RST, TCP_SYN};
use crate::tc::is_link_local;

/// `TCP_ESTABLISHED` (include/net/tcp_states.h).
const ESTABLISHED: u32 = 1;
/// Segments that a connection has sent before anything is kept for it: one that is short has nothing of it.
const BUSY: u32 = 8;

/// A packet for which there is no short way.
const NOT_HERE: Result<forward::Verdict, u32> = Ok((forward::ELSEWHERE, 0));

/// What a socket knows.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Near<A> {
    saddr_be: A,
    daddr_be: A,
    sport_be: u16,
    dport_be: u16,
    /// The interface by which the sender's packets come.
    from: u32,
    /// When it was found.
    epoch: u32,
    /// The other pod, if it is of this node.
    to: Endpoint4,
    /// Its node, which is on the link; zeroes for this one.
    node_be: A,
}

/// Of sockets of IPv4, and of IPv6. Not pinned.
#[btf_map]
pub static NEAR4: SkStorage<Near<u32>> = SkStorage::new();
#[btf_map]
pub static NEAR6: SkStorage<Near<Address6>> = SkStorage::new();

/// The socket that sends a packet, which is of the sender's namespace. It may be less than a whole one, of which storage knows
/// nothing.
#[inline(always)]
fn socket(ctx: &TcContext) -> Option<*mut bpf_sock> {
    // SAFETY: the context is valid for the whole program.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() { None } else { Some(sk) }
}

/// Delivers a packet as others of its connection were; `ELSEWHERE` for any other packet.
#[inline(never)]
pub fn serve<F: Family>(ctx: &TcContext) -> u64 {
    far::pack(serve_near::<F>(ctx))
}

#[inline(always)]
fn serve_near<F: Family>(ctx: &TcContext) -> Result<forward::Verdict, u32> {
    let Some(sk) = socket(ctx) else { return NOT_HERE };
    // SAFETY: a map and a socket; without the flag nothing is made.
    let near: *mut Near<F::Address> =
        unsafe { bpf_sk_storage_get(F::near(), sk.cast(), core::ptr::null_mut(), 0) }.cast();
    if near.is_null() {
        return NOT_HERE;
    }
    // SAFETY: the element lives as long as the program; another CPU may write it for a packet of the same connection,
    // which is the same but for the time.
    let near = unsafe { &*near };
    let Some(packet) = plain::<F>(ctx) else { return NOT_HERE };
    // SAFETY: the context is valid for the whole program.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    if near.sport_be != packet.tuple.sport_be
        || near.dport_be != packet.tuple.dport_be
        || near.saddr_be != packet.tuple.saddr_be
        || near.daddr_be != packet.tuple.daddr_be
        || near.from != ifindex
        || near.epoch != epoch(now_ns())
        || packet.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) != 0
    {
        return NOT_HERE;
    }
    let (to, node_be) = (near.to, near.node_be);
    match F::words(node_be) {
        [0, 0, 0, 0] => forward::to_endpoint::<F>(ctx, &packet, &to, reason::FORWARDED),
        _ => {
            mark(ctx, SETTLED);
            forward::to_uplink::<F>(ctx, &packet, Some(node_be), reason::FORWARDED)
        }
    }
}

/// A whole packet of TCP that has hops left.
#[inline(always)]
fn plain<F: Family>(ctx: &TcContext) -> Option<Packet<F::Address>> {
    let header = F::header(ctx, ETH_LEN).ok()?;
    if header.protocol != PROTO_TCP || header.part != Part::Whole || header.ttl <= 1 {
        return None;
    }
    let [sport_be, dport_be]: [u16; 2] = Frame::load(ctx, header.l4).ok()?;
    Some(Packet {
        tuple: CtKey {
            saddr_be: header.saddr_be,
            daddr_be: header.daddr_be,
            sport_be,
            dport_be,
            protocol: PROTO_TCP,
            pad: [0; 3],
        },
        l4: header.l4,
        total_len: header.total_len,
        ttl: header.ttl,
        tcp_flags: Frame::load(ctx, header.l4 + 13).ok()?,
        part: Part::Whole,
        whole_only: header.whole_only,
        trackable: true,
        icmp_request: false,
        icmp_error: false,
    })
}

/// Delivers to a pod of this node what came in, opens nothing and is of no flow that is translated; `ELSEWHERE` for any
/// other packet. No Service is asked for: one under the pod's address had been found when the connection was opened, and
/// would be known.
#[inline(never)]
pub fn arrive<F: Family>(ctx: &TcContext) -> u64 {
    far::pack(arrive_near::<F>(ctx))
}

#[inline(always)]
fn arrive_near<F: Family>(ctx: &TcContext) -> Result<forward::Verdict, u32> {
    let Some(packet) = plain::<F>(ctx) else { return NOT_HERE };
    if packet.opens()
        || F::V6 && is_link_local(F::words(packet.tuple.saddr_be))
        || ct::peek::<F>(&packet.tuple).is_some()
        || ct::migrating()
    {
        return NOT_HERE;
    }
    match F::endpoint(packet.tuple.daddr_be) {
        Some(endpoint) => forward::to_endpoint::<F>(ctx, &packet, &endpoint, reason::FORWARDED),
        None => NOT_HERE,
    }
}

/// What [`mark`] says of a packet that no program has anything more to do with.
pub const SETTLED: u32 = 0x6877;

/// Tells the program at the uplink's other end of the stack about a packet. `tc_index` is of no use to anybody else: the
/// qdisc that wrote it, dsmark, is gone from the kernel.
#[inline(always)]
pub fn mark(ctx: &TcContext, what: u32) {
    // SAFETY: the context is valid for the whole program.
    unsafe { (*ctx.skb.skb).tc_index = what };
}

/// Whether a packet is [`SETTLED`], which it is no more after that.
#[inline(always)]
pub fn take_mark(ctx: &TcContext) -> bool {
    // SAFETY: as above.
    let settled = unsafe { (*ctx.skb.skb).tc_index } == SETTLED;
    if settled {
        mark(ctx, 0);
    }
    settled
}

/// Whether packets like this one may go where others of their connection went, as nobody translates it.
#[inline(always)]
pub fn fits<A>(packet: &Packet<A>) -> bool {
    packet.tuple.protocol == PROTO_TCP && packet.trackable && !packet.opens()
}

/// Keeps where a packet goes that [`fits`]: to a pod of this node, or to a node.
#[inline(always)]
pub fn keep<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>, to: &Endpoint4, node_be: F::Address) {
    let Some(sk) = socket(ctx) else { return };
    // SAFETY: as above. What answers for no socket of its own shares one that is not connected.
    unsafe {
        let sk = bpf_sk_fullsock(sk);
        if sk.is_null() || (*sk).state != ESTABLISHED {
            return;
        }
        let tcp = bpf_tcp_sock(sk);
        if tcp.is_null() || (*tcp).segs_out < BUSY {
            return;
        }
        let near: *mut Near<F::Address> = bpf_sk_storage_get(
            F::near(),
            sk.cast(),
            core::ptr::null_mut(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
        .cast();
        if near.is_null() {
            return;
        }
        *near = Near {
            saddr_be: packet.tuple.saddr_be,
            daddr_be: packet.tuple.daddr_be,
            sport_be: packet.tuple.sport_be,
            dport_be: packet.tuple.dport_be,
            from: (*ctx.skb.skb).ifindex,
            epoch: epoch(now_ns()),
            to: *to,
            node_be,
        };
    }
}
