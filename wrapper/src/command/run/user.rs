//! `--user`: the process user, or what an older walk-through put there, the registry's credentials.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use oci_registry::Reference;
use soci_proto::daemon::AddCredentialsRequest;

use crate::context::Context;
use crate::error::one_line;
use crate::spec::user::{Accounts, ProcessUser, UserError, UserValue};
use crate::terminal;

/// Snapshotters of containerd itself: they fetch nothing, so nobody needs credentials.
const BUILT_IN: [&str; 6] = ["overlayfs", "native", "btrfs", "zfs", "devmapper", "blockfile"];

/// Time for the daemon to take credentials.
const HAND_OVER: Duration = Duration::from_secs(10);

/// The value of `--user`, which may hold a secret: it has no `Display`, and `Debug` shows what stands before the colon.
#[derive(Clone)]
pub(super) struct UserFlag(String);

impl UserFlag {
    pub(super) fn value(&self) -> UserValue<'_> {
        UserValue(&self.0)
    }
}

impl FromStr for UserFlag {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for UserFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value().fmt(f)
    }
}

/// Who the process runs as, and what `--user` was if not that.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// As this user.
    Process(ProcessUser),
    /// As the image says; `--user` names nobody in it and has the form of credentials.
    Credentials(ProcessUser),
}

/// Decides by looking into the image's account files.
///
/// # Errors
/// Where ctr would fail, and the value cannot be credentials either; or the image's own user is not in it.
pub(super) fn decide(
    flag: Option<UserValue<'_>>,
    image: Option<&str>,
    accounts: &Accounts,
) -> Result<Decision, UserError> {
    let of_the_image = || match image.filter(|user| !user.is_empty()) {
        Some(user) => UserValue(user).resolve(accounts),
        None => Ok(ProcessUser::root(accounts)),
    };
    let Some(flag) = flag else { return of_the_image().map(Decision::Process) };
    match flag.resolve(accounts) {
        Ok(user) => Ok(Decision::Process(user)),
        Err(_) if flag.as_credentials().is_some() => of_the_image().map(Decision::Credentials),
        Err(error) => Err(error),
    }
}

/// Gives credentials to the daemon behind `snapshotter`, for the image's repository; what goes wrong is said on stderr, the container is
/// tried all the same.
pub(super) async fn hand_over(context: &Context, snapshotter: &str, image: &str, flag: UserValue<'_>) {
    let Some((username, secret)) = flag.as_credentials() else { return };
    if BUILT_IN.contains(&snapshotter) {
        return;
    }
    let Ok(reference) = Reference::parse(image) else { return };
    let request = AddCredentialsRequest {
        host: reference.host().to_owned(),
        repository: reference.repository().name().to_owned(),
        username: username.to_owned(),
        secret: secret.to_owned(),
        ..AddCredentialsRequest::default()
    };
    let given = async {
        let daemon = context.daemon(snapshotter).await.map_err(|error| one_line(&error))?;
        let Some(mut daemon) = daemon else { return Ok(()) };
        daemon.add_credentials(request).await.map(drop).map_err(|status| status.message().to_owned())
    };
    let failure = match tokio::time::timeout(HAND_OVER, given).await {
        Ok(Ok(_)) => return,
        Ok(Err(reason)) => reason,
        Err(_) => "no answer".to_owned(),
    };
    terminal::notice(&format!("the snapshotter {snapshotter} did not take the credentials: {failure}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(flag: Option<&str>, image: Option<&str>) -> Result<Decision, UserError> {
        let accounts = Accounts::parse(b"root:x:0:0::/:/bin/sh\napp:x:5:6::/:/bin/sh\n", b"app:x:6:\n");
        decide(flag.map(UserValue), image, &accounts)
    }

    fn uid(decision: &Decision) -> u32 {
        let (Decision::Process(user) | Decision::Credentials(user)) = decision;
        user.uid
    }

    #[test]
    fn who_exists_is_the_process_user() {
        let decision = decided(Some("app"), None).unwrap();
        assert!(matches!(decision, Decision::Process(_)));
        assert_eq!(uid(&decision), 5);
        assert!(matches!(decided(Some("app:app"), None), Ok(Decision::Process(_))));
        assert!(matches!(decided(Some("1000:1000"), None), Ok(Decision::Process(_))));
    }

    #[test]
    fn who_cannot_exist_is_credentials_if_it_looks_like_them() {
        for flag in ["testuser:s3cr3t", "app:s3cr3t", "testuser:a:b"] {
            let decision = decided(Some(flag), Some("app")).unwrap();
            assert!(matches!(decision, Decision::Credentials(_)), "{flag}");
            assert_eq!(uid(&decision), 5);
        }
        assert_eq!(decided(Some("testuser"), None), Err(UserError::NoSuchUser { name: "testuser".into() }));
        assert_eq!(decided(Some("testuser:"), None), Err(UserError::NoSuchUser { name: "testuser".into() }));
    }

    #[test]
    fn without_the_flag_the_image_decides() {
        assert_eq!(uid(&decided(None, Some("app")).unwrap()), 5);
        assert_eq!(uid(&decided(None, Some("")).unwrap()), 0);
        assert!(decided(None, Some("gone")).is_err());
    }
}
