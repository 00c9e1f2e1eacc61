use super::*;

const X: Cluster = [1; 16];
const Y: Cluster = [2; 16];
const FIRST: [u8; 16] = [11; 16];
const SECOND: [u8; 16] = [12; 16];
const JUST: PeerState = PeerState::Silent(Duration::from_secs(29));
const LONG: PeerState = PeerState::Silent(PEER_SILENCE_MAX);

fn peers(states: &[PeerState]) -> Vec<(String, PeerState)> {
    let names = ["a:1", "b:1", "c:1"];
    names.iter().zip(states).map(|(name, state)| ((*name).to_owned(), state.clone())).collect()
}

fn offers(clusters: &[Cluster]) -> Vec<Offer> {
    let one = |(number, cluster): (usize, &Cluster)| Offer { address: format!("z{number}:1"), cluster: *cluster };
    clusters.iter().enumerate().map(one).collect()
}

fn promise(cluster: Cluster, attempt: [u8; 16]) -> Promise {
    Promise::new("a:1", cluster, attempt)
}

fn asks(cluster: Cluster, attempt: [u8; 16]) -> PeerState {
    PeerState::Founding { cluster, attempt: Some(attempt) }
}

fn founds(cluster: Cluster) -> PeerState {
    PeerState::Founding { cluster, attempt: None }
}

/// Where this disk is not the first configured master, and that one is `a:1`.
fn decide(states: &[PeerState], promise: Option<&Promise>, offered: Option<&[Cluster]>) -> Choice {
    let (peers, offers) = (peers(states), offered.map(offers));
    choose(&Look { founder: Some("a:1"), peers: &peers, promise, offers: offers.as_deref() })
}

#[test]
fn announcers_count_once_every_configured_master_has_said_that_it_is_no_member_or_was_silent_for_long() {
    use PeerState::{Empty, Joining, Member, Other};
    let waits = |states: &[PeerState]| matches!(decide(states, None, None), Choice::Wait(_));
    let asked = |states: &[PeerState]| decide(states, None, None) == Choice::AskAnnouncers;
    assert!(asked(&[Empty, Empty]) && asked(&[Empty, LONG]) && asked(&[LONG, LONG]) && asked(&[Empty, Joining(X)]));
    assert!(waits(&[Empty, JUST]) && waits(&[LONG, JUST]) && waits(&[Empty, Other]));
    // Their own word would not wait for the silent ones.
    assert_eq!(decide(&[JUST, Member(X)], None, None), Choice::Join(X));
    assert_eq!(decide(&[Empty, Member(X)], None, Some(&[Y])), Choice::Join(X));
    assert!(waits(&[Empty, founds(X)]) && waits(&[founds(X), Empty]));
}

#[test]
fn one_cluster_is_joined_and_of_two_none_with_the_way_out() {
    use PeerState::{Empty, Joining, Member};
    let way_out = |choice: Choice| match choice {
        Choice::Wait(why) => why.starts_with("empty") && why.contains("Way out") && why.len() < 1_000,
        _ => false,
    };
    assert_eq!(decide(&[Empty, Empty], None, Some(&[X])), Choice::Join(X));
    assert_eq!(decide(&[Empty, Empty], None, Some(&[X, X, X])), Choice::Join(X));
    assert_eq!(decide(&[Empty, Empty], None, Some(&[])), Choice::Wait(WAITING.to_owned()));
    assert!(way_out(decide(&[Empty, Empty], None, Some(&[X, Y]))));
    assert!(way_out(decide(&[Member(X), Member(Y)], None, None)));
    // Two lost disks side by side choose the same cluster.
    assert_eq!(decide(&[Empty, Joining(X)], None, Some(&[X])), Choice::Join(X));
    assert!(way_out(decide(&[Empty, Joining(Y)], None, Some(&[X]))));
    let waits = Choice::Wait(WAITING.to_owned());
    assert_eq!(decide(&[Empty, Joining(Y)], None, Some(&[])), waits, "one that joins is no member yet");
}

