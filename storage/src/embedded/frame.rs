//! The log's records and frames as bytes. Pure.
//!
//! A frame holds the writes of one group commit, with contiguous revisions. Layout, little endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | magic; also the format's version |
//! | 4..8 | CRC32C over the frame's place (salt, segment, offset) and everything from byte 8 on |
//! | 8..12 | length of the payload |
//! | 12..16 | number of records |
//! | 16..24 | revision of the first record |
//! | 24.. | payload: records, then zeros up to a multiple of 8 |
//!
//! The place in the checksum is why a frame is valid only where it was written: what an earlier use
//! of the file left behind, or what a value contains, is never taken for one.

use bytes::Bytes;

use crate::{Error, Event, EventKind, KeyValue, Revision};

/// "HWS1".
pub(crate) const MAGIC: u32 = 0x3153_5748;
const HEADER: usize = 24;
/// Frames begin at multiples of this many bytes.
pub(crate) const ALIGN: usize = 8;

/// Where a frame lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// The store's own random number.
    pub salt: u64,
    pub segment: u64,
    pub offset: u64,
}

impl Place {
    fn checksum(self, frame: &[u8]) -> u32 {
        let mut place = [0; 24];
        place[..8].copy_from_slice(&self.salt.to_le_bytes());
        place[8..16].copy_from_slice(&self.segment.to_le_bytes());
        place[16..].copy_from_slice(&self.offset.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c(&place), frame)
    }
}

/// One write as the log and the table keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub revision: Revision,
    /// 0 for a deletion.
    pub create: Revision,
    /// The live revision it replaced; 0 for none.
    pub prev: Revision,
    pub key: &'a str,
    pub value: &'a [u8],
}

impl<'a> From<&'a Event> for Record<'a> {
    fn from(event: &'a Event) -> Self {
        Record {
            revision: event.revision(),
            create: event.kv.create_revision,
            prev: event.prev.as_ref().map_or(0, |prev| prev.mod_revision),
            key: &event.kv.key,
            value: &event.kv.value,
        }
    }
}

impl Record<'_> {
    pub fn kind(&self) -> EventKind {
        if self.create == 0 { EventKind::Delete } else { EventKind::Put }
    }

    pub fn kv(&self) -> KeyValue {
        KeyValue {
            key: self.key.into(),
            value: Bytes::copy_from_slice(self.value),
            create_revision: self.create,
            mod_revision: self.revision,
        }
    }
}

fn encode_record(out: &mut Vec<u8>, record: &Record<'_>) {
    out.extend_from_slice(&record.revision.to_le_bytes());
    out.extend_from_slice(&record.create.to_le_bytes());
    out.extend_from_slice(&record.prev.to_le_bytes());
    // Both are bounded by the limits of a request, far below 4 GiB.
    out.extend_from_slice(&(record.key.len() as u32).to_le_bytes());
    out.extend_from_slice(&(record.value.len() as u32).to_le_bytes());
    out.extend_from_slice(record.key.as_bytes());
    out.extend_from_slice(record.value);
}

fn split<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(length)?;
    *bytes = tail;
    Some(head)
}

fn u32_le(bytes: &mut &[u8]) -> Option<u32> {
    let (head, tail) = bytes.split_first_chunk()?;
    *bytes = tail;
    Some(u32::from_le_bytes(*head))
}

fn u64_le(bytes: &mut &[u8]) -> Option<u64> {
    let (head, tail) = bytes.split_first_chunk()?;
    *bytes = tail;
    Some(u64::from_le_bytes(*head))
}

fn decode_record<'a>(bytes: &mut &'a [u8]) -> Option<Record<'a>> {
    let revision = u64_le(bytes)?;
    let create = u64_le(bytes)?;
    let prev = u64_le(bytes)?;
    let key_len = u32_le(bytes)? as usize;
    let value_len = u32_le(bytes)? as usize;
    let key = std::str::from_utf8(split(bytes, key_len)?).ok()?;
    let value = split(bytes, value_len)?;
    Some(Record { revision, create, prev, key, value })
}

/// Bytes that [`encode_frame`] takes for a key and value of these sizes, at most.
pub(crate) fn record_bound(key: usize, value: usize) -> usize {
    HEADER + 32 + key + value + ALIGN
}

/// Replaces what is in `out` by the frame of `events`, whose revisions are contiguous.
pub(crate) fn encode_frame(out: &mut Vec<u8>, place: Place, events: &[Event]) {
    out.clear();
    out.resize(HEADER, 0);
    for event in events {
        encode_record(out, &Record::from(event));
    }
    let payload = out.len() - HEADER;
    out[..4].copy_from_slice(&MAGIC.to_le_bytes());
    out[8..12].copy_from_slice(&(payload as u32).to_le_bytes());
    out[12..16].copy_from_slice(&(events.len() as u32).to_le_bytes());
    out[16..24].copy_from_slice(&events.first().map_or(0, Event::revision).to_le_bytes());
    let checksum = place.checksum(&out[8..]);
    out[4..8].copy_from_slice(&checksum.to_le_bytes());
    out.resize(out.len().next_multiple_of(ALIGN), 0);
}

/// A frame that was found whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    pub first: Revision,
    count: u32,
    payload: &'a [u8],
    /// Bytes it takes in the file.
    pub size: usize,
}

