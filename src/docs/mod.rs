//! The manual, as rustdoc, so that its links are checked with the code.

/// What POSIX means here, paragraph by paragraph.
#[doc = include_str!("SEMANTICS.md")]
pub mod semantics {}

/// For those who run a cluster.
#[doc = include_str!("OPERATIONS.md")]
pub mod operations {}

/// Terms of this project that are not the field's own.
#[doc = include_str!("GLOSSARY.md")]
pub mod glossary {}
