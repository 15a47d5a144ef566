//! Numbers in tar headers and PAX records, as Go reads them.

/// A numeric header field: base-256 if the first bit is set, else octal.
pub(super) fn numeric(field: &[u8]) -> Option<i64> {
    let Some(first) = field.first().filter(|&&first| first & 0x80 != 0) else {
        return octal(field);
    };
    // Two's complement, big-endian, of as many bytes as the field has. A negative number is read inverted, since -a-1 == !a.
    let invert = if first & 0x40 != 0 { 0xff } else { 0 };
    let mut value = 0_u64;
    for (index, byte) in field.iter().enumerate() {
        let byte = byte ^ invert;
        let byte = if index == 0 { byte & 0x7f } else { byte };
        if value >> 56 != 0 {
            return None;
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).ok()?;
    Some(if invert == 0 { value } else { !value })
}

/// An octal header field, padded with spaces and NULs on either side; an empty one is 0.
pub(super) fn octal(field: &[u8]) -> Option<i64> {
    let is_padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_padding(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !is_padding(byte)).map_or(start, |last| last.saturating_add(1));
    let digits = text(field.get(start..end).unwrap_or_default());
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// A decimal number in a PAX record, with an optional sign.
pub(super) fn decimal(digits: &[u8]) -> Option<i64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A time in a PAX record, `[-]seconds[.fraction]`: seconds since 1970 and nanoseconds, what is finer cut off. The outer `None` is a
/// malformed one, the inner one a time too far away to be written down.
pub(super) fn pax_time(record: &[u8]) -> Option<Option<(i64, u32)>> {
    let (seconds, fraction) = match record.iter().position(|&byte| byte == b'.') {
        Some(dot) => (record.get(..dot)?, record.get(dot.checked_add(1)?..)?),
        None => (record, [].as_slice()),
    };
    let is_negative = seconds.starts_with(b"-");
    let seconds = decimal(seconds)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos = fraction
        .iter()
        .chain(std::iter::repeat(&b'0'))
        .take(9)
        .fold(0, |nanos: u32, digit| nanos * 10 + u32::from(digit - b'0'));
    Some(match nanos {
        0 => Some((seconds, 0)),
        // Both parts count backwards.
        _ if is_negative => seconds.checked_sub(1).map(|seconds| (seconds, 1_000_000_000 - nanos)),
        _ => Some((seconds, nanos)),
    })
}

/// A text field: everything before the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_fields() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\x00644\0\0\0", Some(0o644)),
            (b"        ", Some(0)),
            (b"", Some(0)),
            (b"644\x008 ", Some(0o644)),
            (b"0000648\0", None),
            (b"-000644\0", None),
            (b"+000644\0", None),
            (b"6 4\0", None),
            (b"77777777777", Some(0o77_777_777_777)),
            (b"777777777777777777777777", None),
        ] {
            assert_eq!(octal(field), value, "{field:?}");
            assert_eq!(numeric(field), value, "{field:?}");
        }
    }

    #[test]
    fn base_256_fields() {
        for (field, value) in [
            (&[0x80, 0, 0, 0, 0, 0, 1, 0][..], Some(256)),
            (&[0xff; 8], Some(-1)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], Some(-2)),
            (&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Some(i64::MAX)),
            (&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0], None),
            (&[0xff, 0xff, 0xff, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], Some(i64::MIN)),
            (&[0xff, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0], None),
            (&[0xbf, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], None),
        ] {
            assert_eq!(numeric(field), value, "{field:x?}");
        }
    }

    #[test]
    fn pax_times() {
        for (record, time) in [
            (&b"1600000000"[..], Some(Some((1_600_000_000, 0)))),
            (b"1600000000.12", Some(Some((1_600_000_000, 120_000_000)))),
            (b"1600000000.1234567899", Some(Some((1_600_000_000, 123_456_789)))),
            (b"-1.5", Some(Some((-2, 500_000_000)))),
            (b"-0.5", Some(Some((-1, 500_000_000)))),
            (b"-1.", Some(Some((-1, 0)))),
            (b"+1.5", Some(Some((1, 500_000_000)))),
            (b"-9223372036854775808.5", Some(None)),
            (b"9223372036854775808", None),
            (b".5", None),
            (b"", None),
            (b"1.5x", None),
            (b"1.-5", None),
        ] {
            assert_eq!(pax_time(record), time, "{record:?}");
        }
    }
}
