//! Socket hooks: translation once per connection, or per datagram of an unconnected socket.
//!
//! An IPv6 socket that speaks to a v4-mapped address (RFC 4291, 2.5.5.2) uses the maps of IPv4.

use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use hawser_ebpf_common::lb::{
    Address6, CLIENT_NETNS, CLIENT_NODE, CountedSocket, ForwardSk, ReverseSk, SCOPE_INTERNAL, SocketKey,
};
use hawser_ebpf_common::metrics::{direction, reason};
use hawser_ebpf_common::{PROTO_SCTP, PROTO_TCP, PROTO_UDP};

use crate::connections;
use crate::count::count;
use crate::lb::{self, Client, Family, LB_CONFIG, Lookup, Selected, V4, V6};

const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;
const ALLOW: i32 = 1;
const REJECT: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    translate::<Inet4>(&ctx, false)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    translate::<Inet4>(&ctx, true)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    reverse::<Inet4>(&ctx);
    ALLOW
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    reverse::<Inet4>(&ctx);
    ALLOW
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    if is_mapped(&ctx) { translate::<Mapped>(&ctx, false) } else { translate::<Inet6>(&ctx, false) }
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    if is_mapped(&ctx) { translate::<Mapped>(&ctx, true) } else { translate::<Inet6>(&ctx, true) }
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    if is_mapped(&ctx) {
        reverse::<Mapped>(&ctx)
    } else {
        reverse::<Inet6>(&ctx)
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    if is_mapped(&ctx) {
        reverse::<Mapped>(&ctx)
    } else {
        reverse::<Inet6>(&ctx)
    }
    ALLOW
}

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    // SAFETY: the helper takes the program's own context.
    connections::closed(unsafe { bpf_get_socket_cookie(ctx.as_ptr()) });
    ALLOW
}

/// Where a call carries its remote address. All accesses are volatile because the verifier knows the
/// context's fields one by one: two of them must not become one wide access.
trait Remote {
    type Family: Family;
    fn get(ctx: &SockAddrContext) -> <Self::Family as Family>::Address;
    fn set(ctx: &SockAddrContext, address: <Self::Family as Family>::Address);
}

/// IPv4 in a call of IPv4.
struct Inet4;
/// IPv6.
struct Inet6;
/// IPv4 in a call of IPv6.
struct Mapped;

impl Remote for Inet4 {
    type Family = V4;
    #[inline(always)]
    fn get(ctx: &SockAddrContext) -> u32 {
        // SAFETY: the context is valid for the whole program; the verifier checks each access.
        unsafe { addr_of!((*ctx.sock_addr).user_ip4).read_volatile() }
    }
    #[inline(always)]
    fn set(ctx: &SockAddrContext, address: u32) {
        // SAFETY: as in `get`.
        unsafe { addr_of_mut!((*ctx.sock_addr).user_ip4).write_volatile(address) }
    }
}

impl Remote for Inet6 {
    type Family = V6;
    #[inline(always)]
    fn get(ctx: &SockAddrContext) -> Address6 {
        [word(ctx, 0), word(ctx, 1), word(ctx, 2), word(ctx, 3)]
    }
    #[inline(always)]
    fn set(ctx: &SockAddrContext, address: Address6) {
        set_word(ctx, 0, address[0]);
        set_word(ctx, 1, address[1]);
        set_word(ctx, 2, address[2]);
        set_word(ctx, 3, address[3]);
    }
}

impl Remote for Mapped {
    type Family = V4;
    #[inline(always)]
    fn get(ctx: &SockAddrContext) -> u32 {
        word(ctx, 3)
    }
    #[inline(always)]
    fn set(ctx: &SockAddrContext, address: u32) {
        set_word(ctx, 3, address);
    }
}

#[inline(always)]
fn word(ctx: &SockAddrContext, index: usize) -> u32 {
    // SAFETY: as in `Inet4::get`; the index is below 4.
    unsafe { addr_of!((*ctx.sock_addr).user_ip6[index]).read_volatile() }
}

#[inline(always)]
fn set_word(ctx: &SockAddrContext, index: usize, word: u32) {
    // SAFETY: as in `word`.
    unsafe { addr_of_mut!((*ctx.sock_addr).user_ip6[index]).write_volatile(word) }
}

/// `::ffff:0:0/96`.
#[inline(always)]
fn is_mapped(ctx: &SockAddrContext) -> bool {
    word(ctx, 0) == 0 && word(ctx, 1) == 0 && word(ctx, 2) == 0xffffu32.to_be()
}

#[inline(always)]
fn port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: as in `Inet4::get`.
    unsafe { addr_of!((*ctx.sock_addr).user_port).read_volatile() as u16 }
}

#[inline(always)]
fn set_port(ctx: &SockAddrContext, port_be: u16) {
    // SAFETY: as in `Inet4::get`.
    unsafe { addr_of_mut!((*ctx.sock_addr).user_port).write_volatile(u32::from(port_be)) }
}

