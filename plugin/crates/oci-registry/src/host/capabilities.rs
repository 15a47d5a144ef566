//! What an endpoint may be asked for.

/// A set of abilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities(u8);

impl Capabilities {
    /// Content by digest.
    pub(crate) const PULL: Self = Self(1);
    /// What a tag names: this endpoint is believed.
    pub(crate) const RESOLVE: Self = Self(2);
    /// Writing.
    pub(crate) const PUSH: Self = Self(4);
    /// What refers to an image (containerd 2.2 and later have it as an ability of its own).
    pub(crate) const REFERRERS: Self = Self(8);
    pub(crate) const NONE: Self = Self(0);
    /// What a table without `capabilities` has, as in containerd.
    pub(crate) const ALL: Self = Self(15);

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "pull" => Some(Self::PULL),
            "resolve" => Some(Self::RESOLVE),
            "push" => Some(Self::PUSH),
            "referrers" => Some(Self::REFERRERS),
            _ => None,
        }
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether any ability of `other` is here.
    pub(crate) fn has_any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The words of `hosts.toml`, for messages.
    pub(crate) fn describe(self) -> String {
        let all = [
            ("pull", Self::PULL),
            ("resolve", Self::RESOLVE),
            ("push", Self::PUSH),
            ("referrers", Self::REFERRERS),
        ];
        let names: Vec<_> = all.iter().filter(|(_, one)| self.has_any(*one)).map(|(name, _)| *name).collect();
        names.join(" or ")
    }
}
