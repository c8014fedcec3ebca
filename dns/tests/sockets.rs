//! A whole server on loopback, with an API that is made up: asked by hickory's resolver and by single messages.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hawser_dns::config::LOCAL_NETWORKS;
use hawser_dns::control::Incumbent;
use hawser_dns::{Config, Server};
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for what happens at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client of an API that holds the objects of `lists` and never changes; without lists it does not answer at all.
fn api(lists: Option<Value>) -> kube::Client {
    let lists = Arc::new(lists);
    let service = tower::service_fn(move |request: Request<Body>| {
        let lists = lists.clone();
        async move {
            let Some(lists) = &*lists else { return std::future::pending().await };
            let watch = request.uri().query().unwrap_or_default().contains("watch=");
            let kind = request.uri().path().rsplit('/').next().unwrap_or_default();
            let body: BoxBody<Bytes, std::convert::Infallible> = if watch {
                let silence = futures::stream::pending::<Result<hyper::body::Frame<Bytes>, _>>();
                BodyExt::boxed(http_body_util::StreamBody::new(silence))
            } else {
                let items = lists.get(kind).cloned().unwrap_or_else(|| json!([]));
                let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
                Full::new(Bytes::from(list.to_string())).boxed()
            };
            Ok::<_, std::convert::Infallible>(Response::new(body))
        }
    });
    kube::Client::new(service, "default")
}

fn objects() -> Value {
    let service =
        |name: &str, spec: Value| json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec});
    let endpoints: Vec<Value> = (0..200).map(|n| json!({"addresses": [format!("10.244.7.{n}")]})).collect();
    json!({
        "namespaces": [{"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "ns"}}],
        "services": [
            service("web", json!({"clusterIP": "10.96.0.80", "clusterIPs": ["10.96.0.80"],
                "ports": [{"name": "http", "port": 80}]})),
            service("many", json!({"clusterIP": "None", "clusterIPs": ["None"]})),
            service("out", json!({"type": "ExternalName", "externalName": "www.example.com"})),
            service("in", json!({"type": "ExternalName", "externalName": "web.ns.svc.cluster.local"})),
            service("loop", json!({"type": "ExternalName", "externalName": "loop.ns.svc.cluster.local"})),
            service("lost", json!({"type": "ExternalName", "externalName": "www.unknown.test"})),
        ],
        "endpointslices": [{
            "metadata": {"name": "many-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "many"}},
            "addressType": "IPv4", "endpoints": endpoints,
        }],
    })
}

fn free_address() -> SocketAddr {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    socket.local_addr().expect("an address")
}

fn config(dir: &Path, listen: SocketAddr, stubs: Vec<String>, fingerprint: &str) -> Config {
    Config {
        listen: vec![listen],
        metrics: Vec::new(),
        domain: "cluster.local".into(),
        service_addresses: vec!["10.96.0.10".parse().expect("address")],
        cluster_ranges: vec!["10.96.0.0/12".parse().expect("range")],
        resolv_conf: None,
        stub_domains: stubs,
        clients: LOCAL_NETWORKS.iter().map(|net| net.parse().expect("network")).collect(),
        control: dir.join("dns.sock"),
        fingerprint: fingerprint.into(),
    }
}

/// A server that runs, until dropped.
struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<Result<(), hawser_dns::Error>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn start(config: Config, client: kube::Client) -> Running {
    let (stop, address) = (CancellationToken::new(), config.listen[0]);
    let (sender, serving) = tokio::sync::oneshot::channel();
    let server = Server::new(config, client).expect("a configuration");
    let running = server.run(stop.clone(), move || sender.send(()).unwrap_or(()));
    let task = tokio::spawn(running);
    tokio::time::timeout(PATIENCE, serving).await.expect("in time").expect("serving");
    Running { address, stop, task }
}

/// A server that has read the objects.
async fn start_synced(config: Config) -> Running {
    let control = config.control.clone();
    let running = start(config, api(Some(objects()))).await;
    let synced = async {
        while !Incumbent::find(&control).await.expect("greeted").expect("there").hello.synced {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, synced).await.expect("synced in time");
    running
}

fn query(name: &str, kind: RecordType, edns: Option<u16>) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("name"), kind));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    message
}

