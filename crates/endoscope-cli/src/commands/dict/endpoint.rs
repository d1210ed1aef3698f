//! A language model behind an OpenAI-compatible endpoint that the user named.

use std::time::Duration;

use anyhow::{Context, Result};
use endoscope_dictionary::features::interpret::Complete;
use serde_json::{Value, json};

/// The endpoint and the model asked for there.
#[derive(Debug)]
pub struct Endpoint {
    agent: ureq::Agent,
    url: String,
    model: String,
    /// From the environment variable OPENAI_API_KEY; never printed.
    key: Option<String>,
}

/// How often a question is asked before it is given up.
const TRIES: u32 = 3;
/// The longest answer that is read.
const LONGEST: u64 = 1 << 20;

impl Endpoint {
    /// `base` is what comes before `/chat/completions`: `http://127.0.0.1:8080/v1`.
    pub fn new(base: &str, model: &str) -> Self {
        let agent = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(300))).build().into();
        let url = format!("{}/chat/completions", base.trim_end_matches('/'));
        let key = std::env::var("OPENAI_API_KEY").ok().filter(|key| !key.trim().is_empty());
        Self { agent, url, model: model.to_string(), key }
    }

    fn ask(&self, body: &str) -> Result<String> {
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {}", key.trim()));
        }
        let mut response = request.send(body).with_context(|| format!("{} cannot be asked", self.url))?;
        let text = response.body_mut().with_config().limit(LONGEST).read_to_string()?;
        let answer: Value = serde_json::from_str(&text).with_context(|| format!("{} did not answer JSON", self.url))?;
        let content = answer.pointer("/choices/0/message/content").and_then(Value::as_str);
        content.map(String::from).with_context(|| format!("{} answered without choices[0].message.content", self.url))
    }
}

impl Complete for Endpoint {
    fn complete(&self, system: &str, user: &str) -> std::result::Result<String, String> {
        let body = json!({
            "model": self.model,
            "temperature": 0,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
        })
        .to_string();
        let mut last = String::new();
        for attempt in 0..TRIES {
            if attempt > 0 {
                std::thread::sleep(Duration::from_millis(500 << attempt));
            }
            match self.ask(&body) {
                Ok(answer) => return Ok(answer),
                Err(error) => last = format!("{error:#}"),
            }
        }
        Err(last)
    }
}
