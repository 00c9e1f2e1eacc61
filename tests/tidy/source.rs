//! A Rust file as the rules see it: code without comments and literals, line by line as it was.

/// A file.
pub struct Source {
    /// Path from the root of the repository.
    pub path: String,
    /// As it is on disk.
    pub text: String,
    /// With comments, strings and characters blanked out.
    pub code: String,
}

impl Source {
    /// Reads `text` as the file at `path`.
    pub fn new(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned(), code: blank(text) }
    }

    /// Where a word stands in the code: byte offsets. A word does not continue an identifier, on either side.
    pub fn find(&self, word: &str) -> Vec<usize> {
        find_word(&self.code, word)
    }

    /// One complaint for each place where `word` stands.
    pub fn complain(&self, word: &str, why: &str) -> Vec<String> {
        self.find(word).into_iter().map(|at| format!("{}: `{word}` {why}", self.place(at))).collect()
    }

    /// `path:line` of a byte of the code.
    pub fn place(&self, at: usize) -> String {
        format!("{}:{}", self.path, self.code[..at].matches('\n').count() + 1)
    }

    /// The code before the first test module at the end of the file; empty for a file of tests.
    pub fn product(&self) -> &str {
        let is_tests = self.path.contains("/tests/") || self.path.ends_with("tests.rs");
        let end = if is_tests { 0 } else { self.code.find("#[cfg(test)]\nmod ").unwrap_or(self.code.len()) };
        &self.code[..end]
    }
}

/// Offsets of `word` in `code` where it is not a part of a longer identifier.
pub fn find_word(code: &str, word: &str) -> Vec<usize> {
    let joins = |c: char| c.is_alphanumeric() || c == '_';
    let starts = word.starts_with(joins);
    let ends = word.ends_with(joins);
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(|at| !starts || !code[..*at].ends_with(joins))
        .filter(|at| !ends || !code[*at + word.len()..].starts_with(joins))
        .collect()
}

/// `text` with comments, strings and character literals replaced by spaces; line breaks stay.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let length = literal_length(&text[at..], out.last().copied());
        if length == 0 {
            // A character of several bytes is copied as a whole.
            let width = text[at..].chars().next().map_or(1, char::len_utf8);
            out.extend_from_slice(&bytes[at..at + width]);
            at += width;
        } else {
            out.extend(bytes[at..at + length].iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' }));
            at += length;
        }
    }
    String::from_utf8(out).expect("only whole characters are copied")
}

/// Length of the comment or literal that `rest` starts with; 0 if it starts with code.
fn literal_length(rest: &str, before: Option<u8>) -> usize {
    let in_word = before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment_length(rest);
    }
    if rest.starts_with('"') {
        return string_length(rest, 1);
    }
    if !in_word {
        for prefix in ["r", "br", "cr"] {
            if let Some(raw) = rest.strip_prefix(prefix) {
                let hashes = raw.bytes().take_while(|byte| *byte == b'#').count();
                if raw[hashes..].starts_with('"') {
                    let end = format!("\"{}", "#".repeat(hashes));
                    let body = prefix.len() + hashes + 1;
                    return rest[body..].find(&end).map_or(rest.len(), |found| body + found + end.len());
                }
            }
        }
    }
    if rest.starts_with('\'') { char_length(rest) } else { 0 }
}

fn block_comment_length(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    loop {
        if rest[at..].is_empty() {
            return rest.len();
        }
        let delta = if rest[at..].starts_with("/*") {
            1
        } else if rest[at..].starts_with("*/") {
            -1
        } else {
            0
        };
        at += if delta == 0 { rest[at..].chars().next().map_or(1, char::len_utf8) } else { 2 };
        depth += delta;
        if depth == 0 {
            return at;
        }
    }
}

fn string_length(rest: &str, open: usize) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(open) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// A character literal, or 0 for a lifetime.
fn char_length(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => rest[2..].char_indices().skip(1).find(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 3),
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 0,
        },
        None => 0,
    }
}
