//! What a change of a message's beginning does to its CRC32c (RFC 9260, appendix A), without reading the message.
//!
//! With the initial value and the final complement left aside, the CRC is linear: two messages of one length differ in
//! their CRCs by the CRC of their difference. Here that is four bytes followed by zeroes, so it is a multiplication in
//! GF(2)\[x\] modulo the polynomial by a power of x that the length gives.

/// The polynomial with its bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// `x^0`, reversed.
const ONE: u32 = 1 << 31;
/// Lengths are below `1 << LENGTH_BITS`.
const LENGTH_BITS: usize = 16;

/// `x^(8 * 2^k)` by `k`.
const POWERS: [u32; LENGTH_BITS] = {
    let mut powers = [0; LENGTH_BITS];
    // x^8.
    let mut power = ONE >> 8;
    let mut k = 0;
    while k < LENGTH_BITS {
        powers[k] = power;
        power = multiply(power, power);
        k += 1;
    }
    powers
};

/// The product of two reversed polynomials.
const fn multiply(a: u32, b: u32) -> u32 {
    let mut product = 0;
    let mut factor = b;
    let mut bit = 0;
    while bit < 32 {
        if a & (ONE >> bit) != 0 {
            product ^= factor;
        }
        factor = if factor & 1 != 0 { factor >> 1 ^ POLYNOMIAL } else { factor >> 1 };
        bit += 1;
    }
    product
}

/// By what the CRC changes when the first four bytes change by `first` (exclusive or, read as a little-endian number)
/// and `rest` bytes follow them, at most 65,535.
pub const fn change(first: u32, rest: u32) -> u32 {
    // The first bytes, as the remainder of themselves times x^32.
    let mut crc = first;
    let mut bit = 0;
    while bit < 32 {
        crc = if crc & 1 != 0 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
        bit += 1;
    }
    let mut k = 0;
    while k < LENGTH_BITS {
        if rest & (1 << k) != 0 {
            crc = multiply(crc, POWERS[k]);
        }
        k += 1;
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit by bit, as the standard defines it.
    fn crc32c(message: &[u8]) -> u32 {
        let mut crc = !0u32;
        for byte in message {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 != 0 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            }
        }
        !crc
    }

    #[test]
    fn the_standard_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_change_at_the_beginning() {
        for len in [12usize, 16, 17, 100, 1480, 65_507] {
            let mut message: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
            let before = crc32c(&message);
            let first = u32::from_le_bytes(message[..4].try_into().expect("four bytes"));
            let new = 0x1f90_7530u32;
            message[..4].copy_from_slice(&new.to_le_bytes());
            assert_eq!(before ^ change(first ^ new, len as u32 - 4), crc32c(&message), "{len}");
        }
    }
}
