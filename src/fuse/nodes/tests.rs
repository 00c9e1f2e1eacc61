use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;

use super::*;
use crate::client::mounts::Mounts;
use crate::client::reader::Reader;
use crate::config::ClientConfig;
use crate::rpc::channel::MasterChannel;
use crate::rpc::source::source_of;

struct Bench {
    nodes: Nodes,
    reader: Arc<Reader>,
    number: u64,
}

fn attr(token: &str) -> Attr {
    let version = token.len() as u64;
    Attr { inode: 5, version_token: token.as_bytes().to_vec().into(), version, ..Attr::default() }
}

fn version(token: &str) -> u64 {
    version_of(token.as_bytes())
}

impl Bench {
    fn new() -> Bench {
        let nobody = ClientConfig { masters: Vec::new(), rpc_timeout: Duration::from_secs(1), hard: false };
        let channel = MasterChannel::new(&nobody);
        let reader = Reader::new(channel.clone(), Arc::new(Mounts::new(channel)), None);
        Bench { nodes: Nodes::default(), reader, number: 0 }
    }

    fn file(&self, token: &str) -> Arc<OpenFile> {
        self.reader.open(source_of(&attr(token), Vec::new()))
    }

    /// Opens a handle for a version: its number, and what came of it.
    fn open(&mut self, node: u64, token: &str, writes: bool) -> (u64, Joined) {
        self.number += 1;
        let (number, file) = (self.number, self.file(token));
        (number, self.nodes.join(node, Opening { number, file, attr: attr(token), writes, direct: false }))
    }
}

const KEEP: Joined = Joined::Here(PageCache::Keep);
const DROP: Joined = Joined::Here(PageCache::Drop);

#[tokio::test]
async fn a_version_that_comes_while_another_is_open_gets_a_node_of_its_own_and_the_same_inode() {
    let mut bench = Bench::new();
    assert_eq!(bench.nodes.enter(&attr("a")), 5);
    let (first, opened) = bench.open(5, "a", false);
    assert_eq!(opened, DROP, "nothing is known of the pages");
    assert_eq!(bench.open(5, "a", false).1, KEEP);
    assert_eq!(bench.open(5, "bb", false).1, Joined::Elsewhere);
    let second = bench.nodes.enter(&attr("bb"));
    assert!(second != 5 && is_secondary(second) && inode_of(second) == 5);
    assert_eq!(bench.nodes.enter(&attr("a")), 5, "the old version is found where it is open");
    let (number, opened) = bench.open(second, "bb", false);
    assert_eq!(opened, DROP);
    assert_eq!(bench.nodes.enter(&attr("bb")), second);
    assert_eq!(bench.nodes.file(5).expect("open").source.version, version("a"));
    assert!(!bench.nodes.leave(5, first) && bench.nodes.leave(5, 2), "two handles");
    assert_eq!(bench.nodes.enter(&attr("bb")), second, "where it is open");
    assert!(bench.nodes.leave(second, number));
    assert_eq!(bench.nodes.enter(&attr("bb")), 5, "the first node is free again");
    assert_eq!(bench.open(5, "bb", false).1, DROP, "its pages are still of the old version");
}

#[tokio::test]
async fn a_file_that_is_written_has_one_node_and_moves_as_a_whole() {
    let mut bench = Bench::new();
    bench.open(5, "a", false);
    let other = bench.nodes.enter(&attr("bb"));
    assert_eq!(bench.open(other, "bb", true).1, DROP);
    assert_eq!(bench.open(5, "a", false).1, Joined::Elsewhere, "another node is written");
    assert_eq!(bench.open(other, "bb", true).1, KEEP);
    assert_eq!(bench.nodes.written(5), Some(other));
    assert_eq!(bench.nodes.enter(&attr("ccc")), other, "whatever the newest version is");
    assert_eq!(bench.open(other, "ccc", false).1, Joined::Elsewhere);
    let moved = bench.nodes.move_to(other, &bench.file("ccc"), &attr("ccc"));
    assert_eq!(moved.len(), 2, "all its handles");
    assert_eq!(bench.open(other, "ccc", false).1, DROP);
    let stale = bench.nodes.stale_pages(other).expect("of the version before");
    bench.nodes.dropped(other, stale);
    let stored = bench.nodes.note_stored(other, &bench.file("dddd"), &attr("dddd"));
    assert_eq!(stored.len(), 3);
    assert_eq!(bench.open(other, "dddd", false).1, KEEP, "pages hold what was written");
    bench.nodes.lose_pages(other);
    assert_eq!(bench.open(other, "dddd", false).1, DROP);
}

