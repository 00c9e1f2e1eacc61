//! Text to values: sizes, durations, addresses. Every error says what was read and what is wanted.

use std::time::Duration;

use super::Medium;
use super::keys::Kind;
use crate::types::address;

/// Bytes from `12Gi`, `4MiB`, `1g`, `512 kb` or a bare number; every suffix is a power of 1,024.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size: write a whole number of bytes, or one with Ki, Mi, Gi or Ti");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let shift = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "ki" | "kb" | "kib" => 10,
        "m" | "mi" | "mb" | "mib" => 20,
        "g" | "gi" | "gb" | "gib" => 30,
        "t" | "ti" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is more bytes than can be counted"))
}

/// A time from `200ms`, `60s`, `2m`, `1h`; a bare number is milliseconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: write a whole number with ms, s, m or h");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let ms = match text[digits..].trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(ms).map(Duration::from_millis).ok_or_else(|| format!("{text:?} is too long a time"))
}

/// `true` or `false`, also `on`, `off`, `yes`, `no`, `1`, `0`.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "on" | "yes" | "1" => Ok(true),
        "false" | "off" | "no" | "0" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

/// A TCP port.
pub fn port(text: &str) -> Result<u16, String> {
    match text.trim().parse() {
        Ok(0) | Err(_) => Err(format!("{text:?} is no port: write a number from 1 to 65535")),
        Ok(port) => Ok(port),
    }
}

/// A whole number.
pub fn count(text: &str) -> Result<usize, String> {
    text.trim().parse().map_err(|_| format!("{text:?} is no whole number"))
}

/// Percent from `0.8` or `80%`.
pub fn percent(text: &str) -> Result<u8, String> {
    let wrong = || format!("{text:?} is no share: write 0.01 to 1, or 1% to 100%");
    let text = text.trim();
    let percent = match text.strip_suffix('%') {
        Some(number) => number.trim().parse::<f64>().map_err(|_| wrong())?,
        None => text.parse::<f64>().map_err(|_| wrong())? * 100.0,
    };
    let rounded = percent.round();
    if !(1.0..=100.0).contains(&rounded) {
        return Err(wrong());
    }
    // In range, as just checked.
    Ok(rounded as u8)
}

/// The parts of a comma-separated list, trimmed, without empty ones.
pub fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// `host:port` from `host:port` or `host:port:0` (upstream's third field is always 0); IPv6 hosts in brackets.
pub fn address(text: &str) -> Result<String, String> {
    let text = text.trim();
    // Before upstream's third field stands a whole address: that of IPv6 has more colons, and ends otherwise.
    let whole =
        text.rsplit_once(':').filter(|(_, index)| !index.is_empty() && index.bytes().all(|c| c.is_ascii_digit()));
    match whole.map(|(rest, _)| address::host_port(rest)) {
        Some(Ok(address)) => Ok(address),
        _ => address::host_port(text),
    }
}

/// A host as it stands before a port.
pub fn host(text: &str) -> Result<String, String> {
    address::host(text)
}

/// A list of hosts. Upstream puts a port behind some, which is dropped.
pub fn hosts(text: &str) -> Result<Vec<String>, String> {
    let one = |part: &String| match (host(part), address(part)) {
        (Err(_), Ok(address)) => Ok(address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host).to_owned()),
        (host, _) => host,
    };
    list(text).iter().map(one).collect()
}

/// A list of [`address()`]es, each at most once.
pub fn addresses(text: &str) -> Result<Vec<String>, String> {
    let mut found: Vec<String> = Vec::new();
    for part in list(text) {
        let address = address(&part)?;
        if found.contains(&address) {
            return Err(format!("{address} is listed twice"));
        }
        found.push(address);
    }
    Ok(found)
}

/// A list of sizes.
pub fn sizes(text: &str) -> Result<Vec<u64>, String> {
    list(text).iter().map(|part| size(part)).collect()
}

/// A list of mediums.
pub fn mediums(text: &str) -> Result<Vec<Medium>, String> {
    let one = |part: &String| match part.to_ascii_uppercase().as_str() {
        "MEM" => Ok(Medium::Mem),
        "SSD" => Ok(Medium::Ssd),
        "HDD" => Ok(Medium::Hdd),
        _ => Err(format!("{part:?} is no medium: write MEM, SSD or HDD")),
    };
    list(text).iter().map(one).collect()
}

/// Checks that `text` has the form `kind`. Empty text stands for "not set" and fits every kind.
pub fn check(kind: Kind, text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Ok(());
    }
    match kind {
        Kind::Text | Kind::Path | Kind::Paths => Ok(()),
        Kind::Size => size(text).map(drop),
        Kind::Sizes => sizes(text).map(drop),
        Kind::Duration => duration(text).map(drop),
        Kind::Bool => boolean(text).map(drop),
        Kind::Port => port(text).map(drop),
        Kind::Count => count(text).map(drop),
        Kind::Addresses => addresses(text).map(drop),
        Kind::Host => host(text).map(drop),
        Kind::Hosts => hosts(text).map(drop),
        Kind::Ratio => percent(text).map(drop),
        Kind::Mediums => mediums(text).map(drop),
        Kind::Choice(words) if words.contains(&text.trim()) => Ok(()),
        Kind::Choice(words) => Err(format!("{text:?} is none of {}", words.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_in_every_spelling() {
        for (text, bytes) in [("4096", 4096), ("1k", 1024), ("12Gi", 12 << 30), ("4MiB", 4 << 20), ("1g", 1 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "Gi", "-1", "1.5Gi", "1x", "99999999999999999999", "99999999Ti"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_say_their_unit_and_bare_numbers_are_milliseconds() {
        for (text, ms) in [("250", 250), ("250ms", 250), ("60s", 60_000), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "s", "1.5s", "-3s", "3 days"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_take_upstreams_third_field_and_refuse_duplicates() {
        assert_eq!(
            addresses("a:8103:0, b:8103,[::1]:1:0"),
            Ok(vec!["a:8103".into(), "b:8103".into(), "[::1]:1".into()])
        );
        for bad in ["a", "a:", ":1", "a:0", "a:70000", "a:1:x", "a:1,a:1:0", "::1:80", "http://a:1"] {
            assert!(addresses(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_lose_the_port_that_upstream_gives_them() {
        assert_eq!(hosts("m0, m1:8103,m2:8103:0,::1"), Ok(vec!["m0".into(), "m1".into(), "m2".into(), "[::1]".into()]));
        for bad in ["a b", "m0,http://m1", "u@h"] {
            assert!(hosts(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_are_fractions_or_percent() {
        assert_eq!((percent("0.8"), percent("99%"), percent("1")), (Ok(80), Ok(99), Ok(100)));
        for bad in ["0", "1.1", "101%", "x", "NaN"] {
            assert!(percent(bad).is_err(), "{bad}");
        }
    }
}
