//! What a tree cannot have in it.

/// Why an entry cannot be part of a tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A name is longer than 255 bytes.
    #[error("a name of {length} bytes is too long")]
    NameTooLong {
        /// Its length.
        length: usize,
    },
    /// A path is longer than 4096 bytes.
    #[error("a path of {length} bytes is too long")]
    PathTooLong {
        /// Its length.
        length: usize,
    },
    /// A name or a link target has a zero byte, or a whiteout hides no name.
    #[error("{path:?} is not a file name")]
    InvalidName {
        /// The path as it came.
        path: String,
    },
    /// Something that is no directory has the place of a parent.
    #[error("a parent of {path:?} is not a directory")]
    ParentNotDirectory {
        /// The path as it came.
        path: String,
    },
    /// The root is not a directory.
    #[error("{path:?}, the root, has to be a directory")]
    RootNotDirectory {
        /// The path as it came.
        path: String,
    },
    /// A hard link's target is not there.
    #[error("the target {target:?} of hard link {path:?} does not exist before it")]
    MissingTarget {
        /// The path as it came.
        path: String,
        /// The target as it came.
        target: String,
    },
    /// A hard link's target is a directory.
    #[error("the target {target:?} of hard link {path:?} is a directory")]
    DirectoryTarget {
        /// The path as it came.
        path: String,
        /// The target as it came.
        target: String,
    },
    /// A link target is empty or longer than 4095 bytes.
    #[error("the target of symbolic link {path:?} has {length} bytes")]
    TargetLength {
        /// The path as it came.
        path: String,
        /// Length of the target.
        length: usize,
    },
    /// A device number has more than 12 and 20 bits.
    #[error("{path:?} has device number {major}:{minor}")]
    DeviceNumber {
        /// The path as it came.
        path: String,
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// Nanoseconds of a time are 10⁹ or more.
    #[error("{path:?} has a time with {nanoseconds} nanoseconds")]
    Time {
        /// The path as it came.
        path: String,
        /// The nanoseconds.
        nanoseconds: u32,
    },
    /// An attribute's name is none, or name or value is too long, or all attributes of a file together are.
    #[error("extended attribute {name:?} of {path:?} cannot be stored")]
    InvalidXattr {
        /// The path as it came.
        path: String,
        /// The attribute's name.
        name: String,
    },
    /// There are more files or names than any layer has.
    #[error("more than {limit} files")]
    TooManyNodes {
        /// The limit.
        limit: usize,
    },
}
