//! The flow cache of XDP: what connection tracking said of a flow in this second, so that it is asked once a second and not
//! for every packet. A packet that finds its flow's line touches one line of the processor's cache where connection tracking
//! takes three, each behind a miss of the TLB.
//!
//! Lines hold TCP's established connections, because datagrams and what opens a connection must ask for the Service. What
//! connection tracking keeps watch over once a second (see [`ct::epoch`]), it still does, with the first packet of the
//! second. That packet also tells it how many others there were. They are never told if the flow says nothing any more,
//! ends without FIN or RST, and no other flow takes its line.
//!
//! The fewer bytes a line has, the more flows stay in the processor's cache. So next hops are in a table of their own, and
//! counts are told before they outgrow a few bits.

use hawser_ebpf_common::PROTO_TCP;
use hawser_ebpf_common::ct::{CT_CLOSING, CtKey};
use hawser_ebpf_common::flow::{LINES4, LINES6};
use hawser_ebpf_common::lb::Address6;

use crate::ct::{self, Rewrite, Untold, epoch, now_ns};
use crate::family::Family;
use crate::frame::Frame;
use crate::maps::FLOW_HOPS;
use crate::packet::{Packet, TCP_FIN, TCP_RST, TCP_SYN};

/// How many elements the maps have, as the loader says. Powers of two.
#[unsafe(no_mangle)]
static FLOW_CHUNKS4: u32 = 1;
#[unsafe(no_mangle)]
static FLOW_CHUNKS6: u32 = 1;

/// One flow. It is TCP's, so its tuple needs no protocol.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Line<A> {
    saddr_be: A,
    daddr_be: A,
    /// Both 0: there is no flow.
    sport_be: u16,
    dport_be: u16,
    new_sport_be: u16,
    new_dport_be: u16,
    new_saddr_be: A,
    new_daddr_be: A,
    state: State,
}

/// In one word, from the top: when connection tracking was asked, the place of the next hop, and what it is not told yet,
/// packets and bytes. The time comes again after 208 days, which matters to a flow that sleeps for just so long, and whose line
/// nobody takes meanwhile.
#[repr(C)]
#[derive(Clone, Copy)]
struct State(u64);

const BYTES_BITS: u32 = 20;
const PACKETS_BITS: u32 = 10;
const HOP_BITS: u32 = 10;
const PACKETS_SHIFT: u32 = BYTES_BITS;
const HOP_SHIFT: u32 = PACKETS_SHIFT + PACKETS_BITS;
const TIME_SHIFT: u32 = HOP_SHIFT + HOP_BITS;

/// Link-layer addresses, each with the time (16 bits) in which a line was last given its place. While that time lasts it
/// stays, so that a line of that time may rely on it.
pub type Hops = [u64; 1 << HOP_BITS];
const MAC_BITS: u32 = 48;

/// Lines in one element of the maps.
pub type Chunk4 = [Line<u32>; LINES4 as usize];
pub type Chunk6 = [Line<Address6>; LINES6 as usize];

const _: () = assert!(size_of::<Line<u32>>() == 32 && size_of::<Line<Address6>>() == 80);

impl State {
    /// Nothing is untold.
    #[inline(always)]
    fn new(time: u32, hop: u32) -> Self {
        Self(u64::from(time) << TIME_SHIFT | u64::from(hop) << HOP_SHIFT)
    }

    #[inline(always)]
    fn is_of(self, time: u32) -> bool {
        self.0 >> TIME_SHIFT == u64::from(time) & (1 << (64 - TIME_SHIFT)) - 1
    }

    #[inline(always)]
    fn untold(self) -> Untold {
        Untold {
            packets: self.0 >> PACKETS_SHIFT & (1 << PACKETS_BITS) - 1,
            bytes: self.0 & (1 << BYTES_BITS) - 1,
        }
    }

    /// With another packet, if there is room to count it.
    #[inline(always)]
    fn counted(self, len: u32) -> Option<Self> {
        let Untold { packets, bytes } = self.untold();
        if packets + 1 >> PACKETS_BITS != 0 || bytes + u64::from(len) >> BYTES_BITS != 0 {
            return None;
        }
        Some(Self(self.0 + (1 << PACKETS_SHIFT) + u64::from(len)))
    }

    #[inline(always)]
    fn hop(self) -> usize {
        (self.0 >> HOP_SHIFT & (1 << HOP_BITS) - 1) as usize
    }
}

impl<A: Copy + PartialEq> Line<A> {
    #[inline(always)]
    fn is_of(&self, tuple: &CtKey<A>) -> bool {
        self.sport_be == tuple.sport_be
            && self.dport_be == tuple.dport_be
            && self.saddr_be == tuple.saddr_be
            && self.daddr_be == tuple.daddr_be
    }

    #[inline(always)]
    fn tuple(&self) -> CtKey<A> {
        CtKey {
            saddr_be: self.saddr_be,
            daddr_be: self.daddr_be,
            sport_be: self.sport_be,
            dport_be: self.dport_be,
            protocol: PROTO_TCP,
            pad: [0; 3],
        }
    }
}

#[inline(always)]
pub fn chunks4() -> u32 {
    // SAFETY: a static; volatile because the loader sets it.
    unsafe { core::ptr::read_volatile(&FLOW_CHUNKS4) }
}

#[inline(always)]
pub fn chunks6() -> u32 {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(&FLOW_CHUNKS6) }
}

