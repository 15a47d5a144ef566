//! RFC 3339 as Go writes it, for the proleptic Gregorian years 0 to 9999.

const SECONDS_PER_DAY: i64 = 86_400;
/// 0000-01-01T00:00:00Z.
const FIRST_SECOND: i64 = -62_167_219_200;
/// 9999-12-31T23:59:59Z.
const LAST_SECOND: i64 = 253_402_300_799;

/// `2020-09-13T12:26:40.12Z`: UTC, no trailing zeros in the fraction. Empty for a year outside 0..=9999, which is what upstream stores.
pub(crate) fn format_rfc3339(seconds: i64, nanos: u32) -> Vec<u8> {
    if !(FIRST_SECOND..=LAST_SECOND).contains(&seconds) || nanos > 999_999_999 {
        return Vec::new();
    }
    let (days, second) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if nanos != 0 {
        text.push_str(format!(".{nanos:09}").trim_end_matches('0'));
    }
    text.push('Z');
    text.into_bytes()
}

/// Reads what [`format_rfc3339`] writes, with any offset from UTC and any length of the fraction (cut to nanoseconds).
pub(crate) fn parse_rfc3339(text: &[u8]) -> Option<(i64, u32)> {
    let (year, rest) = digits(text, 4)?;
    let (month, rest) = digits(rest.strip_prefix(b"-")?, 2)?;
    let (day, rest) = digits(rest.strip_prefix(b"-")?, 2)?;
    let (hour, rest) = digits(rest.strip_prefix(b"T")?, 2)?;
    let (minute, rest) = digits(rest.strip_prefix(b":")?, 2)?;
    let (second, rest) = digits(rest.strip_prefix(b":")?, 2)?;
    let (nanos, zone) = match rest.strip_prefix(b".") {
        None => (0, rest),
        Some(rest) => {
            let length = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (fraction, zone) = rest.split_at_checked(length).filter(|_| length > 0)?;
            let nanos = fraction
                .iter()
                .chain(std::iter::repeat(&b'0'))
                .take(9)
                .fold(0, |nanos: u32, digit| nanos * 10 + u32::from(digit - b'0'));
            (nanos, zone)
        }
    };
    let offset = match zone {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), zone @ ..] => {
            let (hours, zone) = digits(zone, 2)?;
            let (minutes, zone) = digits(zone.strip_prefix(b":")?, 2)?;
            if !zone.is_empty() || hours > 23 || minutes > 59 {
                return None;
            }
            let offset = hours * 3600 + minutes * 60;
            if *sign == b'-' { -offset } else { offset }
        }
        _ => return None,
    };
    if !(1..=12).contains(&month)
        || day < 1
        || day > days_in(year, month)
        || hour > 23
        || minute > 59
        || second > 59
    {
        return None;
    }
    let seconds =
        days_from_civil(year, month, day) * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second - offset;
    Some((seconds, nanos))
}

/// A number of exactly `count` digits (at most four) at the start of `text`, and what follows.
fn digits(text: &[u8], count: usize) -> Option<(i64, &[u8])> {
    let (number, rest) = text.split_at_checked(count)?;
    let number = number.iter().try_fold(0, |number: i64, digit| {
        digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0'))
    })?;
    Some((number, rest))
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01. Years are counted from March, so that the leap day is a year's last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_as_go_does() {
        for (seconds, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (1_600_000_000, 120_000_000, "2020-09-13T12:26:40.12Z"),
            (1_600_000_000, 1, "2020-09-13T12:26:40.000000001Z"),
            (-2, 500_000_000, "1969-12-31T23:59:58.5Z"),
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (FIRST_SECOND, 0, "0000-01-01T00:00:00Z"),
            (LAST_SECOND, 999_999_999, "9999-12-31T23:59:59.999999999Z"),
            (FIRST_SECOND - 1, 0, ""),
            (LAST_SECOND + 1, 0, ""),
            (i64::MAX, 0, ""),
            (i64::MIN, 0, ""),
        ] {
            assert_eq!(String::from_utf8(format_rfc3339(seconds, nanos)).unwrap(), text);
            if !text.is_empty() {
                assert_eq!(parse_rfc3339(text.as_bytes()), Some((seconds, nanos)), "{text}");
            }
        }
    }

    #[test]
    fn every_day_of_all_years_reads_back() {
        for day in (FIRST_SECOND / SECONDS_PER_DAY)..=(LAST_SECOND / SECONDS_PER_DAY) {
            let (year, month, of_month) = civil_from_days(day);
            assert!((1..=12).contains(&month) && (1..=days_in(year, month)).contains(&of_month));
            assert_eq!(days_from_civil(year, month, of_month), day);
        }
    }

    #[test]
    fn other_zones_are_the_same_instant() {
        let utc = parse_rfc3339(b"2020-09-13T12:26:40Z");
        assert_eq!(parse_rfc3339(b"2020-09-13T08:26:40-04:00"), utc);
        assert_eq!(parse_rfc3339(b"2020-09-13T17:56:40+05:30"), utc);
    }

    #[test]
    fn refuses_what_is_no_time() {
        for bad in [
            "",
            "2020",
            "2020-13-01T00:00:00Z",
            "2020-02-30T00:00:00Z",
            "2021-02-29T00:00:00Z",
            "2020-01-01T24:00:00Z",
            "2020-01-01T00:00:00",
            "2020-01-01T00:00:00.Z",
            "2020-01-01T00:00:00Zx",
            "2020-01-01T00:00:00+0100",
            "2020-01-01T00:00:00+24:00",
            "+020-01-01T00:00:00Z",
            "2020-01-01 00:00:00Z",
        ] {
            assert_eq!(parse_rfc3339(bad.as_bytes()), None, "{bad}");
        }
    }
}
