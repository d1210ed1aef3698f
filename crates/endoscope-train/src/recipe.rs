//! Recipes: everything that a trained model is a function of, as a TOML file.

use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::checkpoints::{Checkpoints, EarlyStop};
use crate::error::{Error, Result};
use crate::loss::LossOn;
use crate::model_recipe::ModelRecipe;
use crate::recipe_keys::shape_problems;
use crate::start::Start;

/// What to train, on what, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The architecture.
    pub model: ModelRecipe,
    /// What it learns.
    pub task: TaskRecipe,
    /// How it learns.
    pub training: TrainingRecipe,
}

/// The task by its name in the registry (`endoscope-organisms`), which checks the parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRecipe {
    /// The task's name.
    pub name: String,
    /// The task's own keys.
    #[serde(flatten)]
    pub parameters: Table,
}

/// How it learns: AdamW under a warmed-up cosine schedule. Only the first four keys must be given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingRecipe {
    /// How many updates.
    pub steps: u64,
    /// Sequences an update.
    pub batch: usize,
    /// Seed of the initial weights and of the data.
    pub seed: u64,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// Updates until the learning rate is at its highest; default 0.
    pub warmup_steps: u64,
    /// The learning rate at the end, as a fraction of the highest; default 0.1.
    pub final_learning_rate: f64,
    /// Decoupled weight decay of matrices (not of norms, biases and embeddings); default 0.01.
    pub weight_decay: f64,
    /// Decay of the gradient's running mean; default 0.9.
    pub beta1: f64,
    /// Decay of the gradient's running mean square; default 0.99.
    pub beta2: f64,
    /// Added to the root of the mean square; default 1e-8.
    pub epsilon: f64,
    /// The longest gradient, over all weights together; default 1, `inf` for none.
    pub gradient_clip: f64,
    /// A checkpoint every so many updates; default 500.
    pub checkpoint_every: u64,
    /// Standard deviation of the initial matrices; default 0.02.
    pub init_std: f64,
    /// Which tokens the loss is taken over: `certain` (those that the task says are certain; the default) or `every`.
    pub loss: LossOn,
    /// Into how many parts a batch is cut that go through the model one after the other; the gradients are those of the
    /// whole batch, the memory that of a part. Default 1.
    pub accumulate: usize,
    /// How much of the running mean of the weights an update keeps, such as 0.999; absent for none. The mean is a model
    /// of its own, in the folder `ema` of the result and of each checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// When to stop before the last step; absent for never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stop: Option<EarlyStop>,
    /// The steps whose weights are kept in the series; absent for no series.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<Checkpoints>,
    /// The model whose weights are in the place of drawn ones, for fine-tuning; absent for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
}

impl Default for TrainingRecipe {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch: 32,
            seed: 0,
            learning_rate: 1e-3,
            warmup_steps: 0,
            final_learning_rate: 0.1,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            gradient_clip: 1.,
            checkpoint_every: 500,
            init_std: 0.02,
            loss: LossOn::Certain,
            accumulate: 1,
            ema: None,
            early_stop: None,
            checkpoints: None,
            start: None,
        }
    }
}

impl Recipe {
    /// Reads recipe.toml.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|error| Error::read(path, error))?;
        Self::parse(path, &text)
    }

    /// Parses the text of a recipe; `path` is what errors name. Every problem is reported at once.
    pub fn parse(path: impl AsRef<Path>, text: &str) -> Result<Self> {
        let fail = |problems| Error::Recipe { path: path.as_ref().to_path_buf(), problems };
        let table: Table = toml::from_str(text).map_err(|error| fail(vec![error.to_string()]))?;
        let mut problems = shape_problems(&table);
        if !problems.is_empty() {
            return Err(fail(problems));
        }
        let mut recipe: Self = table.try_into().map_err(|error: toml::de::Error| fail(vec![error.to_string()]))?;
        if let (Some(start), Some(folder)) = (&mut recipe.training.start, path.as_ref().parent()) {
            start.folder = folder.to_path_buf();
        }
        problems.extend(recipe.problems());
        if problems.is_empty() { Ok(recipe) } else { Err(fail(problems)) }
    }

    /// The same with another seed.
    pub fn with_seed(&self, seed: u64) -> Self {
        let mut recipe = self.clone();
        recipe.training.seed = seed;
        recipe
    }

    /// The text that [`Recipe::parse`] reads as this recipe.
    pub fn to_toml(&self) -> Result<String> {
        let fail =
            |error: toml::ser::Error| Error::Recipe { path: "recipe.toml".into(), problems: vec![error.to_string()] };
        toml::to_string(self).map_err(fail)
    }

    /// Everything that makes no sense in its values; empty if it is fine.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.model.problems();
        problems.extend(self.training.problems());
        problems
    }

    /// Each key whose value differs in `other`, with both values.
    pub(crate) fn changes(&self, other: &Self) -> Vec<String> {
        let flatten = |recipe: &Self| {
            let mut keys = std::collections::BTreeMap::new();
            if let Ok(table) = Table::try_from(recipe) {
                flatten("", &Value::Table(table), &mut keys);
            }
            keys
        };
        let (before, after) = (flatten(self), flatten(other));
        let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
        names.sort();
        names.dedup();
        let shown = |value: Option<&String>| value.cloned().unwrap_or_else(|| "absent".into());
        names
            .into_iter()
            .filter(|&name| before.get(name) != after.get(name))
            .map(|name| format!("{name} was {}, is now {}", shown(before.get(name)), shown(after.get(name))))
            .collect()
    }
}

