//! CustomResourceDefinitions at run time: from stored definitions to rows of the kinds table.
//!
//! One task follows all definitions. What it makes of each is a pure function of what is stored (`hawser_api::crd`), so
//! servers that share a store serve the same rows. Rows are in place before a definition says that it is established:
//! who waits for the condition finds the resource. The only other task empties resources whose definition is deleted.

pub mod cleanup;
pub mod convert;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt as _;
use hawser_api::crd::conditions::{self, Claims};
use hawser_api::crd::{CLEANUP_FINALIZER, custom::Source, rows};
use hawser_api::kinds::Kind;
use hawser_api::object::ObjectExt as _;
use hawser_api::status::Status;
use http::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::access::{Change, GroupResource, LocalApi, ObjectReader, ObjectRef, ReadError, UserInfo};
use crate::hooks;
use crate::kinds::{KindsRegistry, Replaced};

/// Group of the definitions.
pub const GROUP: &str = "apiextensions.k8s.io";
const DEFINITIONS: &str = "customresourcedefinitions";
/// Changes taken in before rows are put in place.
const BATCH: usize = 256;
/// Statuses written at a time.
const WRITERS: usize = 16;

/// The resource of the definitions.
pub fn definitions() -> GroupResource {
    GroupResource::new(GROUP, DEFINITIONS)
}

/// Path of a definition, or of a subresource of it.
fn path(name: &str, subresource: &str) -> String {
    format!("/apis/{GROUP}/v1/{DEFINITIONS}/{name}{subresource}?fieldManager=kube-apiserver")
}

/// Writes a definition's status, the definition being what it was when it was read.
///
/// # Errors
/// Those of the update.
async fn write_status(local: &dyn LocalApi, mut crd: Value, status: Value) -> Result<Value, Status> {
    crd["status"] = status;
    let user = Arc::new(UserInfo::apiserver());
    let path = path(crd.name(), "/status");
    local.call(user, Method::PUT, &path, Some(crd), None).await
}

async fn write(local: Arc<dyn LocalApi>, crd: Value, status: Value) {
    let name = crd.name().to_owned();
    if let Err(e) = write_status(&*local, crd, status).await
        && !e.is_not_found()
        && e.code != 409
    {
        tracing::warn!(error = %e, name, "the status of a definition cannot be written");
    }
}

/// All definitions and what was made of them.
pub struct Definitions {
    kinds: Arc<KindsRegistry>,
    rows: BTreeMap<String, Vec<Arc<Kind>>>,
    claims: Claims,
    /// Definitions without all the names they ask for, by group: they try again when names become free.
    waiting: BTreeMap<String, BTreeSet<String>>,
}

/// What a change asks for.
#[derive(Default)]
struct Work {
    /// Definitions whose status is not what it should be.
    statuses: BTreeSet<String>,
    /// Definitions whose instances have to go.
    deletions: Vec<Value>,
    /// Groups in which names became free.
    freed: BTreeSet<String>,
    /// Rows that changed, in the order in which they did.
    rows: Vec<Replaced>,
}

