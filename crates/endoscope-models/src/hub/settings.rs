//! Where the hub is, where its cache is, and who asks: the environment variables that Python's huggingface_hub knows.

use std::fmt;
use std::path::PathBuf;

use super::HubError;
use crate::error::Result;

/// Whether the hub may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// It may.
    Allowed,
    /// Only what is in the cache counts; no request is made.
    Offline,
}

/// A secret that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// How the hub is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// The folder that holds `models--org--name`.
    pub cache: PathBuf,
    /// What is sent to the hub, and to nobody else.
    pub token: Option<Token>,
    /// Whether the hub may be asked.
    pub network: Network,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// A token; `name` says where it comes from. Empty is none; what no request can carry is an error.
    pub fn new(name: &str, text: &str) -> Result<Option<Self>> {
        let text = text.trim();
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            let reason = "does not hold a token: it has spaces or other signs that no token has".into();
            return Err(HubError::Setting { name: name.into(), reason }.into());
        }
        Ok((!text.is_empty()).then(|| Self(text.to_string())))
    }

    pub(super) fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl Settings {
    /// As this process's environment says.
    pub fn from_environment() -> Result<Self> {
        Self::from(
            |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()),
            std::env::home_dir(),
        )
    }

    /// As `variable` says; a variable that is empty is as good as none.
    fn from(variable: impl Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Result<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let folder = |name: &str| set(name).map(|value| from_home(&value, home.as_deref()));
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = endpoint.trim().trim_end_matches('/').to_string();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            let reason = format!("is `{endpoint}`; it must start with https:// or http://");
            return Err(HubError::Setting { name: "HF_ENDPOINT".into(), reason }.into());
        }
        let hugging_face = folder("HF_HOME")
            .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(home.as_ref()?.join(".cache/huggingface")));
        let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.or_else(|| Some(hugging_face.as_ref()?.join("hub"))).ok_or_else(|| HubError::Setting {
            name: "HF_HUB_CACHE".into(),
            reason: "must name a folder for downloads, as this user has no home directory".into(),
        })?;
        let token_file = folder("HF_TOKEN_PATH").or_else(|| Some(hugging_face?.join("token")));
        let implicit = !set("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|value| is_true(&value));
        let token = match set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN")) {
            _ if !implicit => None,
            Some(text) => Token::new("HF_TOKEN", &text)?,
            None => token_file.map_or(Ok(None), |path| match std::fs::read_to_string(&path) {
                Ok(text) => Token::new(&path.display().to_string(), &text),
                // Who never logged in has none.
                Err(_) => Ok(None),
            })?,
        };
        let offline =
            set("HF_HUB_OFFLINE").or_else(|| set("TRANSFORMERS_OFFLINE")).is_some_and(|value| is_true(&value));
        let network = if offline { Network::Offline } else { Network::Allowed };
        Ok(Self { endpoint, cache, token, network })
    }
}

/// huggingface_hub's idea of yes.
fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.trim().to_ascii_lowercase().as_str())
}

/// `~/x` as a shell would read it.
fn from_home(path: &str, home: Option<&std::path::Path>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        Settings::from(find, Some("/me".into()))
    }

    #[test]
    fn the_cache_is_where_python_has_it() {
        for (variables, cache) in [
            (&[][..], "/me/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/h/hub"),
            (&[("HF_HOME", "~/h")], "/me/h/hub"),
            (&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")], "/c"),
            (&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HOME", "/h")], "/old"),
            (&[("HF_HUB_CACHE", ""), ("HF_HOME", "/h")], "/h/hub"),
        ] {
            assert_eq!(settings(variables).unwrap().cache, PathBuf::from(cache), "{variables:?}");
        }
    }

    #[test]
    fn endpoint_and_offline() {
        let plain = settings(&[]).unwrap();
        assert_eq!((plain.endpoint.as_str(), plain.network), ("https://huggingface.co", Network::Allowed));
        for value in ["1", "ON", "yes", "True"] {
            assert_eq!(settings(&[("HF_HUB_OFFLINE", value)]).unwrap().network, Network::Offline);
            assert_eq!(settings(&[("TRANSFORMERS_OFFLINE", value)]).unwrap().network, Network::Offline);
        }
        for value in ["0", "", "no", "off"] {
            assert_eq!(settings(&[("HF_HUB_OFFLINE", value)]).unwrap().network, Network::Allowed);
        }
        assert_eq!(settings(&[("HF_ENDPOINT", "http://a:1//")]).unwrap().endpoint, "http://a:1");
        assert!(settings(&[("HF_ENDPOINT", "ftp://a")]).unwrap_err().to_string().contains("HF_ENDPOINT is"));
    }

    #[test]
    fn the_token_comes_from_the_environment_or_the_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let home = folder.path().to_str().unwrap();
        let sent = |variables: &[(&str, &str)]| settings(variables).unwrap().token.map(|token| token.authorization());
        assert_eq!(sent(&[]), None);
        assert_eq!(sent(&[("HF_HOME", home)]).as_deref(), Some("Bearer hf_file"));
        assert_eq!(sent(&[("HF_HOME", home), ("HF_TOKEN", " hf_env ")]).as_deref(), Some("Bearer hf_env"));
        assert_eq!(sent(&[("HF_TOKEN", "hf_env"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        let error = settings(&[("HF_TOKEN", "hf_secret\nX: y")]).unwrap_err().to_string();
        assert!(error.contains("HF_TOKEN does not hold a token") && !error.contains("secret"), "{error}");
        let shown = format!("{:?}", settings(&[("HF_TOKEN", "hf_secret")]).unwrap());
        assert!(!shown.contains("secret"), "{shown}");
    }
}
