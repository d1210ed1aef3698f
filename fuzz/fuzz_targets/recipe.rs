//! Recipes: what is accepted is written and read back the same.
#![no_main]

use endoscope_train::Recipe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Recipe::parse("recipe.toml", text) {
        Ok(recipe) => {
            let written = recipe.to_toml().expect("an accepted recipe can be written");
            assert_eq!(Recipe::parse("recipe.toml", &written).expect("a written recipe can be read"), recipe);
            let _ = recipe.model.spec(100);
        }
        Err(error) => assert!(error.to_string().contains("recipe.toml"), "{error}"),
    }
});
