//! GET of one object.

use hawser_api::status::Status;

use super::{Answer, Call, Registry, feed_status, reloading};
use crate::options::parse_revision;

impl Registry {
    /// Reads an object. Without a resourceVersion the answer is as new as every write that was acknowledged before;
    /// with one it is at least that new; `0` takes whatever the cache has.
    ///
    /// # Errors
    /// 404; 504 for a revision that does not come; 500 for one that is no number.
    pub async fn get(&self, call: &Call<'_>) -> Result<Answer, Status> {
        let cache = call.cache()?;
        match call.info.param("resourceVersion") {
            None => {
                self.consistent(call).await?;
            }
            Some(text) => {
                // kube-apiserver lets this error through without a reason.
                let revision = parse_revision(text).map_err(Status::plain_error)?;
                self.feed.ensure(cache).await.map_err(|e| feed_status(&e))?;
                self.feed.wait_for(revision).await.map_err(|e| feed_status(&e))?;
            }
        }
        let name = &call.info.name;
        let entry =
            cache.get(call.namespace(), name).map_err(reloading)?.ok_or_else(|| call.not_found(name))?;
        let shown = self.converter.present(&call.row, vec![entry.clone()]).await?;
        Ok(Answer::Entry(shown.into_iter().next().unwrap_or(entry)))
    }
}
