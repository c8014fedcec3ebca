//! The engine on an etcd cluster, for replicated control planes.
//!
//! Compare-and-swap is etcd's transaction on a key's mod revision, lists pin the revision of their first page,
//! a watch is one gRPC stream that is begun again after what it has yielded when it breaks.
//! Keys are stored as they are, below an optional prefix; keys with a NUL byte are this engine's own marks.

mod compactor;
mod convert;
mod watch;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions, GetResponse,
    Identity, KvClient, ResponseHeader, TlsOptions, Txn, TxnOp, TxnOpResponse,
};

use crate::{
    Error, KeyValue, ListOptions, ListResult, MAX_REQUEST_BYTES, Precondition, Revision, Storage,
    WatchStream,
    model::{check_key, check_write},
};
use convert::{Keys, error_of, is_mark, to_i64};

/// Items asked for at once; a list is as many requests as it takes, all at one revision.
const PAGE: usize = 500;
/// A page of values of the largest size must fit.
const MAX_MESSAGE_BYTES: usize = i32::MAX as usize;

/// How to reach an etcd cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// URLs, `http://…` or `https://…`.
    pub endpoints: Vec<String>,
    /// Put before every key.
    pub prefix: String,
    /// For `https` endpoints.
    pub tls: Option<Tls>,
    /// User name and password, if the cluster wants them.
    pub user: Option<(String, String)>,
    /// How long a request may take; afterwards it is [`Error::Unavailable`].
    pub timeout: Duration,
    /// Compact history older than this, together with the other API servers; `None`: leave it to others.
    pub compaction_interval: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            endpoints: Vec::new(),
            prefix: String::new(),
            tls: None,
            user: None,
            timeout: Duration::from_secs(10),
            compaction_interval: Some(Duration::from_secs(300)),
        }
    }
}

/// Certificates for TLS, in PEM.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Whom to trust.
    pub ca: Vec<u8>,
    /// The client's certificate and key, if the servers ask for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name to expect in the servers' certificates, if it is not the endpoint's.
    pub server_name: Option<String>,
}

/// A store on an etcd cluster. Cloning shares it.
#[derive(Clone)]
pub struct Etcd(Arc<Inner>);

pub(crate) struct Inner {
    client: Client,
    keys: Keys,
    timeout: Duration,
    /// Whether servers order a requested progress after the events it speaks of
    /// (since 3.4.25 and 3.5.8).
    progress_is_ordered: bool,
    /// The highest revision known to be compacted.
    compacted: AtomicU64,
    /// Becomes true when the store is closed.
    closed: tokio::sync::watch::Sender<bool>,
}

fn connect_options(options: &Options) -> ConnectOptions {
    let mut connect = ConnectOptions::new()
        .with_connect_timeout(Duration::from_secs(5).min(options.timeout))
        .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
        .with_keep_alive_while_idle(true)
        .with_require_leader(true);
    if let Some((name, password)) = &options.user {
        connect = connect.with_user(name, password);
    }
    if let Some(tls) = &options.tls {
        let mut config = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.ca));
        if let Some((certificate, key)) = &tls.identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        if let Some(name) = &tls.server_name {
            config = config.domain_name(name);
        }
        connect = connect.with_tls(config);
    }
    connect
}

/// Whether a server's version orders requested progress after events; when in doubt, no.
fn orders_progress(version: &str) -> bool {
    let mut parts = version.split(['.', '-']).map(|part| part.parse::<u32>().ok());
    let mut part = || parts.next().flatten();
    match (part(), part(), part()) {
        (Some(3), Some(4), Some(patch)) => patch >= 25,
        (Some(3), Some(5), Some(patch)) => patch >= 8,
        (Some(3), Some(minor), _) => minor > 5,
        (Some(major), ..) => major > 3,
        _ => false,
    }
}

fn revision(header: Option<&ResponseHeader>) -> Result<Revision, Error> {
    header
        .and_then(|h| Revision::try_from(h.revision()).ok())
        .ok_or_else(|| Error::Unavailable("etcd answered without a revision".to_owned()))
}

impl Etcd {
    /// Connects to the cluster.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it does not answer.
    pub async fn connect(options: Options) -> Result<Etcd, Error> {
        let connecting = Client::connect(options.endpoints.clone(), Some(connect_options(&options)));
        let client = in_time(options.timeout, connecting).await?;
        let status = in_time(options.timeout, client.maintenance_client().status()).await?;
        let inner = Arc::new(Inner {
            keys: Keys::new(options.prefix),
            timeout: options.timeout,
            progress_is_ordered: orders_progress(status.version()),
            compacted: AtomicU64::new(0),
            closed: tokio::sync::watch::Sender::new(false),
            client,
        });
        if let Some(interval) = options.compaction_interval {
            tokio::spawn(compactor::run(Arc::downgrade(&inner), interval));
        }
        Ok(Etcd(inner))
    }
}