#[tokio::test]
async fn pages_of_a_node_that_has_moved_are_stale_until_those_of_its_last_move_are_dropped() {
    let mut bench = Bench::new();
    let (number, _) = bench.open(5, "a", true);
    assert!(bench.nodes.stale_pages(5).is_none() && bench.nodes.dropping(5).is_none());
    bench.nodes.move_to(5, &bench.file("bb"), &attr("bb"));
    let first = bench.nodes.stale_pages(5).expect("of the version before");
    let mut dropping = bench.nodes.dropping(5).expect("not yet");
    bench.nodes.move_to(5, &bench.file("ccc"), &attr("ccc"));
    bench.nodes.dropped(5, first);
    let second = bench.nodes.stale_pages(5).expect("read again before the second move");
    assert!(second != first && bench.nodes.has_replaced_pages(5));
    assert!(dropping.changed().now_or_never().is_none());
    let again = [bench.open(5, "ccc", false).1, bench.open(5, "ccc", false).1];
    assert_eq!(again, [DROP, DROP], "nobody is told to keep them");
    assert_eq!(bench.open(5, "ccc", true).1, Joined::Elsewhere, "who writes waits until they are dropped");
    bench.nodes.dropped(5, second);
    assert!(dropping.changed().now_or_never().is_some_and(|sent| sent.is_err()));
    assert_eq!(bench.open(5, "ccc", false).1, KEEP);
    bench.nodes.spoil(5, 0, false);
    assert!(bench.nodes.stale_pages(5).is_some() && !bench.nodes.has_replaced_pages(5), "out of place");
    let mut dropping = bench.nodes.dropping(5).expect("not yet");
    for number in number..=bench.number {
        bench.nodes.leave(5, number);
    }
    assert!(dropping.changed().now_or_never().is_some(), "the next open drops them");
    assert_eq!(bench.open(5, "ccc", false).1, DROP);
}

#[tokio::test]
async fn a_node_that_has_moved_shows_the_length_before_until_the_pages_from_that_end_on_are_dropped() {
    let mut bench = Bench::new();
    bench.open(5, "a", false);
    let at = |token, size| Attr { size, prefix_since: 1, ..attr(token) };
    bench.nodes.note_stored(5, &bench.file("a"), &at("a", 5000));
    assert_eq!(bench.nodes.shown(5).expect("open").size, 5000);
    bench.nodes.move_to(5, &bench.reader.open(source_of(&at("bb", 9000), Vec::new())), &at("bb", 9000));
    let stale = bench.nodes.stale_pages(5).expect("the last page ends with zeros");
    assert_eq!((stale.from, stale.are_replaced), (5000, false));
    assert_eq!(bench.nodes.shown(5).expect("open").size, 5000);
    assert_eq!(bench.nodes.longer(5, stale).expect("the kernel is to know").source.length, 9000);
    bench.nodes.dropped(5, stale);
    assert_eq!(bench.nodes.shown(5).expect("open").size, 9000);
    bench.nodes.move_to(5, &bench.file("ccc"), &at("ccc", 9999));
    bench.nodes.move_to(5, &bench.file("dddd"), &Attr { prefix_since: 4, ..at("dddd", 7) });
    let stale = bench.nodes.stale_pages(5).expect("all of them");
    assert_eq!((stale.from, stale.are_replaced), (0, true));
    assert!(bench.nodes.longer(5, stale).is_none(), "it is shorter");
    assert_eq!(bench.nodes.shown(5).expect("open").size, 9000, "the first that the kernel has pages of");
    bench.nodes.note_stored(5, &bench.file("eeeee"), &at("eeeee", 8));
    assert_eq!(bench.nodes.shown(5).expect("open").size, 8, "it was written here, and seen");
}

