//! The process user: a `--user` value or an image's `User`, looked up in the image's own `/etc/passwd` and `/etc/group`.
//!
//! The rules are those of containerd's `oci.WithUser` and `oci.WithAdditionalGIDs`, so that a value means the same here and in `ctr run`.

use thiserror::Error;

/// The account files of an image; a missing file is empty, as in an image without users.
#[derive(Debug, Default, Clone)]
pub(crate) struct Accounts {
    users: Vec<Account>,
    groups: Vec<Group>,
}

#[derive(Debug, Clone)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

#[derive(Debug, Clone)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

impl Accounts {
    /// Reads the bytes of `/etc/passwd` and `/etc/group`. Lines that make no sense are skipped: the files are the image's.
    pub(crate) fn parse(passwd: &[u8], group: &[u8]) -> Self {
        let passwd = String::from_utf8_lossy(passwd);
        let group = String::from_utf8_lossy(group);
        Self {
            users: passwd.lines().filter_map(account).collect(),
            groups: group.lines().filter_map(group_line).collect(),
        }
    }

    fn user_named(&self, name: &str) -> Option<&Account> {
        self.users.iter().find(|account| account.name == name)
    }

    fn user_with_id(&self, uid: u32) -> Option<&Account> {
        self.users.iter().find(|account| account.uid == uid)
    }

    fn group_named(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// Groups that list `name` as a member, in the order of the file; the group of the same name is the user's own.
    fn memberships(&self, name: &str) -> Vec<u32> {
        self.groups
            .iter()
            .filter(|group| group.name != name && group.members.iter().any(|member| member == name))
            .map(|group| group.gid)
            .collect()
    }
}

fn account(line: &str) -> Option<Account> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(Account { name: name.to_owned(), uid, gid })
}

fn group_line(line: &str) -> Option<Group> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = fields.nth(1)?.parse().ok()?;
    let members = fields.next().unwrap_or_default();
    Some(Group {
        name: name.to_owned(),
        gid,
        members: members.split(',').filter(|member| !member.is_empty()).map(str::to_owned).collect(),
    })
}

/// The user that a container's first process runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ProcessUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, the primary one first.
    pub(crate) additional_gids: Vec<u32>,
}

/// No process can run as that value in that image. The text never holds what stands after a colon: it may be a secret.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum UserError {
    #[error("no users found: the image has no user {name:?}")]
    NoSuchUser { name: String },
    #[error("no groups found: the image does not have the group that was asked for with user {user:?}")]
    NoSuchGroup { user: String },
    #[error("invalid USER value: more than one colon")]
    Malformed,
}

/// A `--user` value, or an image's `User`, before it is looked up: `name`, `uid`, `name:group`, `uid:gid` and mixtures.
#[derive(Clone, Copy)]
pub(crate) struct UserValue<'a>(pub(crate) &'a str);

impl std::fmt::Debug for UserValue<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What follows the colon may be a registry secret.
        f.debug_tuple("UserValue").field(&self.0.split(':').next().unwrap_or_default()).finish()
    }
}

impl<'a> UserValue<'a> {
    /// Name and secret, if the value has the form of registry credentials.
    pub(crate) fn as_credentials(self) -> Option<(&'a str, &'a str)> {
        self.0.split_once(':').filter(|(name, secret)| !name.is_empty() && !secret.is_empty())
    }

    /// The user and groups in an image with these accounts.
    ///
    /// # Errors
    /// A name that the image does not have, or a value with more than one colon.
    pub(crate) fn resolve(self, accounts: &Accounts) -> Result<ProcessUser, UserError> {
        let mut parts = self.0.split(':');
        let user = parts.next().unwrap_or_default();
        let group = parts.next();
        if parts.next().is_some() {
            return Err(UserError::Malformed);
        }
        let numeric = user.parse::<u32>().ok();
        let account = match numeric {
            Some(uid) => accounts.user_with_id(uid),
            None => Some(
                accounts.user_named(user).ok_or_else(|| UserError::NoSuchUser { name: user.to_owned() })?,
            ),
        };
        let uid = account.map(|account| account.uid).or(numeric).unwrap_or_default();
        let gid = match group {
            None => account.map_or(0, |account| account.gid),
            Some(group) => match group.parse::<u32>() {
                Ok(gid) => gid,
                Err(_) => {
                    accounts
                        .group_named(group)
                        .ok_or_else(|| UserError::NoSuchGroup { user: user.to_owned() })?
                        .gid
                }
            },
        };
        // Like the tools before us: who names a group gets that group alone.
        let memberships = match (account, group) {
            (Some(account), None) => accounts.memberships(&account.name),
            _ => Vec::new(),
        };
        Ok(ProcessUser::with_groups(uid, gid, memberships))
    }
}

