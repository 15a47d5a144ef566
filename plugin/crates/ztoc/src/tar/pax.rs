//! PAX extended headers.

use std::collections::BTreeMap;

use crate::PaxRecord;

use super::number::{decimal, pax_time};

/// The records of one extended header. Of two with the same key the later one counts.
#[derive(Debug, Default)]
pub(super) struct PaxHeader(BTreeMap<Vec<u8>, Vec<u8>>);

/// What the records change in the header that they belong to, where they have something to say.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    pub(super) name: Option<Vec<u8>>,
    pub(super) link_name: Option<Vec<u8>>,
    pub(super) user_name: Option<Vec<u8>>,
    pub(super) group_name: Option<Vec<u8>>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) size: Option<i64>,
    /// `Some(None)` is a time too far away to be written down.
    pub(super) mtime: Option<Option<(i64, u32)>>,
}

impl PaxHeader {
    /// `None` if a record is malformed.
    pub(super) fn parse(mut body: &[u8]) -> Option<Self> {
        let mut records = BTreeMap::new();
        // GNU's sparse format 0.0 repeats two keys in turn, which a map cannot hold: they become one record of format 0.1.
        let mut sparse_map: Vec<&[u8]> = Vec::new();
        while !body.is_empty() {
            let (key, value, rest) = split_record(body)?;
            body = rest;
            match key {
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    if sparse_map.len().is_multiple_of(2) != (key == b"GNU.sparse.offset")
                        || value.contains(&b',')
                    {
                        return None;
                    }
                    sparse_map.push(value);
                }
                _ => {
                    records.insert(key.to_vec(), value.to_vec());
                }
            }
        }
        if !sparse_map.is_empty() {
            records.insert(b"GNU.sparse.map".to_vec(), sparse_map.join(&b','));
        }
        Some(Self(records))
    }

    fn get(&self, key: &[u8]) -> &[u8] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether the member is a sparse file in GNU's PAX formats 0.0, 0.1 or 1.0.
    pub(super) fn is_sparse(&self) -> bool {
        match (self.get(b"GNU.sparse.major"), self.get(b"GNU.sparse.minor")) {
            (b"0", b"0" | b"1") | (b"1", b"0") => true,
            (b"", b"") => !self.get(b"GNU.sparse.map").is_empty(),
            _ => false,
        }
    }

    /// `None` if a number or a time is none. Empty records leave the header's own value.
    pub(super) fn overrides(&self) -> Option<Overrides> {
        let mut overrides = Overrides::default();
        for (key, value) in self.0.iter().filter(|(_, value)| !value.is_empty()) {
            match key.as_slice() {
                b"path" => overrides.name = Some(value.clone()),
                b"linkpath" => overrides.link_name = Some(value.clone()),
                b"uname" => overrides.user_name = Some(value.clone()),
                b"gname" => overrides.group_name = Some(value.clone()),
                b"uid" => overrides.uid = Some(decimal(value)?),
                b"gid" => overrides.gid = Some(decimal(value)?),
                b"size" => overrides.size = Some(decimal(value)?),
                b"mtime" => overrides.mtime = Some(pax_time(value)?),
                // Not recorded anywhere, but a malformed one makes the header invalid.
                b"atime" | b"ctime" => drop(pax_time(value)?),
                _ => {}
            }
        }
        Some(overrides)
    }

    /// All records, sorted by key.
    pub(super) fn into_records(self) -> Vec<PaxRecord> {
        self.0.into_iter().map(|(key, value)| PaxRecord { key, value }).collect()
    }
}

/// Takes `<length> <key>=<value>\n` off the front; the length counts all of it, itself included.
fn split_record(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = body.iter().position(|&byte| byte == b' ')?;
    let len = decimal(body.get(..space)?).and_then(|len| usize::try_from(len).ok())?;
    if len < 5 {
        return None;
    }
    let (record, rest) = body.split_at_checked(len)?;
    let record = record.get(space.checked_add(1)?..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    let (key, value) = (record.get(..equals)?, record.get(equals.checked_add(1)?..)?);
    let must_be_text = if matches!(key, b"path" | b"linkpath" | b"uname" | b"gname") { value } else { key };
    (!must_be_text.contains(&0)).then_some((key, value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_split_at_their_length() {
        assert_eq!(split_record(b"6 k=v\nrest"), Some((&b"k"[..], &b"v"[..], &b"rest"[..])));
        assert_eq!(split_record(b"5 k=\n"), Some((&b"k"[..], &b""[..], &b""[..])));
        assert_eq!(split_record(b"5 =v\n"), Some((&b""[..], &b"v"[..], &b""[..])));
        assert_eq!(split_record(b"9 k=\0=\n\n\n"), Some((&b"k"[..], &b"\0=\n\n"[..], &b""[..])));
        assert_eq!(split_record(b"+6 k=v\n"), None);
        for bad in [
            &b""[..],
            b" ",
            b"6",
            b"6 k=v",
            b"6 k=v ",
            b"7 k=v\n",
            b"4 =\n",
            b"5 kv\n",
            b"x k=v\n",
            b"-6 k=v\n",
            b"6  k=v\n",
            b"8 k\0=vv\n",
            b"00000000006 \n",
            b"11 path=a\0\n",
            b"99999999999999999999 k=v\n",
        ] {
            assert_eq!(split_record(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn sparse_records_of_every_format_are_seen() {
        let is_sparse = |body: &[u8]| PaxHeader::parse(body).map(|header| header.is_sparse());
        assert_eq!(is_sparse(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"), Some(true));
        assert_eq!(is_sparse(b"22 GNU.sparse.major=0\n22 GNU.sparse.minor=1\n"), Some(true));
        assert_eq!(is_sparse(b"22 GNU.sparse.major=2\n22 GNU.sparse.minor=0\n"), Some(false));
        assert_eq!(is_sparse(b"22 GNU.sparse.map=0,1\n"), Some(true));
        assert_eq!(is_sparse(b"23 GNU.sparse.offset=0\n25 GNU.sparse.numbytes=1\n"), Some(true));
        assert_eq!(is_sparse(b"25 GNU.sparse.numbytes=1\n"), None);
        assert_eq!(is_sparse(b"6 k=v\n"), Some(false));
    }
}
