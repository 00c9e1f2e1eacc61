//! Randomised tests print their seed and the command that replays it.

/// The seed of a run: `JINDOFS_SEED`, or a fresh one.
pub fn seed(test: &str) -> u64 {
    let given = std::env::var("JINDOFS_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("seed {seed}; replay: JINDOFS_SEED={seed} make test TEST={test}");
    seed
}

/// How often a fault is repeated: `JINDOFS_ROUNDS`, or `usual`.
pub fn rounds(usual: u32) -> u32 {
    std::env::var("JINDOFS_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}
