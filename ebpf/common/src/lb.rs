//! Load balancer: frontends, slots, backends, reverse translation.

map_types! {
    /// Key of `hawser_lb4_services`.
    ///
    /// Slot 0 of generation 0 is the frontend's master entry. Slots `1..=count` of the generation that
    /// the master entry names hold the backends.
    pub struct ServiceKey4 [12] {
        /// Frontend address.
        pub address_be: u32,
        /// Frontend port.
        pub port_be: u16,
        /// 0 for the master entry, else `1..=count`.
        pub slot: u16,
        /// Generation of a slot; 0 in the master's key.
        pub generation: u16,
        /// `IPPROTO_*`.
        pub protocol: u8,
        /// Reserved for internal and external scope; 0.
        pub scope: u8,
    }

    /// Value of `hawser_lb4_services`.
    pub struct ServiceValue4 [16] {
        /// Slot entries: the backend. Master entry: 0.
        pub backend_id: u32,
        /// Key into `hawser_lb4_reverse_nat`.
        pub rev_nat_id: u32,
        /// Master entry: how many slots there are. Slot entries: 0.
        pub count: u16,
        /// Master entry: the generation of the slots in force.
        pub generation: u16,
        /// `SERVICE_*`.
        pub flags: u16,
        /// Zero.
        pub pad: u16,
    }

    /// Value of `hawser_lb4_backends`; the key is the backend's id.
    pub struct Backend4 [8] {
        /// Backend address.
        pub address_be: u32,
        /// Backend port.
        pub port_be: u16,
        /// `IPPROTO_*`.
        pub protocol: u8,
        /// `BACKEND_*`.
        pub flags: u8,
    }

    /// Value of `hawser_lb4_reverse_nat`; the key is the frontend's `rev_nat` id.
    pub struct ReverseNat4 [8] {
        /// Frontend address.
        pub address_be: u32,
        /// Frontend port.
        pub port_be: u16,
        /// `IPPROTO_*`.
        pub protocol: u8,
        /// Zero.
        pub pad: u8,
    }

    /// Key of `hawser_lb4_revsk` (address of the backend) and `hawser_lb4_fwdsk` (of the frontend).
    pub struct SocketKey4 [16] {
        /// `SO_COOKIE`.
        pub cookie: u64,
        /// Remote address.
        pub address_be: u32,
        /// Remote port.
        pub port_be: u16,
        /// Zero.
        pub pad: u16,
    }

    /// Value of `hawser_lb4_revsk`.
    pub struct ReverseSk4 [8] {
        /// Key into `hawser_lb4_reverse_nat`.
        pub rev_nat_id: u32,
        /// Backend that was chosen.
        pub backend_id: u32,
    }

    /// Value of `hawser_lb4_fwdsk`: keeps an unconnected UDP socket on one backend.
    pub struct ForwardSk4 [8] {
        /// Backend that was chosen.
        pub backend_id: u32,
        /// Its slot. The choice holds while that slot holds that backend.
        pub slot: u16,
        /// Zero.
        pub pad: u16,
    }
}

/// The backend is terminating and only used because no other is ready.
pub const BACKEND_TERMINATING: u8 = 1;

/// The frontend belongs to a Service with `internalTrafficPolicy: Local`.
pub const SERVICE_INTERNAL_LOCAL: u16 = 1;

impl ServiceKey4 {
    /// Key of the frontend's master entry.
    pub const fn master(address_be: u32, port_be: u16, protocol: u8) -> Self {
        Self { address_be, port_be, slot: 0, generation: 0, protocol, scope: 0 }
    }

    /// Key of one slot of this frontend.
    pub const fn slot(self, generation: u16, slot: u16) -> Self {
        Self { slot, generation, ..self }
    }
}
