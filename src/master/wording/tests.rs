//! Texts of refusals.

use bytes::Bytes;
use jindofs_proto::store::v1 as stored;

use super::*;
use crate::types::PathProblem;

/// A refusal of every kind with these arguments.
fn all(names: &[Bytes], numbers: &[u64]) -> Vec<Refusal> {
    let with =
        |number: u32| stored::Refusal { kind: 0, reason: number, names: names.to_vec(), numbers: numbers.to_vec() };
    Refusal::TABLE.iter().map(|(number, _)| Refusal::from_stored(&with(*number)).expect("a known reason")).collect()
}

#[test]
fn every_reason_has_a_text_that_names_its_arguments() {
    for refusal in all(&["name-1".into(), "name-2".into()], &[7001, 7002, 7003]) {
        let (text, stored) = (words(&refusal), refusal.to_stored());
        assert!(!text.is_empty(), "{refusal:?}");
        let names = stored.names.iter().map(|name| String::from_utf8_lossy(name).into_owned());
        for argument in names.chain(stored.numbers.iter().map(u64::to_string)) {
            assert!(text.contains(&argument), "{refusal:?} is told without {argument}: {text}");
        }
    }
}

#[test]
fn arguments_that_are_no_text_or_beyond_every_range_are_told_all_the_same() {
    for name in [vec![0xff, 0x00, b'\n', b'"', b'{', b'}'], Vec::new(), vec![b'x'; 4096]] {
        let name = Bytes::from(name);
        for refusal in all(&[name.clone(), name], &[u64::MAX; 3]) {
            let is_from_outside = matches!(refusal, Refusal::UnderStorageSaid { .. });
            assert!(is_from_outside || !words(&refusal).is_empty(), "{refusal:?}");
        }
    }
}

#[test]
fn a_path_is_refused_with_the_same_words_at_the_door_and_behind_it() {
    for problem in [
        PathProblem::PathTooLong(5000),
        PathProblem::NameTooLong(256),
        PathProblem::NotAbsolute(b"a\xff".to_vec()),
        PathProblem::BadName(b"..".to_vec()),
        PathProblem::NameOfRoot,
    ] {
        let behind = Error::from(Refusal::from(problem.clone()));
        assert_eq!(behind, Error::from(problem));
    }
}
