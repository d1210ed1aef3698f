//! The tasks by name, and training from a recipe alone.

use std::ops::ControlFlow;
use std::path::Path;

use endoscope_train::{Outcome, Progress, Recipe};
use toml::Table;

use crate::error::{Error, Result};
use crate::task::Task;
use crate::tasks::repeated_sequences::{self, RepeatedSequences};
use crate::tokenizer::tokenizer_files;

/// The names of all tasks.
pub const TASKS: &[&str] = &[repeated_sequences::NAME];

/// The task `name` with the other keys of `[task]`.
pub fn task(name: &str, parameters: &Table) -> Result<Box<dyn Task>> {
    match name {
        repeated_sequences::NAME => Ok(Box::new(RepeatedSequences::from_parameters(parameters)?)),
        _ => Err(Error::UnknownTask { name: name.to_string(), known: TASKS.join(", ") }),
    }
}

/// Trains the model of `recipe` into `out`, with the task's tokenizer. See [`endoscope_train::train`].
pub fn train(recipe: &Recipe, out: &Path, observer: &mut dyn FnMut(&Progress) -> ControlFlow<()>) -> Result<Outcome> {
    let task = task(&recipe.task.name, &recipe.task.parameters)?;
    let (context, length) = (recipe.model.context, task.length());
    if length > context {
        return Err(Error::Context { task: task.name(), context, length });
    }
    let companions = tokenizer_files(&task.words(), context)?;
    Ok(endoscope_train::train(recipe, &*task, &companions, out, observer)?)
}
