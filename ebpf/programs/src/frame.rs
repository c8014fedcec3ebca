//! A packet as a hook gives it: reading, writing, checksums. All that tc and XDP do differently.

use core::arch::asm;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_adj_room_mode::BPF_ADJ_ROOM_NET, xdp_md,
};
use aya_ebpf::helpers::{bpf_skb_store_bytes, bpf_xdp_adjust_head};
use aya_ebpf::programs::{TcContext, XdpContext};
use hawser_ebpf_common::endpoint::CONFIG_CHECKSUM_IPV6;
use hawser_ebpf_common::metrics::reason;

use crate::forward::config;
use crate::packet::{ETH_LEN, IP_LEN};

/// `BPF_F_IPV6` of `bpf_l4_csum_replace`.
const CHECKSUM_IPV6: u64 = 1 << 7;

/// What a transport checksum covers that changed, as sums that [`Change`] makes.
#[derive(Clone, Copy)]
pub struct Covered {
    /// Of the pseudo header.
    pub addresses: Change,
    /// Of the rest.
    pub others: Change,
    /// A checksum of 0 means that there is none (UDP over IPv4).
    pub optional: bool,
    pub v6: bool,
}

/// The change of an Internet checksum's sum (RFC 1624), not yet folded to 16 bits.
#[derive(Clone, Copy)]
pub struct Change(u64);

impl Change {
    pub const NONE: Self = Self(0);

    /// From one 32-bit word to another, both as they lie in the packet.
    #[inline(always)]
    pub fn word(self, old: u32, new: u32) -> Self {
        Self(self.0 + u64::from(!old) + u64::from(new))
    }

    /// From one 16-bit word at an even offset to another.
    #[inline(always)]
    pub fn half(self, old: u16, new: u16) -> Self {
        Self(self.0 + u64::from(!old) + u64::from(new))
    }

    /// Both.
    #[inline(always)]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    #[inline(always)]
    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    /// As the helpers want it.
    #[inline(always)]
    fn folded32(self) -> u32 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum as u32
    }

    /// The checksum after the change.
    #[inline(always)]
    pub fn apply(self, checksum: u16) -> u16 {
        let sum = u64::from(!checksum) + (self.0 & 0xffff) + (self.0 >> 16 & 0xffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        !(sum as u16)
    }
}

/// A packet with its Ethernet header.
pub trait Frame {
    /// Transport headers are looked for at fixed offsets only; other packets are left to tc.
    const PLAIN: bool;

    /// Reads a value.
    fn load<T: Copy>(&self, offset: usize) -> Result<T, u32>;

    /// Writes a value.
    fn store<T: Copy>(&self, offset: usize, value: &T) -> Result<(), u32>;

    /// Length in bytes.
    fn len(&self) -> u32;

    /// Changes the checksum of an IPv4 header.
    fn fix_header(&self, offset: usize, change: Change) -> Result<(), u32>;

    /// Changes a transport checksum.
    fn fix_transport(&self, offset: usize, covered: &Covered) -> Result<(), u32>;

    /// Makes room behind the first 20 bytes of the IPv4 header.
    fn insert(&self, len: usize) -> Result<(), u32>;
}

/// What is read or written at once. In packets nothing is aligned, and for such accesses the compiler takes single bytes; the
/// machines that eBPF runs on take words.
macro_rules! word {
    ($read:ident, $write:ident, $word:ty, $name:literal) => {
        /// # Safety
        /// The memory is there, and it is a packet's: the verifier wants all other kinds aligned.
        #[inline(always)]
        unsafe fn $read(from: usize) -> $word {
            let word: u64;
            // SAFETY: the caller's.
            unsafe {
                asm!(concat!("{0} = *(", $name, " *)({1} + 0)"), out(reg) word, in(reg) from,
                    options(pure, readonly, nostack));
            }
            word as $word
        }

        /// # Safety
        /// As for reading, and nobody else has it.
        #[inline(always)]
        unsafe fn $write(to: usize, word: $word) {
            let word = u64::from(word);
            // SAFETY: the caller's.
            unsafe {
                asm!(concat!("*(", $name, " *)({0} + 0) = {1}"), in(reg) to, in(reg) word, options(nostack));
            }
        }
    };
}

word!(read8, write8, u8, "u8");
word!(read16, write16, u16, "u16");
word!(read32, write32, u32, "u32");

/// A value whose words are aligned.
#[repr(C, align(4))]
struct Words<T>(MaybeUninit<T>);

/// Copies a value out of a packet.
///
/// # Safety
/// All of it is inside. Any bytes are a `T`.
#[inline(always)]
unsafe fn read<T: Copy>(from: usize) -> T {
    let mut value = Words::<T>(MaybeUninit::uninit());
    let to: *mut u8 = value.0.as_mut_ptr().cast();
    let mut done = 0;
    // SAFETY: inside the packet and inside the value, which is aligned to four bytes.
    unsafe {
        while done + 4 <= size_of::<T>() {
            to.add(done).cast::<u32>().write(read32(from + done));
            done += 4;
        }
        if done + 2 <= size_of::<T>() {
            to.add(done).cast::<u16>().write(read16(from + done));
            done += 2;
        }
        if done < size_of::<T>() {
            to.add(done).write(read8(from + done));
        }
        value.0.assume_init()
    }
}