/// A line and its neighbour.
#[inline(always)]
pub fn pair<L, const N: usize>(chunk: *mut [L; N], line: u32) -> [*mut L; 2] {
    let first: *mut L = chunk.cast();
    let line = line as usize;
    // SAFETY: the caller's number is below N, a power of two, and so is its neighbour's.
    unsafe { [first.add(line), first.add(line ^ 1)] }
}

/// Whether packets like this one may come from a line.
#[inline(always)]
fn fits<A>(packet: &Packet<A>) -> bool {
    packet.tuple.protocol == PROTO_TCP
        && packet.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) == 0
        && packet.tuple.sport_be != 0
}

/// The line that a flow has.
#[inline(always)]
fn find<F: Family>(tuple: &CtKey<F::Address>) -> Option<*mut Line<F::Address>> {
    let [first, second] = F::lines(tuple)?;
    // SAFETY: elements of a per-CPU array, always there, and used by one program at a time.
    unsafe {
        if (*first).is_of(tuple) {
            Some(first)
        } else if (*second).is_of(tuple) {
            Some(second)
        } else {
            None
        }
    }
}

/// Counts a packet whose flow was asked for in this second, and writes aside what it becomes. 0: there is no such flow here.
#[inline(never)]
pub fn serve<F: Family, P: Frame>(frame: &P, packet: &Packet<F::Address>) -> u64 {
    if !fits(packet) {
        return 0;
    }
    let Some(line) = find::<F>(&packet.tuple) else { return 0 };
    let Some(aside) = F::aside() else { return 0 };
    let Some(hops) = FLOW_HOPS.get_ptr_mut(0) else { return 0 };
    // SAFETY: as in `find`, and the same for the others.
    unsafe {
        let state = (*line).state;
        if !state.is_of(epoch(now_ns())) {
            return 0;
        }
        let Some(state) = state.counted(frame.len()) else { return 0 };
        (*line).state = state;
        let [a, b, c, d, e, f, ..] = (*hops)[state.hop()].to_ne_bytes();
        (*aside).to = Rewrite {
            saddr_be: (*line).new_saddr_be,
            daddr_be: (*line).new_daddr_be,
            sport_be: (*line).new_sport_be,
            dport_be: (*line).new_dport_be,
            // Of no interest to a packet that opens nothing.
            flags: 0,
            backend_id: 0,
            slot: 0,
            next_hop: [a, b, c, d, e, f],
            again: true,
        };
    }
    1
}

/// Empties a flow's line. Returns the packets that were to be told, and with them the one that is worked on.
#[inline(always)]
pub fn take<F: Family, P: Frame>(frame: &P, packet: &Packet<F::Address>) -> Untold {
    let mut untold = Untold::one(frame);
    if packet.tuple.protocol == PROTO_TCP
        && let Some(line) = find::<F>(&packet.tuple)
    {
        // SAFETY: as in `find`.
        unsafe {
            let others = (*line).state.untold();
            untold.packets += others.packets;
            untold.bytes += others.bytes;
            (*line).sport_be = 0;
            (*line).dport_be = 0;
            (*line).state = State(0);
        }
    }
    untold
}

/// Gives a flow a line, if it has packets more than once a second. `busy`: it had a line until now.
#[inline(always)]
pub fn keep<F: Family>(packet: &Packet<F::Address>, to: &Rewrite<F::Address>, busy: bool) {
    let is_settled = to.next_hop != [0; 6] && to.flags & CT_CLOSING == 0;
    if fits(packet) && is_settled && (busy || to.again) && !ct::migrating() {
        fill::<F>(&packet.tuple, to);
    }
}

#[inline(never)]
fn fill<F: Family>(tuple: &CtKey<F::Address>, to: &Rewrite<F::Address>) -> u64 {
    let Some([first, second]) = F::lines(tuple) else { return 0 };
    let time = epoch(now_ns());
    // SAFETY: as in `find`.
    unsafe {
        let line = if (*first).state.0 == 0 {
            first
        } else if (*second).state.0 == 0 {
            second
        } else if !(*first).state.is_of(time) {
            first
        } else if !(*second).state.is_of(time) {
            second
        } else {
            // Flows that had packets in this second keep their lines.
            return 0;
        };
        let Some(hop) = hop(time, to.next_hop) else { return 0 };
        let untold = (*line).state.untold();
        if untold.packets != 0 {
            untold.tell::<F>(&(*line).tuple());
        }
        *line = Line {
            saddr_be: tuple.saddr_be,
            daddr_be: tuple.daddr_be,
            sport_be: tuple.sport_be,
            dport_be: tuple.dport_be,
            new_sport_be: to.sport_be,
            new_dport_be: to.dport_be,
            new_saddr_be: to.saddr_be,
            new_daddr_be: to.daddr_be,
            state: State::new(time, hop),
        };
    }
    1
}

/// The place of a link-layer address; `None` when others have what it could have.
#[inline(always)]
fn hop(time: u32, mac: [u8; 6]) -> Option<u32> {
    let hops = FLOW_HOPS.get_ptr_mut(0)?;
    let [a, b, c, d, e, f] = mac;
    let mac = u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]);
    let wanted = mac | u64::from(time) << MAC_BITS;
    let first = (mac.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - HOP_BITS)) as u32;
    for place in [first, first ^ 1] {
        // SAFETY: an element of a per-CPU array, always there, and used by one program at a time.
        let there = unsafe { &mut (*hops)[place as usize] };
        if *there == wanted {
            return Some(place);
        }
        if *there >> MAC_BITS != wanted >> MAC_BITS {
            *there = wanted;
            return Some(place);
        }
    }
    None
}
