//! A Rust file as tokens: what stands in comments and strings cannot be mistaken for code.

use std::ops::RangeInclusive;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::tidy::Problem;

#[derive(Debug)]
pub struct Source {
    /// From the root of the repository.
    pub path: String,
    pub text: String,
    pub tokens: Vec<Token>,
    /// The lines of items under `#[cfg(test)]`.
    tests: Vec<RangeInclusive<usize>>,
}

#[derive(Debug)]
pub struct Token {
    /// A name, one character of punctuation, a bracket, or a literal as written.
    pub text: String,
    /// From 1.
    pub line: usize,
}

impl Source {
    pub fn parse(path: &str, text: &str) -> Result<Self, Problem> {
        let stream: TokenStream = text.parse().map_err(|error: proc_macro2::LexError| {
            Problem::at(
                path,
                error.span().start().line,
                format!("is not Rust ({error}): mend it, so that it can be checked"),
            )
        })?;
        let mut tokens = Vec::new();
        flatten(stream, &mut tokens);
        let tests = test_items(&tokens);
        Ok(Self { path: path.to_owned(), text: text.to_owned(), tokens, tests })
    }

    /// The lines on which `pattern` begins, each token of it being one token of the file.
    pub fn find<'a>(&'a self, pattern: &'a [&str]) -> impl Iterator<Item = usize> + 'a {
        self.tokens.windows(pattern.len()).filter(|window| matches(window, pattern)).map(|window| window[0].line)
    }

    /// The crate, if this is part of its `src/` and not a file of tests.
    pub fn house(&self) -> Option<&str> {
        let rest = self.path.strip_prefix("crates/").unwrap_or(&self.path);
        let (name, inside) = rest.split_once('/')?;
        (inside.starts_with("src/") && !self.is_test_file()).then_some(name)
    }

    pub fn is_test_file(&self) -> bool {
        self.path.split('/').any(|part| part == "tests" || part == "tests.rs")
    }

    pub fn is_test_line(&self, line: usize) -> bool {
        self.is_test_file() || self.tests.iter().any(|lines| lines.contains(&line))
    }
}

fn flatten(stream: TokenStream, tokens: &mut Vec<Token>) {
    for tree in stream {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                tokens.push(Token { text: open.to_owned(), line });
                let end = group.span_close().start().line;
                flatten(group.stream(), tokens);
                tokens.push(Token { text: close.to_owned(), line: end });
            }
            other => tokens.push(Token { text: other.to_string(), line }),
        }
    }
}

fn matches(tokens: &[Token], pattern: &[&str]) -> bool {
    tokens.iter().map(|token| token.text.as_str()).eq(pattern.iter().copied())
}

fn test_items(tokens: &[Token]) -> Vec<RangeInclusive<usize>> {
    let attribute = ["#", "[", "cfg", "(", "test", ")", "]"];
    let starts = tokens.windows(attribute.len()).enumerate().filter(|(_, window)| matches(window, &attribute));
    starts.filter_map(|(at, window)| Some(window[0].line..=end_of_item(&tokens[at + attribute.len()..])?)).collect()
}

/// The last line of the item at the start of `tokens`: that of its `;` or of the brace that closes its body.
fn end_of_item(tokens: &[Token]) -> Option<usize> {
    let mut depth = 0_usize;
    for token in tokens {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" => depth = depth.checked_sub(1)?,
            "}" => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(token.line);
                }
            }
            ";" if depth == 0 => return Some(token.line),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(path: &str, text: &str) -> Source {
        Source::parse(path, text).expect("Rust")
    }

    #[test]
    fn comments_doc_comments_and_strings_are_not_code() {
        let text =
            "/// x.println!()\n// println!\nfn f() {\n    let _ = \"println!\"; /* println! */\n    println!();\n}\n";
        assert_eq!(parsed("src/a.rs", text).find(&["println", "!"]).collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn test_items_reach_to_their_closing_brace() {
        let text = "fn a() {}\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n    fn b() { {} }\n}\nfn c() {}\n#[cfg(test)]\nmod more;\nfn d() {}\n";
        let source = parsed("crates/x/src/a.rs", text);
        let lines: Vec<usize> = (1..=10).filter(|line| source.is_test_line(*line)).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6, 8, 9]);
    }

    #[test]
    fn a_house_is_a_crate_and_its_tests_are_outside() {
        let house = |path: &str| parsed(path, "").house().map(str::to_owned);
        assert_eq!(house("crates/endoscope-net/src/plan.rs").as_deref(), Some("endoscope-net"));
        assert_eq!(house("xtask/src/main.rs").as_deref(), Some("xtask"));
        assert_eq!(house("crates/endoscope-net/tests/plan.rs"), None);
        assert_eq!(house("crates/endoscope-net/src/plan/tests.rs"), None);
        assert_eq!(house("crates/endoscope-net/examples/plan.rs"), None);
    }

    #[test]
    fn what_is_not_rust_is_a_problem_with_its_line() {
        let problem = Source::parse("src/a.rs", "fn f() {\n    )\n").expect_err("a problem");
        assert_eq!((problem.path.as_str(), problem.line), ("src/a.rs", Some(2)));
    }
}
