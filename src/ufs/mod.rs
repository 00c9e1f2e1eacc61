//! Under-storage.
