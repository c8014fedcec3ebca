//! LIST: from the cache whenever it knows the state that is asked for.

use std::sync::Arc;

use hawser_api::selector::{FieldSelector, LabelSelector};
use hawser_api::status::Status;
use hawser_storage::Error as StorageError;

use super::token::{INCONSISTENT, Token};
use super::{Answer, Call, Registry, feed_status};
use crate::cache::ResourceCache;
use crate::cache::entry::Entry;
use crate::cache::feed::FeedError;
use crate::cache::filter::Filter;
use crate::options::{ListOptions, VersionMatch};

/// One page of a list.
#[derive(Debug, Default)]
pub struct Page {
    /// What is on it, in the order of keys.
    pub entries: Vec<Arc<Entry>>,
    /// The revision that this is the state of.
    pub revision: u64,
    /// Token of the next page.
    pub next: Option<String>,
    /// How many objects follow; known only without selectors.
    pub remaining: Option<u64>,
}

/// At which state to list.
enum At {
    /// The newest.
    Now,
    /// Whatever the cache has, which is no older than this.
    NotOlderThan(u64),
    /// This one.
    Exactly(u64),
}

impl Registry {
    /// Lists a collection.
    ///
    /// # Errors
    /// 400 for selectors and tokens that cannot be read, 410 for states that are gone, 504 for those to come.
    pub async fn list(&self, call: &Call<'_>) -> Result<Answer, Status> {
        let options = ListOptions::parse(call.info, false)?;
        self.page(call, &options).await.map(Answer::List)
    }

    /// Compiles the selectors of a list or watch.
    pub(crate) fn filter(&self, call: &Call<'_>, options: &ListOptions) -> Result<Filter, Status> {
        let labels = LabelSelector::parse(&options.label_selector)?;
        let fields = FieldSelector::parse(&options.field_selector, &call.row.kind)?;
        let namespace = Some(call.namespace()).filter(|ns| !ns.is_empty());
        Ok(Filter::new(call.row.stored_kind(), namespace, labels, fields))
    }

    /// One page.
    pub(crate) async fn page(&self, call: &Call<'_>, options: &ListOptions) -> Result<Page, Status> {
        let filter = self.filter(call, options)?;
        let cache = call.cache()?;
        let (at, start) = match &options.continue_token {
            Some(text) => {
                if options.resource_version.as_deref().is_some_and(|v| v != "0") {
                    return Err(Status::bad_request(
                        "specifying resource version is not allowed when using continue",
                    ));
                }
                let token = Token::decode(text)?;
                let at = match u64::try_from(token.revision) {
                    Ok(revision) => At::Exactly(revision),
                    Err(_) => At::Now,
                };
                (at, Some(token.start))
            }
            None => {
                let revision = options
                    .revision()
                    .map_err(|e| Status::bad_request(format!("invalid resource version: {e}")))?;
                let exact = match options.version_match {
                    Some(m) => m == VersionMatch::Exact,
                    // Kubernetes' older rule: a page at a revision is at exactly that one.
                    None => options.limit > 0 && revision.is_some_and(|r| r > 0),
                };
                let at = match revision {
                    None => At::Now,
                    Some(revision) if exact => At::Exactly(revision),
                    Some(revision) => At::NotOlderThan(revision),
                };
                (at, None)
            }
        };
        self.page_at(cache, &filter, at, start.as_deref(), options.limit).await
    }

    async fn page_at(
        &self,
        cache: &Arc<ResourceCache>,
        filter: &Filter,
        at: At,
        start: Option<&str>,
        limit: usize,
    ) -> Result<Page, Status> {
        let status = |e: FeedError| feed_status(&e);
        let seen = self.feed.seen();
        match at {
            At::Now => {
                let proven = self.feed.consistent(cache).await.map_err(status)?;
                Ok(scan(cache, filter, start, limit, proven.max(seen)))
            }
            At::NotOlderThan(revision) => {
                self.feed.ensure(cache).await.map_err(status)?;
                self.feed.wait_for(revision).await.map_err(status)?;
                Ok(scan(cache, filter, start, limit, revision.max(seen)))
            }
            At::Exactly(revision) => {
                self.feed.ensure(cache).await.map_err(status)?;
                self.feed.wait_for(revision).await.map_err(status)?;
                let mut page = PageMaker::new(filter, limit);
                if cache.scan_at(revision, filter.namespace(), start, |e| page.visit(e)).is_some() {
                    return Ok(page.finish(revision));
                }
                self.page_from_storage(cache, filter, revision, start, limit).await
            }
        }
    }

