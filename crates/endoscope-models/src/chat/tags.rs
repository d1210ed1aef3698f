//! `{% generation %}` … `{% endgeneration %}`: transformers' own tags, which mark what a model has said and write
//! nothing. Minijinja has no tags of others, so here they become `{% with %}` … `{% endwith %}`: the same scope, the same
//! control of blanks.

/// The template with its generation tags replaced. Texts, comments and raw blocks keep what they hold.
///
/// Ends of lines become `\n`, as in Jinja.
pub fn replace_generation(source: &str) -> String {
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
                match name {
                    "raw" => raw = true,
                    "endraw" => raw = false,
                    "generation" | "endgeneration" if !raw => {
                        written.push_str(&from[..lead]);
                        written.push_str(if name == "generation" { "with" } else { "endwith" });
                        rest = &from[lead + name.len()..];
                        continue;
                    }
                    _ => {}
                }
                if raw { 2 } else { expression(from, "%}") }
            }
            _ => 1,
        };
        written.push_str(&from[..length]);
        rest = &from[length..];
    }
    written + rest
}

/// Where the name of a tag begins, and the name.
fn tag(from: &str) -> (usize, &str) {
    let inner = from[2..].trim_start_matches(['-', '+']).trim_start();
    let end = inner.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inner.len());
    (from.len() - inner.len(), &inner[..end])
}

/// The length of an expression or tag that ends with `close`, which may also stand in its texts.
fn expression(from: &str, close: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (at, character) in from.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if character == '\\' => escaped = true,
            Some(open) if character == open => quote = None,
            Some(_) => {}
            None if matches!(character, '"' | '\'') => quote = Some(character),
            None if from[at..].starts_with(close) => return at + close.len(),
            None => {}
        }
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
            ("{% set x = '%}{% generation %}' %}", "{% set x = '%}{% generation %}' %}"),
            ("a\r\nb\rc", "a\nb\nc"),
            ("{", "{"),
            ("{%", "{%"),
            ("{{ 'a", "{{ 'a"),
        ] {
            assert_eq!(replace_generation(source), expected);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_source_panics_and_others_stay(source in r#"([{}%#'" a-]|é|raw|generation|endraw|\\){0,40}"#) {
            let replaced = replace_generation(&source);
            if !source.contains("generation") {
                proptest::prop_assert_eq!(replaced, source);
            }
        }
    }
}
