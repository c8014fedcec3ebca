//! LIST of 10,000 ConfigMaps, and how much of it passes before the first byte: an answer whose encoding took the time
//! would begin late.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use http_body_util::BodyExt as _;

use super::{CONFIGMAPS, configmap, fresh, spread};
use crate::report::{Report, Target, ms, percentile};

const OBJECTS: usize = 10_000;
/// What is in each object, so that all of them are 6.5 MB.
const DATA_BYTES: usize = 270;
const ROUNDS: usize = 60;

/// Measures lists.
pub async fn run(binary: &Path, report: &mut Report) -> Result<()> {
    let (_directory, _server, endpoint) = fresh(binary).await?;
    spread(&endpoint, OBJECTS, |mut wire, number| async move {
        let data = "x".repeat(DATA_BYTES);
        wire.create(CONFIGMAPS, configmap(&format!("listed-{number}"), &data)).await?;
        Ok(wire)
    })
    .await?;
    let (mut first, mut whole, mut bytes) = (Vec::new(), Vec::new(), 0);
    // One list to warm up, which does not count.
    for round in 0..=ROUNDS {
        let mut wire = endpoint.connect().await?;
        let begun = Instant::now();
        let mut body = wire.open(CONFIGMAPS).await?;
        let headers = begun.elapsed();
        bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame?.data_ref().map_or(0, bytes::Bytes::len);
        }
        let all = begun.elapsed();
        if round > 0 {
            first.push(headers);
            whole.push(all);
        }
    }
    ensure!((6_000_000..7_000_000).contains(&bytes), "the list has {bytes} bytes, not 6.5 MB");
    let (first, whole) = (ms(percentile(&mut first, 0.5)), ms(percentile(&mut whole, 0.5)));
    let what = format!("LIST of 10,000 ConfigMaps ({:.1} MB), p50", bytes as f64 / 1e6);
    report.add(&what, whole, "ms", Target::Below(10.0));
    report.add("share of that LIST before its first byte", first / whole, "", Target::Below(0.5));
    Ok(())
}
