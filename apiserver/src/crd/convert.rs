//! Conversion of custom resources between their versions by a webhook.
//!
//! What is rendered is always an entry: its bytes are those of the version that is asked for, behind the head of the
//! stored one, so that all renderings (lists, tables, watches) work as if the versions differed by name only.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hawser_api::crd::conversion;
use hawser_api::crd::custom::{Conversion, Webhook};
use hawser_api::kinds::Kind;
use hawser_api::object::ObjectExt as _;
use hawser_api::status::Status;
use serde_json::Value;

use crate::cache::entry::{Entry, Facts};
use crate::kinds::Row;
use crate::webhook::{Client, ClientConfig, Place};

/// How long a webhook may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Calls a conversion webhook.
#[async_trait]
pub trait Caller: Send + Sync + 'static {
    /// Posts a ConversionReview and answers what comes back.
    ///
    /// # Errors
    /// A text for people.
    async fn post(&self, webhook: &Webhook, timeout: Duration, body: Bytes) -> Result<Bytes, String>;
}

#[async_trait]
impl Caller for Client {
    async fn post(&self, webhook: &Webhook, timeout: Duration, body: Bytes) -> Result<Bytes, String> {
        let place = match &webhook.service {
            Some((namespace, name, path, port)) => Place::Service {
                namespace: namespace.clone(),
                name: name.clone(),
                port: *port,
                path: path.clone(),
            },
            None => Place::Url(webhook.url.clone()),
        };
        let config = ClientConfig { place, ca_bundle: webhook.ca_bundle.clone() };
        Client::post(self, &config, timeout, false, body).await
    }
}

/// Converts objects of rows whose versions need a webhook.
#[derive(Clone)]
pub struct Converter(pub Arc<dyn Caller>);

/// The webhook that converts between the versions of a row.
pub fn webhook(kind: &Kind) -> Option<&Arc<Webhook>> {
    match &kind.custom.as_ref()?.conversion {
        Conversion::Webhook(webhook) => Some(webhook),
        Conversion::None => None,
    }
}

impl Converter {
    /// Objects of any version of a row's resource in the version of `to`.
    ///
    /// # Errors
    /// 500 with what the webhook did wrong.
    pub async fn convert(&self, to: &Kind, objects: Vec<Value>) -> Result<Vec<Value>, Status> {
        let Some(webhook) = webhook(to) else { return Ok(objects) };
        let api_version = to.api_version();
        let foreign: Vec<Value> =
            objects.iter().filter(|o| o.api_version() != api_version).cloned().collect();
        if foreign.is_empty() {
            return Ok(objects);
        }
        let uid = uuid::Uuid::new_v4().to_string();
        let sent = conversion::request(webhook, &uid, &api_version, &foreign).map_err(Status::internal)?;
        let answer = self.0.post(webhook, TIMEOUT, sent.to_string().into()).await;
        let answer = answer.and_then(|b| serde_json::from_slice::<Value>(&b).map_err(|e| e.to_string()));
        let answer = answer.map_err(|why| {
            let (group, version) = hawser_api::object::split_api_version(foreign[0].api_version());
            let kind = foreign[0].kind();
            Status::internal(format!("conversion webhook for {group}/{version}, Kind={kind} failed: {why}"))
        })?;
        let mut converted =
            conversion::response(&sent, &answer, &foreign).map_err(Status::internal)?.into_iter();
        let pick = |object: Value| {
            if object.api_version() == api_version { Some(object) } else { converted.next() }
        };
        Ok(objects.into_iter().filter_map(pick).collect())
    }

    /// Entries whose bytes are of the row's version, where a webhook has to be asked for that.
    ///
    /// # Errors
    /// 500 with what the webhook did wrong.
    pub async fn present(&self, row: &Row, entries: Vec<Arc<Entry>>) -> Result<Vec<Arc<Entry>>, Status> {
        let (Some(custom), Some(cache)) = (&row.kind.custom, &row.cache) else { return Ok(entries) };
        let foreign = |e: &Arc<Entry>| !row.is_stored_version() || e.stored_as.is_some();
        if webhook(&row.kind).is_none() || !entries.iter().any(foreign) {
            return Ok(entries);
        }
        let mut objects = Vec::with_capacity(entries.len());
        for entry in &entries {
            objects.push(entry.decode().map_err(Status::internal)?);
        }
        let objects = self.convert(&row.kind, objects).await?;
        let present = |(mut object, entry): (Value, Arc<Entry>)| {
            custom.refresh(&mut object);
            let value = cache.head().encode(&object);
            Arc::new(Entry::new(entry.key.clone(), entry.revision, value, Facts::default()))
        };
        Ok(objects.into_iter().zip(entries).map(present).collect())
    }

    /// One object of the store in the row's version, with its resourceVersion.
    ///
    /// # Errors
    /// Those of [`Converter::present`].
    pub async fn object(&self, row: &Row, entry: &Arc<Entry>) -> Result<Value, Status> {
        let shown = self.present(row, vec![entry.clone()]).await?;
        let entry = shown.first().unwrap_or(entry);
        Ok(crate::convert::from_stored(row, entry.decode().map_err(Status::internal)?))
    }
}