#[tokio::test]
async fn a_node_lives_until_its_last_handle_and_lookup_are_gone() {
    let mut bench = Bench::new();
    let (held, _) = bench.open(5, "a", false);
    let node = bench.nodes.enter(&attr("bb"));
    let (number, _) = bench.open(node, "bb", false);
    bench.nodes.forget(node, 1);
    assert!(bench.nodes.is_open(node), "the kernel has it open");
    bench.nodes.leave(node, number);
    assert_eq!(bench.nodes.enter(&attr("ccc")), node, "its number is free");
    bench.nodes.count_lookup(node);
    bench.nodes.forget(node, 1);
    assert_eq!(bench.nodes.shard(5)[&5].len(), 2, "it was looked up twice");
    bench.nodes.forget(node, 1);
    bench.nodes.leave(5, held);
    bench.nodes.forget_inode(5);
    assert!(!bench.nodes.is_inode_open(5) && bench.nodes.shard(5).is_empty());
}

#[tokio::test]
async fn what_the_process_before_had_open_is_a_node_before_anything_is_known_of_it() {
    let mut bench = Bench::new();
    let node = node_at(5, 3);
    bench.nodes.adopt(node, 77, version("a"), true);
    assert!(bench.nodes.is_open(node) && bench.nodes.file(node).is_none());
    assert_eq!(bench.nodes.written(5), Some(node));
    assert!(bench.nodes.join_as_is(node, 78, false).is_none(), "what it reads is not known");
    bench.nodes.provide(node, &bench.file("bb"), &attr("bb"));
    assert!(bench.nodes.file(node).is_none(), "another version");
    bench.nodes.provide(node, &bench.file("a"), &attr("a"));
    assert!(bench.nodes.join_as_is(node, 78, false).is_some_and(|(_, pages)| pages == PageCache::Drop));
    assert_eq!(bench.open(node, "bb", false).1, Joined::Elsewhere);
    bench.nodes.forget_inode(5);
    assert!(bench.nodes.is_open(node), "lookups of the process before are not counted here");
}

#[tokio::test]
async fn who_follows_what_is_appended_shares_its_node_with_who_opens_the_newest() {
    let mut bench = Bench::new();
    let appended = Attr { size: 9, prefix_since: 1, ..attr("bb") };
    bench.open(5, "a", false);
    assert_eq!(bench.nodes.enter(&appended), 5);
    assert!(is_secondary(bench.nodes.enter(&attr("bb"))), "a version that replaces it gets a node of its own");
}

#[test]
fn a_version_supersedes_only_older_ones_by_the_count_of_the_masters() {
    let at = |version, prefix_since, token: &str| Attr { version, prefix_since, ..attr(token) };
    assert!(supersedes(&at(3, 3, "b"), &at(2, 1, "a")) && !supersedes(&at(2, 1, "a"), &at(3, 3, "b")));
    assert!(!supersedes(&at(3, 1, "a"), &at(2, 1, "a")), "only attributes have changed");
    assert!(supersedes(&at(4, 4, "a"), &at(3, 3, "b")), "rolled back");
    let (before, moved) = (at(3, 1, "a"), at(3, 4, "b"));
    assert!(
        supersedes(&moved, &before) && !supersedes(&before, &moved),
        "a copy of an object store at the same version"
    );
    let open = |attr| OpenNode { version: version_of(b"b"), attr, is_written: true };
    assert!(
        open(Some(at(2, 1, "b"))).is_behind(&at(3, 3, "c")) && !open(Some(at(2, 1, "b"))).is_behind(&at(1, 1, "a"))
    );
    assert!(
        open(None).is_behind(&at(1, 1, "a")) && !open(None).is_behind(&at(1, 1, "b")),
        "nothing but the hash is known"
    );
}

#[test]
fn a_version_extends_those_since_which_content_was_only_appended() {
    let at = |version, size, prefix_since| Attr { version, size, prefix_since, ..attr("t") };
    assert!(extends(&at(9, 20, 4), &at(4, 10, 4)) && extends(&at(9, 20, 4), &at(6, 10, 1)));
    assert!(!extends(&at(9, 20, 4), &at(3, 10, 1)), "it was replaced since");
    assert!(!extends(&at(9, 20, 0), &at(4, 10, 0)), "nothing is known");
    assert!(!extends(&at(9, 20, 4), &Attr { version_token: Vec::new().into(), ..at(4, 0, 4) }), "never stored");
    assert!(!extends(&at(4, 10, 4), &at(9, 20, 4)), "an older one");
}
