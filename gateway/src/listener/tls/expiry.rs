// SPDX-License-Identifier: Apache-2.0
//! When a certificate ends (RFC 5280 §4.1.2.5): as much of DER as that takes, and nothing that
//! trust rests on. What it cannot read has no end that could be shown.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

const SEQUENCE: u8 = 0x30;
/// The explicit tag of `version`, which a certificate of version 1 leaves out.
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// A value with its tag.
type Value<'d> = (u8, &'d [u8]);

/// The last moment at which a certificate is good.
pub(super) fn not_after(certificate: &[u8]) -> Option<Timestamp> {
    let (mut certificate, _) = inner(certificate, SEQUENCE)?;
    let (mut fields, _) = inner(next_whole(&mut certificate)?, SEQUENCE)?;
    if fields.first() == Some(&VERSION) {
        next(&mut fields)?;
    }
    // Serial number, algorithm of the signature, issuer; then from when to when it is good.
    for _ in 0..3 {
        next(&mut fields)?;
    }
    let (SEQUENCE, mut times) = next(&mut fields)? else { return None };
    next(&mut times)?;
    moment(next(&mut times)?)
}

/// What is inside one value, and what follows it.
fn inner(mut der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content) = next(&mut der)?;
    (found == tag).then_some((content, der))
}

/// The next value with its own tag and length.
fn next_whole<'d>(der: &mut &'d [u8]) -> Option<&'d [u8]> {
    let before = *der;
    next(der)?;
    before.get(..before.len() - der.len())
}

/// Takes the next value.
fn next<'d>(der: &mut &'d [u8]) -> Option<Value<'d>> {
    let (&tag, rest) = der.split_first()?;
    let (&short, mut rest) = rest.split_first()?;
    let mut length = usize::from(short);
    if short >= 0x80 {
        let (bytes, after) =
            rest.split_at_checked(usize::from(short & 0x7f)).filter(|(it, _)| it.len() <= 4)?;
        length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        rest = after;
    }
    let (content, after) = rest.split_at_checked(length)?;
    *der = after;
    Some((tag, content))
}

fn moment((tag, text): Value<'_>) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    let digits = text.strip_suffix('Z').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let digits = match tag {
        // Two digits of the year: 50 and above are of the last century.
        UTC_TIME if digits.len() == 12 => {
            let century = if digits >= "50" { "19" } else { "20" };
            format!("{century}{digits}")
        }
        GENERALIZED_TIME if digits.len() == 14 => digits.to_owned(),
        _ => return None,
    };
    let time = DateTime::strptime("%Y%m%d%H%M%S", &digits).ok()?;
    TimeZone::UTC.to_timestamp(time).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    fn ends(year: i32) -> Option<Timestamp> {
        let mut params = CertificateParams::new(vec!["gateway.internal".to_owned()]).expect("a name");
        params.not_before = date_time_ymd(1980, 1, 1);
        params.not_after = date_time_ymd(year, 12, 31);
        let key = KeyPair::generate().expect("a key");
        not_after(params.self_signed(&key).expect("signs").der())
    }

    #[test]
    fn a_certificate_tells_when_it_ends() {
        for year in [1999, 2030, 2049, 2050, 2099] {
            let wanted: Timestamp = format!("{year}-12-31T00:00:00Z").parse().expect("a time");
            assert_eq!(ends(year), Some(wanted), "{year}");
        }
    }

    #[test]
    fn what_is_cut_or_none_has_no_end_and_does_no_harm() {
        let params = CertificateParams::new(vec!["gateway.internal".to_owned()]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signs");
        let der = certificate.der();
        assert!(not_after(der).is_some(), "the control");
        for length in 0..der.len() {
            assert_eq!(not_after(&der[..length]), None, "the first {length} bytes");
        }
        for broken in
            [&[][..], &[0x30], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], &[0x30, 0x89, 1], b"-----BEGIN"]
        {
            assert_eq!(not_after(broken), None, "{broken:?}");
        }
        assert_eq!(moment((UTC_TIME, b"2401010000Z")), None, "no seconds");
        assert_eq!(moment((UTC_TIME, b"241301000000Z")), None, "a month that is none");
        assert_eq!(moment((GENERALIZED_TIME, b"20240101000000+0100")), None, "another zone");
    }
}
