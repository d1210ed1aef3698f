//! What is rewritten in a template's source before minijinja reads it.
//!
//! * `{% generation %}` … `{% endgeneration %}`: transformers' own tags, which mark what a model has said and write
//!   nothing. Minijinja has no tags of others, so they become `{% with %}` … `{% endwith %}`: the same scope, the same
//!   control of blanks.
//! * `{% set x = value %}` becomes `{% set x = __assigned((value)) %}`, which bounds how deep values are
//!   ([`super::assigned`]).

use super::assigned::{ATTRIBUTE, VARIABLE};

/// The template with its tags rewritten. Texts, comments and raw blocks keep what they hold.
///
/// Ends of lines become `\n`, as in Jinja.
pub fn rewritten(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut written = String::with_capacity(source.len());
    let mut rest = source.as_str();
    let mut raw = false;
    while let Some(start) = rest.find('{') {
        let (before, from) = rest.split_at(start);
        written.push_str(before);
        let length = match from.as_bytes().get(1) {
            Some(b'#') if !raw => from.find("#}").map_or(from.len(), |end| end + 2),
            Some(b'{') if !raw => expression(from, "}}"),
            Some(b'%') => {
                let (lead, name) = tag(from);
                let length = expression(from, "%}");
                match name {
                    "raw" => raw = true,
                    "endraw" => raw = false,
                    _ => {}
                }
                let changed = match name {
                    _ if raw => None,
                    "generation" => Some(("with".to_string(), lead + name.len())),
                    "endgeneration" => Some(("endwith".to_string(), lead + name.len())),
                    "set" => assignment(&from[lead..length]).map(|changed| (changed, length)),
                    _ => None,
                };
                if let Some((changed, length)) = changed {
                    written.push_str(&from[..lead]);
                    written.push_str(&changed);
                    rest = &from[length..];
                    continue;
                }
                if raw { 2 } else { length }
            }
            _ => 1,
        };
        written.push_str(&from[..length]);
        rest = &from[length..];
    }
    written + rest
}

/// The rest of an assignment from its `set` on, with its value passed through a function; `None` if it is none (a block
/// `{% set x %}`), or is no Jinja.
fn assignment(tag: &str) -> Option<String> {
    let (target, value) = tag.split_once('=')?;
    let names = |c: char| c.is_alphanumeric() || c.is_whitespace() || matches!(c, '_' | '.' | ',' | '(' | ')');
    let value = value.strip_suffix("%}")?;
    let end = if value.ends_with(['-', '+']) { value.len() - 1 } else { value.len() };
    let (value, control) = value.split_at(end);
    if !target.chars().all(names) || value.starts_with('=') || value.trim().is_empty() || !is_closed(value) {
        return None;
    }
    let function = if target.contains('.') { ATTRIBUTE } else { VARIABLE };
    Some(format!("{target}= {function}(({value})) {control}%}}"))
}

/// Whether no bracket closes that the text did not open, so that none of it gets out of brackets around it.
fn is_closed(value: &str) -> bool {
    let mut depth = 0i64;
    unquoted(value).all(|(_, character)| {
        depth += opened(character);
        depth >= 0
    }) && depth == 0
}

/// How many brackets a character opens.
fn opened(character: char) -> i64 {
    match character {
        '(' | '[' | '{' => 1,
        ')' | ']' | '}' => -1,
        _ => 0,
    }
}

/// The characters that do not stand in texts, and where.
fn unquoted(source: &str) -> impl Iterator<Item = (usize, char)> {
    let mut quote = None;
    let mut escaped = false;
    source.char_indices().filter(move |&(_, character)| match quote {
        Some(_) if escaped => {
            escaped = false;
            false
        }
        Some(open) => {
            escaped = character == '\\';
            if character == open {
                quote = None;
            }
            false
        }
        None => {
            quote = matches!(character, '"' | '\'').then_some(character);
            quote.is_none()
        }
    })
}

/// Where the name of a tag begins, and the name.
fn tag(from: &str) -> (usize, &str) {
    let inner = from[2..].trim_start_matches(['-', '+']).trim_start();
    let end = inner.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inner.len());
    (from.len() - inner.len(), &inner[..end])
}

/// The length of an expression or tag that ends with `close`, which may also stand in its texts and brackets.
fn expression(from: &str, close: &str) -> usize {
    let mut depth = 0;
    for (at, character) in unquoted(&from[2..]) {
        if depth <= 0 && from[2 + at..].starts_with(close) {
            return 2 + at + close.len();
        }
        depth += opened(character);
    }
    from.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tags_are_replaced() {
        for (source, expected) in [
            ("a {% generation %}b{%- endgeneration -%} c", "a {% with %}b{%- endwith -%} c"),
            ("{%-generation-%}{%+ endgeneration%}", "{%-with-%}{%+ endwith%}"),
            ("{%\n  generation\n%}", "{%\n  with\n%}"),
            ("{% if generation %}{{ generation }}{% endif %}", "{% if generation %}{{ generation }}{% endif %}"),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
            (r#"{{ "\"{% generation %}" }}"#, r#"{{ "\"{% generation %}" }}"#),
            ("{# {% generation %} #}", "{# {% generation %} #}"),
            ("{% raw %}{% generation %}{% endraw %}", "{% raw %}{% generation %}{% endraw %}"),
            ("{% raw %}{# {% endraw %}{% generation %}", "{% raw %}{# {% endraw %}{% with %}"),
            ("{% generations %}", "{% generations %}"),
            (
                "{{ {'a': {'b': '}}{% generation %}'}} }}{% generation %}",
                "{{ {'a': {'b': '}}{% generation %}'}} }}{% with %}",
            ),
            ("{% set x = '%}{% generation %}' %}", "{% set x = __assigned(( '%}{% generation %}' )) %}"),
            ("{%- set a, b=1, 2 -%}", "{%- set a, b= __assigned((1, 2 )) -%}"),
            ("{% set ns.x = {'a': {}} %}", "{% set ns.x = __assigned_attribute(( {'a': {}} )) %}"),
            ("{% set x = 1)) + ((2 %}", "{% set x = 1)) + ((2 %}"),
            ("{% set x = (1 %}", "{% set x = (1 %}"),
            ("{% set x %}={% endset %}", "{% set x %}={% endset %}"),
            ("{% set x | replace('=', '') %}", "{% set x | replace('=', '') %}"),
            ("{% set x == 1 %}", "{% set x == 1 %}"),
            ("{% set x = %}", "{% set x = %}"),
            ("{% raw %}{% set x = 1 %}{% endraw %}", "{% raw %}{% set x = 1 %}{% endraw %}"),
            ("a\r\nb\rc", "a\nb\nc"),
            ("{", "{"),
            ("{%", "{%"),
            ("{{ 'a", "{{ 'a"),
        ] {
            assert_eq!(rewritten(source), expected);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_source_panics_and_others_stay(source in r#"([{}%#'" a-]|é|raw|set x=|generation|endraw|\\){0,40}"#) {
            let replaced = rewritten(&source);
            if !source.contains("generation") && !source.contains("set") {
                proptest::prop_assert_eq!(replaced, source);
            }
        }
    }
}
