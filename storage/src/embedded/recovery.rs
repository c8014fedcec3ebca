//! Reads the log after a start. Pure but for reading the files.
//!
//! The log is the frames of all segments in order. A crash can tear only the last write, because each
//! write is durable before the next begins. So: where no whole frame is found, the log ends, unless a
//! whole frame follows further on: then something that was acknowledged is damaged, and that is
//! reported and not skipped. Frames that the table holds already may be missing.

use std::path::PathBuf;

use super::{
    frame::{ALIGN, Frame, MAGIC, Place, Record, decode_frame},
    segment,
};
use crate::{Error, Revision};

/// A segment in memory.
pub(crate) struct Image {
    pub id: u64,
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

/// Reads segments and checks that they are whole files: they are never of another size than `size`.
///
/// # Errors
/// [`Error::Corrupt`] for a file that was cut.
pub(crate) fn load(segments: Vec<(u64, PathBuf)>, size: u64) -> Result<Vec<Image>, Error> {
    segments
        .into_iter()
        .map(|(id, path)| {
            let bytes = segment::read(&path)?;
            if bytes.len() as u64 != size {
                let what = format!("{} has {} bytes instead of {size}", path.display(), bytes.len());
                return Err(Error::Corrupt { what });
            }
            Ok(Image { id, path, bytes })
        })
        .collect()
}

/// The records after revision `applied`, in order and without a gap.
///
/// # Errors
/// [`Error::Corrupt`] when there is damage before the last write.
pub(crate) fn replay(images: &[Image], salt: u64, applied: Revision) -> Result<Vec<Record<'_>>, Error> {
    let mut records = Vec::new();
    // The revision the next frame begins with; unknown before the first.
    let mut expected = None;
    let mut last = applied;
    for image in images {
        let mut at = 0;
        while let Some((offset, frame)) = next_frame(image, at, salt) {
            // Frames may be missing only if the table has what was in them.
            let contiguous = frame.first <= last + 1 && expected.is_none_or(|e| frame.first >= e);
            if !contiguous {
                let what = format!(
                    "{} goes on with revision {} at byte {offset} after revision {last}: \
                     acknowledged writes between them are damaged or missing",
                    image.path.display(),
                    frame.first,
                );
                return Err(Error::Corrupt { what });
            }
            records.extend(frame.records()?.into_iter().filter(|r| r.revision > applied));
            expected = Some(frame.last() + 1);
            last = last.max(frame.last());
            at = offset + frame.size;
        }
    }
    Ok(records)
}

/// The first whole frame at or after byte `from`.
fn next_frame(image: &Image, from: usize, salt: u64) -> Option<(usize, Frame<'_>)> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let magic = MAGIC.to_le_bytes();
    let mut rest = image.bytes.get(from..)?;
    while rest.len() >= ALIGN {
        // Most of a segment is zeros, where no frame begins.
        if rest.starts_with(&ZEROS) {
            rest = &rest[ZEROS.len()..];
            continue;
        }
        if rest.starts_with(&magic) {
            let offset = image.bytes.len() - rest.len();
            let place = Place { salt, segment: image.id, offset: offset as u64 };
            if let Some(frame) = decode_frame(rest, place) {
                return Some((offset, frame));
            }
        }
        rest = &rest[ALIGN..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{super::frame::encode_frame, *};
    use crate::{Event, EventKind, KeyValue};

    const SALT: u64 = 99;
    const SIZE: usize = 4096;

    fn events(first: Revision, count: Revision) -> Vec<Event> {
        (first..first + count)
            .map(|revision| Event {
                kind: EventKind::Put,
                kv: KeyValue {
                    key: format!("key/{revision}").into(),
                    value: vec![revision as u8; 40].into(),
                    create_revision: revision,
                    mod_revision: revision,
                },
                prev: None,
            })
            .collect()
    }

    /// A log whose segments hold frames of these `(first, count)`, and where each frame begins and ends.
    fn log(segments: &[&[(Revision, Revision)]]) -> (Vec<Image>, Vec<(usize, usize, usize)>) {
        let mut places = Vec::new();
        let mut images = Vec::new();
        for (n, frames) in segments.iter().enumerate() {
            let mut bytes = Vec::new();
            let mut frame = Vec::new();
            for (first, count) in *frames {
                let place = Place { salt: SALT, segment: n as u64, offset: bytes.len() as u64 };
                encode_frame(&mut frame, place, &events(*first, *count));
                places.push((n, bytes.len(), bytes.len() + frame.len()));
                bytes.extend_from_slice(&frame);
            }
            bytes.resize(SIZE, 0);
            images.push(Image { id: n as u64, path: format!("{n}.wal").into(), bytes });
        }
        (images, places)
    }

    fn revisions(images: &[Image], applied: Revision) -> Result<Vec<Revision>, Error> {
        replay(images, SALT, applied).map(|records| records.iter().map(|r| r.revision).collect())
    }

    #[test]
    fn replays_what_the_table_lacks() {
        let (images, _) = log(&[&[(2, 3), (5, 1)], &[(6, 2)], &[]]);
        for applied in 1..9 {
            let want: Vec<_> = (applied + 1..=7).collect();
            assert_eq!(revisions(&images, applied).unwrap(), want);
        }
    }

    #[test]
    fn a_missing_segment_is_noticed_unless_the_table_has_it() {
        let (mut images, _) = log(&[&[(2, 3)], &[(5, 2)], &[(7, 2)]]);
        images.remove(1);
        for applied in 1..6 {
            assert!(matches!(revisions(&images, applied), Err(Error::Corrupt { .. })), "{applied}");
        }
        assert_eq!(revisions(&images, 6).unwrap(), [7, 8]);
    }

    #[test]
    fn every_torn_tail_is_cut_and_every_damage_before_it_reported() {
        let (_, places) = log(&[&[(2, 2), (4, 3)], &[(7, 1), (8, 2)]]);
        let last = places.len() - 1;
        for (n, &(segment, begin, end)) in places.iter().enumerate() {
            for at in begin..end {
                for kind in ["flip", "zero the rest of the frame"] {
                    let (mut images, _) = log(&[&[(2, 2), (4, 3)], &[(7, 1), (8, 2)]]);
                    let bytes = &mut images[segment].bytes;
                    let before = bytes.clone();
                    if kind == "flip" {
                        bytes[at] ^= 0x40
                    } else {
                        bytes[at..end].fill(0)
                    }
                    let unchanged = *bytes == before;
                    let got = revisions(&images, 1);
                    match got {
                        // Changes of the padding, or zeros over zeros, change nothing.
                        Ok(all) if all == [2, 3, 4, 5, 6, 7, 8, 9] => assert!(unchanged || end - at < ALIGN),
                        Ok(cut) => {
                            assert_eq!(cut, [2, 3, 4, 5, 6, 7], "{kind} byte {at}");
                            assert_eq!(n, last);
                        }
                        Err(Error::Corrupt { .. }) => assert!(n < last),
                        Err(other) => panic!("{other}"),
                    }
                }
            }
        }
    }

    #[test]
    fn what_an_earlier_use_left_is_not_read() {
        let (mut images, _) = log(&[&[(2, 4)], &[(6, 1)]]);
        // The second segment's bytes belong to another id or another store.
        images[1].id = 7;
        assert_eq!(revisions(&images, 1).unwrap(), [2, 3, 4, 5]);
        assert!(replay(&images, SALT + 1, 1).unwrap().is_empty());
    }
}
