//! What differs between IPv4 and IPv6. Everything else is written once, over this trait.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use hawser_ebpf_common::ct::{CtEntry, CtKey, FragmentKey, FragmentPorts, OldCtEntry};
use hawser_ebpf_common::endpoint::{Endpoint4, HAIRPIN_ADDRESS, HAIRPIN_ADDRESS6, NodeConfig};
use hawser_ebpf_common::flow::{LINES4, LINES6, Place, hash4, hash6};
use hawser_ebpf_common::lb::Address6;
use hawser_ebpf_common::{PROTO_ICMP, PROTO_ICMP6};

use crate::flow::{self, Line};
use crate::frame::{Change, Frame};
use crate::hop::Hop;
use crate::lb::{self, Client};
pub use crate::lb::{V4, V6};
use crate::maps::{
    ASIDE, ASIDE6, CT, CT6, ENDPOINTS, ENDPOINTS6, FLOWS, FLOWS6, FRAGMENTS, FRAGMENTS6, HOPS, HOPS6,
    IPCACHE, IPCACHE6, OLD_CT, OLD_CT6,
};
use crate::near::{NEAR4, NEAR6};
use crate::packet::{Aside, Header, IP_LEN, IP6_LEN, header4, header6};

/// What is known of the prefix that an address lies in.
#[derive(Clone, Copy)]
pub struct Prefix<A> {
    pub node_be: A,
    /// It is behind another node.
    pub remote: bool,
    /// Where a tunnel to that node leads: zeroes when there is none, IPv4-mapped (RFC 4291, 2.5.5.2) over IPv4.
    pub tunnel_be: Address6,
    pub identity: u32,
    pub flags: u32,
}

/// An address family.
pub trait Family: lb::Family<Address: PartialEq> {
    const V6: bool;
    /// `AF_INET` or `AF_INET6`.
    const AF: u32;
    /// Where addresses and the hop limit lie in the IP header.
    const SADDR: usize;
    const DADDR: usize;
    const TTL: usize;
    /// Length of an IP header without options or extension headers.
    const HEADER_LEN: usize;
    /// Its ICMP.
    const ICMP: u8;
    const ECHO_REQUEST: u8;
    const ECHO_REPLY: u8;

    /// Whether messages of this type quote the packet that they are about.
    fn is_error(kind: u8) -> bool;
    fn header<P: Frame>(frame: &P, l3: usize) -> Result<Header<Self::Address>, u32>;
    fn change(sum: Change, old: Self::Address, new: Self::Address) -> Change;
    fn ct() -> &'static LruHashMap<CtKey<Self::Address>, CtEntry<Self::Address>>;
    /// Of an older layout.
    fn old_ct() -> &'static LruHashMap<CtKey<Self::Address>, OldCtEntry<Self::Address>>;
    fn fragments() -> &'static LruHashMap<FragmentKey<Self::Address>, FragmentPorts>;
    /// The pod of this node that has an address.
    fn endpoint(address_be: Self::Address) -> Option<Endpoint4>;
    /// Node and identity of an address.
    fn ipcache(address_be: Self::Address) -> Option<Prefix<Self::Address>>;
    fn node_ip(config: &NodeConfig) -> Self::Address;
    fn hairpin() -> Self::Address;
    fn client(address_be: Self::Address) -> Client;
    /// What sockets know of where their packets go.
    fn near() -> *mut c_void;
    /// Memory of this CPU.
    fn aside() -> Option<*mut Aside<Self::Address>>;
    /// Next hops that this CPU found.
    fn hops() -> &'static PerCpuArray<Hop<Self::Address>>;
    /// The two lines of this CPU's flow cache that a flow may have, the one to look at first before the other.
    fn lines(tuple: &CtKey<Self::Address>) -> Option<[*mut Line<Self::Address>; 2]>;
}

impl Family for V4 {
    const V6: bool = false;
    const AF: u32 = 2;
    const SADDR: usize = 12;
    const DADDR: usize = 16;
    const TTL: usize = 8;
    const HEADER_LEN: usize = IP_LEN;
    const ICMP: u8 = PROTO_ICMP;
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        // Destination unreachable, time exceeded, parameter problem (RFC 792).
        kind == 3 || kind == 11 || kind == 12
    }

    #[inline(always)]
    fn header<P: Frame>(frame: &P, l3: usize) -> Result<Header<u32>, u32> {
        header4(frame, l3)
    }

    #[inline(always)]
    fn change(sum: Change, old: u32, new: u32) -> Change {
        sum.word(old, new)
    }

    #[inline(always)]
    fn ct() -> &'static LruHashMap<CtKey<u32>, CtEntry<u32>> {
        &CT
    }

    #[inline(always)]
    fn old_ct() -> &'static LruHashMap<CtKey<u32>, OldCtEntry<u32>> {
        &OLD_CT
    }

    #[inline(always)]
    fn fragments() -> &'static LruHashMap<FragmentKey<u32>, FragmentPorts> {
        &FRAGMENTS
    }

    #[inline(always)]
    fn endpoint(address_be: u32) -> Option<Endpoint4> {
        // SAFETY: the map is not preallocated, so an element that is removed stays readable.
        unsafe { ENDPOINTS.get(&address_be) }.copied()
    }

    #[inline(always)]
    fn ipcache(address_be: u32) -> Option<Prefix<u32>> {
        let entry = IPCACHE.get(&Key::new(32, address_be))?;
        Some(Prefix {
            node_be: entry.node_ip_be,
            remote: entry.node_ip_be != 0,
            tunnel_be: mapped(entry.node_ip_be),
            identity: entry.identity,
            flags: entry.flags,
        })
    }

    #[inline(always)]
    fn node_ip(config: &NodeConfig) -> u32 {
        config.node_ip_be
    }

    #[inline(always)]
    fn hairpin() -> u32 {
        u32::from_ne_bytes(HAIRPIN_ADDRESS)
    }

    #[inline(always)]
    fn near() -> *mut c_void {
        ptr::from_ref(&NEAR4).cast_mut().cast()
    }

    #[inline(always)]
    fn aside() -> Option<*mut Aside<u32>> {
        ASIDE.get_ptr_mut(0)
    }

    #[inline(always)]
    fn hops() -> &'static PerCpuArray<Hop<u32>> {
        &HOPS
    }

    #[inline(always)]
    fn lines(tuple: &CtKey<u32>) -> Option<[*mut Line<u32>; 2]> {
        let place = Place::of(hash4(tuple), flow::chunks4(), LINES4);
        Some(flow::pair(FLOWS.get_ptr_mut(place.chunk)?, place.line))
    }

    #[inline(always)]
    fn client(address_be: u32) -> Client {
        Client::address4(address_be)
    }
}

