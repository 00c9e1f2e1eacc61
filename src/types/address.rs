//! Hosts, `host:port` and URLs of endpoints: the one reader of them for settings, flags, requests and records. Every error says
//! what was read and what is wanted, except that credentials are never repeated.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest host name, bytes (RFC 1035).
const NAME_BYTES_MAX: usize = 253;
/// Longest label of a host name, bytes.
const LABEL_BYTES_MAX: usize = 63;

/// A host as it stands before a port: a name, an IPv4 address, or an IPv6 address in brackets.
///
/// An IPv6 address is taken bare or in brackets.
pub fn host(text: &str) -> Result<String, String> {
    let text = text.trim();
    let wrong = |why: &str| Err(format!("{} is no host: {why}", quoted(text)));
    let (inner, bracketed) = match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => (inner, true),
        None => (text, false),
    };
    if let Ok(address) = inner.parse::<Ipv6Addr>() {
        return Ok(format!("[{address}]"));
    }
    if inner.contains('%') {
        return wrong("zones of IPv6 addresses are not supported, give an address without one");
    }
    if bracketed {
        return wrong("only an IPv6 address stands in brackets");
    }
    match problem_of_name(text) {
        Some(why) => wrong(why),
        None => Ok(text.to_owned()),
    }
}

/// What keeps `name` from being the name of a host or an IPv4 address.
fn problem_of_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.contains("://") {
        return Some("write it without a scheme such as http://");
    }
    if name.contains('@') {
        return Some("credentials have no place here");
    }
    if name.contains(char::is_whitespace) {
        return Some("it holds a blank");
    }
    if !name.is_ascii() {
        return Some("write a name with other letters in its ASCII form, xn--...");
    }
    if name.contains(':') {
        return Some("it is neither a name nor an IPv6 address");
    }
    let labels = name.strip_suffix('.').unwrap_or(name);
    let good = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if labels.len() > NAME_BYTES_MAX || !labels.split('.').all(good) {
        return Some("a name is made of letters, digits, '-' and '_', with dots in between, and has at most 253 bytes");
    }
    // A single number is a name, such as a container's, and so is a pod in a namespace that is a number.
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = labels.contains('.') && labels.split('.').all(is_number);
    (numbers && name.parse::<Ipv4Addr>().is_err()).then_some("an IPv4 address has four numbers from 0 to 255")
}

/// `host:port`, with an IPv6 address in brackets.
pub fn host_port(text: &str) -> Result<String, String> {
    let text = text.trim();
    let wrong = |why: &str| format!("{} is no host:port: {why}", quoted(text));
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(wrong(&format!("write it without {}://", quoted_word(scheme))));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(wrong("an IPv6 address stands in brackets before its port, as in [::1]:8101"));
    }
    let (name, number) = split(text).ok_or_else(|| wrong("the port is missing"))?;
    if name.contains(':') && !name.starts_with('[') {
        return Err(wrong("an IPv6 address stands in brackets before its port, as in [::1]:8101"));
    }
    let name = host(name).map_err(|why| wrong(why.rsplit_once(": ").map_or(why.as_str(), |(_, why)| why)))?;
    match number.parse::<u16>() {
        Ok(0) | Err(_) => Err(wrong("the port must be a number from 1 to 65535")),
        Ok(number) => Ok(format!("{name}:{number}")),
    }
}

/// Host and port of an address, as texts.
fn split(address: &str) -> Option<(&str, &str)> {
    match address.strip_prefix('[') {
        Some(rest) => {
            let (inner, number) = rest.split_once("]:")?;
            Some((&address[..inner.len() + 2], number))
        }
        None => address.rsplit_once(':'),
    }
}

/// Where a service is reached: `http://HOST[:PORT][/PATH]` or `https://...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// As [`host`] returns it.
    pub host: String,
    /// The port, if one is given.
    pub port: Option<u16>,
    /// Without slashes at its ends.
    pub path: String,
}

