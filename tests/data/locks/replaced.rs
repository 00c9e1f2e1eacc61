//! Locks on handles whose file is not the one of its name any more.

use super::{PATIENCE, Pair, off, open, pair, wait_for};
use crate::support::fuse_works;

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_whose_file_was_replaced_is_refused_every_lock_and_one_that_is_opened_anew_gets_it() {
    if !fuse_works("a_handle_whose_file_was_replaced_is_refused_every_lock_and_one_that_is_opened_anew_gets_it") {
        return;
    }
    let mut pair = pair(1, |_| {}).await;
    off(move || {
        let (at, there, new) = (pair.at("f"), pair.there("f"), pair.there("new"));
        let Pair { one, two, .. } = &mut pair;
        two.ok("close f");
        std::fs::write(&new, b"new").expect("written by the second");
        std::fs::rename(&new, &there).expect("replaced by the second");
        for order in ["flock f ex try", "flock f sh try", "fcntl f ex try 0 0", "fcntl f sh try 10 5"] {
            assert_eq!(one.run(order), "ESTALE", "{order}: it would hold a lock that nobody else asks for");
        }
        let gets_new = || {
            one.ok(&open(&at, "g"));
            let got = one.run("flock g ex try") == "ok" && one.run("read g") == "new";
            if !got {
                // What the kernel remembers of the name may be the old file still.
                one.ok("close g");
            }
            got.then_some(())
        };
        wait_for("the file that is there now is locked", PATIENCE, gets_new);
        two.ok(&open(&there, "g"));
        two.refused("flock g ex try");
        pair.site.cluster.assert_no_panic();
    })
    .await;
}