    /// A page of a state that only storage knows.
    async fn page_from_storage(
        &self,
        cache: &Arc<ResourceCache>,
        filter: &Filter,
        revision: u64,
        start: Option<&str>,
        limit: usize,
    ) -> Result<Page, Status> {
        let listed = self.feed.list_at(cache, filter.namespace(), revision, start, 0).await;
        match listed {
            Ok((entries, _)) => {
                let mut page = PageMaker::new(filter, limit);
                for entry in &entries {
                    if !page.visit(entry) {
                        break;
                    }
                }
                Ok(page.finish(revision))
            }
            Err(FeedError::Storage(StorageError::Compacted { .. })) => Err(match start {
                Some(start) => {
                    let token = Token::after(INCONSISTENT, start.trim_end_matches('\0')).encode();
                    let mut status = Status::expired(
                        "The provided continue parameter is too old to display a consistent list result. You can \
                         start a new list without the continue parameter, or use the continue token in this \
                         response to retrieve the remainder of the results. Continuing with the provided token \
                         results in an inconsistent list - objects that were created, modified, or deleted between \
                         the time the first chunk was returned and now may show up in the list.",
                    );
                    status.metadata.continue_token = token;
                    status
                }
                None => Status::expired("The resourceVersion for the provided list is too old."),
            }),
            Err(e) => Err(feed_status(&e)),
        }
    }
}

/// Lists what the cache has. `floor` is a revision that the cache was known to have reached before.
fn scan(cache: &ResourceCache, filter: &Filter, start: Option<&str>, limit: usize, floor: u64) -> Page {
    let mut page = PageMaker::new(filter, limit);
    if let Some(key) = filter.exact_key(cache.kind().namespaced)
        && start.is_none()
    {
        let (ns, name) =
            if cache.kind().namespaced { key.split_once('/').unwrap_or(("", &key)) } else { ("", &*key) };
        if let Some(entry) = cache.get(ns, name) {
            page.visit(&entry);
        }
        return page.finish(floor);
    }
    if limit == 0 && !filter.selects() && filter.namespace().is_none() {
        page.entries.reserve(cache.size().0);
    }
    let revision = cache.scan(filter.namespace(), start, |e| page.visit(e));
    page.finish(revision.max(floor))
}

/// Collects a page.
struct PageMaker<'a> {
    filter: &'a Filter,
    limit: usize,
    entries: Vec<Arc<Entry>>,
    more: u64,
}

impl<'a> PageMaker<'a> {
    fn new(filter: &'a Filter, limit: usize) -> Self {
        Self { filter, limit, entries: Vec::new(), more: 0 }
    }

    /// Takes an entry in; false when nothing more needs to be seen. Without selectors what follows is counted.
    fn visit(&mut self, entry: &Arc<Entry>) -> bool {
        if self.filter.selects() && !self.filter.matches(entry) {
            return true;
        }
        if self.limit > 0 && self.entries.len() == self.limit {
            self.more += 1;
            return !self.filter.selects();
        }
        self.entries.push(entry.clone());
        true
    }

    fn finish(self, revision: u64) -> Page {
        let next = self
            .entries
            .last()
            .filter(|_| self.more > 0)
            .map(|last| Token::after(i64::try_from(revision).unwrap_or(i64::MAX), &last.key).encode());
        let remaining = (self.more > 0 && !self.filter.selects()).then_some(self.more);
        Page { entries: self.entries, revision, next, remaining }
    }
}
