//! Socket hooks: translation once per connection, or per datagram of an unconnected socket.

use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use hawser_ebpf_common::lb::{ForwardSk4, ReverseSk4, SocketKey4};
use hawser_ebpf_common::metrics::{direction, reason};
use hawser_ebpf_common::{PROTO_TCP, PROTO_UDP};

use crate::count::count;
use crate::lb::{self, Selected};
use crate::maps::{FORWARD_SK, REVERSE_NAT, REVERSE_SK};

const ECONNREFUSED: i32 = 111;
const ALLOW: i32 = 1;
const REJECT: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    translate(&ctx, false)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    translate(&ctx, true)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    reverse(&ctx);
    ALLOW
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    reverse(&ctx);
    ALLOW
}

/// Remote address and port of the call. The reads are volatile because the verifier knows the
/// context's fields one by one: two of them must not become one wide load.
#[inline(always)]
fn remote(ctx: &SockAddrContext) -> (u32, u16) {
    let address = ctx.sock_addr;
    // SAFETY: the context is valid for the whole program; the verifier checks each access.
    unsafe {
        (addr_of!((*address).user_ip4).read_volatile(), addr_of!((*address).user_port).read_volatile() as u16)
    }
}

#[inline(always)]
fn set_remote(ctx: &SockAddrContext, address_be: u32, port_be: u16) {
    let address = ctx.sock_addr;
    // SAFETY: as in `remote`.
    unsafe {
        addr_of_mut!((*address).user_ip4).write_volatile(address_be);
        addr_of_mut!((*address).user_port).write_volatile(u32::from(port_be));
    }
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// Frontend → backend. `sticky`: datagrams of one socket to one frontend keep their backend.
#[inline(always)]
fn translate(ctx: &SockAddrContext, sticky: bool) -> i32 {
    // SAFETY: as in `remote`.
    let protocol = unsafe { addr_of!((*ctx.sock_addr).protocol).read_volatile() } as u8;
    if protocol != PROTO_TCP && protocol != PROTO_UDP {
        return ALLOW;
    }
    let (address_be, port_be) = remote(ctx);
    let cookie = cookie(ctx);
    let frontend = SocketKey4 { cookie, address_be, port_be, pad: 0 };
    let preferred = if sticky {
        // SAFETY: an element that the LRU map recycles meanwhile gives a wrong preference, which
        // the lookup then finds not to hold.
        unsafe { FORWARD_SK.get(&frontend) }.map(|entry| (entry.slot, entry.backend_id))
    } else {
        None
    };
    let choice = match lb::select(address_be, port_be, protocol, preferred) {
        Selected::NoService => return ALLOW,
        Selected::NoBackend => {
            count(direction::SOCKET, reason::NO_BACKEND, 0);
            // SAFETY: allowed in connect and sendmsg hooks; without it the caller would see EPERM.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            return REJECT;
        }
        Selected::Backend(choice) => choice,
    };
    let key = SocketKey4 { cookie, address_be: choice.address_be, port_be: choice.port_be, pad: 0 };
    let value = ReverseSk4 { rev_nat_id: choice.rev_nat_id, backend_id: choice.backend_id };
    // A failure costs the socket the frontend's name, not the connection.
    let _ = REVERSE_SK.insert(&key, &value, 0);
    if sticky && preferred.is_none_or(|(slot, id)| slot != choice.slot || id != choice.backend_id) {
        let value = ForwardSk4 { backend_id: choice.backend_id, slot: choice.slot, pad: 0 };
        let _ = FORWARD_SK.insert(&frontend, &value, 0);
    }
    count(direction::SOCKET, reason::TRANSLATED, 0);
    set_remote(ctx, choice.address_be, choice.port_be);
    ALLOW
}

/// Backend → frontend, when this socket was translated to that backend.
#[inline(always)]
fn reverse(ctx: &SockAddrContext) {
    let (address_be, port_be) = remote(ctx);
    let key = SocketKey4 { cookie: cookie(ctx), address_be, port_be, pad: 0 };
    // SAFETY: both values are copied at once; a recycled LRU element would name another live
    // frontend at worst, and only for a socket idle long enough to be evicted.
    let Some(entry) = (unsafe { REVERSE_SK.get(&key) }).copied() else { return };
    // SAFETY: the map is not preallocated, so the element stays readable.
    let Some(frontend) = (unsafe { REVERSE_NAT.get(&entry.rev_nat_id) }).copied() else { return };
    set_remote(ctx, frontend.address_be, frontend.port_be);
}