/// Copies a value into a packet.
///
/// # Safety
/// All of it is inside, and nobody else has the packet.
#[inline(always)]
unsafe fn write<T: Copy>(to: usize, value: &T) {
    let value = Words(MaybeUninit::new(*value));
    let from: *const u8 = value.0.as_ptr().cast();
    let mut done = 0;
    // SAFETY: as in `read`. The values have no padding: they are headers, integers and arrays of these.
    unsafe {
        while done + 4 <= size_of::<T>() {
            write32(to + done, from.add(done).cast::<u32>().read());
            done += 4;
        }
        if done + 2 <= size_of::<T>() {
            write16(to + done, from.add(done).cast::<u16>().read());
            done += 2;
        }
        if done < size_of::<T>() {
            write8(to + done, from.add(done).read());
        }
    }
}

/// The end of a value. Opaque, because the compiler would turn `start + 1 <= end` into `start < end`, of which the verifier
/// does not learn that there is a byte at `start`.
#[inline(always)]
fn end<T>(start: usize) -> usize {
    let end: usize;
    // SAFETY: an addition.
    unsafe {
        asm!("{0} += {1}", inout(reg) start => end, const size_of::<T>(), options(pure, nomem, nostack));
    }
    end
}

/// Headers begin before this: it tells the verifier that no offset leads far away.
const MAX_OFFSET: usize = 0x3fff;

impl Frame for TcContext {
    const PLAIN: bool = false;

    /// Headers are nearly always in the part that programs may read; the helper, which costs a call, reads the others too.
    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize) -> Result<T, u32> {
        let start = self.data() + (offset & MAX_OFFSET);
        if end::<T>(start) <= self.data_end() {
            // SAFETY: inside the packet; any bytes are a value of the integers that are read here.
            return Ok(unsafe { read(start) });
        }
        self.skb.load(offset).map_err(|_| reason::MALFORMED)
    }

    #[inline(always)]
    fn store<T: Copy>(&self, offset: usize, value: &T) -> Result<(), u32> {
        let skb: *mut __sk_buff = self.skb.skb;
        let from = core::ptr::from_ref(value).cast();
        // SAFETY: pointer and length describe `value`; the helper checks the offset.
        match unsafe { bpf_skb_store_bytes(skb, offset as u32, from, size_of::<T>() as u32, 0) } {
            0 => Ok(()),
            _ => Err(reason::WRITE_FAILED),
        }
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        self.skb.len()
    }

    #[inline(always)]
    fn fix_header(&self, offset: usize, change: Change) -> Result<(), u32> {
        let to = u64::from(change.folded32());
        self.skb.l3_csum_replace(offset, 0, to, 0).map_err(|_| reason::WRITE_FAILED)
    }

    #[inline(always)]
    fn fix_transport(&self, offset: usize, covered: &Covered) -> Result<(), u32> {
        let mut flags = if covered.optional { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        if covered.v6 && config().flags & CONFIG_CHECKSUM_IPV6 != 0 {
            flags |= CHECKSUM_IPV6;
        }
        // Apart, because only the pseudo header counts in a checksum that the interface is to complete.
        for (change, flags) in
            [(covered.addresses, flags | u64::from(BPF_F_PSEUDO_HDR)), (covered.others, flags)]
        {
            if !change.is_none() {
                let to = u64::from(change.folded32());
                self.skb.l4_csum_replace(offset, 0, to, flags).map_err(|_| reason::WRITE_FAILED)?;
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn insert(&self, len: usize) -> Result<(), u32> {
        self.skb.adjust_room(len as i32, BPF_ADJ_ROOM_NET, 0).map_err(|_| reason::WRITE_FAILED)
    }
}

/// Where something lies in the packet, once that is known to be inside.
#[inline(always)]
fn at<T>(ctx: &XdpContext, offset: usize) -> Result<usize, u32> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return Err(reason::MALFORMED);
    }
    Ok(start)
}

impl Frame for XdpContext {
    const PLAIN: bool = true;

    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize) -> Result<T, u32> {
        // SAFETY: inside the packet; any bytes are a value of the integers that are read here.
        Ok(unsafe { read(at::<T>(self, offset)?) })
    }

    #[inline(always)]
    fn store<T: Copy>(&self, offset: usize, value: &T) -> Result<(), u32> {
        let to = at::<T>(self, offset).map_err(|_| reason::WRITE_FAILED)?;
        // SAFETY: inside the packet, which is this program's alone.
        unsafe { write(to, value) };
        Ok(())
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        (self.data_end() - self.data()) as u32
    }

    #[inline(always)]
    fn fix_header(&self, offset: usize, change: Change) -> Result<(), u32> {
        let old: u16 = self.load(offset)?;
        self.store(offset, &change.apply(old))
    }

    #[inline(always)]
    fn fix_transport(&self, offset: usize, covered: &Covered) -> Result<(), u32> {
        let old: u16 = self.load(offset)?;
        if covered.optional && old == 0 {
            return Ok(());
        }
        let mut new = covered.addresses.and(covered.others).apply(old);
        if covered.optional && new == 0 {
            new = 0xffff;
        }
        self.store(offset, &new)
    }

    #[inline(always)]
    fn insert(&self, len: usize) -> Result<(), u32> {
        let ctx: *mut xdp_md = self.ctx;
        // SAFETY: the context is valid; the helper checks whether there is room.
        if unsafe { bpf_xdp_adjust_head(ctx, -(len as i32)) } != 0 {
            return Err(reason::WRITE_FAILED);
        }
        let headers: [u16; (ETH_LEN + IP_LEN) / 2] = self.load(len)?;
        self.store(0, &headers)
    }
}