async fn in_time<T>(
    timeout: Duration,
    request: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(timeout, request).await {
        Ok(result) => result.map_err(|e| error_of(&e)),
        Err(_) => Err(Error::Unavailable(format!("etcd did not answer within {} s", timeout.as_secs_f32()))),
    }
}

impl Inner {
    fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Waits for `request`, but not longer than the store is open and the timeout allows.
    async fn ask<T>(&self, request: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, Error> {
        let mut closed = self.closed.subscribe();
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => Err(Error::Closed),
            result = in_time(self.timeout, request) => result,
        }
    }

    async fn current(&self) -> Result<Revision, Error> {
        // Any linearizable read will do.
        let options = GetOptions::new().with_count_only();
        let response = self.ask(self.kv().get(self.keys.stored("\0"), Some(options))).await?;
        revision(response.header())
    }

    /// Notes what is known of the compacted revision; answers what to tell somebody who asked for `asked`.
    fn note_compacted(&self, at_least: Revision) -> Error {
        let known = self.compacted.fetch_max(at_least, Ordering::Relaxed).max(at_least);
        Error::Compacted { compacted: known }
    }

    async fn transact(&self, compare: Compare, then: TxnOp, key: &[u8]) -> Result<Outcome, Error> {
        let otherwise = TxnOp::get(key, None);
        let txn = Txn::new().when([compare]).and_then([then]).or_else([otherwise]);
        let response = self.ask(self.kv().txn(txn)).await?;
        let revision = revision(response.header())?;
        let prev = match response.op_responses().first() {
            Some(TxnOpResponse::Get(got)) => {
                got.kvs().first().map(|kv| self.keys.key_value(kv)).transpose()?
            }
            Some(TxnOpResponse::Delete(gone)) => {
                gone.prev_kvs().first().map(|kv| self.keys.key_value(kv)).transpose()?
            }
            _ => None,
        };
        Ok(if response.succeeded() { Outcome::Done(revision, prev) } else { Outcome::Refused(prev) })
    }

    async fn delete(&self, key: &str, precondition: Precondition) -> Result<(KeyValue, Revision), Error> {
        let stored = self.keys.stored(key);
        let with_prev = || Some(DeleteOptions::new().with_prev_key());
        match precondition {
            Precondition::ModRevision(want @ 1..) => {
                let compare = Compare::mod_revision(stored.clone(), CompareOp::Equal, to_i64(want));
                match self.transact(compare, TxnOp::delete(stored.clone(), with_prev()), &stored).await? {
                    Outcome::Done(revision, prev) => Ok((prev.ok_or(Error::NotFound)?, revision)),
                    Outcome::Refused(None) => Err(Error::NotFound),
                    Outcome::Refused(current) => Err(Error::Conflict { current }),
                }
            }
            Precondition::None => {
                let response = self.ask(self.kv().delete(stored, with_prev())).await?;
                let prev = response.prev_kvs().first().ok_or(Error::NotFound)?;
                Ok((self.keys.key_value(prev)?, revision(response.header())?))
            }
            // Neither ever holds for a key that exists.
            Precondition::Absent | Precondition::ModRevision(0) => match self.get(&stored).await? {
                (None, _) => Err(Error::NotFound),
                (current, _) => Err(Error::Conflict { current }),
            },
        }
    }

    async fn get(&self, stored: &[u8]) -> Result<(Option<KeyValue>, Revision), Error> {
        let response = self.ask(self.kv().get(stored, None)).await?;
        let kv = response.kvs().first().map(|kv| self.keys.key_value(kv)).transpose()?;
        Ok((kv, revision(response.header())?))
    }

