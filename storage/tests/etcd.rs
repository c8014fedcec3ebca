//! The conformance suite on etcd, and what only a server elsewhere can do: go away and come back.

mod support;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use hawser_storage::{
    Error, ListOptions, Precondition, Storage, WatchItem,
    conformance::Fixture,
    etcd::{Etcd, Options, Tls},
};
use support::EtcdServer;

struct OnEtcd {
    store: Etcd,
    server: EtcdServer,
}

fn options(server: &EtcdServer) -> Options {
    Options { endpoints: vec![server.endpoint()], compaction_interval: None, ..Options::default() }
}

async fn make() -> OnEtcd {
    let server = EtcdServer::start();
    let store = Etcd::connect(options(&server)).await.expect("connect");
    OnEtcd { store, server }
}

#[async_trait]
impl Fixture for OnEtcd {
    fn store(&self) -> Arc<dyn Storage> {
        Arc::new(self.store.clone())
    }

    async fn restart(&mut self) -> bool {
        self.server.kill();
        self.server.run();
        // The same client finds the server again.
        let answered = async {
            while self.store.current_revision().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), answered).await.expect("etcd answers again");
        true
    }
}

hawser_storage::conformance!(make(), 12);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone_is_an_error_and_watches_survive_it() {
    let mut fixture = make().await;
    fixture.store =
        Etcd::connect(Options { timeout: Duration::from_secs(2), ..options(&fixture.server) }).await.unwrap();
    let store = fixture.store();
    let first = store.put("k/1", Bytes::from("1"), Precondition::Absent).await.unwrap();
    let mut watch = store.watch("k/", first - 1).await.unwrap();
    assert!(matches!(watch.next().await, Some(Ok(WatchItem::Events(e))) if e.len() == 1));

    fixture.server.kill();
    assert!(matches!(store.list("k/", ListOptions::default()).await, Err(Error::Unavailable(_))));
    assert!(matches!(store.list("none/", ListOptions::default()).await, Err(Error::Unavailable(_))));
    assert!(matches!(store.get("k/1").await, Err(Error::Unavailable(_))));
    assert!(matches!(store.current_revision().await, Err(Error::Unavailable(_))));
    assert!(matches!(store.watch("k/", first).await, Err(Error::Unavailable(_))));
    assert!(matches!(store.delete("k/1", Precondition::None).await, Err(Error::Unavailable(_))));

    assert!(fixture.restart().await);
    let second = store.put("k/2", Bytes::from("2"), Precondition::Absent).await.unwrap();
    match tokio::time::timeout(Duration::from_secs(30), watch.next()).await.expect("the watch goes on") {
        Some(Ok(WatchItem::Events(events))) => {
            assert_eq!(events.iter().map(|e| e.revision()).collect::<Vec<_>>(), [second]);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefixes_keep_stores_apart() {
    let server = EtcdServer::start();
    let open = async |prefix: &str| {
        Etcd::connect(Options { prefix: prefix.to_owned(), ..options(&server) }).await.expect("connect")
    };
    let (a, b, all) = (open("/a/").await, open("/b/").await, open("").await);
    let first = a.put("k", Bytes::from("a"), Precondition::Absent).await.unwrap();
    b.put("k", Bytes::from("b"), Precondition::Absent).await.unwrap();
    for (store, want) in [(&a, vec!["k"]), (&b, vec!["k"]), (&all, vec!["/a/k", "/b/k"])] {
        let list = store.list("", ListOptions::default()).await.unwrap();
        assert_eq!(list.items.iter().map(|kv| &*kv.key).collect::<Vec<_>>(), want);
    }
    let mut watch = b.watch("", first - 1).await.unwrap();
    match watch.next().await {
        Some(Ok(WatchItem::Events(events))) => {
            assert_eq!((events.len(), &*events[0].kv.key, &events[0].kv.value[..]), (1, "k", &b"b"[..]));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_share_periodic_compaction() {
    let server = EtcdServer::start();
    let interval = Some(Duration::from_millis(300));
    let open =
        async || Etcd::connect(Options { compaction_interval: interval, ..options(&server) }).await.unwrap();
    let (one, two) = (open().await, open().await);
    let first = one.put("k", Bytes::from("1"), Precondition::None).await.unwrap();
    let last = two.put("k", Bytes::from("2"), Precondition::None).await.unwrap();
    let compacted = async {
        let at = |revision| ListOptions { revision: Some(revision), ..ListOptions::default() };
        while one.list("k", at(first)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(matches!(two.list("k", at(first)).await, Err(Error::Compacted { .. })));
    };
    tokio::time::timeout(Duration::from_secs(30), compacted).await.expect("old history goes");
    assert_eq!(one.get("k").await.unwrap().0.unwrap().mod_revision, last);
}

#[tokio::test]
async fn no_server_is_unavailable() {
    let endpoint = EtcdServer::start().endpoint();
    let options =
        Options { endpoints: vec![endpoint], timeout: Duration::from_secs(1), ..Options::default() };
    assert!(matches!(Etcd::connect(options).await.map(drop), Err(Error::Unavailable(_))));
    let none = Options { endpoints: Vec::new(), ..Options::default() };
    assert!(matches!(Etcd::connect(none).await.map(drop), Err(Error::Unavailable(_))));
}

/// A CA, and what it signed for a server on loopback and for a client: `(certificate, key)` in PEM.
struct Pki {
    ca: String,
    server: (String, String),
    client: (String, String),
}

fn pki() -> Pki {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let signed = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &ca).unwrap().pem(), key.serialize_pem())
    };
    Pki { ca: ca.pem(), server: signed("127.0.0.1"), client: signed("client") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_client_certificates() {
    let pki = pki();
    let server = EtcdServer::start_with("https", |dir| {
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("write");
            path.display().to_string()
        };
        vec![
            format!("--trusted-ca-file={}", write("ca.crt", &pki.ca)),
            format!("--cert-file={}", write("server.crt", &pki.server.0)),
            format!("--key-file={}", write("server.key", &pki.server.1)),
            "--client-cert-auth".to_owned(),
        ]
    });
    let identity = Some((pki.client.0.clone().into_bytes(), pki.client.1.clone().into_bytes()));
    let tls = Tls { ca: pki.ca.clone().into_bytes(), identity, server_name: None };
    let with = |tls: Tls| Options { tls: Some(tls), timeout: Duration::from_secs(5), ..options(&server) };
    let store = Etcd::connect(with(tls.clone())).await.expect("connect");
    let revision = store.put("k", Bytes::from("1"), Precondition::Absent).await.unwrap();
    assert_eq!(store.get("k").await.unwrap().1, revision);

    let stranger = Tls { identity: None, ..tls.clone() };
    assert!(matches!(Etcd::connect(with(stranger)).await.map(drop), Err(Error::Unavailable(_))));
    let impostor = Tls { ca: self::pki().ca.into_bytes(), ..tls };
    assert!(matches!(Etcd::connect(with(impostor)).await.map(drop), Err(Error::Unavailable(_))));
}