/// The IPv4-mapped form of an address of IPv4; zeroes stay zeroes.
#[inline(always)]
fn mapped(address_be: u32) -> Address6 {
    match address_be {
        0 => [0; 4],
        _ => [0, 0, 0xffff_u32.to_be(), address_be],
    }
}

/// The address of IPv4 in an IPv4-mapped one.
#[inline(always)]
pub fn unmapped(address_be: Address6) -> Option<u32> {
    let is_mapped = address_be[0] | address_be[1] == 0 && address_be[2] == 0xffff_u32.to_be();
    if is_mapped { Some(address_be[3]) } else { None }
}

impl Family for V6 {
    const V6: bool = true;
    const AF: u32 = 10;
    const SADDR: usize = 8;
    const DADDR: usize = 24;
    const TTL: usize = 7;
    const HEADER_LEN: usize = IP6_LEN;
    const ICMP: u8 = PROTO_ICMP6;
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        // RFC 4443, 2.1: error messages have the high bit clear; 1 to 4 are defined.
        kind >= 1 && kind <= 4
    }

    #[inline(always)]
    fn header<P: Frame>(frame: &P, l3: usize) -> Result<Header<Address6>, u32> {
        header6(frame, l3)
    }

    #[inline(always)]
    fn change(sum: Change, old: Address6, new: Address6) -> Change {
        sum.word(old[0], new[0]).word(old[1], new[1]).word(old[2], new[2]).word(old[3], new[3])
    }

    #[inline(always)]
    fn ct() -> &'static LruHashMap<CtKey<Address6>, CtEntry<Address6>> {
        &CT6
    }

    #[inline(always)]
    fn old_ct() -> &'static LruHashMap<CtKey<Address6>, OldCtEntry<Address6>> {
        &OLD_CT6
    }

    #[inline(always)]
    fn fragments() -> &'static LruHashMap<FragmentKey<Address6>, FragmentPorts> {
        &FRAGMENTS6
    }

    #[inline(always)]
    fn endpoint(address_be: Address6) -> Option<Endpoint4> {
        // SAFETY: as for IPv4.
        unsafe { ENDPOINTS6.get(&address_be) }.copied()
    }

    #[inline(always)]
    fn ipcache(address_be: Address6) -> Option<Prefix<Address6>> {
        let entry = IPCACHE6.get(&Key::new(128, address_be))?;
        Some(Prefix {
            node_be: entry.node_ip_be,
            remote: entry.node_ip_be != [0; 4],
            tunnel_be: entry.node_ip_be,
            identity: entry.identity,
            flags: entry.flags,
        })
    }

    #[inline(always)]
    fn node_ip(config: &NodeConfig) -> Address6 {
        config.node_ip6_be
    }

    #[inline(always)]
    fn hairpin() -> Address6 {
        const HAIRPIN: Address6 = {
            let b = HAIRPIN_ADDRESS6;
            [
                u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
                u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
                u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
                u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
            ]
        };
        HAIRPIN
    }

    #[inline(always)]
    fn near() -> *mut c_void {
        ptr::from_ref(&NEAR6).cast_mut().cast()
    }

    #[inline(always)]
    fn aside() -> Option<*mut Aside<Address6>> {
        ASIDE6.get_ptr_mut(0)
    }

    #[inline(always)]
    fn hops() -> &'static PerCpuArray<Hop<Address6>> {
        &HOPS6
    }

    #[inline(always)]
    fn lines(tuple: &CtKey<Address6>) -> Option<[*mut Line<Address6>; 2]> {
        let place = Place::of(hash6(tuple), flow::chunks6(), LINES6);
        Some(flow::pair(FLOWS6.get_ptr_mut(place.chunk)?, place.line))
    }

    #[inline(always)]
    fn client(address_be: Address6) -> Client {
        Client::address6(address_be)
    }
}