/// The frame at the beginning of `bytes`, if a whole one that was written at `place` is there.
pub(crate) fn decode_frame<'a>(bytes: &'a [u8], place: Place) -> Option<Frame<'a>> {
    let mut header = bytes.get(..HEADER)?;
    if u32_le(&mut header)? != MAGIC {
        return None;
    }
    let checksum = u32_le(&mut header)?;
    let length = u32_le(&mut header)? as usize;
    let count = u32_le(&mut header)?;
    let first = u64_le(&mut header)?;
    let end = HEADER.checked_add(length)?;
    if place.checksum(bytes.get(8..end)?) != checksum || count == 0 {
        return None;
    }
    Some(Frame { first, count, payload: &bytes[HEADER..end], size: end.next_multiple_of(ALIGN) })
}

impl<'a> Frame<'a> {
    pub fn last(&self) -> Revision {
        self.first + Revision::from(self.count) - 1
    }

    /// # Errors
    /// [`Error::Corrupt`] when the payload is not what the header says, checksum notwithstanding.
    pub fn records(&self) -> Result<Vec<Record<'a>>, Error> {
        let mut rest = self.payload;
        let mut records = Vec::with_capacity(self.count as usize);
        for revision in self.first..=self.last() {
            match decode_record(&mut rest) {
                Some(record) if record.revision == revision => records.push(record),
                _ => {
                    return Err(Error::Corrupt {
                        what: format!("log record of revision {revision} is malformed"),
                    });
                }
            }
        }
        if !rest.is_empty() {
            return Err(Error::Corrupt { what: format!("log frame of revision {} is too long", self.first) });
        }
        Ok(records)
    }
}

/// Replaces what is in `out` by a table row: a record after its own checksum.
pub(crate) fn encode_row(out: &mut Vec<u8>, record: &Record<'_>) {
    out.clear();
    out.resize(4, 0);
    encode_record(out, record);
    let checksum = crc32c::crc32c(&out[4..]);
    out[..4].copy_from_slice(&checksum.to_le_bytes());
}

/// # Errors
/// [`Error::Corrupt`] when the row is not what was written for `revision`.
pub(crate) fn decode_row(mut row: &[u8], revision: Revision) -> Result<Record<'_>, Error> {
    let corrupt = || Error::Corrupt { what: format!("table row of revision {revision} is damaged") };
    let checksum = u32_le(&mut row).ok_or_else(corrupt)?;
    if crc32c::crc32c(row) != checksum {
        return Err(corrupt());
    }
    let record = decode_record(&mut row).ok_or_else(corrupt)?;
    if record.revision == revision && row.is_empty() { Ok(record) } else { Err(corrupt()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLACE: Place = Place { salt: 7, segment: 3, offset: 4096 };

    fn event(revision: Revision, key: &str, value: Vec<u8>, create: Revision) -> Event {
        let kv = KeyValue {
            key: key.into(),
            value: value.into(),
            create_revision: create,
            mod_revision: revision,
        };
        Event { kind: if create == 0 { EventKind::Delete } else { EventKind::Put }, kv, prev: None }
    }

    proptest! {
        #[test]
        fn frames_and_rows_round_trip(
            writes in prop::collection::vec(("[a-z/é]{1,40}", prop::collection::vec(any::<u8>(), 0..200), 0u64..9), 1..9)
        ) {
            let events: Vec<_> = writes
                .into_iter()
                .enumerate()
                .map(|(n, (key, value, create))| event(n as u64 + 10, &key, value, create))
                .collect();
            let mut bytes = Vec::new();
            encode_frame(&mut bytes, PLACE, &events);
            let frame = decode_frame(&bytes, PLACE).unwrap();
            prop_assert_eq!(frame.size, bytes.len());
            prop_assert_eq!(frame.last(), events.last().unwrap().revision());
            let want: Vec<_> = events.iter().map(Record::from).collect();
            prop_assert_eq!(&frame.records().unwrap(), &want);
            let mut row = Vec::new();
            for record in &want {
                encode_row(&mut row, record);
                prop_assert_eq!(&decode_row(&row, record.revision).unwrap(), record);
            }
        }

        #[test]
        fn any_change_is_noticed(flip in any::<(prop::sample::Index, u8)>(), cut in any::<prop::sample::Index>()) {
            let events = [event(5, "a", vec![1; 33], 5), event(6, "b", vec![2; 21], 6)];
            let mut bytes = Vec::new();
            encode_frame(&mut bytes, PLACE, &events);
            let size = HEADER + u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
            prop_assert!(decode_frame(&bytes[..cut.index(size)], PLACE).is_none());
            bytes[flip.0.index(size)] ^= flip.1 | 1;
            prop_assert!(decode_frame(&bytes, PLACE).is_none());
        }

        #[test]
        fn noise_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_frame(&bytes, PLACE);
            let _ = decode_row(&bytes, 1);
        }
    }

    #[test]
    fn a_frame_is_valid_only_where_it_was_written() {
        let mut bytes = Vec::new();
        encode_frame(&mut bytes, PLACE, &[event(5, "a", vec![], 5)]);
        assert!(decode_frame(&bytes, PLACE).is_some());
        for place in [Place { salt: 8, ..PLACE }, Place { segment: 4, ..PLACE }, Place { offset: 0, ..PLACE }]
        {
            assert!(decode_frame(&bytes, place).is_none());
        }
    }
}
