//! A pod's volumes as its worker drives them: set up, refreshed when objects, labels or tokens change.

use crate::downward::Facts;
use crate::shared::{PodObjects, Shared};
use crate::tokens::{self, Token};
use crate::volumes::payload::{self, Inputs, Tokens};
use crate::volumes::{VolumeError, payload::tokens_of};
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Wait before another try to refresh, in seconds.
const RETRY: i64 = 10;

/// The part that operations use.
pub(super) struct Files {
    shared: Arc<Shared>,
    objects: Arc<PodObjects>,
    tokens: Mutex<HashMap<(String, i64), Token>>,
    /// Held while volumes are written or released; true once they are released for good.
    released: tokio::sync::Mutex<bool>,
}

/// The part that the worker keeps.
pub(super) struct Storage {
    files: Arc<Files>,
    refreshing: Option<BoxFuture<'static, Result<(), VolumeError>>>,
    again: bool,
    retry_at: Option<Timestamp>,
    ips: Vec<String>,
}

impl Storage {
    pub fn new(shared: Arc<Shared>, objects: Arc<PodObjects>) -> Storage {
        let files =
            Arc::new(Files { shared, objects, tokens: Mutex::default(), released: Default::default() });
        Storage { files, refreshing: None, again: false, retry_at: None, ips: Vec::new() }
    }

    pub fn files(&self) -> Arc<Files> {
        self.files.clone()
    }

    /// Writes the volumes that are made of files anew, if they were set up before.
    pub fn refresh(&mut self, pod: &Arc<Pod>, ips: &[String]) {
        self.ips = ips.to_vec();
        if self.refreshing.is_some() {
            self.again = true;
            return;
        }
        let (files, pod, ips) = (self.files.clone(), pod.clone(), self.ips.clone());
        self.refreshing = Some(async move { files.write(&pod, &ips, true).await }.boxed());
    }

    /// Waits until a refresh is through, or begins the one that is due for a token.
    pub async fn progress(&mut self, pod: &Arc<Pod>) {
        if let Some(work) = &mut self.refreshing {
            let done = work.await;
            self.refreshing = None;
            self.retry_at = None;
            if let Err(e) = done {
                tracing::debug!(pod = pod.metadata.name, "refreshing volumes: {e}");
                self.retry_at = Some(crate::pod::after(Timestamp::now(), RETRY));
            }
            if std::mem::take(&mut self.again) {
                let ips = self.ips.clone();
                self.refresh(pod, &ips);
            }
            return;
        }
        let renewal = self.files.tokens.lock().values().map(|t| t.renew_at).min();
        let due =
            [self.retry_at, renewal.map(|r| r.max(self.retry_at.unwrap_or(r)))].into_iter().flatten().min();
        super::until(due).await;
        let ips = self.ips.clone();
        self.refresh(pod, &ips);
    }
}

impl Files {
    /// Sets up all volumes, or with `refresh` writes those anew that are made of files and are there.
    pub async fn write(&self, pod: &Arc<Pod>, ips: &[String], refresh: bool) -> Result<(), VolumeError> {
        let volumes: Vec<Volume> = pod.spec.as_ref().and_then(|s| s.volumes.clone()).unwrap_or_default();
        let Some(first) = volumes.first().map(|v| v.name.clone()) else { return Ok(()) };
        let released = self.released.lock().await;
        if *released {
            return Ok(());
        }
        let fail = |volume: &str, message: String| VolumeError { volume: volume.to_owned(), message };
        let sources = async { self.objects.for_volumes(&volumes).await.map_err(|e| fail(&first, e)) };
        let tokens = async {
            let mut tokens = Tokens::new();
            for v in &volumes {
                for (audience, seconds) in tokens_of(v) {
                    let token = self.token(pod, &audience, seconds).await.map_err(|e| fail(&v.name, e))?;
                    tokens.insert((audience, seconds), token);
                }
            }
            Ok(tokens)
        };
        let (sources, tokens) = futures::try_join!(sources, tokens)?;
        let shared = self.shared.clone();
        let (pod, ips) = (pod.clone(), ips.to_vec());
        let work = tokio::task::spawn_blocking(move || {
            let facts = Facts {
                pod_ips: &ips,
                host_ips: &shared.facts.host_ips,
                allocatable: Some(&shared.allocatable),
            };
            let inputs = Inputs { pod: &pod, sources: &sources, facts, tokens: &tokens };
            for v in &volumes {
                let files = payload::of(v, &inputs)
                    .transpose()
                    .map_err(|message| VolumeError { volume: v.name.clone(), message })?;
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                let there = || shared.roots.host_path(uid, v).is_some_and(|p| p.exists());
                if refresh && (files.is_none() || !there()) {
                    continue;
                }
                shared.roots.set_up(&pod, v, files.as_ref())?;
            }
            Ok(())
        });
        match work.await {
            Ok(done) => done,
            Err(e) => Err(fail(&first, e.to_string())),
        }
    }

    async fn token(&self, pod: &Pod, audience: &str, seconds: i64) -> Result<String, String> {
        let key = (audience.to_owned(), seconds);
        let now = Timestamp::now();
        if let Some(t) = self.tokens.lock().get(&key).filter(|t| now < t.renew_at) {
            return Ok(t.token.clone());
        }
        let token = tokens::request(&self.shared.client, pod, audience, seconds).await?;
        let text = token.token.clone();
        self.tokens.lock().insert(key, token);
        Ok(text)
    }

    /// Releases everything.
    pub async fn tear_down(&self, uid: &str) -> Result<(), String> {
        *self.released.lock().await = true;
        self.tokens.lock().clear();
        let (roots, uid) = (self.shared.roots.clone(), uid.to_owned());
        let work = tokio::task::spawn_blocking(move || roots.tear_down(&uid));
        work.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }
}