impl Definitions {
    /// Puts the rows of the stored definitions in place.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn load(kinds: Arc<KindsRegistry>, reader: &dyn ObjectReader) -> Result<Self, ReadError> {
        let mut this =
            Self { kinds, rows: BTreeMap::new(), claims: Claims::default(), waiting: BTreeMap::new() };
        let mut work = Work::default();
        for object in reader.list(&definitions(), None, true).await? {
            this.apply(&object, &mut work);
        }
        this.serve(&mut work);
        Ok(this)
    }

    /// Follows the definitions until `stop`.
    pub async fn run(
        mut self,
        reader: Arc<dyn ObjectReader>,
        local: Arc<dyn LocalApi>,
        deletions: mpsc::UnboundedSender<Value>,
        stop: CancellationToken,
    ) {
        let mut changes = match reader.changes(&definitions()) {
            Ok(changes) => changes.ready_chunks(BATCH),
            Err(e) => {
                tracing::warn!(error = %e, "custom resources are not followed");
                return;
            }
        };
        // Rows do not wait for statuses: those are written by other tasks, each from what is stored then.
        let mut unwritten: BTreeSet<String> = BTreeSet::new();
        let mut writes = JoinSet::new();
        loop {
            while writes.len() < WRITERS
                && let Some(name) = unwritten.pop_first()
            {
                if let Ok(Some(object)) = reader.get(&definitions(), "", &name, false).await
                    && let Ok(crd) = object.decode::<Value>()
                    && let Some(status) = self.wanted(&crd)
                {
                    writes.spawn(write(local.clone(), crd, status));
                }
            }
            let batch = tokio::select! {
                () = stop.cancelled() => return,
                batch = changes.next() => match batch {
                    Some(batch) => batch,
                    None => return,
                },
                Some(_) = writes.join_next(), if !writes.is_empty() => continue,
            };
            let mut work = Work::default();
            for change in batch {
                self.take(change, &mut work);
            }
            for group in std::mem::take(&mut work.freed) {
                for name in self.waiting.get(&group).cloned().unwrap_or_default() {
                    if let Ok(Some(object)) = reader.get(&definitions(), "", &name, false).await {
                        self.apply(&object, &mut work);
                    }
                }
            }
            self.serve(&mut work);
            for crd in work.deletions {
                // The receiver lives as long as this task.
                let _ = deletions.send(crd);
            }
            unwritten.append(&mut work.statuses);
        }
    }

    /// The status that a definition should have; None when it has it, or is going.
    fn wanted(&self, crd: &Value) -> Option<Value> {
        if crd.deletion_timestamp().is_some() {
            return None;
        }
        conditions::wanted(crd, &self.claims, &hooks::now())
    }

    /// Puts rows in place, if they changed.
    fn serve(&self, work: &mut Work) {
        if !work.rows.is_empty() {
            self.kinds.replace(&std::mem::take(&mut work.rows));
        }
    }

    fn take(&mut self, change: Change, work: &mut Work) {
        match change {
            Change::Reset(all) => {
                let names: BTreeSet<&str> = all.iter().map(|o| &*o.name).collect();
                let gone: Vec<String> =
                    self.rows.keys().filter(|n| !names.contains(n.as_str())).cloned().collect();
                gone.iter().for_each(|name| self.remove(name, work));
                all.iter().for_each(|object| self.apply(object, work));
            }
            Change::Applied(object) => self.apply(&object, work),
            Change::Deleted(object) => self.remove(&object.name, work),
        }
    }

    fn remove(&mut self, name: &str, work: &mut Work) {
        if let Some(gone) = self.rows.remove(name).filter(|rows| !rows.is_empty()) {
            work.rows.push((gone, Vec::new()));
        }
        let group = name.split_once('.').map_or("", |(_, group)| group);
        if let Some(waiting) = self.waiting.get_mut(group) {
            waiting.remove(name);
        }
        if self.claims.release(name) {
            work.freed.insert(group.to_owned());
        }
    }

    fn apply(&mut self, object: &ObjectRef, work: &mut Work) {
        let mut crd = match object.decode::<Value>() {
            Ok(crd) => crd,
            Err(e) => {
                tracing::error!(name = %object.name, error = %e, "a definition cannot be read");
                return;
            }
        };
        let group = crd.str_at("spec.group").to_owned();
        let deleted = crd.deletion_timestamp().is_some();
        let wanted = self.wanted(&crd);
        if let Some(status) = &wanted {
            crd["status"] = status.clone();
        }
        if self.claims.note(&crd) {
            work.freed.insert(group.clone());
        }
        let accepted = hawser_api::crd::definition::is_true(&crd, "NamesAccepted");
        let waiting = self.waiting.entry(group).or_default();
        if accepted || deleted {
            waiting.remove(crd.name());
        } else {
            waiting.insert(crd.name().to_owned());
        }
        work.rows.extend(self.set_rows(&crd));
        if deleted && crd.finalizers().contains(&CLEANUP_FINALIZER) {
            work.deletions.push(crd);
        } else if wanted.is_some() {
            work.statuses.insert(crd.name().to_owned());
        }
    }

    /// Makes a definition's rows; answers what changes, if they differ from those there are.
    fn set_rows(&mut self, crd: &Value) -> Option<Replaced> {
        let none: Source = Arc::new([0_u8; 0]);
        let unchanged = self.rows.get(crd.name()).is_some_and(|held| {
            let new = rows::rows(crd, &none);
            held.len() == new.len() && held.iter().zip(&new).all(|(h, n)| **h == *n)
        });
        if unchanged {
            return None;
        }
        // Of the definition only the versions are needed later.
        let kept = json!({"spec": {"versions": crd.at("spec.versions"),
            "preserveUnknownFields": crd.at("spec.preserveUnknownFields")}});
        let source: Source = Arc::new(kept.to_string().into_bytes());
        let mut new: Vec<Arc<Kind>> = rows::rows(crd, &source).into_iter().map(Arc::new).collect();
        let held = self.rows.entry(crd.name().to_owned()).or_default();
        if held.is_empty() && new.is_empty() {
            return None;
        }
        for row in &mut new {
            if let Some(same) = held.iter().find(|h| *h == row) {
                *row = same.clone();
            }
        }
        let gone = std::mem::replace(held, new.clone());
        Some((gone, new))
    }
}
