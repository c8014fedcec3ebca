//! The flow cache of XDP: how it is divided into lines, and which line a flow has.
//!
//! Each CPU has lines of its own, in elements of many lines, so that the kernel's table of their places is small. Two
//! neighbouring lines are a set: a flow may be in either. Those of IPv4 share a line of the processor's cache.

use crate::ct::{CtKey4, CtKey6};

/// Lines of IPv4 in one CPU's part of an element of `hawser_flows4`, in 16 KiB. The kernel allows 32.
pub const LINES4: u32 = 512;
/// Lines of IPv6 in one CPU's part of an element of `hawser_flows6`, in 10 KiB.
pub const LINES6: u32 = 128;
/// Lines of all CPUs together, while that is [`MIN4`] for each: 16 MiB.
const ALL4: usize = 524_288;
/// The same of IPv6: 5 MiB.
const ALL6: usize = 65_536;
/// Lines that each CPU has at least.
const MIN4: usize = 8_192;
const MIN6: usize = 2_048;

/// Spreads well when tuples differ in a few bits of one word; needs to withstand nobody, because flows that share a set lose
/// nothing but the cache.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Where a flow's set of lines is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Element of the map.
    pub chunk: u32,
    /// Line in it that is looked at first. The other one is its neighbour: the last bit differs.
    pub line: u32,
}

impl Place {
    /// `chunks`: elements of the map. `lines`: how many are in one. Both are powers of two.
    #[inline(always)]
    pub const fn of(hash: u32, chunks: u32, lines: u32) -> Self {
        Self { chunk: hash >> lines.ilog2() & (chunks - 1), line: hash & (lines - 1) }
    }
}

#[inline(always)]
const fn mix(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(FACTOR);
    hash ^ hash >> 32
}

#[inline(always)]
const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// The hash of a flow of IPv4.
#[inline(always)]
pub const fn hash4(tuple: &CtKey4) -> u32 {
    let ports = tuple.sport_be as u64 | (tuple.dport_be as u64) << 16;
    let hash = mix(mix(0, pair(tuple.saddr_be, tuple.daddr_be)), ports);
    (hash.wrapping_mul(FACTOR) >> 32) as u32
}

/// The hash of a flow of IPv6.
#[inline(always)]
pub const fn hash6(tuple: &CtKey6) -> u32 {
    let (s, d) = (&tuple.saddr_be, &tuple.daddr_be);
    let ports = tuple.sport_be as u64 | (tuple.dport_be as u64) << 16;
    let mut hash = mix(mix(0, pair(s[0], s[1])), pair(s[2], s[3]));
    hash = mix(mix(hash, pair(d[0], d[1])), pair(d[2], d[3]));
    (mix(hash, ports).wrapping_mul(FACTOR) >> 32) as u32
}

/// How many elements `hawser_flows4` gets on a machine with so many CPUs.
pub const fn chunks4(cpus: usize) -> u32 {
    lines(ALL4, MIN4, cpus) / LINES4
}

/// How many elements `hawser_flows6` gets on a machine with so many CPUs.
pub const fn chunks6(cpus: usize) -> u32 {
    lines(ALL6, MIN6, cpus) / LINES6
}

/// Lines of each CPU: a power of two, rounded down.
const fn lines(all: usize, min: usize, cpus: usize) -> u32 {
    let each = match all.checked_div(cpus) {
        Some(each) => each,
        None => all,
    };
    1 << if each < min { min } else { each }.ilog2()
}

const _: () = {
    assert!(chunks4(1) * LINES4 == 524_288 && chunks4(2) == chunks4(1) / 2 && chunks4(3) == chunks4(4));
    assert!(chunks4(64) == 16 && chunks4(4096) == 16 && chunks6(1) == 512 && chunks6(4096) == 16);
};
