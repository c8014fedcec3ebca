//! System calls that aya does not offer: taking a pinned object back by its path, replacing the program of
//! a link of any kind, reading and writing many elements at once, and the cookie of a network namespace. The
//! only module of this crate that is unsafe.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `BPF_NOEXIST` (include/uapi/linux/bpf.h).
pub const NOEXIST: u64 = 1;
/// `BPF_MAP_DELETE_ELEM` of `enum bpf_cmd`.
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
/// `BPF_MAP_LOOKUP_AND_DELETE_ELEM`, of hash maps since 5.14.
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
/// `BPF_OBJ_GET` of `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF_OBJ_GET: libc::c_long = 7;
/// `BPF_MAP_LOOKUP_BATCH`, since 5.6.
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// `BPF_MAP_UPDATE_BATCH`, since 5.6.
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
/// `BPF_PROG_ATTACH`.
const BPF_PROG_ATTACH: libc::c_long = 8;
/// `BPF_TCX_INGRESS` of `enum bpf_attach_type`, since 6.6.
const BPF_TCX_INGRESS: u32 = 46;
/// `BPF_F_REPLACE`.
const BPF_F_REPLACE: u32 = 1 << 2;
/// `BPF_LINK_UPDATE`.
const BPF_LINK_UPDATE: libc::c_long = 29;

/// `union bpf_attr`, the part for `BPF_OBJ_*`.
#[repr(C)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `union bpf_attr`, the part for `BPF_MAP_*_ELEM`.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr`, the part for `BPF_LINK_UPDATE`.
#[repr(C)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// `union bpf_attr`, the part for `BPF_PROG_ATTACH`.
#[repr(C)]
struct AttachAttr {
    target_ifindex: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
    relative_fd: u32,
    expected_revision: u64,
}

/// `union bpf_attr`, the part for `BPF_MAP_*_BATCH`.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is one of the structs above or an array of integers, initialised and without padding, and its length goes
    // with it; the kernel reads it and what it points to before the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opens a pinned program, map or link.
///
/// # Errors
/// `NotFound` when nothing is pinned there.
pub fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjectAttr { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    let fd = bpf(BPF_OBJ_GET, &attr)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a map and pins it: for tests of maps that no program of this version has.
///
/// # Errors
/// The kernel refused.
#[cfg(test)]
pub fn map_create_pinned(kind: u32, key: u32, value: u32, max_entries: u32, path: &Path) -> io::Result<()> {
    /// `BPF_MAP_CREATE` and `BPF_OBJ_PIN` of `enum bpf_cmd`.
    const BPF_MAP_CREATE: libc::c_long = 0;
    const BPF_OBJ_PIN: libc::c_long = 6;
    let fd = bpf(BPF_MAP_CREATE, &[kind, key, value, max_entries, 0])?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    let map = unsafe { OwnedFd::from_raw_fd(fd) };
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjectAttr { pathname: path.as_ptr() as u64, bpf_fd: map.as_raw_fd() as u32, file_flags: 0 };
    bpf(BPF_OBJ_PIN, &attr).map(drop)
}

/// Replaces the program of a link at once: there is no moment without a program.
///
/// # Errors
/// `ENOLINK` when what the link was attached to is gone.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkUpdateAttr {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &attr).map(drop)
}

/// Attaches a TCX program to what comes in from an interface of this network namespace, for as long as there is that
/// interface; in the place of another one, at once. Without one it waits for an RCU grace period.
///
/// # Errors
/// `EEXIST` when the program is attached there already.
pub fn tcx_attach(ifindex: u32, program: BorrowedFd<'_>, replaced: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let attr = AttachAttr {
        target_ifindex: ifindex,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: BPF_TCX_INGRESS,
        attach_flags: if replaced.is_some() { BPF_F_REPLACE } else { 0 },
        replace_bpf_fd: replaced.map_or(0, |old| old.as_raw_fd() as u32),
        relative_fd: 0,
        expected_revision: 0,
    };
    bpf(BPF_PROG_ATTACH, &attr).map(drop)
}

/// A part of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// How many elements were read.
    pub count: usize,
    /// Where the next part begins; none after the last.
    pub next: Option<u32>,
}

