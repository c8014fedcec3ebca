//! Periodic compaction, shared by all API servers of a cluster.
//!
//! etcd does not compact by itself. As kube-apiserver does, each server tries once per interval to advance
//! one key whose version counts the intervals; the one that succeeds compacts to the revision
//! that was current one interval before. The key is kube-apiserver's, so both kinds can share an etcd.

use std::{sync::Weak, time::Duration};

use etcd_client::{Compare, CompareOp, Txn, TxnOp, TxnOpResponse};

use super::{Inner, convert::to_i64, revision};
use crate::{Error, Revision};

const KEY: &str = "compact_rev_key";

/// What an interval leaves to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Turn {
    /// The version of [`KEY`] that was last seen.
    version: i64,
    /// The revision that was current then.
    revision: Revision,
}

/// Compacts until the store is closed or gone.
pub(super) async fn run(inner: Weak<Inner>, interval: Duration) {
    let mut turn = Turn::default();
    loop {
        let Some(mut closed) = inner.upgrade().map(|inner| inner.closed.subscribe()) else { return };
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            _ = closed.wait_for(|closed| *closed) => return,
        }
        let Some(inner) = inner.upgrade() else { return };
        match take_turn(&inner, turn).await {
            Ok(next) => turn = next,
            Err(Error::Closed) => return,
            Err(error) => tracing::warn!(%error, "etcd was not compacted; trying again later"),
        }
    }
}

async fn take_turn(inner: &Inner, turn: Turn) -> Result<Turn, Error> {
    let txn = Txn::new()
        .when([Compare::version(KEY, CompareOp::Equal, turn.version)])
        .and_then([TxnOp::put(KEY, turn.revision.to_string(), None)])
        .or_else([TxnOp::get(KEY, None)]);
    let response = inner.ask(inner.kv().txn(txn)).await?;
    let revision = revision(response.header())?;
    if !response.succeeded() {
        // Another server's turn; begin from what it left.
        let version = match response.op_responses().first() {
            Some(TxnOpResponse::Get(got)) => got.kvs().first().map_or(0, etcd_client::KeyValue::version),
            _ => 0,
        };
        return Ok(Turn { version, revision });
    }
    if turn.revision > 0 {
        match inner.ask(inner.kv().compact(to_i64(turn.revision), None)).await {
            Ok(_) | Err(Error::Compacted { .. }) => {
                inner.note_compacted(turn.revision);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Turn { version: turn.version + 1, revision })
}
