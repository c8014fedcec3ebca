//! DELETE of a collection: everything that the selectors select.

use bytes::Bytes;
use hawser_api::status::Status;

use super::delete::{COLLECTION_DEADLINE, Deleted};
use super::list::Page;
use super::{Answer, Call, Registry};
use crate::options::ListOptions;

impl Registry {
    /// Deletes what a list of the same selectors shows, and answers that list as it was.
    ///
    /// # Errors
    /// Those of list and delete; the first one ends it.
    pub async fn delete_collection(&self, call: &Call<'_>, body: Bytes) -> Result<Answer, Status> {
        let options = ListOptions::parse(call.info, false)?;
        let delete = self.delete_options(call, &body)?;
        let page: Page = self.page(call, &options).await?;
        let work = async {
            for entry in &page.entries {
                let (namespace, name) = entry.namespace_and_name();
                // A list over all namespaces cannot be deleted (the route does not exist), so these agree.
                debug_assert_eq!(namespace, call.namespace());
                let object = entry.decode().map_err(Status::internal)?;
                let shown = crate::convert::from_stored(&call.row, object);
                self.admit_delete(call, &shown, &delete).await?;
                match self.delete_one(call, name, &delete).await {
                    Ok(Deleted::Gone(..) | Deleted::Kept(..)) => {}
                    // Gone meanwhile is as good.
                    Err(status) if status.is_not_found() => {}
                    Err(status) => return Err(status),
                }
            }
            Ok(())
        };
        tokio::time::timeout(options.timeout.unwrap_or(COLLECTION_DEADLINE), work)
            .await
            .map_err(|_| Status::timeout("the collection was not deleted in time", 1))??;
        Ok(Answer::List(page))
    }
}
