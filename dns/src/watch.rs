//! The API's watches, into the index. An event is in the index before the next one is read.

use std::sync::atomic::Ordering::Relaxed;

use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll};
use hawser_watch::{Known, Named, changes};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use tokio::sync::watch;

use crate::convert;
use crate::records;
use crate::respond::Responder;

enum Input {
    Service(Event<Named<records::Service>>),
    Slice(Event<Named<records::Slice>>),
    Namespace(Event<Named<()>>),
    Failed(&'static str, watcher::Error),
}

/// Keeps the index of `responder` in line with the API, until dropped. Tells `synced` when all was read once; what is
/// known stays while the API is away.
pub async fn run(client: Client, responder: &Responder, synced: watch::Sender<bool>) {
    let mut inputs = inputs(client);
    let (mut services, mut slices, mut namespaces) = (Known::default(), Known::default(), Known::default());
    while let Some(input) = inputs.next().await {
        let mut index = responder.index.write();
        match input {
            Input::Failed(kind, error) => {
                tracing::warn!(kind, %error, "watch failed; it starts again");
                continue;
            }
            Input::Service(event) => {
                for change in services.on_event(event) {
                    index.set_service(&change.name, change.value);
                }
            }
            Input::Slice(event) => {
                for change in slices.on_event(event) {
                    index.set_slice(&change.name, change.value);
                }
            }
            Input::Namespace(event) => {
                for change in namespaces.on_event(event) {
                    index.set_namespace(&change.name, change.value.is_some());
                }
            }
        }
        let whole = services.synced() && slices.synced() && namespaces.synced();
        if whole && !responder.synced.swap(true, Relaxed) {
            let (services, endpoints) = index.counts();
            tracing::info!(services, endpoints, "the cluster's Services are read");
            synced.send_replace(true);
        }
    }
}

fn inputs(client: Client) -> SelectAll<BoxStream<'static, Input>> {
    let all = watcher::Config::default;
    futures::stream::select_all([
        changes(Api::<Service>::all(client.clone()), all(), convert::service, |event| {
            event.map_or_else(|error| Input::Failed("services", error), Input::Service)
        }),
        changes(Api::<EndpointSlice>::all(client.clone()), all(), convert::slice, |event| {
            event.map_or_else(|error| Input::Failed("endpointslices", error), Input::Slice)
        }),
        changes(
            Api::<PartialObjectMeta<Namespace>>::all(client),
            all(),
            |_| Some(()),
            |event| event.map_or_else(|error| Input::Failed("namespaces", error), Input::Namespace),
        ),
    ])
}
