//! Protobuf's wire format: keys, varints, lengths.

use super::ProtobufError;

/// One field's value as it is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// Reads a varint off the front.
pub(super) fn varint(rest: &mut &[u8]) -> Result<u64, ProtobufError> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (&byte, tail) = rest.split_first().ok_or(ProtobufError::Truncated)?;
        *rest = tail;
        // The tenth byte holds one bit.
        if shift == 63 && byte > 1 {
            return Err(ProtobufError::Value("varint".to_owned()));
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(ProtobufError::Value("varint".to_owned()))
}

fn take<'a>(rest: &mut &'a [u8], len: u64) -> Result<&'a [u8], ProtobufError> {
    let len = usize::try_from(len).map_err(|_| ProtobufError::Truncated)?;
    let (head, tail) = rest.split_at_checked(len).ok_or(ProtobufError::Truncated)?;
    *rest = tail;
    Ok(head)
}

/// Reads one field off the front: its number and value.
pub(super) fn field<'a>(rest: &mut &'a [u8]) -> Result<(u32, Wire<'a>), ProtobufError> {
    let key = varint(rest)?;
    let number = u32::try_from(key >> 3).ok().filter(|n| *n != 0).ok_or(ProtobufError::Field(key))?;
    let value = match key & 7 {
        0 => Wire::Varint(varint(rest)?),
        1 => {
            let bytes = take(rest, 8)?.try_into().map_err(|_| ProtobufError::Truncated)?;
            Wire::Fixed64(u64::from_le_bytes(bytes))
        }
        2 => {
            let len = varint(rest)?;
            Wire::Bytes(take(rest, len)?)
        }
        5 => {
            let bytes = take(rest, 4)?.try_into().map_err(|_| ProtobufError::Truncated)?;
            Wire::Fixed32(u32::from_le_bytes(bytes))
        }
        // Groups (3 and 4) are of proto1; nothing in Kubernetes has them.
        _ => return Err(ProtobufError::Field(key)),
    };
    Ok((number, value))
}
