//! The text form of the kernel's mount table, which the client and the node plugin both read.

/// A field of `/proc/self/mountinfo` without the octal escapes of the kernel, such as `\040` for a space.
pub fn unescape_mount_field(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal = field.get(at + 1..at + 4).filter(|_| field[at] == b'\\');
        let value = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match value.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) => {
                bytes.push(value);
                at += 4;
            }
            None => {
                bytes.push(field[at]);
                at += 1;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_the_mount_table_are_understood() {
        assert_eq!(unescape_mount_field(br"/a\040b\134c"), br"/a b\c");
        assert_eq!(unescape_mount_field(br"/a\"), br"/a\");
    }
}