fn flatten(prefix: &str, value: &Value, keys: &mut std::collections::BTreeMap<String, String>) {
    match value {
        Value::Table(table) => {
            for (name, value) in table {
                let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&name, value, keys);
            }
        }
        value => {
            keys.insert(prefix.to_string(), value.to_string());
        }
    }
}

impl TrainingRecipe {
    fn problems(&self) -> Vec<String> {
        let fraction = |x: f64| (0. ..=1.).contains(&x);
        let decay = |x: f64| (0. ..1.).contains(&x);
        let positive = |x: f64| x > 0. && x.is_finite();
        let checks = [
            ("steps", self.steps as f64, self.steps > 0, "at least 1"),
            ("batch", self.batch as f64, self.batch > 0, "at least 1"),
            ("learning_rate", self.learning_rate, positive(self.learning_rate), "positive"),
            ("warmup_steps", self.warmup_steps as f64, self.warmup_steps <= self.steps, "at most `training.steps`"),
            ("final_learning_rate", self.final_learning_rate, fraction(self.final_learning_rate), "from 0 to 1"),
            ("weight_decay", self.weight_decay, fraction(self.weight_decay), "from 0 to 1"),
            ("beta1", self.beta1, decay(self.beta1), "from 0 to less than 1"),
            ("beta2", self.beta2, decay(self.beta2), "from 0 to less than 1"),
            ("epsilon", self.epsilon, positive(self.epsilon), "positive"),
            ("gradient_clip", self.gradient_clip, self.gradient_clip > 0., "positive (inf for none)"),
            ("checkpoint_every", self.checkpoint_every as f64, self.checkpoint_every > 0, "at least 1"),
            ("init_std", self.init_std, positive(self.init_std), "positive"),
            (
                "accumulate",
                self.accumulate as f64,
                (1..=self.batch.max(1)).contains(&self.accumulate),
                "from 1 to `training.batch`",
            ),
            ("ema", self.ema.unwrap_or(0.), self.ema.is_none_or(decay), "from 0 to less than 1"),
        ];
        let wrong = checks.into_iter().filter(|(_, _, fine, _)| !fine);
        let mut problems: Vec<String> = wrong
            .map(|(name, value, _, wanted)| format!("`training.{name}` is {value}; it must be {wanted}"))
            .collect();
        problems.extend(self.early_stop.iter().flat_map(|early_stop| early_stop.problems()));
        problems.extend(self.checkpoints.iter().flat_map(|checkpoints| checkpoints.problems(self.steps)));
        problems.extend(self.start.iter().filter_map(Start::problem));
        problems
    }
}

#[cfg(test)]
mod tests {
    use endoscope_models::Activation;

    use super::*;
    use crate::model_recipe::{PositionsRecipe, Shape, ShortKeys};
    use crate::recipe_keys::{SHORT_KEYS, TRAINING_KEYS};

    const GOOD: &str = r#"
        [model]
        family = "llama"
        context = 16
        d_model = 8
        layers = 2
        heads = 4
        kv_heads = 2
        d_mlp = 12
        [task]
        name = "anything"
        words = 5
        [training]
        steps = 10
        batch = 2
        seed = 3
        learning_rate = 1
        gradient_clip = inf
    "#;

