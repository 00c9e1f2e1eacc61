//! Where the writer runs: on a thread of its own, or, in a simulated run, as a task that takes simulated time.

use std::io;
use std::sync::mpsc::Receiver;

use super::writer::{Op, Writer};

/// The thread of a writer, as those that fill its queue see it.
#[derive(Debug, Clone)]
pub(super) struct WriterThread {
    #[cfg(test)]
    filled: std::sync::Arc<tokio::sync::Notify>,
}

impl WriterThread {
    /// Starts the writer on `inbox`.
    ///
    /// *Errors*: when no thread can be started.
    pub(super) fn start(writer: Writer, inbox: Receiver<Op>) -> io::Result<WriterThread> {
        let thread = WriterThread {
            #[cfg(test)]
            filled: std::sync::Arc::default(),
        };
        #[cfg(test)]
        if crate::runtime::simulated::is_active() {
            tokio::spawn(simulated::run(writer, inbox, thread.filled.clone()));
            return Ok(thread);
        }
        std::thread::Builder::new().name("raft-log".into()).spawn(move || writer.run(&inbox))?;
        Ok(thread)
    }

    /// Tells that the queue was filled. A thread notices by itself.
    pub(super) fn wake(&self) {
        #[cfg(test)]
        self.filled.notify_one();
    }
}

#[cfg(test)]
mod simulated {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, TryRecvError};

    use tokio::sync::Notify;

    use super::super::writer::{IDLE, Op, Writer};
    use crate::master::raft::simulation::disk_delay;

    /// [`Writer::run`], with a delay before each batch that stands for the write and the sync of the one before.
    pub(super) async fn run(mut writer: Writer, ops: Receiver<Op>, filled: Arc<Notify>) {
        let mut marked = true;
        loop {
            match ops.try_recv() {
                Ok(op) => {
                    tokio::time::sleep(disk_delay()).await;
                    writer.attempt(|writer| writer.take_batch(op, &ops));
                    marked = false;
                }
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) if marked => filled.notified().await,
                Err(TryRecvError::Empty) => {
                    if tokio::time::timeout(IDLE, filled.notified()).await.is_err() {
                        writer.attempt(Writer::mark);
                        marked = true;
                    }
                }
            }
            if writer.closed {
                return;
            }
        }
    }
}
