//! Keys of the tables. Integers are big-endian, so that byte order is number order.

/// Meta: [`ClusterRow`](jindofs_proto::store::v1::ClusterRow).
pub const CLUSTER: &[u8] = b"cluster";
/// Meta: [`CounterRow`](jindofs_proto::store::v1::CounterRow).
pub const COUNTERS: &[u8] = b"counters";
/// Meta: id of the last log entry applied; written by the Raft layer.
pub const APPLIED: &[u8] = b"applied";
/// Meta: the stored membership; written by the Raft layer.
pub const MEMBERSHIP: &[u8] = b"membership";
/// Meta: where the next sweep for old ended sessions begins.
pub const SESSION_SWEEP: &[u8] = b"session-sweep";
/// Meta: the member this store belongs to; written by the Raft layer. The one row in which replicas differ.
pub const OWNER: &[u8] = b"owner";
/// Meta: version of the stored format, decimal digits.
pub const FORMAT: &[u8] = b"format";

/// Key of an entry: number of the directory's content (its inode, see `InodeRow.content`), then the name.
pub fn dentry(content: u64, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(8 + name.len());
    key.extend_from_slice(&content.to_be_bytes());
    key.extend_from_slice(name);
    key
}

/// The name in a dentry key.
pub fn name_of(dentry_key: &[u8]) -> &[u8] {
    dentry_key.get(8..).unwrap_or_default()
}

/// The number of the directory's content in a dentry key.
pub fn content_of(dentry_key: &[u8]) -> u64 {
    dentry_key.get(..8).map_or(0, id_of)
}

/// Key of an inode, gc, member or job row.
pub fn id(id: u64) -> [u8; 8] {
    id.to_be_bytes()
}

/// The id in a key made by [`id`]; 0 for a key of another length.
pub fn id_of(key: &[u8]) -> u64 {
    key.try_into().map(u64::from_be_bytes).unwrap_or(0)
}

/// Key of a mount or stat row.
pub fn mount(id: u32) -> [u8; 4] {
    id.to_be_bytes()
}

/// Key of a stored outcome; `client_id` has 16 bytes.
pub fn reply(client_id: &[u8], seq: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(client_id.len() + 8);
    key.extend_from_slice(client_id);
    key.extend_from_slice(&seq.to_be_bytes());
    key
}

/// Key of what an owner has locked of a file; `client_id` has 16 bytes.
pub fn lock(inode: u64, client_id: &[u8], owner: u64) -> Vec<u8> {
    [&inode.to_be_bytes()[..], client_id, &owner.to_be_bytes()].concat()
}

/// Client and owner in a key made by [`lock`].
pub fn locker_of(lock_key: &[u8]) -> (&[u8], u64) {
    let owner = lock_key.get(24..).map_or(0, id_of);
    (lock_key.get(8..24).unwrap_or_default(), owner)
}

/// Key of the same by its client.
pub fn locker(client_id: &[u8], inode: u64, owner: u64) -> Vec<u8> {
    [client_id, &inode.to_be_bytes(), &owner.to_be_bytes()].concat()
}

/// Inode and owner in a key made by [`locker`]; none in the key of the client itself.
pub fn locked_of(locker_key: &[u8]) -> Option<(u64, u64)> {
    Some((id_of(locker_key.get(16..24)?), id_of(locker_key.get(24..)?)))
}
