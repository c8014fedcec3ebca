//! Sockets of TCP that were translated: whom each asked for and whom it speaks to, and counts of open connections by
//! backend, for the choice by load.
//!
//! A socket is counted when it connects and no more when it is closed by the program that opened it. Which sockets are
//! counted is a map of its own: the counts can always be made again from it.

use core::arch::asm;

use aya_ebpf::bindings::BPF_NOEXIST;
use hawser_ebpf_common::endpoint::CONFIG_MIGRATING;
use hawser_ebpf_common::lb::CountedSocket;

use crate::forward::config;
use crate::lb::{CONNECTIONS, OLD_SOCKETS, SOCKETS};

const NOEXIST: u64 = BPF_NOEXIST as u64;

/// Adds to a backend's count, if there is one.
#[inline(always)]
fn add(backend_id: u32, by: u64) -> bool {
    let Some(count) = CONNECTIONS.get_ptr_mut(&backend_id) else { return false };
    // SAFETY: the element is eight bytes and aligned; other programs change it in this way only.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) count, in(reg) by) };
    true
}

/// A socket connects to a backend. `false`: the map is full, and nothing is known of it.
#[inline(always)]
pub fn opened(cookie: u64, socket: &CountedSocket) -> bool {
    if SOCKETS.insert(&cookie, socket, NOEXIST).is_err() {
        // It connects again after a failure, and is forgotten where it failed.
        closed(cookie);
        if SOCKETS.insert(&cookie, socket, NOEXIST).is_err() {
            return false;
        }
    }
    // The first connection makes the count; of two first ones at a time one finds it made.
    if !add(socket.backend_id, 1) && CONNECTIONS.insert(&socket.backend_id, &1, NOEXIST).is_err() {
        add(socket.backend_id, 1);
    }
    true
}

/// What is known of a socket.
#[inline(always)]
pub fn socket(cookie: u64) -> Option<CountedSocket> {
    // SAFETY: the map is not preallocated.
    unsafe { SOCKETS.get(&cookie) }.copied()
}

/// A socket is closed, whether it was counted or not.
#[inline(always)]
pub fn closed(cookie: u64) {
    // SAFETY: the map is not preallocated.
    let backend_id = unsafe { SOCKETS.get(&cookie) }.map(|socket| socket.backend_id);
    let known = backend_id.is_some() && SOCKETS.remove(&cookie).is_ok();
    // The count of a backend that is gone went with it.
    if let (true, Some(backend_id)) = (known, backend_id) {
        add(backend_id, 1u64.wrapping_neg());
    }
    if config().flags & CONFIG_MIGRATING != 0 {
        closed_before(cookie, known);
    }
}

/// The same for a socket of an older layout, which is on its way from one map into the other.
#[inline(never)]
fn closed_before(cookie: u64, known: bool) -> u64 {
    // SAFETY: the map is not preallocated.
    let Some(backend_id) = (unsafe { OLD_SOCKETS.get(&cookie) }).map(|socket| socket.backend_id) else {
        return 0;
    };
    if OLD_SOCKETS.remove(&cookie).is_ok() && !known {
        add(backend_id, 1u64.wrapping_neg());
    }
    0
}
