//! Options for the runtime shim, as the runc shim and the others take them.

use prost_types::Any;

/// `containerd.runc.v1.Options` (containerd, `api/types/runc/options/oci.proto`), so far as `ctr run` sets it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct RuncOptions {
    /// Do not pivot_root into the root file system.
    #[prost(bool, tag = "1")]
    pub(crate) no_pivot_root: bool,
    /// Name or path of the runc binary.
    #[prost(string, tag = "6")]
    pub(crate) binary_name: String,
    /// runc's state directory.
    #[prost(string, tag = "7")]
    pub(crate) root: String,
    /// Let systemd make the control group.
    #[prost(bool, tag = "9")]
    pub(crate) systemd_cgroup: bool,
}

/// `runtimeoptions.v1.Options` (containerd, `api/types/runtimeoptions/v1/api.proto`): for runtimes with a config file of their own.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ConfigFileOptions {
    /// What the file is, in the runtime's own terms.
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    /// The file.
    #[prost(string, tag = "2")]
    pub(crate) config_path: String,
}

/// As containerd wants it, where it differs from the default.
pub(crate) fn runc(options: &RuncOptions) -> Option<Any> {
    (*options != RuncOptions::default()).then(|| any("containerd.runc.v1.Options", options))
}

/// As containerd wants it.
pub(crate) fn config_file(path: &str) -> Any {
    let options = ConfigFileOptions { type_url: String::new(), config_path: path.to_owned() };
    any("runtimeoptions.v1.Options", &options)
}

fn any(type_url: &str, message: &impl prost::Message) -> Any {
    Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_nothing() {
        assert_eq!(runc(&RuncOptions::default()), None);
        let options = RuncOptions { no_pivot_root: true, ..RuncOptions::default() };
        // Field 1, a varint, true.
        assert_eq!(runc(&options).unwrap().value, [0x08, 0x01]);
        assert_eq!(config_file("/x").value, [0x12, 0x02, b'/', b'x']);
    }
}
