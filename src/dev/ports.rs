//! Free TCP ports that stay ours: also while the process that uses one is down, and beside other clusters on this host.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;

use crate::error::{Error, ErrorKind, Result};

/// Below the kernel's ephemeral range, so that no outgoing connection takes one.
const RANGE: std::ops::Range<u16> = 10_000..32_000;

/// A port no other local cluster chooses while this value lives.
#[derive(Debug)]
pub(super) struct Port {
    number: u16,
    _lease: File,
}

impl Port {
    pub(super) fn number(&self) -> u16 {
        self.number
    }

    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }

    /// Some free port.
    pub(super) fn any() -> Result<Port> {
        for _ in 0..1000 {
            if let Ok(port) = Port::exactly(rand::random_range(RANGE)) {
                return Ok(port);
            }
        }
        Err(Error::new(ErrorKind::ResourceExhausted, "no free TCP port found between 10000 and 31999"))
    }

    /// The port `number`.
    ///
    /// *Errors*: `Busy` when somebody listens on it or another local cluster keeps it.
    pub(super) fn exactly(number: u16) -> Result<Port> {
        let busy = |who: &str| {
            let message = format!("port {number} is in use by {who}: stop it, or choose another --data-dir");
            Error::new(ErrorKind::Busy, message)
        };
        let dir = leases();
        fs::create_dir_all(&dir).map_err(super::at(&dir))?;
        let path = dir.join(number.to_string());
        let lease = File::options().create(true).truncate(false).write(true).open(&path).map_err(super::at(&path))?;
        lease.try_lock().map_err(|_| busy("another local cluster"))?;
        TcpListener::bind(("127.0.0.1", number)).map_err(|_| busy("another process"))?;
        Ok(Port { number, _lease: lease })
    }
}

fn leases() -> PathBuf {
    std::env::temp_dir().join(format!("jindofs-dev-ports-{}", rustix::process::getuid().as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leased_port_is_given_to_nobody_else_until_it_is_dropped() {
        let port = Port::any().expect("a free port");
        let number = port.number();
        assert_eq!(Port::exactly(number).expect_err("leased").kind, ErrorKind::Busy);
        drop(port);
        Port::exactly(number).expect("free again");
    }
}
