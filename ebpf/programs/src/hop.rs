//! Next hops on the uplink, as each CPU found them. One question to the kernel's routes and neighbours a second serves all
//! flows to an address, and a new flow knows its next hop when its entry is written.

use crate::ct::{epoch, now_ns};
use crate::family::Family;

/// How many addresses each CPU remembers. A power of two.
pub const HOPS_COUNT: u32 = 1024;

/// What was found for one of the addresses that share this place.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Hop<A> {
    address_be: A,
    /// When.
    epoch: u32,
    /// Link-layer address.
    to: [u8; 6],
    pad: u16,
}

#[inline(always)]
fn place<F: Family>(address_be: F::Address) -> Option<*mut Hop<F::Address>> {
    let [a, b, c, d] = F::words(address_be);
    let hash = (a ^ b ^ c ^ d).wrapping_mul(0x9e37_79b9);
    F::hops().get_ptr_mut(hash >> (32 - HOPS_COUNT.ilog2()))
}

/// The next hop towards an address, if this CPU asked for it of late; else zeroes.
#[inline(always)]
pub fn known<F: Family>(address_be: F::Address, now: u64) -> [u8; 6] {
    match place::<F>(address_be) {
        // SAFETY: an element of a per-CPU array, always there. A program that interrupts this one, at another hook,
        // writes whole elements from the same tables.
        Some(hop) => unsafe {
            if (*hop).address_be == address_be && (*hop).epoch == epoch(now) { (*hop).to } else { [0; 6] }
        },
        None => [0; 6],
    }
}

/// Remembers what the kernel said.
#[inline(always)]
pub fn learn<F: Family>(address_be: F::Address, to: [u8; 6]) {
    if let Some(hop) = place::<F>(address_be) {
        // SAFETY: as in `known`.
        unsafe { *hop = Hop { address_be, epoch: epoch(now_ns()), to, pad: 0 } };
    }
}