    fn problems(text: &str) -> Vec<String> {
        match Recipe::parse("r.toml", text) {
            Err(Error::Recipe { problems, .. }) => problems,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_recipe_survives_its_own_text() {
        let recipe = Recipe::parse("r.toml", GOOD).unwrap();
        assert_eq!(recipe.task.parameters["words"].as_integer(), Some(5));
        assert_eq!(Recipe::parse("r.toml", &recipe.to_toml().unwrap()).unwrap(), recipe);
        let spec = recipe.model.spec(30).unwrap();
        assert_eq!((spec.d_head, spec.kv_heads, spec.vocabulary, spec.tied), (2, 2, 30, false));
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let text = GOOD
            .replace("context = 16", "contxt = 16")
            .replace("layers = 2", "layers = \"two\"")
            .replace("\"llama\"", "\"mamba\"")
            .replace("seed = 3", "seed = -3")
            .replace("name = \"anything\"", "");
        let found = problems(&text);
        for key in ["model.contxt", "model.context", "model.layers", "model.family", "training.seed", "task.name"] {
            assert!(found.iter().any(|problem| problem.contains(&format!("`{key}`"))), "{key}: {found:#?}");
        }
        assert_eq!(found.len(), 6, "{found:#?}");
        let text = GOOD.replace("batch = 2", "batch = 0").replace("learning_rate = 1", "learning_rate = nan");
        let text = text.replace("d_model = 8", "d_model = 9").replace("seed = 3", "seed = 3\nbeta2 = 1");
        let found = problems(&text);
        for key in ["training.batch", "training.learning_rate", "model.d_model", "training.beta2"] {
            assert!(found.iter().any(|problem| problem.contains(&format!("`{key}`"))), "{key}: {found:#?}");
        }
        assert_eq!(problems("model = 3\n[other]").len(), 4);
        assert_eq!(problems("[model").len(), 1);
        assert_eq!(problems(&GOOD.replace("\"llama\"", "\"gpt2\"")).len(), 1, "kv_heads does not apply to gpt2");
    }

    #[test]
    fn the_tables_of_keys_are_complete() {
        let mut recipe = Recipe::parse("r.toml", GOOD).unwrap();
        let Shape::Short(keys) = recipe.model.shape else { panic!("{:?}", recipe.model) };
        recipe.model.shape = Shape::Short(ShortKeys {
            d_head: Some(2),
            activation: Some(Activation::Relu),
            tied: Some(true),
            attention_bias: Some(true),
            mlp_bias: Some(true),
            rotary_base: Some(100.),
            positions: Some(PositionsRecipe::None),
            ..keys
        });
        recipe.training = TrainingRecipe {
            ema: Some(0.9),
            early_stop: Some(EarlyStop { accuracy: 0.9, updates: 5 }),
            checkpoints: Some(Checkpoints::Every { every: 3 }),
            start: Some(Start::new("base", "0".repeat(64))),
            ..recipe.training
        };
        let table = Table::try_from(&recipe).unwrap();
        for (section, keys) in [("model", SHORT_KEYS), ("training", TRAINING_KEYS)] {
            let mut known: Vec<&str> = keys.iter().map(|(name, ..)| *name).collect();
            known.sort();
            let mut written: Vec<&str> = table[section].as_table().unwrap().keys().map(String::as_str).collect();
            written.sort();
            assert_eq!(written, known);
        }
    }

    #[test]
    fn tables_and_lists_of_training_are_read_and_checked() {
        let with = |line: &str| GOOD.replace("seed = 3", &format!("seed = 3\n{line}"));
        for (line, fine) in [
            ("checkpoints = { every = 3 }", true),
            ("checkpoints = { log = 5 }", true),
            ("checkpoints = [1, 2, 10]", true),
            ("early_stop = { accuracy = 0.9 }", true),
            ("early_stop = { accuracy = 1, updates = 3 }", true),
            ("loss = \"every\"\naccumulate = 2\nema = 0.5", true),
            ("checkpoints = { every = 0 }", false),
            ("checkpoints = { log = 1 }", false),
            ("checkpoints = { every = 3, log = 3 }", false),
            ("checkpoints = { steps = 3 }", false),
            ("checkpoints = [2, 1]", false),
            ("checkpoints = [11]", false),
            ("checkpoints = [-1]", false),
            ("checkpoints = 3", false),
            ("early_stop = { accuracy = 1.5 }", false),
            ("early_stop = { accuracy = nan }", false),
            ("early_stop = { accuracy = 0.5, updates = 0 }", false),
            ("early_stop = { updates = 3 }", false),
            ("early_stop = { accuracy = 1, update = 3 }", false),
            ("accumulate = 0", false),
            ("accumulate = 3", false),
            ("ema = 1", false),
            ("loss = \"some\"", false),
            (&format!("start = {{ model = \"../base\", sha256 = \"{}\" }}", "0a".repeat(32)), true),
            (&format!("start = {{ model = \"../base\", sha256 = \"{}\" }}", "0A".repeat(32)), false),
            ("start = { model = \"../base\", sha256 = \"12\" }", false),
            ("start = { model = \"../base\" }", false),
            ("start = \"../base\"", false),
        ] {
            let parsed = Recipe::parse("r.toml", &with(line));
            match fine {
                true => {
                    let recipe = parsed.unwrap();
                    assert_eq!(Recipe::parse("r.toml", &recipe.to_toml().unwrap()).unwrap(), recipe, "{line}");
                }
                false => {
                    let found = problems(&with(line));
                    assert_eq!(found.len(), 1, "{line}: {found:?}");
                    assert!(found[0].starts_with("`training."), "{line}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn changes_are_named_with_both_values() {
        let before = Recipe::parse("r.toml", GOOD).unwrap();
        let after =
            Recipe::parse("r.toml", &GOOD.replace("steps = 10", "steps = 20").replace("words = 5", "")).unwrap();
        assert_eq!(before.changes(&after), ["task.words was 5, is now absent", "training.steps was 10, is now 20"]);
        assert!(before.changes(&before).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "(\\[(model|task|training)\\]\n|[a-z_]{1,9} = (-?[0-9]{1,20}|\"[a-z]{0,5}\"|true|nan|\\[1\\])\n){0,9}") {
            let _ = Recipe::parse("r.toml", &text);
        }
    }
}