async fn ask_udp(server: SocketAddr, message: &Message) -> (Message, usize) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    socket.connect(server).await.expect("connected");
    socket.send(&message.to_vec().expect("encoded")).await.expect("sent");
    let mut buffer = vec![0; 65_536];
    let length =
        tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("in time").expect("got");
    let answer = Message::from_vec(&buffer[..length]).expect("decoded");
    assert_eq!(answer.metadata.id, message.metadata.id);
    (answer, length)
}

async fn ask_tcp(server: SocketAddr, messages: &[Message]) -> Vec<Message> {
    let mut stream = TcpStream::connect(server).await.expect("connected");
    for message in messages {
        let bytes = message.to_vec().expect("encoded");
        stream.write_u16(u16::try_from(bytes.len()).expect("short")).await.expect("sent");
        stream.write_all(&bytes).await.expect("sent");
    }
    let mut answers = Vec::new();
    for _ in messages {
        let mut buffer = vec![0; usize::from(stream.read_u16().await.expect("a length"))];
        stream.read_exact(&mut buffer).await.expect("an answer");
        answers.push(Message::from_vec(&buffer).expect("decoded"));
    }
    answers
}

fn resolver(server: SocketAddr) -> TokioResolver {
    let connection = |mut connection: ConnectionConfig| {
        connection.port = server.port();
        connection
    };
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(connection);
    let server = NameServerConfig::new(server.ip(), true, connections.into());
    let config = ResolverConfig::from_name_servers(vec![server]);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).build().expect("a resolver")
}

/// An upstream server that knows `www.example.com`, and how often it was asked.
async fn upstream() -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let address = socket.local_addr().expect("an address");
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let Ok(question) = Message::from_vec(&buffer[..length]) else { continue };
            counter.fetch_add(1, Ordering::Relaxed);
            let query = question.queries[0].clone();
            let mut answer = Message::response(question.metadata.id, OpCode::Query);
            answer.add_query(query.clone());
            if query.name().to_ascii().eq_ignore_ascii_case("www.example.com.") {
                if query.query_type() == RecordType::A {
                    let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 53)));
                    answer.add_answer(Record::from_rdata(query.name().clone(), 300, data));
                }
            } else {
                answer.metadata.response_code = ResponseCode::NXDomain;
                let name = |text| Name::from_ascii(text).expect("name");
                let soa =
                    hickory_proto::rr::rdata::SOA::new(name("ns.example.com."), name("h."), 1, 2, 3, 4, 60);
                answer.add_authority(Record::from_rdata(name("example.com."), 60, RData::SOA(soa)));
            }
            let _ = socket.send_to(&answer.to_vec().expect("encoded"), client).await;
        }
    });
    (address, asked)
}

#[tokio::test]
async fn a_resolver_finds_the_cluster() {
    let dir = tempfile::tempdir().expect("dir");
    let server = start_synced(config(dir.path(), free_address(), vec![], "a")).await;
    let resolver = resolver(server.address);
    let addresses = |name: &'static str| {
        let resolver = resolver.clone();
        async move {
            let found = resolver.lookup_ip(name).await.expect(name);
            let mut addresses: Vec<IpAddr> = found.iter().collect();
            addresses.sort();
            addresses
        }
    };
    assert_eq!(
        addresses("web.ns.svc.cluster.local.").await,
        ["10.96.0.80".parse::<IpAddr>().expect("address")]
    );
    // Too many for a datagram: the resolver comes again over TCP.
    assert_eq!(addresses("many.ns.svc.cluster.local.").await.len(), 200);
    assert_eq!(addresses("in.ns.svc.cluster.local.").await.len(), 1);
    let srv = resolver.lookup("_http._tcp.web.ns.svc.cluster.local.", RecordType::SRV).await.expect("SRV");
    assert!(srv.answers()[0].data.to_string().ends_with(" 80 web.ns.svc.cluster.local."));
    let ptr = resolver.reverse_lookup("10.96.0.80".parse::<IpAddr>().expect("address")).await.expect("PTR");
    assert_eq!(ptr.answers()[0].data.to_string(), "web.ns.svc.cluster.local.");
    let error = resolver.lookup_ip("gone.ns.svc.cluster.local.").await.expect_err("no such name");
    assert!(error.is_nx_domain(), "{error}");
}

