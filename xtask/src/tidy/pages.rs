//! Every verb and every study has its page, every page is found from the first, and every link leads somewhere.

use std::collections::BTreeSet;

use super::Problem;
use crate::markdown::links;
use crate::tree::Tree;

const COMMANDS: &str = "crates/endoscope-cli/src/commands/";
const STUDIES: &str = "crates/endoscope-studies/src/studies/";
const DOCS: &str = "docs/";
const FIRST: &str = "docs/README.md";

pub fn check(tree: &Tree) -> Vec<Problem> {
    let mut problems = without_page(tree, COMMANDS, "", "verb");
    problems.extend(without_page(tree, STUDIES, "studies/", "study"));
    problems.extend(pages_without_link(tree));
    problems.extend(links_to_nowhere(tree));
    problems
}

/// The files of a folder of code whose pages in a folder of docs/ are missing; `what` they are.
fn without_page(tree: &Tree, code: &str, docs: &str, what: &str) -> Vec<Problem> {
    let inside = tree.files.keys().filter_map(|path| path.strip_prefix(code));
    let names = inside.map(|path| path.split('/').next().unwrap_or(path).trim_end_matches(".rs").replace('_', "-"));
    let names: BTreeSet<String> = names.filter(|name| name != "mod" && name != "template").collect();
    let pages = names.into_iter().map(|name| (format!("{DOCS}{docs}{name}.md"), name));
    pages
        .filter(|(page, _)| !tree.files.contains_key(page))
        .map(|(page, name)| Problem::of(&page, format!("is missing: write the page of the {what} `{name}`")))
        .collect()
}

fn pages_without_link(tree: &Tree) -> Vec<Problem> {
    let pages = tree.files.keys().filter(|path| path.starts_with(DOCS) && path.ends_with(".md") && *path != FIRST);
    let first = tree.files.get(FIRST).and_then(|file| file.text.as_deref()).unwrap_or_default();
    let linked: BTreeSet<String> = links(FIRST, first).into_iter().filter_map(|link| link.target).collect();
    pages
        .filter(|page| !linked.contains(*page))
        .map(|page| Problem::of(page, format!("cannot be found by a reader: link it from {FIRST}")))
        .collect()
}

fn links_to_nowhere(tree: &Tree) -> Vec<Problem> {
    let pages = tree.texts().filter(|(path, _)| path.ends_with(".md"));
    let links = pages.flat_map(|(path, text)| links(path, text).into_iter().map(move |link| (path, link)));
    links
        .filter_map(|(path, link)| {
            let what = match &link.target {
                None => format!(
                    "the link {} leads out of the repository: name a file in it, or a whole address",
                    link.written
                ),
                Some(target) if !tree.has(target) => {
                    format!("the link {} leads to {target}, which is not there: mend or remove it", link.written)
                }
                Some(_) => return None,
            };
            Some(Problem::at(path, link.line, what))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::places;

    #[test]
    fn a_verb_without_page_is_a_problem() {
        let files = [
            ("crates/endoscope-cli/src/commands/mod.rs", ""),
            ("crates/endoscope-cli/src/commands/patch.rs", ""),
            ("crates/endoscope-cli/src/commands/dict/mod.rs", ""),
            ("crates/endoscope-cli/src/commands/dict/train.rs", ""),
            ("crates/endoscope-cli/src/commands/inspect.rs", ""),
            ("docs/README.md", "[inspect](inspect.md)"),
            ("docs/inspect.md", ""),
        ];
        assert_eq!(places(check, &files), ["docs/dict.md", "docs/patch.md"]);
    }

    #[test]
    fn a_study_without_page_is_a_problem() {
        let files = [
            ("crates/endoscope-studies/src/studies/mod.rs", ""),
            ("crates/endoscope-studies/src/studies/template.rs", ""),
            ("crates/endoscope-studies/src/studies/cot_circuit.rs", ""),
            ("crates/endoscope-studies/src/studies/talking_heads.rs", ""),
            ("docs/README.md", "[talking heads](studies/talking-heads.md)"),
            ("docs/studies/talking-heads.md", ""),
        ];
        assert_eq!(places(check, &files), ["docs/studies/cot-circuit.md"]);
    }

    #[test]
    fn a_page_that_the_first_does_not_link_is_a_problem() {
        let files = [("docs/README.md", "[a](a.md#top)"), ("docs/a.md", "[b](b.md)"), ("docs/b.md", "")];
        assert_eq!(places(check, &files), ["docs/b.md"]);
        assert_eq!(places(check, &files[1..2]), ["docs/a.md", "docs/a.md:1"]);
    }

    #[test]
    fn a_link_to_nowhere_is_a_problem_on_every_page() {
        let files = [
            ("README.md", "[docs](docs) [gone](docs/gone.md)\n"),
            ("ARCHITECTURE.md", "A line.\n[out](../out.md)\n"),
            ("docs/README.md", "[up](../README.md) [none](none.md#x)\n"),
        ];
        assert_eq!(places(check, &files), ["ARCHITECTURE.md:2", "README.md:1", "docs/README.md:1"]);
    }
}
