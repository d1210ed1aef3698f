//! The links of a Markdown page.

use pulldown_cmark::{Event, Options, Parser, Tag};

/// A link or image to a file of the repository.
#[derive(Debug, PartialEq, Eq)]
pub struct Link {
    /// As written.
    pub written: String,
    /// From 1.
    pub line: usize,
    /// From the root of the repository, without the part after `#`; absent if it leads out of the repository.
    pub target: Option<String>,
}

/// The relative links of `text`, the page at `path`. Links within the page or to other machines are left out.
pub fn links(path: &str, text: &str) -> Vec<Link> {
    let events = Parser::new_ext(text, Options::ENABLE_TABLES | Options::ENABLE_FOOTNOTES).into_offset_iter();
    let mut links = Vec::new();
    for (event, range) in events {
        let (Event::Start(Tag::Link { dest_url, .. }) | Event::Start(Tag::Image { dest_url, .. })) = event else {
            continue;
        };
        let file = dest_url.split(['#', '?']).next().unwrap_or_default();
        if file.is_empty() || has_scheme(&dest_url) {
            continue;
        }
        let line = 1 + text[..range.start].matches('\n').count();
        links.push(Link { written: dest_url.to_string(), line, target: resolve(path, file) });
    }
    links
}

fn has_scheme(url: &str) -> bool {
    url.starts_with("//")
        || url
            .split_once(':')
            .is_some_and(|(scheme, _)| scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)))
}

fn resolve(page: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    if target.starts_with('/') {
        return None;
    }
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_links_are_resolved_from_their_page() {
        let text = "[a](patch.md#grid) ![b](../x.png)\n\n[c][d]\n\n[d]: ./e/f.md\n[out](../../y) [abs](/etc/z)\n";
        let found: Vec<_> = links("docs/README.md", text).into_iter().map(|link| (link.line, link.target)).collect();
        let expected = [
            (1, Some("docs/patch.md".to_owned())),
            (1, Some("x.png".to_owned())),
            (3, Some("docs/e/f.md".to_owned())),
            (6, None),
            (6, None),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn code_other_machines_and_the_page_itself_are_not_links_to_files() {
        let text = "`[a](b.md)` [c](https://d.e/f.md) [g](#h) <mailto:i@j.k>\n\n```\n[l](m.md)\n```\n";
        assert_eq!(links("README.md", text), []);
    }
}
