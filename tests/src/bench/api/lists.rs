//! LIST of 10,000 ConfigMaps, and how much of it passes before the first byte: an answer whose encoding took the time
//! would begin late.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use http_body_util::BodyExt as _;

use super::{CONFIGMAPS, create_many, fresh};
use crate::report::{Report, Target, ms, percentile};

const OBJECTS: usize = 10_000;
const ROUNDS: usize = 60;

/// Measures lists.
pub async fn run(binary: &Path, report: &mut Report) -> Result<()> {
    let (_directory, _server, endpoint) = fresh(binary).await?;
    create_many(&endpoint, "listed", OBJECTS).await?;
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
    // The answer holds what was created, at some hundred bytes each.
    ensure!(bytes > OBJECTS * 200, "the list has {bytes} bytes only");
    let (first, whole) = (ms(percentile(&mut first, 0.5)), ms(percentile(&mut whole, 0.5)));
    let what = format!("LIST of 10,000 ConfigMaps ({:.1} MB), p50", bytes as f64 / 1e6);
    report.add(&what, whole, "ms", Target::Below(10.0));
    report.add("share of that LIST before its first byte", first / whole, "", Target::Below(0.5));
    Ok(())
}
