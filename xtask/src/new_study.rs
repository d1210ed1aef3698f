//! `cargo xtask new-study SLUG`: the one file of a study, from the template, and its line in the list of studies.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const CATALOGUE: &str = "crates/endoscope-studies/catalogue.toml";
const STUDIES: &str = "crates/endoscope-studies/src/studies";
/// What the template calls itself.
const TEMPLATE: (&str, &str) = ("Template", "agent-behaviour");

/// Writes the file and the line; gives back the file's path.
pub fn write(root: &Path, slug: &str) -> Result<PathBuf> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    if !read(&root.join(CATALOGUE))?.contains(&format!("\nslug = \"{slug}\"\n")) {
        bail!("no paper of {CATALOGUE} has the slug `{slug}`; write its card first");
    }
    let folder = root.join(STUDIES);
    let file = folder.join(format!("{}.rs", module(slug)));
    if file.exists() {
        bail!("{} exists already", file.display());
    }
    let list = folder.join("mod.rs");
    let listed =
        with_line(&read(&list)?, slug).with_context(|| format!("{} has no list `studies! {{ … }}`", list.display()))?;
    let text = from_template(&read(&folder.join("template.rs"))?, slug);
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    fs::write(&list, listed).with_context(|| format!("cannot write {}", list.display()))?;
    Ok(file)
}

fn from_template(template: &str, slug: &str) -> String {
    let (name, paper) = TEMPLATE;
    template.replace(name, &type_name(slug)).replace(paper, slug)
}

/// The list of studies with one more line, in order of name; nothing if there is no list.
fn with_line(text: &str, slug: &str) -> Option<String> {
    const OPENS: &str = "\nstudies! {\n";
    let begin = text.find(OPENS)? + OPENS.len();
    let end = begin + text[begin..].find('}')?;
    let mut lines: Vec<String> = text[begin..end].lines().map(str::to_string).collect();
    lines.push(format!("    {}::{},", module(slug), type_name(slug)));
    lines.sort();
    Some(format!("{}{}\n{}", &text[..begin], lines.join("\n"), &text[end..]))
}

fn module(slug: &str) -> String {
    slug.replace('-', "_")
}

/// `cot-circuit` as `CotCircuit`.
fn type_name(slug: &str) -> String {
    let capitalised = |word: &str| {
        let mut letters = word.chars();
        letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
    };
    slug.split('-').map(capitalised).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_study_gets_its_file_and_its_line() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join(STUDIES);
        fs::create_dir_all(&folder).unwrap();
        fs::write(root.path().join(CATALOGUE), "[[paper]]\nnumber = 1\nslug = \"cot-circuit\"\n").unwrap();
        fs::write(folder.join("template.rs"), "pub struct Template;\nconst SLUG: &str = \"agent-behaviour\";\n")
            .unwrap();
        fs::write(
            folder.join("mod.rs"),
            "//! x\n\nstudies! {\n    atoms::Atoms,\n    talking_heads::TalkingHeads,\n}\n\nmod x;\n",
        )
        .unwrap();
        let written = write(root.path(), "cot-circuit").unwrap();
        assert_eq!(
            fs::read_to_string(&written).unwrap(),
            "pub struct CotCircuit;\nconst SLUG: &str = \"cot-circuit\";\n"
        );
        assert!(written.ends_with("cot_circuit.rs"));
        let list = fs::read_to_string(folder.join("mod.rs")).unwrap();
        let expected = "//! x\n\nstudies! {\n    atoms::Atoms,\n    cot_circuit::CotCircuit,\n    talking_heads::TalkingHeads,\n}\n\nmod x;\n";
        assert_eq!(list, expected);
        assert!(write(root.path(), "cot-circuit").unwrap_err().to_string().contains("exists"));
        assert!(write(root.path(), "cot").unwrap_err().to_string().contains("card"));
        assert_eq!(fs::read_to_string(folder.join("mod.rs")).unwrap(), expected, "nothing was changed");
    }

    #[test]
    fn the_repository_itself_has_what_is_needed() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let template = fs::read_to_string(root.join(STUDIES).join("template.rs")).unwrap();
        let text = from_template(&template, "cot-circuit");
        assert!(text.contains("impl Study for CotCircuit") && text.contains("\"cot-circuit\""));
        assert!(!text.contains("Template") && !text.contains("agent-behaviour"));
        let list = fs::read_to_string(root.join(STUDIES).join("mod.rs")).unwrap();
        assert!(with_line(&list, "cot-circuit").unwrap().contains("\n    cot_circuit::CotCircuit,\n"));
    }
}
