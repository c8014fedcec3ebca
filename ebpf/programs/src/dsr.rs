//! Direct server return: the load balancer's node leaves the client's address alone, and the backend's node answers
//! the client under the frontend's name.
//!
//! The backend's node must learn the frontend. It comes in an IP option (RFC 791) in the packets that open a flow:
//! TCP's SYN, and every datagram of UDP. An option costs 8 bytes where an encapsulation costs 50, and only in packets
//! that are small anyway; the nodes are on one network, so no router is there to drop it. The layout is Cilium's, so
//! that its tools read it: type 0x9a, length 8, port, address.

use aya_ebpf::programs::TcContext;
use hawser_ebpf_common::ct::{CT_DSR, CT_REPLY, CtKey4};
use hawser_ebpf_common::endpoint::IDENTITY_REMOTE_NODE;
use hawser_ebpf_common::lb::SERVICE_DSR;
use hawser_ebpf_common::metrics::reason;
use hawser_ebpf_common::{PROTO_TCP, PROTO_UDP};

use crate::ct;
use crate::family::Family;
use crate::far;
use crate::frame::{Change, Frame};
use crate::lb::{self, V4};
use crate::packet::{ETH_LEN, IP_LEN, Ipv4Header, Packet, parse_aside};

/// Copied into all fragments, class 0, number 26.
const OPTION_KIND: u8 = 0x9a;
pub const OPTION_LEN: usize = 8;

#[repr(C)]
#[derive(Clone, Copy)]
struct DsrOption {
    kind: u8,
    len: u8,
    port_be: u16,
    address_be: [u16; 2],
}

/// Whether a packet of a flow must tell the frontend.
#[inline(always)]
pub fn must_tell<A>(packet: &Packet<A>, entry_flags: u32) -> bool {
    entry_flags & CT_DSR != 0 && entry_flags & CT_REPLY == 0 && packet.opens()
}

/// Puts the frontend into a packet that goes to the backend already. Its transport header is 8 bytes further on
/// afterwards.
#[inline(always)]
pub fn tell<P: Frame>(
    frame: &P,
    packet: &mut Packet<u32>,
    frontend_be: u32,
    port_be: u16,
) -> Result<(), u32> {
    frame.insert(OPTION_LEN)?;
    let address = frontend_be.to_ne_bytes();
    let option = DsrOption {
        kind: OPTION_KIND,
        len: OPTION_LEN as u8,
        port_be,
        address_be: [
            u16::from_ne_bytes([address[0], address[1]]),
            u16::from_ne_bytes([address[2], address[3]]),
        ],
    };
    frame.store(ETH_LEN + IP_LEN, &option)?;
    set_lengths(frame, packet, 0x45, 0x47, packet.total_len + OPTION_LEN as u32, &option, true)?;
    packet.l4 += OPTION_LEN;
    Ok(())
}

/// Writes version and header length, and total length, with the header's checksum. `added`: the option came, else it
/// went.
#[inline(always)]
fn set_lengths<P: Frame>(
    frame: &P,
    packet: &mut Packet<u32>,
    old_ihl: u8,
    new_ihl: u8,
    total_len: u32,
    option: &DsrOption,
    added: bool,
) -> Result<(), u32> {
    let tos: u8 = frame.load(ETH_LEN + 1)?;
    let old_len = (packet.total_len as u16).to_be();
    let new_len = (total_len as u16).to_be();
    let words = [
        u16::from_ne_bytes([option.kind, option.len]),
        option.port_be,
        option.address_be[0],
        option.address_be[1],
    ];
    let mut change = Change::NONE
        .half(u16::from_ne_bytes([old_ihl, tos]), u16::from_ne_bytes([new_ihl, tos]))
        .half(old_len, new_len);
    for word in words {
        change = if added { change.half(0, word) } else { change.half(word, 0) };
    }
    frame.store(ETH_LEN, &new_ihl)?;
    frame.store(ETH_LEN + 2, &new_len)?;
    frame.fix_header(ETH_LEN + 10, change)?;
    packet.total_len = total_len;
    Ok(())
}

/// Whether a frontend may be named: the address of another node, or a Service's that asks for direct server return. The
/// packet's source is the client, so nothing in it proves that a node sent it; but whoever makes one up gets an answer
/// under no other name than that of a frontend that would have led here anyway.
#[inline(always)]
fn is_ours(frontend_be: u32, port_be: u16, protocol: u8) -> bool {
    V4::ipcache(frontend_be).is_some_and(|prefix| prefix.identity == IDENTITY_REMOTE_NODE)
        || lb::flags_of::<V4>(frontend_be, port_be, protocol).is_some_and(|flags| flags & SERVICE_DSR != 0)
}

/// Takes the frontend out of a packet that another node sent here, and notes how the backend's answers are to be
/// translated. Does nothing to other packets.
#[inline(always)]
pub fn accept(ctx: &TcContext) -> Result<(), u32> {
    far::unpack_unit(accept_far(ctx))
}

#[inline(never)]
fn accept_far(ctx: &TcContext) -> u64 {
    far::pack_unit(accept_near(ctx))
}

#[inline(always)]
fn accept_near(ctx: &TcContext) -> Result<(), u32> {
    let ip: Ipv4Header = Frame::load(ctx, ETH_LEN)?;
    if ip.version_ihl != 0x47 {
        return Ok(());
    }
    let option: DsrOption = Frame::load(ctx, ETH_LEN + IP_LEN)?;
    if option.kind != OPTION_KIND || usize::from(option.len) != OPTION_LEN {
        return Ok(());
    }
    let packet = parse_aside::<V4, _>(ctx)?;
    if !packet.trackable || (packet.tuple.protocol != PROTO_TCP && packet.tuple.protocol != PROTO_UDP) {
        return Err(reason::MALFORMED);
    }
    let [a, b] = option.address_be.map(u16::to_ne_bytes);
    let frontend_be = u32::from_ne_bytes([a[0], a[1], b[0], b[1]]);
    if !is_ours(frontend_be, option.port_be, packet.tuple.protocol) {
        return Err(reason::FOREIGN_FRONTEND);
    }
    let total_len = packet.total_len.checked_sub(OPTION_LEN as u32).ok_or(reason::MALFORMED)?;
    set_lengths(ctx, packet, 0x47, 0x45, total_len, &option, false)?;
    let room = -(OPTION_LEN as i32);
    ctx.skb
        .adjust_room(room, aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_NET, 0)
        .map_err(|_| reason::WRITE_FAILED)?;
    let key: CtKey4 = packet.tuple.reversed();
    ct::note::<V4>(&key, &frontend_be, option.port_be, CT_REPLY | CT_DSR);
    Ok(())
}
