//! A network that drops packets: rules of the kernel's filter for ports of this machine.

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// Packets to a port are dropped until this is dropped.
pub struct Cut {
    table: String,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Cut {
    /// Nothing reaches `port` any more: neither new connections nor what comes over old ones.
    pub fn to_port(port: u16) -> Cut {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cut = Cut { table: format!("jindofs_test_{}_{number}", std::process::id()) };
        let table = &cut.table;
        nft(&format!(
            "add table inet {table}; \
             add chain inet {table} in {{ type filter hook input priority 0; }}; \
             add rule inet {table} in tcp dport {port} drop"
        ));
        cut
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        nft(&format!("delete table inet {}", self.table));
    }
}

fn nft(rules: &str) {
    let output = Command::new("nft").arg(rules).output().expect("nft runs");
    assert!(output.status.success(), "nft {rules}: {}", String::from_utf8_lossy(&output.stderr));
}

/// True if packets can be dropped here; see [`super::fuse_works`] for what happens otherwise.
pub fn partitions_work(test: &str) -> bool {
    let tried = Command::new("nft").args(["list", "tables"]).output();
    super::left_out(
        test,
        match tried {
            Ok(output) if output.status.success() => None,
            Ok(_) => Some("nft, which this user may not run"),
            Err(_) => Some("nft, which is not installed"),
        },
    )
}
