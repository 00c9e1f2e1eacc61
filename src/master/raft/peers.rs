//! What is known of every member's disk and start. A message from a disk that lags behind that knowledge, however it
//! came to be, is dropped before it is looked at: votes included.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use jindofs_proto::raft::v1::Header;
use jindofs_proto::store::v1::Member;

/// A start of a member: the disk, the boot counter on it, and the nonce of that start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) incarnation: Vec<u8>,
    pub(crate) boot: u64,
    pub(crate) nonce: Vec<u8>,
}

/// Why a start is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Disbelief {
    #[error("member {0} is another disk: its incarnation differs from the one that was admitted")]
    OtherDisk(u64),
    #[error("member {id} started as boot {boot}, but boot {known} of it has been seen: its disk is an old copy")]
    OldBoot { id: u64, boot: u64, known: u64 },
    #[error("member {id} started as boot {boot} twice: this disk is an old copy, or one of two copies")]
    Twin { id: u64, boot: u64 },
}

#[derive(Debug, Default)]
struct Peer {
    start: Option<Start>,
    heard: Option<Instant>,
}

/// Shared by the Raft server, its clients and the membership duty.
#[derive(Debug, Default)]
pub(crate) struct Peers(Mutex<HashMap<u64, Peer>>);

impl Peers {
    /// Takes over what the replicated member records say.
    pub(crate) fn learn(&self, members: &[Member]) {
        for member in members {
            let start = Start {
                incarnation: member.incarnation.to_vec(),
                boot: member.boot,
                nonce: member.boot_nonce.to_vec(),
            };
            // A record older than what the member itself told us changes nothing.
            let _ = self.believe(member.id, &start);
        }
    }

    /// Checks a start against what is known, and remembers it if it is news.
    pub(crate) fn believe(&self, id: u64, start: &Start) -> Result<(), Disbelief> {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = peers.entry(id).or_default();
        if let Some(known) = &peer.start {
            judge(id, known, start)?;
        }
        peer.start = Some(start.clone());
        Ok(())
    }

    /// As [`Peers::believe`], without remembering.
    pub(crate) fn judge(&self, id: u64, start: &Start) -> Result<(), Disbelief> {
        let peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        peers.get(&id).and_then(|peer| peer.start.as_ref()).map_or(Ok(()), |known| judge(id, known, start))
    }

    /// Checks the sender of a message and notes that it was heard from.
    pub(crate) fn hear(&self, header: &Header) -> Result<(), Disbelief> {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = peers.entry(header.sender_id).or_default();
        peer.heard = Some(Instant::now());
        match &peer.start {
            // The common case, without an allocation.
            Some(known)
                if known.boot == header.boot
                    && known.nonce == header.boot_nonce
                    && known.incarnation == header.incarnation =>
            {
                Ok(())
            }
            known => {
                let start = Start {
                    incarnation: header.incarnation.to_vec(),
                    boot: header.boot,
                    nonce: header.boot_nonce.to_vec(),
                };
                if let Some(known) = known {
                    judge(header.sender_id, known, &start)?;
                }
                peer.start = Some(start);
                Ok(())
            }
        }
    }

    /// When a member was last heard from.
    pub(crate) fn heard(&self, id: u64) -> Option<Instant> {
        let peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        peers.get(&id).and_then(|peer| peer.heard)
    }
}

fn judge(id: u64, known: &Start, start: &Start) -> Result<(), Disbelief> {
    if known.incarnation != start.incarnation {
        return Err(Disbelief::OtherDisk(id));
    }
    if start.boot < known.boot {
        return Err(Disbelief::OldBoot { id, boot: start.boot, known: known.boot });
    }
    // A record made at admission has no nonce yet.
    if start.boot == known.boot && start.nonce != known.nonce && !known.nonce.is_empty() && !start.nonce.is_empty() {
        return Err(Disbelief::Twin { id, boot: start.boot });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(disk: u8, boot: u64, nonce: u8) -> Start {
        Start { incarnation: vec![disk; 16], boot, nonce: vec![nonce; 16] }
    }

    #[test]
    fn old_boots_twins_and_other_disks_are_not_believed() {
        let peers = Peers::default();
        peers.believe(3, &start(1, 4, 9)).expect("first sight");
        peers.believe(3, &start(1, 4, 9)).expect("the same again");
        assert_eq!(peers.judge(3, &start(1, 3, 8)), Err(Disbelief::OldBoot { id: 3, boot: 3, known: 4 }));
        assert_eq!(peers.judge(3, &start(1, 4, 8)), Err(Disbelief::Twin { id: 3, boot: 4 }));
        assert_eq!(peers.judge(3, &start(2, 9, 9)), Err(Disbelief::OtherDisk(3)));
        peers.believe(3, &start(1, 5, 7)).expect("a later start");
        assert_eq!(peers.judge(3, &start(1, 4, 9)), Err(Disbelief::OldBoot { id: 3, boot: 4, known: 5 }));
    }
}
