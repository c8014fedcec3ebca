//! Results of functions that are not inlined, in one register.
//!
//! The stack of a program is 512 bytes over all functions that call each other, so the large steps are functions of
//! their own, one after the other. What they return must be a number: of a larger result the verifier sees stack that
//! is written in parts, and it takes a leftover pointer in the return register for an escape.

use crate::forward::Verdict;

/// `TC_ACT_SHOT`, which no verdict has: a drop is an error.
const DROP: u64 = 2;

#[inline(always)]
pub fn pack(outcome: Result<Verdict, u32>) -> u64 {
    match outcome {
        Ok((code, reason)) => u64::from(code as u32) << 32 | u64::from(reason),
        Err(reason) => DROP << 32 | u64::from(reason),
    }
}

#[inline(always)]
pub fn unpack(packed: u64) -> Result<Verdict, u32> {
    if packed >> 32 == DROP { Err(packed as u32) } else { Ok(((packed >> 32) as i32, packed as u32)) }
}

/// 0 for success, else one more than the reason.
#[inline(always)]
pub fn pack_unit(outcome: Result<(), u32>) -> u64 {
    match outcome {
        Ok(()) => 0,
        Err(reason) => u64::from(reason) + 1,
    }
}

#[inline(always)]
pub fn unpack_unit(packed: u64) -> Result<(), u32> {
    if packed == 0 { Ok(()) } else { Err(packed as u32 - 1) }
}

/// 0 and 1, else two more than the reason.
#[inline(always)]
pub fn pack_bool(outcome: Result<bool, u32>) -> u64 {
    match outcome {
        Ok(yes) => u64::from(yes),
        Err(reason) => u64::from(reason) + 2,
    }
}

#[inline(always)]
pub fn unpack_bool(packed: u64) -> Result<bool, u32> {
    match packed {
        0 => Ok(false),
        1 => Ok(true),
        reason => Err(reason as u32 - 2),
    }
}