#[test]
fn a_founding_excludes_every_other_cluster_until_its_founder_takes_it_back() {
    use PeerState::{Empty, Joining, Member, Other};
    let given = promise(X, FIRST);
    assert_eq!(decide(&[asks(X, FIRST), Empty], None, Some(&[Y])), Choice::Promise(given.clone()));
    assert_eq!(decide(&[Empty, asks(X, FIRST)], None, None), decide(&[Empty, founds(X)], None, None), "not the first");
    // What the founder says next: whether the promise stands, and what is done with an offer of another cluster.
    let cases = [
        (LONG, false),
        (Other, false),
        (founds(X), false),
        (asks(X, FIRST), false),
        (Empty, true),
        (Joining(X), true),
        (Joining(Y), true),
        (Member(Y), true),
        (founds(Y), true),
    ];
    let offered = offers(&[Y]);
    for (state, void) in cases {
        let states = peers(&[state.clone(), Empty]);
        let look = Look { founder: Some("a:1"), peers: &states, promise: Some(&given), offers: Some(&offered) };
        assert_eq!(is_void(&given, &look), void, "{state:?}");
        let choice = choose(&look);
        assert_eq!(
            choice == Choice::Join(Y),
            void && matches!(state, Empty | Member(Y) | Joining(Y)),
            "{state:?}: {choice:?}"
        );
        // Another configured master that is a member elsewhere changes nothing of a promise that stands.
        let choice = decide(&[state.clone(), Member(Y)], Some(&given), None);
        assert_eq!(matches!(choice, Choice::Wait(_)), !void, "{state:?}: {choice:?}");
    }
    assert_eq!(decide(&[Member(X), Empty], Some(&given), Some(&[Y])), Choice::Join(X));
    // A promise for each attempt, and no gap between two.
    let renewed = decide(&[asks(X, SECOND), Empty], Some(&given), None);
    assert_eq!(renewed, Choice::Promise(promise(X, SECOND)));
    let renewed = decide(&[asks(Y, SECOND), Empty], Some(&given), None);
    assert_eq!(renewed, Choice::Promise(promise(Y, SECOND)));
}

#[test]
fn a_promise_to_a_master_that_is_not_configured_to_found_any_more_is_void() {
    let (given, states) = (promise(X, FIRST), peers(&[LONG, PeerState::Empty]));
    for founder in [None, Some("b:1")] {
        let look = Look { founder, peers: &states, promise: Some(&given), offers: None };
        assert!(is_void(&given, &look), "{founder:?}");
        assert_eq!(choose(&look), Choice::AskAnnouncers, "{founder:?}");
    }
}

#[test]
fn a_disk_that_was_not_admitted_leaves_after_a_time_or_when_a_configured_master_is_elsewhere() {
    use PeerState::{Empty, Joining, Member};
    let leaves = |states: &[PeerState], seconds: u64| {
        let peers = peers(states);
        let look = Look { founder: Some("a:1"), peers: &peers, promise: None, offers: None };
        reason_to_leave(X, &look, Duration::from_secs(seconds)).is_some()
    };
    assert!(!leaves(&[LONG, Empty], 59) && leaves(&[LONG, Empty], 60));
    assert!(leaves(&[Member(X), Member(X)], 60), "also where it is the right one: it is found again");
    assert!(!leaves(&[Member(X), Joining(Y)], 0) && leaves(&[Empty, Member(Y)], 0));
    assert!(leaves(&[founds(Y), Empty], 0) && leaves(&[asks(Y, FIRST), Empty], 0) && !leaves(&[founds(X), Empty], 0));
    assert!(!leaves(&[Empty, founds(Y)], 0), "only the first one founds");
}

#[test]
fn only_what_a_master_says_in_full_counts() {
    let own = ["a:1".to_owned(), "b:1".to_owned()];
    let answer = |state: &str, cluster: &[u8], attempt: &[u8], peers: &[String]| {
        let answer = wire::ProbeResponse {
            state: state.to_owned(),
            cluster_uuid: cluster.to_vec().into(),
            founding_attempt: attempt.to_vec().into(),
            peers: peers.to_vec(),
            ..wire::ProbeResponse::default()
        };
        PeerState::of(&answer, &own)
    };
    assert_eq!(answer("empty", &[], &[], &own), PeerState::Empty);
    assert_eq!(answer("member", &X, &[], &[]), PeerState::Member(X));
    assert_eq!(answer("joining", &X, &[], &[]), PeerState::Joining(X));
    assert_eq!(answer("founding", &X, &FIRST, &own), asks(X, FIRST));
    assert_eq!(answer("founding", &X, &FIRST, &own[..1]), founds(X), "a cluster of other masters");
    assert_eq!(answer("founding", &X, &[], &own), founds(X));
    for (state, cluster) in
        [("member", &X[..3]), ("founding", &X[..0]), ("retired", &X[..]), ("later", &X[..]), ("", &X[..0])]
    {
        assert_eq!(answer(state, cluster, &[], &own), PeerState::Other, "{state}");
    }
}
