//! kube-rs against an API server alone: typed clients, watches that begin with their objects, server-side apply, tables,
//! pages, and a controller of a kind of one's own.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use hawser_tests::server::Server;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, DeleteParams, ListParams, Object, Patch, PatchParams, PostParams, Preconditions,
    PropagationPolicy, WatchEvent, WatchParams,
};
use kube::core::{GroupVersionKind, PartialObjectMeta};
use kube::runtime::conditions::is_crd_established;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::wait::await_condition;
use kube::runtime::{WatchStreamExt, finalizer, reflector, watcher};
use kube::{Client, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How long anything may take to be seen.
const PATIENCE: Duration = Duration::from_secs(30);

struct Kit {
    client: Client,
    _server: Server,
    _directory: tempfile::TempDir,
}

impl Kit {
    async fn start() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hawser-test-").tempdir()?;
        let server =
            Server::start(&hawser_tests::hawser_binary()?, "apiserver", directory.path(), &[]).await?;
        let client = hawser_tests::cluster::client(&server.kubeconfig()).await?;
        Ok(Self { client, _server: server, _directory: directory })
    }

    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), "default")
    }
}

fn map(name: &str, value: &str) -> Result<ConfigMap> {
    Ok(serde_json::from_value(
        json!({"metadata": {"name": name, "labels": {"app": "test"}}, "data": {"k": value}}),
    )?)
}

fn deployment(name: &str) -> Result<Deployment> {
    Ok(serde_json::from_value(
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template":
            {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}),
    )?)
}

