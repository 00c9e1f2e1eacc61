//! Holds the mounts of FUSE clients while the clients are replaced: a reader waits for the next client instead of
//! getting an error.
//!
//! The kernel ends a mount when the last descriptor of its `/dev/fuse` is closed. Each client passes a second
//! descriptor to the mount holder, with a memfd that describes the open handles, and its successor gets both. A mount
//! that no client serves is released when no volume uses it any more, or when no client has come for too long; then a
//! new one is bound in its place.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use jindofs_packets::{PACKET_MAX, PacketListener, Packets, resend_requests};
use jindofs_proto::v1::{HandoverOp, HandoverOutcome, HandoverReply, HandoverRequest};
use prost::Message;

use crate::sync::lock;

use super::mounts::table;
use super::published::Published;

/// Pause after a failed `accept`.
const PAUSE: Duration = Duration::from_millis(100);

/// The held mounts.
#[derive(Debug)]
pub(super) struct MountHolder {
    published: Arc<Published>,
    unserved_timeout: Duration,
    clients: AtomicU64,
    /// By device number.
    held: Mutex<HashMap<String, HeldMount>>,
}

#[derive(Debug)]
struct HeldMount {
    fuse: OwnedFd,
    state: OwnedFd,
    server: Server,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    /// The client on this connection.
    Client(u64),
    /// No client, since then.
    Gone(Instant),
}

/// Descriptors for the client, or the reason for a refusal.
type Answer = Result<Vec<OwnedFd>, (HandoverOutcome, String)>;

fn refused(message: impl Into<String>) -> (HandoverOutcome, String) {
    (HandoverOutcome::Refused, message.into())
}

/// Listens at `socket`, in a directory that only root may enter. The identity of a client is not checked: the kernel
/// cannot name a process of another PID namespace, such as that of a client's pod.
///
/// *Errors*: those of the system, with the path.
pub(super) fn listen(socket: &Path) -> Result<PacketListener, String> {
    let at = |error: std::io::Error| format!("{}: {error}", socket.display());
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory).map_err(at)?;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)).map_err(at)?;
    }
    PacketListener::bind(socket).map_err(at)
}

