//! Why bytes are fetched.

/// The kinds of demand, in strict priority: each gives way to those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(crate) enum Demand {
    /// Somebody is blocked until the bytes are here.
    Read,
    /// They belong to a program that starts: it, or (one day) a recorded trace says so.
    Trace,
    /// They are expected to be read next.
    ReadAhead,
    /// Nobody asked for them yet.
    #[default]
    Fill,
}

impl Demand {
    /// Number of kinds.
    pub(crate) const COUNT: usize = 4;

    /// Place in an array with one element for each kind.
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}