/// Reads many elements of a hash map in one call, into buffers of one length (`BPF_MAP_LOOKUP_BATCH`, since 5.6).
///
/// # Errors
/// `ENOSPC` when the buffers are smaller than a bucket of the map.
pub fn lookup_batch<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    from: Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<Batch> {
    let mut next = 0u32;
    let mut attr = BatchAttr {
        in_batch: from.as_ref().map_or(0, |from| std::ptr::from_ref(from) as u64),
        out_batch: std::ptr::from_mut(&mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX),
        map_fd: map.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the buffers have room for `count` elements as long as the map's sizes are those of `K` and `V`, which whoever
    // opened the map has checked; any bytes are a `Pod`. Its token is a number.
    let more = unsafe { lookup_part(&mut attr)? };
    Ok(Batch { count: (attr.count as usize).min(keys.len()), next: more.then_some(next) })
}

/// Reads a part of a map. Whether there is more; `count` is then how many elements were read.
///
/// # Errors
/// The kernel refused.
///
/// # Safety
/// The attribute's buffers have room for `count` elements of the map's sizes, and for its token.
unsafe fn lookup_part(attr: &mut BatchAttr) -> io::Result<bool> {
    let attr_ptr = std::ptr::from_mut(attr);
    // SAFETY: the attribute is initialised and its length goes with it. The kernel writes `count`, and to the buffers.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, attr_ptr, size_of::<BatchAttr>()) };
    if result >= 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::NotFound { Ok(false) } else { Err(error) }
}

/// How many elements a map has, of any type that is read in parts and has no values per CPU. Sizes in bytes, as the kernel
/// says them.
///
/// # Errors
/// The kernel refused.
pub fn count_elements(map: BorrowedFd<'_>, key_size: usize, value_size: usize) -> io::Result<usize> {
    const PART: usize = 1024;
    /// The kernel keeps its place in here: a bucket's number, or a key, and no map of ours has longer ones.
    const TOKEN: usize = 256;
    if key_size > TOKEN {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // The kernel writes a value's size rounded up to 8 bytes.
    let (mut keys, mut values) =
        (vec![0u8; PART * key_size], vec![0u8; PART * value_size.next_multiple_of(8)]);
    let (mut from, mut next) = ([0u8; TOKEN], [0u8; TOKEN]);
    let (mut first, mut total) = (true, 0);
    loop {
        let mut attr = BatchAttr {
            in_batch: if first { 0 } else { from.as_ptr() as u64 },
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: PART as u32,
            map_fd: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the buffers have room for `count` elements of the map's own sizes, and for a token of any kind.
        let more = unsafe { lookup_part(&mut attr)? };
        total += (attr.count as usize).min(PART);
        if !more {
            return Ok(total);
        }
        first = false;
        from = next;
    }
}

/// Deletes an element of a map, whose keys are `K`.
///
/// # Errors
/// `NotFound` when there is none.
pub fn map_delete<K: aya::Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let attr = ElementAttr {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: std::ptr::from_ref(key) as u64,
        value: 0,
        flags: 0,
    };
    bpf(BPF_MAP_DELETE_ELEM, &attr).map(drop)
}

/// Deletes an element of a hash map and returns what it was just then.
///
/// # Errors
/// `NotFound` when there is none.
pub fn map_take<K: aya::Pod, V: aya::Pod + Default>(map: BorrowedFd<'_>, key: &K) -> io::Result<V> {
    let mut value = V::default();
    let attr = ElementAttr {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_mut(&mut value) as u64,
        flags: 0,
    };
    bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &attr)?;
    Ok(value)
}

/// Writes many elements of a map in one call, in order.
///
/// # Errors
/// The first element that the kernel refused; those before it are written.
pub fn map_update_batch<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    assert_eq!(keys.len(), values.len(), "a value for each key");
    let attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: u32::try_from(keys.len()).map_err(io::Error::other)?,
        map_fd: map.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_BATCH, &attr).map(drop)
}

/// `SO_NETNS_COOKIE` of this thread's network namespace: what `bpf_get_netns_cookie` says of its sockets.
///
/// # Errors
/// No socket could be made, or the kernel is older than 5.14.
pub fn netns_cookie() -> io::Result<u64> {
    /// include/uapi/asm-generic/socket.h
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the pointers are to a live u64 and its length, which the kernel respects.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Sends whole Ethernet frames (packet(7)), and receives none.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
}

impl PacketSocket {
    /// In the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel refused: it takes CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        // SAFETY: no pointers. Protocol 0: nothing is received.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
        Ok(Self { socket: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Sends a frame out of an interface.
    ///
    /// # Errors
    /// The kernel refused, for instance because the interface is down.
    pub fn send(&self, interface: u32, frame: &[u8]) -> io::Result<()> {
        let to = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: i32::try_from(interface).map_err(io::Error::other)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [0; 8],
        };
        // SAFETY: both pointers are to live memory of the lengths that go with them.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                std::ptr::from_ref(&to).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds: the clock of `bpf_ktime_get_ns`.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live, writable timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    // The clock starts at boot: neither part is negative.
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}
