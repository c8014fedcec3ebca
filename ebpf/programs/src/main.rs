//! Hawser's eBPF programs: service translation at the socket and at tc, and the pods' routing.
//!
//! | program | hook | does |
//! |---|---|---|
//! | `connect4`, `sendmsg4`, `connect6`, `sendmsg6` | cgroup | frontend → backend before a packet exists |
//! | `recvmsg4`, `getpeername4`, `recvmsg6`, `getpeername6` | cgroup | backend → frontend in what the socket is told |
//! | `sock_release` | cgroup | the connection is open no more |
//! | `from_pod` | tc ingress of a pod's veth | translation for what the hooks do not see; routing |
//! | `to_pod` | tc egress of a pod's veth | answers that come out of the node's stack |
//! | `from_uplink` | tc ingress of the uplink | translation, delivery to pods; answers for addresses that this node announces |
//! | `to_uplink` | tc egress of the uplink | masquerade, answers of the node itself |
//! | `from_tunnel`, `to_tunnel` | tc of the VXLAN device | what comes from other nodes' pods; the other end's address |
//! | `xdp_uplink` | XDP of the uplink | Services whose backend is on another node |
//! | `xdp_pass` | XDP of a veth uplink's other end | nothing; without it veth drops what XDP sends |
#![no_std]
#![no_main]
// The target has an atomic addition, but `core` offers none where there is no compare-and-swap.
#![feature(asm_experimental_arch)]

mod announce;
mod connections;
mod count;
mod ct;
mod dsr;
mod family;
mod far;
mod flow;
mod forward;
mod frame;
mod hop;
mod lb;
mod maps;
mod nat;
mod near;
mod packet;
mod reject;
mod rewrite;
mod sock;
mod tc;
mod xdp;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel gives some helpers only to programs under a licence that is compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
