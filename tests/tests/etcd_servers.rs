//! Two API servers over one etcd: what one has acknowledged the other shows at once, and nothing is given out twice.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use hawser_apiserver::access::UserInfo;
use hawser_apiserver::body::Body;
use hawser_apiserver::bootstrap::AccessConfig;
use hawser_apiserver::in_process::InProcessService;
use hawser_apiserver::pki::{Pki, PkiConfig};
use hawser_apiserver::{ApiServer, Config};
use hawser_storage::etcd::{Etcd as Engine, Options};
use hawser_tests::etcd::Etcd;
use http::{Method, Request};
use serde_json::{Value, json};
use tower::ServiceExt as _;

/// An API server with a connection of its own.
struct Member {
    _server: ApiServer,
    service: InProcessService,
}

impl Member {
    async fn start(etcd: &Etcd, pki: &Arc<Pki>) -> Result<Self> {
        let options = Options { endpoints: vec![etcd.url.clone()], ..Options::default() };
        let storage = Arc::new(Engine::connect(options).await?);
        let server = ApiServer::start(Config::new(Arc::new(AccessConfig::new(pki.clone()))), storage).await?;
        let service = server.in_process(UserInfo::new("tester", ["system:masters"]));
        Ok(Member { _server: server, service })
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<(u16, Value)> {
        let body = body.map_or(Body::Empty, |b| Body::from(b.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(body)?;
        let Ok(response) = self.service.clone().oneshot(request).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect(1 << 26).await.map_err(|e| anyhow::anyhow!("{e}"))?;
        Ok((code, serde_json::from_slice(&bytes)?))
    }

    async fn expect(&self, method: Method, path: &str, body: Option<Value>, code: u16) -> Result<Value> {
        let (got, body) = self.ask(method, path, body).await?;
        ensure!(got == code, "{path}: {got} instead of {code}: {body}");
        Ok(body)
    }
}

async fn members() -> Result<(tempfile::TempDir, Etcd, [Member; 2])> {
    let directory = tempfile::tempdir()?;
    let etcd = Etcd::start(&directory.path().join("etcd"))?;
    let pki = PkiConfig::new(&directory.path().join("pki"));
    let pki = Arc::new(Pki::load_or_create(&pki, SystemTime::now())?);
    let (one, two) = tokio::join!(Member::start(&etcd, &pki), Member::start(&etcd, &pki));
    Ok((directory, etcd, [one?, two?]))
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SERVICES: &str = "/api/v1/namespaces/default/services";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consistent_read_shows_what_another_server_has_acknowledged() -> Result<()> {
    let (_directory, _etcd, [one, two]) = members().await?;
    for round in 0..60 {
        let (writer, reader) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let name = format!("m{round}");
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        let made = writer.expect(Method::POST, MAPS, Some(map), 201).await?;
        let written: u64 = made["metadata"]["resourceVersion"].as_str().context("no version")?.parse()?;
        // Straight away, by every way to read that promises the newest state.
        let listed = reader.expect(Method::GET, MAPS, None, 200).await?;
        let names = listed["items"].as_array().context("no items")?;
        ensure!(names.iter().any(|i| i["metadata"]["name"] == *name), "{name} is not in the list");
        let of: u64 = listed["metadata"]["resourceVersion"].as_str().context("no version")?.parse()?;
        ensure!(of >= written, "a list of {of} after a write of {written}");
        reader.expect(Method::GET, &format!("{MAPS}/{name}"), None, 200).await?;
        let named = format!("{MAPS}?fieldSelector=metadata.name%3D{name}");
        let named = reader.expect(Method::GET, &named, None, 200).await?;
        ensure!(named["items"].as_array().is_some_and(|i| i.len() == 1), "{name} is not selected");
        writer.expect(Method::DELETE, &format!("{MAPS}/{name}"), None, 200).await?;
        reader.expect(Method::GET, &format!("{MAPS}/{name}"), None, 404).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_of_two_servers_share_no_address_and_no_port() -> Result<()> {
    let (_directory, _etcd, [one, two]) = members().await?;
    let service = |name: String, spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    // Both ask for the same at the same time: one gets it.
    for n in 0..10 {
        let (address, port) = (format!("10.96.0.{}", 20 + n), 30000 + n);
        let spec = |kind: &str| match kind {
            "address" => json!({"clusterIP": address, "ports": [{"port": 80}]}),
            _ => json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}),
        };
        for kind in ["address", "port"] {
            let body = |server: &str| Some(service(format!("{server}-{kind}-{n}"), spec(kind)));
            let (a, b) = tokio::join!(
                one.ask(Method::POST, SERVICES, body("one")),
                two.ask(Method::POST, SERVICES, body("two"))
            );
            let mut codes = [a?.0, b?.0];
            codes.sort_unstable();
            ensure!(codes == [201, 422], "{kind} {n}: {codes:?}");
        }
    }
    // And whatever is chosen by the servers is chosen once.
    let mut work = Vec::new();
    for n in 0..40 {
        let server = if n % 2 == 0 { &one } else { &two };
        let body = service(format!("any-{n}"), json!({"type": "NodePort", "ports": [{"port": 80}]}));
        work.push(server.expect(Method::POST, SERVICES, Some(body), 201));
    }
    let made = futures::future::try_join_all(work).await?;
    let all: HashSet<String> = made
        .iter()
        .flat_map(|s| [s["spec"]["clusterIP"].to_string(), s["spec"]["ports"][0]["nodePort"].to_string()])
        .collect();
    ensure!(all.len() == 2 * made.len(), "given out twice: {all:?}");
    // The claims are what Kubernetes shows, and go with their Services.
    let address = made[0]["spec"]["clusterIP"].as_str().context("no address")?.to_owned();
    let path = format!("/apis/networking.k8s.io/v1/ipaddresses/{address}");
    let claim = two.expect(Method::GET, &path, None, 200).await?;
    ensure!(claim["spec"]["parentRef"]["name"] == "any-0", "{claim}");
    two.expect(Method::DELETE, &format!("{SERVICES}/any-0"), None, 200).await?;
    one.expect(Method::GET, &path, None, 404).await?;
    Ok(())
}
