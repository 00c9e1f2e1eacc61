//! Random histories of two clients, on one mount and on two, against a file system in memory: each answer is judged, and at
//! the end the tree is compared through every mount and in the under-storage. Meanwhile clients are killed, stores refuse, and
//! files get earlier contents again.
//!
//! A history is chosen by its seed alone. `JINDOFS_SEEDS` is the number of histories, from `JINDOFS_SEED` on.

mod action;
mod closes;
mod faults;
mod history;
mod judge;
mod locks;
mod maps;
mod model;
mod rollback;
mod skips;
mod trees;
mod world;

use std::cell::RefCell;

use proptest::test_runner::{Config, TestCaseError, TestRng, TestRunner};

use self::faults::DISK_SIZE;
use self::history::history;
use self::world::{WITNESS, World};
use super::Site;
use super::writes::{off, writable};
use crate::support::agent::Agent;
use crate::support::small_disk::SmallDisk;
use crate::support::{fuse_works, seed, seeds};

/// Histories of each test where nobody asks for more.
const SEEDS: u64 = 20;

/// Plays histories until one is not answered as it should be, which is made as short as it can be.
fn play_all(test: &str, first: u64, world: World) {
    let world = RefCell::new(world);
    for seed in (0..seeds(SEEDS)).map(|number| first.wrapping_add(number)) {
        let config = Config {
            cases: 1,
            failure_persistence: None,
            max_shrink_iters: 1000,
            max_shrink_time: 90_000,
            ..Config::default()
        };
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(config.rng_algorithm, &bytes);
        let play = |steps: Vec<_>| world.borrow_mut().play(&steps).map_err(TestCaseError::fail);
        if let Err(error) = TestRunner::new_with_rng(config, rng).run(&history(), play) {
            panic!("seed {seed}, to replay: JINDOFS_SEED={seed} JINDOFS_SEEDS=1 make test TEST={test}\n{error}");
        }
    }
    world.borrow().site.cluster.assert_no_panic();
}

async fn two_clients(test: &'static str, second_mount: bool) {
    let seed = seed(test);
    let mut disk = None;
    let site: Site = writable(1, |dev| {
        disk = Some(SmallDisk::at(&dev.mounts[0].with_file_name("local"), DISK_SIZE));
        if second_mount {
            let second = dev.mounts[0].with_file_name("second");
            std::fs::create_dir(&second).expect("mkdir");
            dev.mounts.push(second);
        }
        dev.settings.push(("fuse.attr-ttl".into(), "0s".into()));
    })
    .await;
    let mut roots = vec![site.mnt.clone()];
    roots.extend(second_mount.then(|| site.mnt.with_file_name("second")));
    let world = World {
        agents: vec![Agent::start(), Agent::start()],
        observers: roots.iter().map(|_| Agent::start()).collect(),
        mounts: vec![0, usize::from(second_mount)],
        roots,
        disk: disk.expect("made before the cluster"),
        site,
        on: tokio::runtime::Handle::current(),
        histories: 0,
    };
    off(move || {
        std::fs::write(world.roots[0].join(WITNESS), b"witness").expect("written");
        play_all(test, seed, world);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_of_one_mount_are_answered_as_by_a_file_system_in_memory() {
    let test = "two_clients_of_one_mount_are_answered_as_by_a_file_system_in_memory";
    if fuse_works(test) {
        two_clients(test, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_of_two_mounts_are_answered_as_by_a_file_system_in_memory() {
    let test = "two_clients_of_two_mounts_are_answered_as_by_a_file_system_in_memory";
    if fuse_works(test) {
        two_clients(test, true).await;
    }
}