#[tokio::test]
async fn messages_are_as_the_rfcs_say() {
    let dir = tempfile::tempdir().expect("dir");
    let server = start_synced(config(dir.path(), free_address(), vec![], "a")).await;
    let many = "many.ns.svc.cluster.local.";
    for (edns, limit) in [(None, 512), (Some(1232), 1232), (Some(400), 512), (Some(65_535), 1232)] {
        let (answer, length) = ask_udp(server.address, &query(many, RecordType::A, edns)).await;
        assert!(length <= limit, "{length} bytes for {edns:?}");
        assert!(answer.metadata.truncation && answer.answers.len() > 20, "{} answers", answer.answers.len());
        assert_eq!(answer.edns.is_some(), edns.is_some(), "{edns:?}");
    }
    let web = query("Web.NS.svc.cluster.local.", RecordType::A, None);
    let answers = ask_tcp(server.address, &[query(many, RecordType::A, None), web.clone()]).await;
    assert!(!answers[0].metadata.truncation && answers[0].answers.len() == 200);
    assert!(answers[1].answers[0].name.eq_case(web.queries[0].name()));
    let (answer, _) = ask_udp(server.address, &web).await;
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert!(answer.metadata.recursion_desired && answer.queries[0].name().eq_case(web.queries[0].name()));

    let code = |message: Message| async move {
        let (answer, _) = ask_udp(server.address, &message).await;
        (answer.metadata.response_code, answer.authorities.len())
    };
    let plain = |name: &str, kind| query(name, kind, None);
    assert_eq!(code(plain("gone.ns.svc.cluster.local.", RecordType::A)).await, (ResponseCode::NXDomain, 1));
    assert_eq!(code(plain("web.ns.svc.cluster.local.", RecordType::AAAA)).await, (ResponseCode::NoError, 1));
    assert_eq!(code(plain("loop.ns.svc.cluster.local.", RecordType::A)).await, (ResponseCode::ServFail, 0));
    // Nobody can be asked about other names; an alias is an answer all the same.
    assert_eq!(code(plain("www.example.com.", RecordType::A)).await, (ResponseCode::Refused, 0));
    assert_eq!(code(plain("out.ns.svc.cluster.local.", RecordType::A)).await, (ResponseCode::NoError, 0));
    assert_eq!(code(plain("cluster.local.", RecordType::AXFR)).await, (ResponseCode::Refused, 0));
    let mut update = plain("cluster.local.", RecordType::SOA);
    update.metadata.op_code = OpCode::Update;
    assert_eq!(code(update).await.0, ResponseCode::NotImp);
    let mut two = plain("web.ns.svc.cluster.local.", RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(code(two).await.0, ResponseCode::FormErr);
    let mut version = query("web.ns.svc.cluster.local.", RecordType::A, Some(1232));
    version.edns.as_mut().expect("EDNS").set_version(1);
    // 16 is BADVERS in answers to queries, and BADSIG in what hickory reads.
    assert_eq!(u16::from(code(version).await.0), u16::from(ResponseCode::BADVERS));
}

#[tokio::test]
async fn other_names_are_asked_once() {
    let dir = tempfile::tempdir().expect("dir");
    let (upstream, asked) = upstream().await;
    let stubs = vec![format!("example.com={upstream}")];
    let server = start_synced(config(dir.path(), free_address(), stubs, "a")).await;
    for _ in 0..3 {
        let (answer, _) =
            ask_udp(server.address, &query("out.ns.svc.cluster.local.", RecordType::A, None)).await;
        let data: Vec<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
        assert_eq!(data, ["www.example.com.", "192.0.2.53"]);
        let (answer, _) = ask_udp(server.address, &query("WWW.example.com.", RecordType::A, None)).await;
        assert_eq!(answer.answers[0].data.to_string(), "192.0.2.53");
        assert!(!answer.metadata.authoritative);
        assert_eq!(answer.answers[0].name.to_ascii(), "WWW.example.com.");
    }
    assert_eq!(asked.swap(0, Ordering::Relaxed), 1);
    for _ in 0..3 {
        let (answer, _) = ask_udp(server.address, &query("no.example.com.", RecordType::A, None)).await;
        assert_eq!((answer.metadata.response_code, answer.authorities.len()), (ResponseCode::NXDomain, 1));
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    let (answer, _) =
        ask_udp(server.address, &query("lost.ns.svc.cluster.local.", RecordType::A, None)).await;
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 1));
}

