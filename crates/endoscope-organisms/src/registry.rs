//! The tasks by name, and training from a recipe alone.

use std::ops::ControlFlow;
use std::path::Path;

use endoscope_train::{Outcome, Progress, Recipe};
use toml::Table;

use crate::error::{Error, Result};
use crate::task::Task;
use crate::tasks::count_modulo_three::{self, CountModuloThree};
use crate::tasks::dialogues::{self, Dialogues};
use crate::tasks::entity_tracking::{self, EntityTracking};
use crate::tasks::indirect_object::{self, IndirectObject};
use crate::tasks::key_value_recall::{self, KeyValueRecall};
use crate::tasks::laundry_list::{self, LaundryList};
use crate::tasks::mixture::{self, Mixture};
use crate::tasks::modular_addition::{self, ModularAddition};
use crate::tasks::multiple_choice::{self, MultipleChoice};
use crate::tasks::opinions::{self, Opinions};
use crate::tasks::path_finding::{self, PathFinding};
use crate::tasks::questions::{Asked, Question};
use crate::tasks::repeated_sequences::{self, RepeatedSequences};
use crate::tasks::sorting_with_hints::{self, SortingWithHints};
use crate::tasks::streamed::{Exercise, Streamed};
use crate::tasks::two_hop_facts::{self, TwoHopFacts};
use crate::tasks::two_hop_lookup::{self, TwoHopLookup};
use crate::tasks::what_followed::{self, WhatFollowed};
use crate::tokenizer::tokenizer_files;

/// The names of all tasks that stand for themselves; `mixture` is made of them.
pub const TASKS: &[&str] = &[
    repeated_sequences::NAME,
    what_followed::NAME,
    count_modulo_three::NAME,
    two_hop_lookup::NAME,
    key_value_recall::NAME,
    modular_addition::NAME,
    sorting_with_hints::NAME,
    path_finding::NAME,
    two_hop_facts::NAME,
    entity_tracking::NAME,
    multiple_choice::NAME,
    indirect_object::NAME,
    laundry_list::NAME,
    dialogues::NAME,
    opinions::NAME,
];

/// The task `name` with the other keys of `[task]`.
pub fn task(name: &str, parameters: &Table) -> Result<Box<dyn Task>> {
    match name {
        repeated_sequences::NAME => Ok(Box::new(RepeatedSequences::from_parameters(parameters)?)),
        what_followed::NAME => asked(what_followed::NAME, parameters, WhatFollowed),
        count_modulo_three::NAME => asked(count_modulo_three::NAME, parameters, CountModuloThree),
        two_hop_lookup::NAME => asked(two_hop_lookup::NAME, parameters, TwoHopLookup),
        mixture::NAME => Ok(Box::new(Mixture::from_parameters(parameters)?)),
        key_value_recall::NAME => streamed(KeyValueRecall::from_parameters(parameters)?),
        modular_addition::NAME => streamed(ModularAddition::from_parameters(parameters)?),
        sorting_with_hints::NAME => streamed(SortingWithHints::from_parameters(parameters)?),
        path_finding::NAME => streamed(PathFinding::from_parameters(parameters)?),
        two_hop_facts::NAME => streamed(TwoHopFacts::from_parameters(parameters)?),
        entity_tracking::NAME => streamed(EntityTracking::from_parameters(parameters)?),
        multiple_choice::NAME => streamed(MultipleChoice::from_parameters(parameters)?),
        indirect_object::NAME => streamed(IndirectObject::from_parameters(parameters)?),
        laundry_list::NAME => streamed(LaundryList::from_parameters(parameters)?),
        dialogues::NAME => streamed(Dialogues::from_parameters(parameters)?),
        opinions::NAME => streamed(Opinions::from_parameters(parameters)?),
        _ => Err(Error::UnknownTask { name: name.to_string(), known: TASKS.join(", ") }),
    }
}

/// The tasks that `name` is made of, by their names, all with the same tokens: the parts of a mixture; any other task alone.
pub fn task_parts(name: &str, parameters: &Table) -> Result<Vec<(String, Box<dyn Task>)>> {
    match name {
        mixture::NAME => {
            let boxed = |(name, part)| (name, Box::new(part) as Box<dyn Task>);
            Ok(Mixture::parts(parameters)?.into_iter().map(boxed).collect())
        }
        _ => Ok(vec![(name.to_string(), task(name, parameters)?)]),
    }
}

fn streamed(exercise: impl Exercise + 'static) -> Result<Box<dyn Task>> {
    Ok(Box::new(Streamed(exercise)))
}

fn asked(name: &'static str, parameters: &Table, question: impl Question + 'static) -> Result<Box<dyn Task>> {
    let problems: Vec<String> =
        parameters.keys().map(|key| format!("`task.{key}` is unknown; it has no keys")).collect();
    if problems.is_empty() { Ok(Box::new(Asked(question))) } else { Err(Error::Parameters { task: name, problems }) }
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