fn code<T>(result: kube::Result<T>) -> Option<u16> {
    match result {
        Err(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn typed_clients() -> Result<()> {
    let kit = Kit::start().await?;
    let maps = kit.maps();
    let made = maps.create(&PostParams::default(), &map("a", "1")?).await?;
    ensure!(code(maps.create(&PostParams::default(), &map("a", "1")?).await) == Some(409));
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    maps.create(&dry, &map("dry", "1")?).await?;
    ensure!(maps.get_opt("dry").await?.is_none());
    let merged = maps.patch("a", &PatchParams::default(), &Patch::Merge(json!({"data": {"k": "2"}}))).await?;
    ensure!(merged.resource_version() != made.resource_version());
    let operations = serde_json::from_value(json!([{"op": "replace", "path": "/data/k", "value": "3"}]))?;
    let patched = maps.patch("a", &PatchParams::default(), &Patch::Json::<()>(operations)).await?;
    ensure!(patched.data.as_ref().and_then(|d| d.get("k")).map(String::as_str) == Some("3"));
    // The older version is refused.
    ensure!(code(maps.replace("a", &PostParams::default(), &made).await) == Some(409));
    maps.replace("a", &PostParams::default(), &patched).await?;
    let wrong = DeleteParams {
        preconditions: Some(Preconditions { uid: Some("x".into()), ..Preconditions::default() }),
        ..DeleteParams::default()
    };
    ensure!(code(maps.delete("a", &wrong).await) == Some(409));

    for n in 0..5 {
        maps.create(&PostParams::default(), &map(&format!("page-{n}"), "x")?).await?;
    }
    let mut found = Vec::new();
    let mut params = ListParams::default().labels("app=test").limit(2);
    loop {
        let page = maps.list(&params).await?;
        found.extend(page.items.iter().map(ResourceExt::name_any));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    ensure!(found.len() == 6, "{found:?}");
    let metadata = maps.list_metadata(&ListParams::default().fields("metadata.name=page-1")).await?;
    ensure!(metadata.items.len() == 1 && metadata.items[0].labels()["app"] == "test");

    let deployments: Api<Deployment> = Api::namespaced(kit.client.clone(), "default");
    deployments.create(&PostParams::default(), &deployment("d")?).await?;
    let scaled = deployments
        .patch_scale("d", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 3}})))
        .await?;
    ensure!(scaled.spec.and_then(|s| s.replicas) == Some(3));
    let status = json!({"status": {"observedGeneration": 2}, "spec": {"replicas": 9}});
    let after = deployments.patch_status("d", &PatchParams::default(), &Patch::Merge(status)).await?;
    ensure!(after.spec.and_then(|s| s.replicas) == Some(3), "a status patch changes the status alone");
    let strategic = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "j"}]}}}});
    let after = deployments.patch("d", &PatchParams::default(), &Patch::Strategic(strategic)).await?;
    let containers = after.spec.and_then(|s| s.template.spec).map(|s| s.containers).unwrap_or_default();
    ensure!(containers.len() == 1 && containers[0].image.as_deref() == Some("j"));
    let foreground =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..Default::default() };
    let left = deployments.delete("d", &foreground).await?.left().context("the object itself")?;
    ensure!(left.finalizers() == ["foregroundDeletion"] && left.metadata.deletion_timestamp.is_some());
    maps.delete_collection(&DeleteParams::default(), &ListParams::default().labels("app=test")).await?;
    ensure!(maps.list(&ListParams::default().labels("app=test")).await?.items.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn server_side_apply() -> Result<()> {
    let kit = Kit::start().await?;
    let maps = kit.maps();
    let apply = |manager: &'static str, value: &str| {
        let (maps, params) = (maps.clone(), PatchParams::apply(manager));
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": value}});
        async move { maps.patch("a", &params, &Patch::Apply(object)).await }
    };
    let first = apply("one", "1").await?;
    ensure!(apply("one", "1").await?.resource_version() == first.resource_version(), "nothing changed");
    let refused = match apply("two", "2").await {
        Err(kube::Error::Api(status)) => status,
        other => anyhow::bail!("no conflict: {other:?}"),
    };
    let causes = refused.details.map(|d| d.causes).unwrap_or_default();
    ensure!(refused.code == 409 && causes.len() == 1 && causes[0].field == ".data.k", "{causes:?}");
    ensure!(causes[0].message == "conflict with \"one\"", "{causes:?}");
    let object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "2"}});
    let forced = maps.patch("a", &PatchParams::apply("two").force(), &Patch::Apply(object)).await?;
    let managers: Vec<_> = forced.managed_fields().iter().filter_map(|m| m.manager.clone()).collect();
    ensure!(managers == ["two"], "{managers:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_begin_with_their_objects() -> Result<()> {
    let kit = Kit::start().await?;
    let maps = kit.maps();
    for n in 0..20 {
        maps.create(&PostParams::default(), &map(&format!("m{n}"), "x")?).await?;
    }
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let (reader, writer) = reflector::store();
        let events = reflector(writer, watcher(maps.clone(), config.labels("app=test"))).applied_objects();
        let pump = tokio::spawn(events.try_for_each(|_| async { Ok(()) }));
        tokio::time::timeout(PATIENCE, reader.wait_until_ready()).await??;
        ensure!(reader.state().len() == 20, "{} objects", reader.state().len());
        pump.abort();
    }
    let all = watcher::Config::default().streaming_lists().labels("app=test");
    let bare: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(kit.client.clone(), "default");
    let mut events = Box::pin(watcher(bare, all));
    let mut initial = 0;
    loop {
        match tokio::time::timeout(PATIENCE, events.try_next()).await??.context("the watch ended")? {
            watcher::Event::InitApply(object) => {
                ensure!(object.types.is_some_and(|t| t.kind == "PartialObjectMetadata"));
                initial += 1;
            }
            watcher::Event::InitDone => break,
            watcher::Event::Init => {}
            other => anyhow::bail!("{other:?} before the end of the beginning"),
        }
    }
    ensure!(initial == 20);
    // Out of the selection is gone.
    maps.patch(
        "m0",
        &PatchParams::default(),
        &Patch::Merge(json!({"metadata": {"labels": {"app": "other"}}})),
    )
    .await?;
    let event = tokio::time::timeout(PATIENCE, events.try_next()).await??;
    ensure!(matches!(&event, Some(watcher::Event::Delete(o)) if o.name_any() == "m0"), "{event:?}");

    let version = maps.list(&ListParams::default()).await?.metadata.resource_version.context("no version")?;
    maps.delete("m1", &DeleteParams::default()).await?;
    let mut raw = Box::pin(maps.watch(&WatchParams::default(), &version).await?);
    let event = tokio::time::timeout(PATIENCE, raw.try_next()).await??;
    ensure!(matches!(&event, Some(WatchEvent::Deleted(o)) if o.name_any() == "m1"), "{event:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_yaml() -> Result<()> {
    let kit = Kit::start().await?;
    kit.maps().create(&PostParams::default(), &map("a", "1")?).await?;
    let ask = |accept: &str| {
        let request = http::Request::get("/api/v1/namespaces/default/configmaps").header("accept", accept);
        (kit.client.clone(), request.body(Vec::new()))
    };
    let (client, request) = ask("application/json;as=Table;v=v1;g=meta.k8s.io");
    let table: Value = client.request(request?).await?;
    let columns: Vec<&str> = table["columnDefinitions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|c| c["name"].as_str())
        .collect();
    ensure!(table["kind"] == "Table" && columns == ["Name", "Data", "Age"], "{columns:?}");
    ensure!(table["rows"][0]["object"]["kind"] == "PartialObjectMetadata");
    let (client, request) = ask("application/yaml");
    let text = client.request_text(request?).await?;
    ensure!(text.contains("kind: ConfigMapList"), "{text}");
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndata: {k: 'yes'}\n";
    let request = http::Request::post("/api/v1/namespaces/default/configmaps")
        .header("content-type", "application/yaml");
    let made: ConfigMap = kit.client.request(request.body(yaml.into())?).await?;
    ensure!(made.data.is_some_and(|d| d["k"] == "yes"));
    Ok(())
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct StoneSpec {
    weight: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoneStatus {
    doubled: i64,
    observed_generation: i64,
}

type Stone = Object<StoneSpec, StoneStatus>;

fn stones() -> Result<CustomResourceDefinition> {
    let spec = json!({"type": "object", "required": ["weight"], "properties": {"weight": {"type": "integer", "minimum": 1}}});
    let integer = json!({"type": "integer"});
    let status = json!({"type": "object", "properties": {"doubled": integer, "observedGeneration": integer}});
    Ok(serde_json::from_value(json!({"metadata": {"name": "stones.test.example.com"}, "spec": {
        "group": "test.example.com", "scope": "Namespaced", "names": {"plural": "stones", "kind": "Stone"},
        "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}}, "schema":
            {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": status}}}}]}}))?)
}

const FINALIZER: &str = "test.example.com/cleanup";

/// Writes what it has observed to the status; owns a ConfigMap that is deleted by its finalizer.
async fn reconcile(
    stone: Arc<Stone>,
    kit: Arc<(Api<Stone>, Api<ConfigMap>)>,
) -> Result<Action, finalizer::Error<kube::Error>> {
    let (stones, maps) = (kit.0.clone(), kit.1.clone());
    finalizer::finalizer(&kit.0, FINALIZER, stone, |event| async move {
        match event {
            finalizer::Event::Apply(stone) => {
                let name = stone.name_any();
                let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
                maps.patch(&name, &PatchParams::apply("stones").force(), &Patch::Apply(object)).await?;
                let status = StoneStatus {
                    doubled: stone.spec.weight * 2,
                    observed_generation: stone.metadata.generation.unwrap_or_default(),
                };
                let object = json!({"apiVersion": "test.example.com/v1", "kind": "Stone", "status": status});
                stones
                    .patch_status(&name, &PatchParams::apply("stones").force(), &Patch::Apply(object))
                    .await?;
            }
            finalizer::Event::Cleanup(stone) => {
                maps.delete(&stone.name_any(), &DeleteParams::default()).await?;
            }
        }
        Ok(Action::await_change())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_of_ones_own_kind() -> Result<()> {
    let kit = Kit::start().await?;
    let definitions: Api<CustomResourceDefinition> = Api::all(kit.client.clone());
    definitions.create(&PostParams::default(), &stones()?).await?;
    let established = await_condition(definitions.clone(), "stones.test.example.com", is_crd_established());
    tokio::time::timeout(PATIENCE, established).await??;
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("test.example.com", "v1", "Stone"));
    let api: Api<Stone> = Api::namespaced_with(kit.client.clone(), "default", &resource);
    let controller = Controller::new_with(api.clone(), watcher::Config::default(), resource.clone())
        .run(
            reconcile,
            |_, _, _| Action::requeue(Duration::from_millis(100)),
            Arc::new((api.clone(), kit.maps())),
        )
        .for_each(|_| async {});
    let controller = tokio::spawn(controller);

    let refused = Stone::new("zero", &resource, StoneSpec { weight: 0 });
    ensure!(code(api.create(&PostParams::default(), &refused).await) == Some(422));
    api.create(&PostParams::default(), &Stone::new("s", &resource, StoneSpec { weight: 21 })).await?;
    let says = |want: i64| {
        move |stone: Option<&Stone>| stone.and_then(|s| s.status.as_ref()).is_some_and(|s| s.doubled == want)
    };
    until(&api, &resource, says(42)).await.context("the status is not written")?;
    let heavier = json!({"spec": {"weight": 50}});
    let changed = api.patch("s", &PatchParams::default(), &Patch::Merge(heavier)).await?;
    ensure!(changed.metadata.generation == Some(2));
    until(&api, &resource, says(100)).await.context("the status does not follow")?;
    ensure!(kit.maps().get_opt("s").await?.is_some());
    api.delete("s", &DeleteParams::default()).await?;
    until(&api, &resource, |stone| stone.is_none()).await.context("the finalizer stays")?;
    ensure!(kit.maps().get_opt("s").await?.is_none());
    controller.abort();
    definitions.delete("stones.test.example.com", &DeleteParams::default()).await?;
    Ok(())
}

/// Watches until the object `s` is as wished.
async fn until(
    api: &Api<Stone>,
    resource: &ApiResource,
    wish: impl Fn(Option<&Stone>) -> bool,
) -> Result<()> {
    let (reader, writer) = {
        let writer = reflector::store::Writer::<Stone>::new(resource.clone());
        (writer.as_reader(), writer)
    };
    let events = reflector(writer, watcher(api.clone(), watcher::Config::default().streaming_lists()));
    let mut events = Box::pin(events);
    let seen = async {
        while let Some(event) = events.try_next().await? {
            let begun = !matches!(event, watcher::Event::Init | watcher::Event::InitApply(_));
            let found = reader.find(|s| s.name_any() == "s");
            if begun && wish(found.as_deref()) {
                return Ok(());
            }
        }
        anyhow::bail!("the watch ended")
    };
    tokio::time::timeout(PATIENCE, seen).await?
}