    async fn page(
        &self,
        from: Vec<u8>,
        end: Vec<u8>,
        limit: usize,
        at: Revision,
    ) -> Result<GetResponse, Error> {
        let options = GetOptions::new().with_range(end).with_limit(limit as i64).with_revision(to_i64(at));
        match self.ask(self.kv().get(from, Some(options))).await {
            Err(Error::Compacted { .. }) => Err(self.note_compacted(at + 1)),
            Err(Error::FutureRevision { .. }) => {
                Err(Error::FutureRevision { current: self.current().await? })
            }
            result => result,
        }
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<ListResult, Error> {
        let (mut from, end) = self.keys.range(prefix, options.start_after.as_deref());
        let limit = if options.limit == 0 { usize::MAX } else { options.limit };
        let mut items = Vec::new();
        let mut at = options.revision.unwrap_or(0);
        let mut remaining: u64;
        loop {
            // One more than is wanted makes up for a mark.
            let page =
                self.page(from, end.clone(), PAGE.min((limit - items.len()).saturating_add(1)), at).await?;
            if at == 0 {
                at = revision(page.header())?;
            }
            remaining = u64::try_from(page.count()).unwrap_or(0);
            for kv in page.kvs() {
                if items.len() == limit {
                    break;
                }
                remaining = remaining.saturating_sub(1);
                if !is_mark(kv.key()) {
                    items.push(self.keys.key_value(kv)?);
                }
            }
            let Some(last) = page.kvs().last().filter(|_| page.more() && items.len() < limit) else { break };
            from = [last.key(), b"\0"].concat();
        }
        Ok(ListResult { items, revision: at, more: remaining > 0, remaining })
    }
}

enum Outcome {
    /// The write happened, over this value if it was asked for.
    Done(Revision, Option<KeyValue>),
    /// It did not; this is there.
    Refused(Option<KeyValue>),
}

#[async_trait]
impl Storage for Etcd {
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), Error> {
        check_key(key)?;
        self.0.get(&self.0.keys.stored(key)).await
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<ListResult, Error> {
        self.0.list(prefix, options).await
    }

    async fn put(&self, key: &str, value: Bytes, precondition: Precondition) -> Result<Revision, Error> {
        check_write(key, &value)?;
        let inner = &*self.0;
        let size = key.len() + value.len();
        let stored = inner.keys.stored(key);
        let compare = match precondition {
            Precondition::None => {
                let put = inner.ask(inner.kv().put(stored, value.to_vec(), None)).await;
                return put.and_then(|response| revision(response.header())).map_err(|e| with_size(e, size));
            }
            Precondition::Absent => Compare::create_revision(stored.clone(), CompareOp::Equal, 0),
            Precondition::ModRevision(0) => {
                return Err(Error::Conflict { current: inner.get(&stored).await?.0 });
            }
            Precondition::ModRevision(want) => {
                Compare::mod_revision(stored.clone(), CompareOp::Equal, to_i64(want))
            }
        };
        let put = TxnOp::put(stored.clone(), value.to_vec(), None);
        match inner.transact(compare, put, &stored).await.map_err(|e| with_size(e, size))? {
            Outcome::Done(revision, _) => Ok(revision),
            Outcome::Refused(current) => Err(Error::Conflict { current }),
        }
    }

    async fn delete(&self, key: &str, precondition: Precondition) -> Result<(KeyValue, Revision), Error> {
        check_key(key)?;
        self.0.delete(key, precondition).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, Error> {
        let current = self.0.current().await?;
        if after > current {
            return Err(Error::FutureRevision { current });
        }
        if after < self.0.compacted.load(Ordering::Relaxed) {
            return Err(self.0.note_compacted(0));
        }
        Ok(watch::start(self.0.clone(), prefix, after))
    }

    async fn current_revision(&self) -> Result<Revision, Error> {
        self.0.current().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        match self.0.ask(self.0.kv().compact(to_i64(revision), None)).await {
            Ok(_) => {
                self.0.note_compacted(revision);
                Ok(())
            }
            Err(Error::Compacted { .. }) => Ok(()),
            Err(Error::FutureRevision { .. }) => {
                Err(Error::FutureRevision { current: self.0.current().await? })
            }
            Err(error) => Err(error),
        }
    }

    async fn close(&self) -> Result<(), Error> {
        self.0.closed.send_replace(true);
        Ok(())
    }
}

/// Fills in what etcd does not say.
fn with_size(error: Error, size: usize) -> Error {
    match error {
        Error::TooLarge { .. } => Error::TooLarge { size, limit: MAX_REQUEST_BYTES },
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::orders_progress;

    #[test]
    fn knows_the_versions_whose_progress_can_be_trusted() {
        for (version, want) in [
            ("3.4.23", false),
            ("3.4.25", true),
            ("3.5.7", false),
            ("3.5.8", true),
            ("3.5.16+dfsg", false),
            ("3.6.0-rc.1", true),
            ("4.0.0", true),
            ("3.3.99", false),
            ("", false),
            ("weekly", false),
        ] {
            assert_eq!(orders_progress(version), want, "{version}");
        }
    }
}
