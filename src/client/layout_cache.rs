//! Sources of files that had to be asked for, kept so that opening goes on while masters are down.

use std::num::NonZeroUsize;
use std::sync::Mutex;

use jindofs_proto::v1::FileSource;
use lru::LruCache;

use crate::runtime::lock;
use crate::types::version_of;

/// Most sources remembered, about 20 MiB.
const CAPACITY: NonZeroUsize = NonZeroUsize::MIN.saturating_add(99_999);

/// Sources by inode. A source serves only the version of the content it was made for.
#[derive(Debug)]
pub struct LayoutCache {
    sources: Mutex<LruCache<u64, FileSource>>,
}

impl Default for LayoutCache {
    fn default() -> Self {
        LayoutCache { sources: Mutex::new(LruCache::sparse(CAPACITY)) }
    }
}

impl LayoutCache {
    /// The source of the content that attributes with this token and size describe.
    pub fn get(&self, inode: u64, token: &[u8], size: u64) -> Option<FileSource> {
        let mut sources = lock(&self.sources);
        let source = sources.get(&inode)?;
        (source.version == version_of(token) && source.length == size).then(|| source.clone())
    }

    /// Remembers a source.
    pub fn put(&self, source: FileSource) {
        lock(&self.sources).put(source.file_id, source);
    }

    /// Forgets a source that turned out stale: the next open asks.
    pub fn forget(&self, inode: u64) {
        lock(&self.sources).pop(&inode);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_serves_only_the_content_it_was_made_for() {
        let cache = LayoutCache::default();
        cache.put(FileSource { file_id: 9, version: version_of(b"one"), length: 5, ..Default::default() });
        assert!(cache.get(9, b"one", 5).is_some());
        assert!(cache.get(9, b"two", 5).is_none(), "another token");
        assert!(cache.get(9, b"one", 6).is_none(), "another size");
        cache.forget(9);
        assert!(cache.get(9, b"one", 5).is_none());
    }
}
