//! Replies that are sent by a task.

use std::task::{Context, Waker};

use fuser::{INodeNo, ReplyData, ReplyEmpty, ReplyEntry};

use super::super::errno::Errno;
use super::super::inodes::Known;
use super::super::nodes::inode_of;
use super::super::reply::{enter, errno, failed, failed_at_inode};
use super::Adapter;
use crate::error::Result;
use crate::runtime::spawn_dedicated;

/// Most `close` and `fsync` requests that run on a thread of their own. They may occupy their threads for as long as
/// the masters do not answer.
pub(super) const DEDICATED_MAX: usize = 64;

fn end((what, inode): (&'static str, INodeNo), reply: ReplyEmpty, done: Result<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(failed(what, inode.0, &error)),
    }
}

impl Adapter {
    /// Reads through a handle of the previous process, which is reopened first.
    pub(super) fn read_restored(&self, inode: INodeNo, number: u64, offset: u64, size: u32, reply: ReplyData) {
        if self.fs.handles.restored(number).is_none() {
            return reply.error(errno(Errno::BAD_HANDLE));
        }
        let fs = self.fs.clone();
        self.runtime.spawn(async move {
            match fs.read_restored(number, offset, size).await {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(failed("read", inode.0, &error)),
            }
        });
    }

    /// Replies with the target of a symbolic link.
    pub(super) fn reply_symlink_target(&self, inode: INodeNo, reply: ReplyData) {
        let fs = self.fs.clone();
        self.runtime.spawn(async move {
            match fs.attr(inode.0).await {
                Ok(known) => reply.data(&known.attr.symlink_target),
                Err(error) => {
                    fs.forget_path_if_gone(inode.0, &error);
                    reply.error(failed_at_inode("readlink", inode.0, &error));
                }
            }
        });
    }

    /// Replies from a task, and records that the kernel holds the lock of `directory` until then.
    pub(super) fn spawn_holding(&self, directory: INodeNo, answer: impl Future<Output = ()> + Send + 'static) {
        let held = self.fs.invalidation.hold(directory.0);
        self.runtime.spawn(async move {
            answer.await;
            drop(held);
        });
    }

    /// Replies with the entry `name` once `work` has finished.
    pub(super) fn spawn_entry_reply(
        &self,
        (what, parent, name): (&'static str, INodeNo, Vec<u8>),
        reply: ReplyEntry,
        work: impl Future<Output = Result<Known>> + Send + 'static,
    ) {
        let fs = self.fs.clone();
        self.spawn_holding(parent, async move {
            match work.await {
                Ok(known) => enter(&fs, parent.0, &name, known, reply),
                Err(error) => reply.error(failed(what, parent.0, &error)),
            }
        });
    }

    /// Replies once `work` has finished.
    pub(super) fn spawn_reply(
        &self,
        (what, inode): (&'static str, INodeNo),
        reply: ReplyEmpty,
        work: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        self.runtime.spawn(async move { end((what, inode), reply, work.await) });
    }

    /// Serves FLUSH: stores what was written before one close of a file.
    pub(super) fn flush_file(&self, inode: INodeNo, reply: ReplyEmpty) {
        let file = inode_of(inode.0);
        if self.fs.is_flushed(file) {
            return reply.ok();
        }
        let fs = self.fs.clone();
        self.store(("flush", inode), reply, async move { fs.flush(file, false).await });
    }

    /// Serves FSYNC: stores everything that is not stored of a file.
    pub(super) fn sync_file(&self, inode: INodeNo, reply: ReplyEmpty) {
        let file = inode_of(inode.0);
        if self.fs.is_stored(file) {
            return reply.ok();
        }
        let fs = self.fs.clone();
        self.store(("fsync", inode), reply, async move { fs.sync(file).await });
    }

    fn store(
        &self,
        (what, inode): (&'static str, INodeNo),
        reply: ReplyEmpty,
        work: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        let is_in_memory = self.fs.staging.is_in_memory(inode_of(inode.0));
        let dedicated = is_in_memory.then(|| self.dedicated.clone().try_acquire_owned());
        let Some(Ok(permit)) = dedicated else { return self.spawn_reply((what, inode), reply, work) };
        spawn_dedicated(&self.runtime, async move {
            end((what, inode), reply, work.await);
            drop(permit);
        });
    }

    /// Polls `work` once on this thread, and moves it to a task if it is not finished.
    pub(super) fn poll_then_spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut work = Box::pin(work);
        let begun = {
            let _entered = self.runtime.enter();
            work.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        };
        if begun.is_pending() {
            self.runtime.spawn(work);
        }
    }
}
