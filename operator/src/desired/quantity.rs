//! Kubernetes' quantities, as bytes.

/// Bytes of a quantity such as `12Gi`, `1.5G` or `4096`; a fraction of a byte is rounded down.
///
/// *Errors*: what is wrong with it.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let wrong = || format!("{text:?} is no size: write it as 12Gi, 500M or 1073741824");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor: u64 = match unit {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        _ => return Err(wrong()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 9 || (whole.is_empty() && fraction.is_empty()) {
        return Err(wrong());
    }
    let parse = |digits: &str| if digits.is_empty() { Ok(0) } else { digits.parse::<u64>().map_err(|_| wrong()) };
    let scale = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| wrong())?);
    let total =
        u128::from(parse(whole)?) * u128::from(factor) + u128::from(parse(fraction)?) * u128::from(factor) / scale;
    u64::try_from(total).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_understood_and_nonsense_is_refused() {
        for (text, expected) in
            [("12Gi", 12 << 30), ("1.5G", 1_500_000_000), ("4096", 4096), ("0.5Ki", 512), ("3k", 3000)]
        {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "Gi", "12gb", "-1", "1e3", "99999999999Pi", "."] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
