//! LIST: from the cache whenever it knows the state that is asked for.

use std::sync::Arc;

use hawser_api::selector::{FieldSelector, FieldTerm, LabelSelector};
use hawser_api::status::Status;
use hawser_storage::Error as StorageError;

use super::token::{INCONSISTENT, Token};
use super::{Answer, Call, Registry, feed_status, reloading};
use crate::cache::entry::Entry;
use crate::cache::feed::FeedError;
use crate::cache::filter::Filter;
use crate::cache::{Reloading, ResourceCache};
use crate::options::{ListOptions, VersionMatch};

/// Objects read from storage at once for a page that selects.
const PIECE: usize = 500;

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
        Ok(Answer::List(self.page(call, &options).await?))
    }

    /// Compiles the selectors of a list or watch.
    pub(crate) fn filter(&self, call: &Call<'_>, options: &ListOptions) -> Result<Filter, Status> {
        let labels = LabelSelector::parse(&options.label_selector)?;
        let fields = FieldSelector::parse(&options.field_selector, &call.row.kind)?;
        let fields = named(call, fields)?;
        let namespace = Some(call.namespace()).filter(|ns| !ns.is_empty());
        Ok(Filter::new(&call.row.kind, call.row.stored_kind(), namespace, labels, fields))
    }

    /// One page. Its entries are of the row's version where a webhook had to be asked.
    pub(crate) async fn page(&self, call: &Call<'_>, options: &ListOptions) -> Result<Page, Status> {
        let filter = self.filter(call, options)?;
        let cache = call.cache()?;
        // How many items there are from the start on, when that needs no counting.
        let mut known = None;
        let (at, start) = match &options.continue_token {
            Some(text) => {
                let token = Token::decode(text)?;
                if options.resource_version.as_deref().is_some_and(|v| v != "0") {
                    return Err(Status::bad_request(
                        "specifying resource version is not allowed when using continue",
                    ));
                }
                let at = match u64::try_from(token.revision) {
                    Ok(revision) => {
                        known = token.left;
                        At::Exactly(revision)
                    }
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
        // kube-apiserver's cache gives everything to those who do not care for the version.
        let limit = if options.resource_version.as_deref() == Some("0") { 0 } else { options.limit };
        if filter.is_about_converted() {
            return self.page_of_converted(call, &filter, limit, at, start).await;
        }
        let mut page =
            self.page_at(cache, PageMaker::new(&filter, limit, known), at, start.as_deref()).await?;
        page.entries = self.converter.present(&call.row, page.entries).await?;
        Ok(page)
    }

    /// A page whose selectors are about what a webhook makes of the entries: it takes as many pieces as it takes.
    async fn page_of_converted(
        &self,
        call: &Call<'_>,
        filter: &Filter,
        limit: usize,
        mut at: At,
        mut start: Option<String>,
    ) -> Result<Page, Status> {
        let mut out = Page::default();
        let piece = if limit == 0 { 0 } else { limit.max(PIECE) };
        loop {
            let maker = PageMaker::new(filter, piece, None);
            let page = self.page_at(call.cache()?, maker, at, start.as_deref()).await?;
            let shown = self.converter.present(&call.row, page.entries.clone()).await?;
            out.revision = page.revision;
            let mut rest = page.entries.iter().zip(shown);
            while let Some((entry, shown)) = rest.next() {
                if filter.agrees(entry, &shown) {
                    out.entries.push(shown);
                }
                if limit > 0 && out.entries.len() == limit && (rest.len() > 0 || page.next.is_some()) {
                    let revision = i64::try_from(page.revision).unwrap_or(i64::MAX);
                    out.next = Some(Token::after(revision, &entry.key, None).encode());
                    return Ok(out);
                }
            }
            let Some(last) = page.entries.last().filter(|_| page.next.is_some()) else { return Ok(out) };
            (at, start) = (At::Exactly(page.revision), Some(format!("{}\0", last.key)));
        }
    }

    async fn page_at(
        &self,
        cache: &Arc<ResourceCache>,
        mut page: PageMaker<'_>,
        at: At,
        start: Option<&str>,
    ) -> Result<Page, Status> {
        let status = |e: FeedError| feed_status(&e);
        let seen = self.feed.seen();
        match at {
            At::Now => {
                let proven = self.feed.consistent(cache).await.map_err(status)?;
                scan(cache, page, start, proven.max(seen)).map_err(reloading)
            }
            At::NotOlderThan(revision) => {
                self.feed.ensure(cache).await.map_err(status)?;
                self.feed.wait_for(revision).await.map_err(status)?;
                scan(cache, page, start, revision.max(seen)).map_err(reloading)
            }
            At::Exactly(revision) => {
                self.feed.ensure(cache).await.map_err(status)?;
                self.feed.wait_for(revision).await.map_err(status)?;
                if self.feed.has_given_up(revision) {
                    return self.page_from_storage(cache, page, revision, start).await;
                }
                let known = cache
                    .scan_at(revision, page.filter.namespace(), start, |e| page.visit(e))
                    .map_err(reloading)?;
                if known.is_some() {
                    return Ok(page.finish(revision));
                }
                self.page_from_storage(cache, page.anew(), revision, start).await
            }
        }
    }

    /// A page of a state that only storage knows.
    async fn page_from_storage(
        &self,
        cache: &Arc<ResourceCache>,
        mut page: PageMaker<'_>,
        revision: u64,
        start: Option<&str>,
    ) -> Result<Page, Status> {
        let (filter, limit) = (page.filter, page.limit);
        let mut next = start.map(str::to_owned);
        // Without selectors the page is what is read; with them it takes as many reads as it takes.
        let piece = if limit == 0 {
            0
        } else if filter.selects() {
            limit.max(PIECE)
        } else {
            limit
        };
        loop {
            let listed = self.feed.list_at(cache, filter.namespace(), revision, next.as_deref(), piece).await;
            let (entries, remaining) = listed.map_err(|e| unlisted(&e, start))?;
            let all_seen = entries.iter().all(|entry| page.visit(entry));
            let Some(last) = entries.last().filter(|_| remaining > 0 && all_seen && !page.is_full()) else {
                page.more += remaining;
                return Ok(page.finish(revision));
            };
            next = Some(format!("{}\0", last.key));
        }
    }
}

/// The Status of a page that cannot be read from storage. A page that is gone can be gone on from at another state.
fn unlisted(error: &FeedError, start: Option<&str>) -> Status {
    if !matches!(error, FeedError::Storage(StorageError::Compacted { .. })) {
        return feed_status(error);
    }
    let Some(start) = start else {
        return Status::expired("The resourceVersion for the provided list is too old.");
    };
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
         results. Continuing with the provided token results in an inconsistent list - objects that were created, \
         modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    status.metadata.continue_token = Token::at(INCONSISTENT, start).encode();
    status
}

/// The selector with the name of the path, if it has one (`/api/v1/watch/…/NAME`).
fn named(call: &Call<'_>, fields: FieldSelector) -> Result<FieldSelector, Status> {
    let name = call.info.name.as_str();
    if name.is_empty() {
        return Ok(fields);
    }
    if fields.is_everything() {
        let field = call.row.kind.selectable("metadata.name").ok_or_else(Status::method_not_allowed)?;
        let term = FieldTerm { field: field.into_owned(), value: name.to_owned(), negated: false };
        return Ok(FieldSelector { terms: vec![term] });
    }
    if fields.exact("metadata.name") != Some(name) {
        return Err(Status::bad_request("fieldSelector metadata.name doesn't match requested name"));
    }
    Ok(fields)
}

/// Lists what the cache has. `floor` is a revision that the cache was known to have reached before.
fn scan(
    cache: &ResourceCache,
    mut page: PageMaker<'_>,
    start: Option<&str>,
    floor: u64,
) -> Result<Page, Reloading> {
    let filter = page.filter;
    if start.is_none() && !filter.selects() {
        let size = cache.count(filter.namespace());
        page.known = Some(size as u64);
        page.entries.reserve(if page.limit == 0 { size } else { size.min(page.limit) });
    }
    let scope = filter.scope(cache.kind().namespaced, cache.indexed_field());
    let revision = cache.scan_scope(&scope, start, |e| page.visit(e))?;
    Ok(page.finish(revision.max(floor)))
}

/// Collects a page.
struct PageMaker<'a> {
    filter: &'a Filter,
    limit: usize,
    entries: Vec<Arc<Entry>>,
    more: u64,
    /// How many items there are from the page's start on, if that need not be counted.
    known: Option<u64>,
}

impl<'a> PageMaker<'a> {
    fn new(filter: &'a Filter, limit: usize, known: Option<u64>) -> Self {
        Self { filter, limit, entries: Vec::new(), more: 0, known }
    }

    /// The same page, nothing of it found yet.
    fn anew(self) -> Self {
        Self::new(self.filter, self.limit, self.known)
    }

    /// Takes an entry in; false when nothing more needs to be seen. Without selectors what follows is counted, if it is not known; with
    /// them anything that follows makes another page, as in Kubernetes, even if nothing of it will match.
    fn visit(&mut self, entry: &Arc<Entry>) -> bool {
        if self.is_full() {
            self.more += 1;
            return !self.filter.selects() && self.known.is_none();
        }
        if !self.filter.selects() || self.filter.matches(entry) {
            self.entries.push(entry.clone());
        }
        true
    }

    fn is_full(&self) -> bool {
        self.limit > 0 && self.entries.len() == self.limit
    }

    fn finish(self, revision: u64) -> Page {
        let left = self.known.map(|known| known.saturating_sub(self.entries.len() as u64).max(self.more));
        let remaining = (self.more > 0 && !self.filter.selects()).then_some(left.unwrap_or(self.more));
        let revision_of_token = i64::try_from(revision).unwrap_or(i64::MAX);
        let next = self
            .entries
            .last()
            .filter(|_| self.more > 0)
            .map(|last| Token::after(revision_of_token, &last.key, remaining).encode());
        Page { entries: self.entries, revision, next, remaining }
    }
}