impl MountHolder {
    /// A mount that no client has served for `unserved_timeout` is released.
    pub(super) fn new(published: Arc<Published>, unserved_timeout: Duration) -> MountHolder {
        MountHolder { published, unserved_timeout, clients: AtomicU64::new(1), held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, HeldMount>> {
        lock(&self.held)
    }

    /// True if the mount with this device number is held, served or not.
    pub(super) fn holds(&self, device: &str) -> bool {
        self.held().contains_key(device)
    }

    /// Accepts and serves clients.
    pub(super) async fn serve(self: Arc<Self>, listener: PacketListener) {
        loop {
            match listener.accept().await {
                Ok(packets) => {
                    let this = self.clone();
                    tokio::spawn(async move { this.converse(packets).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "a client could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Serves one client until it ends.
    async fn converse(self: Arc<Self>, packets: Packets) {
        let client = self.clients.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.answer_all(client, &packets).await {
            tracing::warn!(%error, "a client is hung up on");
        }
        if self.left(client) {
            self.tidied().await;
        }
    }

    async fn answer_all(&self, client: u64, packets: &Packets) -> std::io::Result<()> {
        let mut buffer = vec![0; PACKET_MAX];
        while let Some((length, descriptors)) = packets.receive(&mut buffer).await? {
            let request = HandoverRequest::decode(&buffer[..length])?;
            let (reply, descriptors) = match self.act(client, &request, descriptors) {
                Ok(descriptors) => {
                    let outcome = HandoverOutcome::Done.into();
                    (HandoverReply { outcome, message: String::new() }, descriptors)
                }
                Err((outcome, message)) => {
                    if outcome == HandoverOutcome::Refused {
                        tracing::warn!(device = request.device, why = message, "a client is refused");
                    }
                    (HandoverReply { outcome: outcome.into(), message }, Vec::new())
                }
            };
            let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            packets.send(&reply.encode_to_vec(), &descriptors).await?;
        }
        Ok(())
    }

    fn act(&self, client: u64, request: &HandoverRequest, descriptors: Vec<OwnedFd>) -> Answer {
        let device = request.device.as_str();
        match request.op() {
            HandoverOp::Offer => self.offered(client, device, descriptors),
            HandoverOp::Take => self.take(client, device),
            HandoverOp::Discard => self.discard(client, device),
            HandoverOp::Unspecified => Err(refused("the request asks for nothing that is known here")),
        }
    }

    fn offered(&self, client: u64, device: &str, descriptors: Vec<OwnedFd>) -> Answer {
        let [fuse, state]: [OwnedFd; 2] =
            descriptors.try_into().map_err(|_| refused("an offer brings two descriptors"))?;
        let file = std::fs::File::from(fuse);
        if !file.metadata().is_ok_and(|found| found.file_type().is_char_device()) {
            return Err(refused("the first descriptor is not one of /dev/fuse"));
        }
        let table = table().map_err(|error| refused(error.to_string()))?;
        if !table.iter().any(|one| one.device == device && one.is_fuse()) {
            return Err(refused(format!("no FUSE mount with the device {device} is seen here")));
        }
        tracing::info!(device, client, "holds the mount of a client");
        let held = HeldMount { fuse: file.into(), state, server: Server::Client(client) };
        self.held().insert(device.to_owned(), held);
        Ok(Vec::new())
    }

    fn take(&self, client: u64, device: &str) -> Answer {
        let mut held = self.held();
        let Some(one) = held.get_mut(device) else {
            return Err((HandoverOutcome::Unknown, format!("nothing is held of {device}")));
        };
        if matches!(one.server, Server::Client(_)) {
            return Err((HandoverOutcome::Served, format!("another client serves {device}")));
        }
        let copies = one.fuse.try_clone().and_then(|fuse| Ok(vec![fuse, one.state.try_clone()?]));
        let copies = copies.map_err(|error| refused(error.to_string()))?;
        one.server = Server::Client(client);
        tracing::info!(device, client, "gives the mount to the next client");
        Ok(copies)
    }

    fn discard(&self, client: u64, device: &str) -> Answer {
        let mut held = self.held();
        if held.get(device).is_none_or(|one| one.server != Server::Client(client)) {
            return Err(refused(format!("{device} is not served by this client")));
        }
        held.remove(device);
        drop(held);
        tracing::warn!(device, "the client cannot go on with this mount: it ends");
        self.published.end(device).map_err(|error| refused(error.to_string()))?;
        Ok(Vec::new())
    }

    /// Marks the mounts of a client that has ended as unserved. Returns true if there was one.
    fn left(&self, client: u64) -> bool {
        let mut any = false;
        for (device, one) in self.held().iter_mut().filter(|(_, one)| one.server == Server::Client(client)) {
            tracing::info!(device, client, "the client of a mount has ended");
            one.server = Server::Gone(Instant::now());
            // The kernel does not pass a request that this client has read to another client unless it is asked to. A
            // process that waits for such a request could not be killed until the next client comes.
            if let Err(error) = resend_requests(&one.fuse) {
                tracing::warn!(device, %error, "processes that wait for this client cannot be killed before the next client comes");
            }
            any = true;
        }
        any
    }

    fn drop_unserved(&self, device: &str) -> bool {
        let mut held = self.held();
        let unserved = held.get(device).is_some_and(|one| matches!(one.server, Server::Gone(_)));
        unserved && held.remove(device).is_some()
    }

    /// Releases mounts that no client serves and no volume uses, or that no client has served for too long.
    pub(super) async fn tidied(self: Arc<Self>) {
        if let Err(error) = tokio::task::spawn_blocking(move || self.tidy()).await {
            tracing::error!(%error, "letting go of mounts broke off");
        }
    }

    /// May block.
    fn tidy(&self) {
        let unserved = |(device, one): (&String, &HeldMount)| match one.server {
            Server::Gone(since) => Some((device.clone(), since)),
            Server::Client(_) => None,
        };
        let unserved: Vec<(String, Instant)> = self.held().iter().filter_map(unserved).collect();
        for (device, since) in unserved {
            if let Err(error) = self.release(&device, since.elapsed()) {
                tracing::warn!(device, %error, "a mount without a client was not taken away");
            }
        }
    }

    fn release(&self, device: &str, waited: Duration) -> std::io::Result<()> {
        let late = waited >= self.unserved_timeout;
        if !late && self.published.needs(device)? {
            return Ok(());
        }
        // First the kernel ends the mount: other processes may wait for it while they hold locks.
        if !self.drop_unserved(device) {
            return Ok(());
        }
        let why = if late { "no client came" } else { "no volume shows it" };
        tracing::warn!(device, seconds = waited.as_secs(), why, "a mount ends that no client serves");
        self.published.end(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        directory: std::path::PathBuf,
        mount_holder: Arc<MountHolder>,
    }

    impl Bench {
        fn start() -> Bench {
            let directory = std::env::temp_dir().join(format!("jindofs-keeper-{}", uuid::Uuid::new_v4()));
            let published = Arc::new(Published::load(directory.join("published")).expect("opened"));
            let mount_holder = Arc::new(MountHolder::new(published, Duration::from_secs(120)));
            let listener = listen(&directory.join("s/keeper.sock")).expect("listens");
            tokio::spawn(mount_holder.clone().serve(listener));
            Bench { directory, mount_holder }
        }

        fn connect(&self) -> Packets {
            Packets::connect(&self.directory.join("s/keeper.sock")).expect("connected")
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }

    async fn call(packets: &Packets, op: HandoverOp, descriptors: &[std::os::fd::BorrowedFd<'_>]) -> HandoverReply {
        let request = HandoverRequest { device: "0:999999".to_owned(), op: op.into() };
        packets.send(&request.encode_to_vec(), descriptors).await.expect("sent");
        let mut buffer = [0; 4096];
        let (length, _) = packets.receive(&mut buffer).await.expect("received").expect("an answer");
        HandoverReply::decode(&buffer[..length]).expect("a reply")
    }

    #[tokio::test]
    async fn what_is_no_mount_is_refused_with_the_reason_and_what_is_no_request_is_hung_up_on() {
        let bench = Bench::start();
        let mode = std::fs::metadata(bench.directory.join("s")).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let client = bench.connect();
        assert_eq!(call(&client, HandoverOp::Take, &[]).await.outcome(), HandoverOutcome::Unknown);
        let (file, null) = (std::fs::File::open("/proc/self/exe"), std::fs::File::open("/dev/null"));
        let (file, null) = (file.expect("opened"), null.expect("opened"));
        let offers: [(&[_], &str); 3] = [
            (&[], "two descriptors"),
            (&[file.as_fd(), file.as_fd()], "/dev/fuse"),
            (&[null.as_fd(), file.as_fd()], "0:999999"),
        ];
        for (descriptors, word) in offers {
            let reply = call(&client, HandoverOp::Offer, descriptors).await;
            assert_eq!(reply.outcome(), HandoverOutcome::Refused);
            assert!(reply.message.contains(word), "{}", reply.message);
        }
        for op in [HandoverOp::Discard, HandoverOp::Unspecified] {
            assert_eq!(call(&client, op, &[]).await.outcome(), HandoverOutcome::Refused);
        }
        client.send(b"\xff\xff", &[]).await.expect("sent");
        assert!(client.receive(&mut [0; 16]).await.expect("received").is_none());
    }

    #[tokio::test]
    async fn a_mount_is_given_to_one_client_at_a_time_and_let_go_of_when_the_last_one_ends_and_nothing_shows_it() {
        let bench = Bench::start();
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").expect("opened"));
        let held = HeldMount { fuse: file(), state: file(), server: Server::Gone(Instant::now()) };
        bench.mount_holder.held().insert("0:999999".to_owned(), held);
        let (first, second) = (bench.connect(), bench.connect());
        assert_eq!(call(&first, HandoverOp::Take, &[]).await.outcome(), HandoverOutcome::Done);
        assert_eq!(call(&second, HandoverOp::Take, &[]).await.outcome(), HandoverOutcome::Served);
        bench.mount_holder.tidy();
        assert_eq!(bench.mount_holder.held().len(), 1, "it is served");
        drop(first);
        let gone = async {
            while !bench.mount_holder.held().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("nobody needs it");
    }
}