/// `IPPROTO_*`.
#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> u8 {
    // SAFETY: as in `Inet4::get`.
    unsafe { addr_of!((*ctx.sock_addr).protocol).read_volatile() as u8 }
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn netns_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The network namespace of the socket: a pod's, or the node's own.
#[inline(always)]
fn client(ctx: &SockAddrContext) -> Client {
    let cookie = netns_cookie(ctx);
    let node = LB_CONFIG.get(0).is_some_and(|config| config.node_netns_cookie == cookie);
    Client {
        id: [cookie as u32, (cookie >> 32) as u32, 0, 0],
        kind: if node { CLIENT_NODE } else { CLIENT_NETNS },
    }
}

/// Refuses the call with an error number.
#[inline(always)]
fn refuse(reason: u32, errno: i32) -> i32 {
    count(direction::SOCKET, reason, 0);
    // SAFETY: allowed in connect and sendmsg hooks; without it the caller would see EPERM.
    unsafe { bpf_set_retval(-errno) };
    REJECT
}

/// Frontend → backend. `sticky`: datagrams of one socket to one frontend keep their backend.
#[inline(always)]
fn translate<R: Remote>(ctx: &SockAddrContext, sticky: bool) -> i32 {
    let protocol = protocol(ctx);
    if protocol != PROTO_TCP && protocol != PROTO_UDP && protocol != PROTO_SCTP {
        return ALLOW;
    }
    let (address_be, port_be) = (R::get(ctx), port(ctx));
    let cookie = cookie(ctx);
    let frontend = SocketKey::new(cookie, address_be, port_be);
    let preferred = if sticky {
        // SAFETY: an element that the LRU map recycles meanwhile gives a wrong preference, which
        // the lookup then finds not to hold.
        unsafe { R::Family::forward_sk().get(&frontend) }.map(|entry| (entry.slot, entry.backend_id))
    } else {
        None
    };
    let lookup = Lookup { address_be, port_be, protocol, preferred };
    let choice = match lb::select::<R::Family>(&lookup, || client(ctx), || SCOPE_INTERNAL, || mix(cookie)) {
        Selected::NoService => return ALLOW,
        Selected::NoBackend => return refuse(reason::NO_BACKEND, ECONNREFUSED),
        Selected::Drop(reason) => return refuse(reason, EHOSTUNREACH),
        Selected::Backend(choice) => choice,
    };
    let netns_cookie = netns_cookie(ctx);
    let counted = protocol == PROTO_TCP && {
        let socket = CountedSocket {
            netns_cookie,
            address_be: R::Family::words(choice.address_be),
            backend_id: choice.backend_id,
            rev_nat_id: choice.rev_nat_id,
            port_be: choice.port_be,
            pad: 0,
            family: R::Family::NUMBER,
        };
        connections::opened(cookie, &socket)
    };
    if !counted {
        let key = SocketKey::new(cookie, choice.address_be, choice.port_be);
        let value = ReverseSk { rev_nat_id: choice.rev_nat_id, backend_id: choice.backend_id, netns_cookie };
        // A failure costs the socket the frontend's name, not the connection.
        let _ = R::Family::reverse_sk().insert(&key, &value, 0);
    }
    if sticky && preferred.is_none_or(|(slot, id)| slot != choice.slot || id != choice.backend_id) {
        let value = ForwardSk { backend_id: choice.backend_id, slot: choice.slot, pad: 0 };
        let _ = R::Family::forward_sk().insert(&frontend, &value, 0);
    }
    count(direction::SOCKET, reason::TRANSLATED, 0);
    R::set(ctx, choice.address_be);
    set_port(ctx, choice.port_be);
    ALLOW
}

/// Spreads the bits of a cookie, which counts up.
#[inline(always)]
fn mix(cookie: u64) -> u32 {
    (cookie.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

/// Backend → frontend, when this socket was translated to that backend.
#[inline(always)]
fn reverse<R: Remote>(ctx: &SockAddrContext) {
    let (cookie, address_be, port_be) = (cookie(ctx), R::get(ctx), port(ctx));
    let known = if protocol(ctx) == PROTO_TCP { connections::socket(cookie) } else { None };
    let rev_nat_id = match known {
        Some(socket)
            if socket.port_be == port_be
                && socket.family == R::Family::NUMBER
                && socket.address_be == R::Family::words(address_be) =>
        {
            socket.rev_nat_id
        }
        _ => {
            let key = SocketKey::new(cookie, address_be, port_be);
            // SAFETY: the value is read at once; a recycled LRU element would name another live frontend at worst, and
            // only for a socket idle long enough to be evicted.
            let Some(entry) = (unsafe { R::Family::reverse_sk().get(&key) }) else { return };
            entry.rev_nat_id
        }
    };
    let Some(frontend) = lb::reverse_nat::<R::Family>(rev_nat_id) else { return };
    R::set(ctx, frontend.address_be);
    set_port(ctx, frontend.port_be);
}
