//! What `{% set %}` may store: values of bounded depth.
//!
//! Work is bounded by fuel, but a value that is nested a million times deep overflows the stack when it is compared,
//! written or only let go. Such a value has to be built step by step, and the steps are assignments; so
//! [`super::tags`] passes each through [`VARIABLE`] or, for attributes of a namespace, [`ATTRIBUTE`].

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// The function that values of plain assignments pass through.
pub const VARIABLE: &str = "__assigned";
/// The function that values of a namespace's attributes pass through. These live on from one turn of a loop to the next,
/// so they may hold neither namespaces (which could then hold themselves) nor what keeps a past scope, as macros do.
pub const ATTRIBUTE: &str = "__assigned_attribute";

/// JSON that was read is never so deep.
const DEEPEST: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Variable,
    Attribute,
}

/// Adds both functions.
pub fn install(environment: &mut Environment<'_>) {
    environment.add_function(VARIABLE, |state: &State, value: Value| assigned(state, value, Target::Variable));
    environment.add_function(ATTRIBUTE, |state: &State, value: Value| assigned(state, value, Target::Attribute));
}

/// The value; a list, if it was a promise of one, as slices are.
fn assigned(state: &State, value: Value, target: Target) -> Result<Value, Error> {
    let value = match value.kind() {
        ValueKind::Iterable => {
            let items = value.try_iter()?.map(|item| state.consume_fuel(1).map(|()| item));
            Value::from(items.collect::<Result<Vec<Value>, Error>>()?)
        }
        _ => value,
    };
    check(state, &value, target, DEEPEST)?;
    Ok(value)
}

fn check(state: &State, value: &Value, target: Target, levels: usize) -> Result<(), Error> {
    state.consume_fuel(1)?;
    let refused = |what: &str| Err(Error::new(ErrorKind::InvalidOperation, what.to_string()));
    if levels == 0 {
        return refused("a value nested too deeply");
    }
    match (value.kind(), target) {
        (ValueKind::Seq, _) => value.try_iter()?.try_for_each(|item| check(state, &item, target, levels - 1)),
        (ValueKind::Map, Target::Attribute) if is_namespace(value) => refused("a namespace cannot hold a namespace"),
        (ValueKind::Map, _) => {
            value.try_iter()?.try_for_each(|key| check(state, &value.get_item(&key)?, target, levels - 1))
        }
        (ValueKind::Plain | ValueKind::Iterable, Target::Attribute) => {
            refused("a namespace holds texts, numbers, lists and mappings; not macros, nor slices inside a list")
        }
        _ => Ok(()),
    }
}

/// The type is minijinja's own; a template that nests namespaces (tests/chat.rs) tells if its name changes.
fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}
