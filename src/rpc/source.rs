//! What a reader must know of a file, from its attributes: masters and clients say the same.

use jindofs_proto::v1::{Attr, FileSource};

use crate::types::{BLOCK_SIZE, version_of};

/// The source of the file with `attr`, whose path below the root of its mount is `path`.
pub fn source_of(attr: &Attr, path: Vec<u8>) -> FileSource {
    FileSource {
        file_id: attr.inode,
        version: version_of(&attr.version_token),
        length: attr.size,
        block_size: BLOCK_SIZE,
        mount_id: attr.mount_id,
        ufs_path: path.into(),
        version_token: attr.version_token.clone(),
    }
}
