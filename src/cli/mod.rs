//! Commands of `jindoctl`.
