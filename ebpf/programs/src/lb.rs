//! Frontend → backend.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use hawser_ebpf_common::lb::{ServiceKey4, ServiceValue4};

use crate::maps::{BACKENDS, SERVICES};

/// How often a choice starts again when an update took the slot away meanwhile.
const ATTEMPTS: u32 = 4;

/// A chosen backend.
#[derive(Clone, Copy)]
pub struct Choice {
    pub address_be: u32,
    pub port_be: u16,
    pub slot: u16,
    pub backend_id: u32,
    pub rev_nat_id: u32,
}

/// Result of a lookup.
pub enum Selected {
    /// No Service has this frontend.
    NoService,
    /// The Service has no usable endpoint.
    NoBackend,
    Backend(Choice),
}

#[inline(always)]
fn service(key: &ServiceKey4) -> Option<ServiceValue4> {
    // SAFETY: the map is not preallocated, so an element that is removed stays readable until this
    // program ends.
    unsafe { SERVICES.get(key) }.copied()
}

/// Chooses a backend at random, or the preferred one while its slot still holds it.
#[inline(always)]
pub fn select(address_be: u32, port_be: u16, protocol: u8, preferred: Option<(u16, u32)>) -> Selected {
    let key = ServiceKey4::master(address_be, port_be, protocol);
    for _ in 0..ATTEMPTS {
        let Some(master) = service(&key) else { return Selected::NoService };
        if master.count == 0 {
            return Selected::NoBackend;
        }
        let mut slot = 0u16;
        if let Some((wanted, id)) = preferred
            && wanted != 0
            && wanted <= master.count
            && service(&key.slot(master.generation, wanted)).is_some_and(|entry| entry.backend_id == id)
        {
            slot = wanted;
        }
        if slot == 0 {
            // SAFETY: the helper has no preconditions.
            let random = unsafe { bpf_get_prandom_u32() };
            slot = (random % u32::from(master.count)) as u16 + 1;
        }
        let Some(entry) = service(&key.slot(master.generation, slot)) else { continue };
        // SAFETY: as in `service`.
        let Some(backend) = (unsafe { BACKENDS.get(&entry.backend_id) }).copied() else { continue };
        return Selected::Backend(Choice {
            address_be: backend.address_be,
            port_be: backend.port_be,
            slot,
            backend_id: entry.backend_id,
            rev_nat_id: master.rev_nat_id,
        });
    }
    Selected::NoBackend
}

/// Whether a slot of the frontend still holds a backend.
#[inline(always)]
pub fn slot_holds(address_be: u32, port_be: u16, protocol: u8, slot: u16, backend_id: u32) -> bool {
    let key = ServiceKey4::master(address_be, port_be, protocol);
    let Some(master) = service(&key) else { return false };
    slot <= master.count
        && service(&key.slot(master.generation, slot)).is_some_and(|entry| entry.backend_id == backend_id)
}
