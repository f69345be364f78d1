// SPDX-License-Identifier: Apache-2.0
//! What a service has of a user. It gives a thousand names or so at a time, and no page before it has given
//! the one ahead of it: of a user with many files ranges of names are listed side by side, each from where
//! the one before it ends.

use super::super::objects::{Fault, Found};
use super::super::path::{Key, UserPrefix};
use super::{Cloud, Service, info};
use futures_util::{FutureExt, StreamExt, TryStreamExt, future, stream};
use object_store::ObjectMeta;
use object_store::path::Path;
use std::iter;

/// Names of a range: two pages. Tests have fewer files.
pub(in crate::storage) const RANGE: u32 = if cfg!(test) { 20 } else { 2_000 };
/// Ranges of one list at the same time.
const AT_ONCE: usize = 8;
const WHAT: &str = "list files";

impl Cloud {
    /// Every object of a user's files. The list may be divided at `ends`, in the order of names: an object
    /// that has such a name is the last of its range, and one that is not there any more does no harm.
    pub(in crate::storage) async fn list(
        &self,
        prefix: &UserPrefix,
        ends: &[Key],
    ) -> Result<Vec<Found>, Fault> {
        let (files, odd) = (format!("{}/files", prefix.as_str()), format!("{}/odd", prefix.as_str()));
        let (files, odd) = future::try_join(self.divided(&files, ends), self.below(&odd, WHAT)).await?;
        let found = |meta: ObjectMeta| Found::Object {
            info: info(&meta),
            key: meta.location.into(),
            is_program: false,
        };
        Ok(files.into_iter().chain(odd).map(found).collect())
    }

    /// Every object below a name, page after page.
    pub(super) async fn below(&self, folder: &str, what: &'static str) -> Result<Vec<ObjectMeta>, Fault> {
        let _place = self.place(what).await?;
        let folder = self.folder(folder, what)?;
        let listed = self.connected.store.list(Some(&folder)).try_collect().await;
        listed.map_err(|error| self.fault(what, &error))
    }

    fn folder(&self, name: &str, what: &'static str) -> Result<Path, Fault> {
        Path::parse(name).map_err(|error| self.fault(what, &error.into()))
    }

    async fn divided(&self, name: &str, ends: &[Key]) -> Result<Vec<ObjectMeta>, Fault> {
        // The crate knows of Azurite that it cannot begin anywhere, and would list all for each range.
        if ends.is_empty() || self.connected.service == Service::Azure {
            return self.below(name, WHAT).await;
        }
        let folder = &self.folder(name, WHAT)?;
        let begins = iter::once(None).chain(ends.iter().map(Some));
        let ranges = begins.zip(ends.iter().map(Some).chain([None]));
        let ranges: Vec<_> = ranges.map(|(after, last)| self.range(folder, after, last).boxed()).collect();
        let listed = stream::iter(ranges).buffered(AT_ONCE).try_collect::<Vec<_>>().await?;
        match listed.into_iter().collect::<Option<Vec<_>>>() {
            Some(ranges) => Ok(ranges.into_iter().flatten().collect()),
            None => self.below(name, WHAT).await,
        }
    }

    /// The objects after one name up to another; `None` if those do not come in the order of their names, as
    /// S3 and Google Cloud Storage promise: then nothing says what a range holds. Whoever knows a name that is
    /// missing in the end lists again, undivided.
    async fn range(
        &self,
        folder: &Path,
        after: Option<&Key>,
        last: Option<&Key>,
    ) -> Result<Option<Vec<ObjectMeta>>, Fault> {
        let _place = self.place(WHAT).await?;
        let store = &self.connected.store;
        let mut listed = match after {
            Some(after) => store.list_with_offset(Some(folder), &self.path(after, WHAT)?),
            None => store.list(Some(folder)),
        };
        let mut found: Vec<ObjectMeta> = Vec::new();
        while let Some(meta) = listed.try_next().await.map_err(|error| self.fault(WHAT, &error))? {
            let name = meta.location.as_ref();
            let before = found.last().map(|meta| meta.location.as_ref()).or(after.map(Key::as_str));
            if before.is_some_and(|before| name <= before) {
                return Ok(None);
            }
            let is_within = last.is_none_or(|last| name <= last.as_str());
            let is_last = last.is_some_and(|last| name >= last.as_str());
            if is_within {
                found.push(meta);
            }
            if is_last {
                // Not asked for more: that would be a page of the next range.
                break;
            }
        }
        Ok(Some(found))
    }
}
