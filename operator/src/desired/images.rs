//! What an image is called: a name and a tag, each of which may be left to what stands there already.

/// `name:tag`, with the parts of `image` where nothing else is said.
pub(super) fn chosen(image: String, name: Option<&String>, tag: Option<&String>) -> String {
    let said = |part: Option<&String>| part.filter(|part| !part.is_empty()).cloned();
    match (said(name), said(tag)) {
        (Some(name), Some(tag)) => format!("{name}:{tag}"),
        (Some(name), None) => name,
        (None, Some(tag)) => format!("{}:{tag}", untagged(&image)),
        (None, None) => image,
    }
}

/// An image without its tag or digest. A colon before the last slash is that of a port.
fn untagged(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    match name.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => before,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_tag_alone_is_another_version_of_the_same_image() {
        let chosen = |image: &str, name: &str, tag: &str| {
            super::chosen(image.to_owned(), Some(&name.to_owned()), Some(&tag.to_owned()))
        };
        assert_eq!(chosen("registry:5000/jindofs:1", "", "2"), "registry:5000/jindofs:2");
        assert_eq!(chosen("registry:5000/jindofs", "", "2"), "registry:5000/jindofs:2");
        assert_eq!(chosen("jindofs@sha256:0a", "", "2"), "jindofs:2");
        assert_eq!(chosen("jindofs:1", "other", ""), "other");
        assert_eq!(chosen("jindofs:1", "other", "2"), "other:2");
        assert_eq!(chosen("jindofs:1", "", ""), "jindofs:1");
    }
}
