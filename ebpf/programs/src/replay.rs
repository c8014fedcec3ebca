//! For benches, an object of its own.
//!
//! - `replay`: one `BPF_PROG_TEST_RUN` that goes through many packets. The program writes the next tuple of a list into the
//!   frame and hands it to the program under test by a tail call.
//! - `relay`: the least that a program can do to bring packets from one interface to another.
//! - `least_one` and `least_two`: the least that a load balancer can do with a packet that opens a flow, if it keeps flows in
//!   maps of the kernel's that make room themselves.
#![no_std]
#![no_main]

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_peer, bpf_xdp_adjust_head};
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, ProgramArray};
use aya_ebpf::programs::{TcContext, XdpContext};

/// Frames have TCP over IPv4, no options, and nothing else.
const LEN: usize = 14 + 40;
/// Offset of the EtherType; what is there and behind it, but for the hop limit, before addresses.
const START: usize = 12;
const START_BYTES: [u16; 7] = [
    0x0800u16.to_be(),
    0x4500u16.to_be(),
    ((LEN - 14) as u16).to_be(),
    0,
    0x4000u16.to_be(),
    0x4006u16.to_be(),
    0,
];
/// Offset of the byte with version and header length.
const VERSION: usize = 14;
/// Bytes of the option.
const OPTION: i32 = 8;
/// Offset of the hop limit in a frame of IPv4.
const TTL: usize = 14 + 8;
/// Of the addresses and, behind a header without options, the ports.
const ADDRESSES: usize = 14 + 12;

/// The program under test.
#[map(name = "target")]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// Which tuple is next, and how many there are.
#[map(name = "cursor")]
static CURSOR: Array<[u32; 2]> = Array::with_max_entries(1, 0);
/// Source, destination, ports, as they lie in a packet.
#[map(name = "tuples")]
static TUPLES: Array<[u32; 3]> = Array::with_max_entries(131_072, 0);

/// The interface that `relay` sends to, or, if the second is not 0, whose other end gets the packets at once.
#[unsafe(no_mangle)]
static RELAY_TO: u32 = 0;
#[unsafe(no_mangle)]
static RELAY_TO_PEER: u32 = 0;

#[classifier]
pub fn relay(_: TcContext) -> i32 {
    // SAFETY: statics; volatile because the loader sets them. The helpers check the interface.
    unsafe {
        let to = core::ptr::read_volatile(&RELAY_TO);
        let code = match core::ptr::read_volatile(&RELAY_TO_PEER) {
            0 => bpf_redirect(to, 0),
            _ => bpf_redirect_peer(to, 0),
        };
        code as i32
    }
}

#[xdp]
pub fn replay(ctx: XdpContext) -> u32 {
    if next(&ctx).is_some() {
        // SAFETY: the context is the program's own. A call that succeeds does not return.
        let _ = unsafe { TARGET.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// Address, port and protocol, and a backend; sizes as of `hawser_lb4_services`. The loader says how many.
#[map(name = "least_services")]
static SERVICES: HashMap<[u32; 3], [u64; 5]> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
/// Sizes as of `hawser_ct4`. The loader says how many.
#[map(name = "least_flows")]
static LEAST_FLOWS: LruHashMap<[u32; 4], [u64; 8]> = LruHashMap::with_max_entries(1, 0);
/// `IPPROTO_TCP`.
const TCP: u32 = 6;

/// With one entry per flow.
#[xdp]
pub fn least_one(ctx: XdpContext) -> u32 {
    least(&ctx, false).unwrap_or(xdp_action::XDP_ABORTED)
}

/// With another one for answers.
#[xdp]
pub fn least_two(ctx: XdpContext) -> u32 {
    least(&ctx, true).unwrap_or(xdp_action::XDP_ABORTED)
}

#[inline(always)]
fn least(ctx: &XdpContext, answers: bool) -> Option<u32> {
    let start = whole(ctx)?;
    // SAFETY: inside the packet, as `whole` has found.
    let [from, to, ports] = unsafe { ((start + ADDRESSES) as *const [u32; 3]).read_unaligned() };
    let flow = [from, to, ports, TCP];
    // SAFETY: only whether there is one is asked.
    if unsafe { LEAST_FLOWS.get(flow) }.is_some() {
        return None;
    }
    // SAFETY: the map is not preallocated, so an element that is removed stays readable.
    let backend = unsafe { SERVICES.get([to, ports >> 16, TCP]) }?[0];
    if answers {
        LEAST_FLOWS.insert([backend as u32, from, ports, TCP], [backend; 8], u64::from(BPF_NOEXIST)).ok()?;
    }
    LEAST_FLOWS.insert(flow, [backend; 8], 0).ok()?;
    Some(xdp_action::XDP_TX)
}

/// Where a frame begins that is as long as it should be.
#[inline(always)]
fn whole(ctx: &XdpContext) -> Option<usize> {
    let start = ctx.data();
    if start + LEN <= ctx.data_end() { Some(start) } else { None }
}

#[inline(always)]
fn next(ctx: &XdpContext) -> Option<()> {
    let cursor = CURSOR.get_ptr_mut(0)?;
    // SAFETY: an element of an array, always there; one run follows the other.
    let at = unsafe {
        let at = (*cursor)[0];
        (*cursor)[0] = if at + 1 < (*cursor)[1] { at + 1 } else { 0 };
        at
    };
    let tuple = TUPLES.get(at)?;
    let mut start = whole(ctx)?;
    // With direct server return the packet before got an option, and its headers went towards its new beginning.
    // SAFETY: inside the packet, as `whole` has found.
    if unsafe { *((start + VERSION) as *const u8) } != 0x45 {
        // SAFETY: the context is the program's own; the helper checks the length.
        unsafe { bpf_xdp_adjust_head(ctx.ctx, OPTION) };
        start = whole(ctx)?;
        // SAFETY: as above.
        unsafe { ((start + START) as *mut [u16; 7]).write_unaligned(START_BYTES) };
    }
    // SAFETY: as above.
    unsafe {
        ((start + TTL) as *mut u8).write(64);
        ((start + ADDRESSES) as *mut [u32; 3]).write_unaligned(*tuple);
    }
    Some(())
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
