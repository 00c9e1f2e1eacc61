//! The running `jindofs dev` listens on a socket in its directory; `stop`, `restart` and `kill` speak to it there.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jindofs_packets::SocketPath;

use super::{DevCluster, at};
use crate::error::{Error, ErrorKind, Result};

/// Longest wait for a command to be carried out.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

fn socket(dir: &Path) -> PathBuf {
    dir.join("dev.sock")
}

/// Opens the socket; a stale one of a dead process is replaced.
pub(super) fn listen(dir: &Path) -> Result<UnixListener> {
    let path = socket(dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(at(&path)(error)),
        _ => {}
    }
    let bound = SocketPath::of(&path).and_then(|short| UnixListener::bind(short.as_path()));
    bound.map_err(at(&path))
}

/// Carries out one command; true if the cluster is to be stopped.
pub(super) fn answer(cluster: &DevCluster, stream: UnixStream) -> Result<bool> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
    let mut stream = stream;
    let (verb, name) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
    let outcome = match verb {
        "stop" => {
            cluster.stop();
            Ok(())
        }
        "restart" => restart(cluster, name),
        "kill" => cluster.kill(name),
        "add-master" => cluster.add_master().map(|_| ()),
        _ => Err(Error::invalid(format!("unknown command {verb}"))),
    };
    let reply = outcome.map_or_else(|error| format!("error {error}\n"), |()| "ok\n".to_owned());
    stream.write_all(reply.as_bytes())?;
    Ok(verb == "stop")
}

fn restart(cluster: &DevCluster, name: &str) -> Result<()> {
    if cluster.process(name)?.pid.is_some() {
        cluster.kill(name)?;
    }
    cluster.restart(name)
}

/// Sends one command to the `jindofs dev` of `dir`.
///
/// *Errors*: `NotFound` when none runs there; what the command failed with.
pub(super) fn send(dir: &Path, command: &str) -> Result<()> {
    let path = socket(dir);
    let connected = SocketPath::of(&path).and_then(|short| UnixStream::connect(short.as_path()));
    let mut stream = connected.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
            Error::new(ErrorKind::NotFound, format!("no `jindofs dev` runs for {}", dir.display()))
        }
        _ => at(&path)(error),
    })?;
    stream.set_read_timeout(Some(COMMAND_TIMEOUT))?;
    writeln!(stream, "{command}")?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply)?;
    match reply.trim_end().strip_prefix("error ") {
        Some(message) => Err(Error::new(ErrorKind::FailedPrecondition, message)),
        None if reply.trim_end() == "ok" => Ok(()),
        None => Err(Error::unavailable("`jindofs dev` ended before it answered")),
    }
}