impl ProcessUser {
    /// The user of an image that names none: root, with the groups that the image gives root.
    pub(crate) fn root(accounts: &Accounts) -> Self {
        Self::with_groups(0, 0, accounts.memberships("root"))
    }

    /// The primary group must be among the supplementary ones, or a process could drop a group that denies it something (CVE-2023-25173).
    fn with_groups(uid: u32, gid: u32, memberships: Vec<u32>) -> Self {
        let mut additional_gids = vec![gid];
        for member in memberships {
            if !additional_gids.contains(&member) {
                additional_gids.push(member);
            }
        }
        Self { uid, gid, additional_gids }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts::parse(
            b"root:x:0:0:root:/root:/bin/sh\n# comment\n\nrabbitmq:x:101:102::/var/lib/rabbitmq:/bin/sh\nbroken:x:zz:1\nnobody:x:65534:65534::/:/bin/false\n",
            b"root:x:0:\nadm:x:4:rabbitmq,root\nrabbitmq:x:102:rabbitmq\nssl:x:103:rabbitmq\nbroken\n",
        )
    }

    fn resolve(value: &str) -> Result<(u32, u32, Vec<u32>), UserError> {
        UserValue(value).resolve(&accounts()).map(|user| (user.uid, user.gid, user.additional_gids))
    }

    #[test]
    fn names_and_numbers_resolve_as_in_ctr() {
        assert_eq!(resolve("rabbitmq"), Ok((101, 102, vec![102, 4, 103])));
        assert_eq!(resolve("101"), Ok((101, 102, vec![102, 4, 103])));
        assert_eq!(resolve("4242"), Ok((4242, 0, vec![0])));
        assert_eq!(resolve("1000:1001"), Ok((1000, 1001, vec![1001])));
        assert_eq!(resolve("rabbitmq:adm"), Ok((101, 4, vec![4])));
        assert_eq!(resolve("rabbitmq:7"), Ok((101, 7, vec![7])));
        assert_eq!(resolve("7:ssl"), Ok((7, 103, vec![103])));
    }

    #[test]
    fn what_the_image_does_not_have_is_an_error_without_the_secret() {
        let error = resolve("alice:s3cr3t").unwrap_err();
        assert_eq!(error, UserError::NoSuchUser { name: "alice".into() });
        let error = resolve("rabbitmq:s3cr3t").unwrap_err();
        assert!(!error.to_string().contains("s3cr3t"), "{error}");
        let error = resolve("rabbitmq:s3:cr3t").unwrap_err();
        assert_eq!(error, UserError::Malformed);
        assert!(!format!("{:?}", UserValue("alice:s3cr3t")).contains("s3cr3t"));
    }

    #[test]
    fn credentials_have_a_name_and_a_secret() {
        assert_eq!(UserValue("alice:s3:cr3t").as_credentials(), Some(("alice", "s3:cr3t")));
        assert_eq!(UserValue("alice").as_credentials(), None);
        assert_eq!(UserValue("alice:").as_credentials(), None);
    }

    #[test]
    fn an_image_without_users_has_root_and_numbers() {
        let none = Accounts::default();
        assert_eq!(ProcessUser::root(&none).additional_gids, vec![0]);
        assert_eq!(ProcessUser::root(&accounts()).additional_gids, vec![0, 4]);
        assert_eq!(UserValue("5").resolve(&none).unwrap().uid, 5);
        assert!(UserValue("root").resolve(&none).is_err());
    }
}
