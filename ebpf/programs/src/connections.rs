//! Counts of open connections by backend, for the choice by load.
//!
//! A socket is counted when it connects and no more when it is closed by the program that opened it. Which
//! sockets are counted is a map of its own: the counts can always be made again from it.

use core::arch::asm;

use aya_ebpf::bindings::BPF_NOEXIST;
use hawser_ebpf_common::lb::{CountedSocket, SocketKey};

use crate::lb::{self, CONNECTIONS, Family, SOCKETS, V4, V6};

const NOEXIST: u64 = BPF_NOEXIST as u64;

/// Adds to a backend's count, if there is one.
#[inline(always)]
fn add(backend_id: u32, by: u64) -> bool {
    let Some(count) = CONNECTIONS.get_ptr_mut(&backend_id) else { return false };
    // SAFETY: the element is eight bytes and aligned; other programs change it in this way only.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) count, in(reg) by) };
    true
}

/// A socket connects to a backend.
#[inline(always)]
pub fn opened<F: Family>(cookie: u64, backend_id: u32, rev_nat_id: u32) {
    // A socket may connect again after a failure.
    closed(cookie);
    let socket = CountedSocket { backend_id, rev_nat_id, family: F::NUMBER, pad: 0 };
    // A full map costs the choice some knowledge, not the connection.
    if SOCKETS.insert(&cookie, &socket, NOEXIST).is_ok() {
        // The first connection makes the count; of two first ones at a time one finds it made.
        if !add(backend_id, 1) && CONNECTIONS.insert(&backend_id, &1, NOEXIST).is_err() {
            add(backend_id, 1);
        }
    }
}

/// A socket is closed, whether it was counted or not.
#[inline(always)]
pub fn closed(cookie: u64) {
    // SAFETY: the map is not preallocated.
    let Some(socket) = (unsafe { SOCKETS.get(&cookie) }).copied() else { return };
    if SOCKETS.remove(&cookie).is_err() {
        return;
    }
    // The count of a backend that is gone went with it.
    add(socket.backend_id, 1u64.wrapping_neg());
    if socket.family == V6::NUMBER {
        forget::<V6>(cookie, socket.backend_id);
    } else {
        forget::<V4>(cookie, socket.backend_id);
    }
}

/// Nobody asks for the peer of a socket that is closed.
#[inline(always)]
fn forget<F: Family>(cookie: u64, backend_id: u32) {
    if let Some(backend) = lb::backend::<F>(backend_id) {
        let _ = F::reverse_sk().remove(&SocketKey::new(cookie, backend.address_be, backend.port_be));
    }
}