impl Endpoint {
    /// Reads a URL; without a scheme it is `default`.
    pub fn parse(text: &str, default: Option<&'static str>) -> Result<Endpoint, String> {
        let text = text.trim();
        let wrong = |why: &str| format!("{} is no endpoint: {why}", quoted(text));
        let (scheme, rest) = match (text.split_once("://"), default) {
            (Some(("http", rest)), _) => ("http", rest),
            (Some(("https", rest)), _) => ("https", rest),
            (Some(_), _) | (None, None) => return Err(wrong("write http://HOST:PORT or https://HOST")),
            (None, Some(default)) => (default, text),
        };
        if rest.contains(['?', '#']) {
            return Err(wrong("it must have neither '?' nor '#'"));
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.contains('@') {
            return Err(wrong("credentials have no place in it: give the keys by their options, as file:PATH"));
        }
        let inner = |why: String| wrong(why.rsplit_once(": ").map_or(why.as_str(), |(_, why)| why));
        let (host, port) = match host(authority) {
            Ok(host) => (host, None),
            Err(why) if split(authority).is_none() => return Err(inner(why)),
            Err(_) => {
                let address = host_port(authority).map_err(inner)?;
                let (host, port) = address.rsplit_once(':').unwrap_or((&address, ""));
                (host.to_owned(), port.parse().ok())
            }
        };
        Ok(Endpoint { scheme, host, port, path: path.trim_matches('/').to_owned() })
    }

    /// True if the host is an IP address, which has no names below it.
    pub fn is_ip(&self) -> bool {
        self.host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        if self.path.is_empty() { Ok(()) } else { write!(f, "/{}", self.path) }
    }
}

/// A text for an error message. What stands before an `@` may be a secret.
fn quoted(text: &str) -> String {
    format!("{:?}", without_credentials(text))
}

fn quoted_word(word: &str) -> &str {
    if word.contains('@') { "a scheme" } else { word }
}

/// A URI for people: `***` in the place of the credentials it holds.
pub fn without_credentials(uri: &str) -> String {
    match uri.rsplit_once('@') {
        None => uri.to_owned(),
        Some((before, rest)) => {
            let scheme = before.split_once("://").map(|(scheme, _)| scheme);
            let scheme = scheme.filter(|scheme| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()));
            format!("{}***@{rest}", scheme.map_or_else(String::new, |scheme| format!("{scheme}://")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_and_ipv6_comes_out_in_brackets() {
        for (text, wanted) in [
            ("m-0.svc.local", "m-0.svc.local"),
            (" node_1 ", "node_1"),
            ("10.0.0.9", "10.0.0.9"),
            ("fqdn.", "fqdn."),
            ("demo-0.1001", "demo-0.1001"),
            ("123456789012", "123456789012"),
            ("::1", "[::1]"),
            ("[::1]", "[::1]"),
            ("::", "[::]"),
            ("FD00:0:0::9", "[fd00::9]"),
        ] {
            assert_eq!(host(text).as_deref(), Ok(wanted), "{text}");
        }
        for bad in [
            "",
            " ",
            "a b",
            "a\tb",
            "http://a",
            "a/b",
            "a:1",
            "fe80::1%eth0",
            "[a]",
            "[::1",
            "1.2.3.400",
            "1.2.3",
            "-a",
            "a..b",
            "m\u{fc}ller",
            "u:p@h",
            "a,b",
        ] {
            assert!(host(bad).is_err(), "{bad:?}");
        }
        assert!(host(&"a".repeat(64)).is_err() && host(&["abcdefgh"; 30].join(".")).is_err());
    }

    #[test]
    fn an_address_has_a_port_and_what_is_wrong_with_one_is_said() {
        for (text, wanted) in [("a:1", "a:1"), ("[::1]:8101", "[::1]:8101"), ("[FD00::0:1]:9", "[fd00::1]:9")] {
            assert_eq!(host_port(text).as_deref(), Ok(wanted), "{text}");
        }
        for (bad, word) in [
            ("a", "port is missing"),
            ("a:", "1 to 65535"),
            ("a:0", "1 to 65535"),
            ("a:70000", "1 to 65535"),
            (":1", "empty"),
            ("a b:1", "blank"),
            ("::1", "brackets"),
            ("::1:8101", "brackets"),
            ("[::1]", "port is missing"),
            ("http://a:1", "without http://"),
        ] {
            let error = host_port(bad).expect_err(bad);
            assert!(error.contains(word) && error.contains(bad), "{bad}: {error}");
        }
    }

    #[test]
    fn an_endpoint_is_read_whole_and_its_credentials_are_never_repeated() {
        let parse = |text: &str| Endpoint::parse(text, None).map(|one| (one.to_string(), one.is_ip()));
        assert_eq!(parse("http://127.0.0.1:9000/"), Ok(("http://127.0.0.1:9000".to_owned(), true)));
        assert_eq!(parse("https://s3.example.com/a/b"), Ok(("https://s3.example.com/a/b".to_owned(), false)));
        assert_eq!(parse("http://[::1]:9000"), Ok(("http://[::1]:9000".to_owned(), true)));
        assert_eq!(parse("http://[::1]"), Ok(("http://[::1]".to_owned(), true)));
        for bad in ["host:9000", "ftp://host", "http://", "http://a b", "http://h:0", "http://h?x=y", "http://::1:9x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        for bad in ["http://hunter1:hunter2@h:1", "hunter1:hunter2@h", "https://hunter1@h/x", "hunter1://hunter2@h"] {
            let errors = [parse(bad).expect_err(bad), host_port(bad).expect_err(bad), host(bad).expect_err(bad)];
            assert!(errors.iter().all(|error| !error.contains("hunter2")), "{errors:?}");
        }
        assert_eq!(without_credentials("s3://id:key@bucket/x"), "s3://***@bucket/x");
        assert_eq!(Endpoint::parse("oss-x.aliyuncs.com", Some("https")).expect("good").scheme, "https");
    }
}
