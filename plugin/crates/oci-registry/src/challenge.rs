//! Authentication challenges.