#[tokio::test]
async fn without_the_api_nothing_is_made_up() {
    let dir = tempfile::tempdir().expect("dir");
    let server = start(config(dir.path(), free_address(), vec![], "a"), api(None)).await;
    let (answer, _) = ask_udp(server.address, &query("web.ns.svc.cluster.local.", RecordType::A, None)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn strangers_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let mut config = config(dir.path(), free_address(), vec![], "a");
    config.clients = vec!["10.0.0.0/8".parse().expect("network")];
    let server = start_synced(config).await;
    let (answer, _) = ask_udp(server.address, &query("web.ns.svc.cluster.local.", RecordType::A, None)).await;
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::Refused, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_process_takes_over_and_no_query_is_lost() {
    let dir = tempfile::tempdir().expect("dir");
    let (address, control) = (free_address(), dir.path().join("dns.sock"));
    let mut first = start_synced(config(dir.path(), address, vec![], "a")).await;

    // Queries over both transports, each sent once, as long as processes come and go.
    let (done, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let asking: Vec<_> = (0..8)
        .map(|client| {
            let (done, stop) = (done.clone(), stop.clone());
            tokio::spawn(async move {
                let web = query("web.ns.svc.cluster.local.", RecordType::A, None);
                while !stop.is_cancelled() {
                    let answer = if client == 0 {
                        ask_tcp(address, std::slice::from_ref(&web)).await.remove(0)
                    } else {
                        ask_udp(address, &web).await.0
                    };
                    assert_eq!(answer.answers.len(), 1);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for fingerprint in ["b", "c", "d", "e"] {
        let before = done.load(Ordering::Relaxed);
        let next = start_synced(config(dir.path(), address, vec![], fingerprint)).await;
        tokio::time::timeout(PATIENCE, &mut first.task)
            .await
            .expect("it ends")
            .expect("joined")
            .expect("well");
        assert_eq!(
            Incumbent::find(&control).await.expect("greeted").expect("there").hello.fingerprint,
            fingerprint
        );
        first = next;
        while done.load(Ordering::Relaxed) < before + 100 {
            tokio::task::yield_now().await;
        }
    }
    stop.cancel();
    for asking in asking {
        asking.await.expect("every query was answered");
    }

    // One of the same kind has nothing to do; one that has not read the API waits, and goes on when the other ends.
    let same = Server::new(config(dir.path(), address, vec![], "e"), api(None)).expect("a configuration");
    same.run(CancellationToken::new(), || panic!("another one serves")).await.expect("well");
    let metrics =
        Incumbent::find(&control).await.expect("greeted").expect("there").metrics().await.expect("text");
    assert!(metrics.contains("hawser_dns_synced 1"), "{metrics}");
    Incumbent::find(&control).await.expect("greeted").expect("there").stop().await.ok();
    tokio::time::timeout(PATIENCE, &mut first.task).await.expect("it ends").expect("joined").expect("well");
    assert!(Incumbent::find(&control).await.expect("no error").is_none());
}
