//! Hub ids, against a server on this machine that plays the hub.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod common;
#[path = "common/hub.rs"]
mod hub;

use std::fs;
use std::path::{Path, PathBuf};

use common::goldens;
use endoscope_models::hub::{Event, Network, Repository, Settings, Token};
use endoscope_models::{Depth, Model, Precision};
use endoscope_net::{Inputs, Network as _, Plan};
use hub::{Behaviour, COMMIT, Hub, ID, Request};
use tempfile::TempDir;

const NUMBERS: Depth = Depth::Numbers(Precision::F32);

/// A hub and an empty cache.
struct World {
    hub: Hub,
    cache: TempDir,
    settings: Settings,
}

impl World {
    fn new(behaviour: Behaviour) -> Self {
        let (hub, cache) = (Hub::start(behaviour), tempfile::tempdir().unwrap());
        let settings = Settings {
            endpoint: hub.endpoint.clone(),
            cache: cache.path().join("hub"),
            token: Token::new("HF_TOKEN", "hf_secret").unwrap(),
            network: Network::Allowed,
        };
        Self { hub, cache, settings }
    }

    fn of(name: &str) -> Self {
        Self::new(Behaviour::of(&goldens().join(name)))
    }

    fn open_as(&self, id: &str, depth: Depth) -> endoscope_models::Result<Model> {
        Model::open_hub(&self.settings, &Repository::parse(id)?, depth, &mut |_| {})
    }

    fn open(&self) -> endoscope_models::Result<Model> {
        self.open_as(ID, NUMBERS)
    }

    fn refused(&self, parts: &[&str]) -> String {
        let error = self.open().unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
        assert!(!error.contains("hf_secret"), "{error}");
        error
    }

    fn offline(&mut self) {
        self.settings.network = Network::Offline;
    }

    fn folder(&self) -> PathBuf {
        self.cache.path().join("hub/models--some-org--tiny.model")
    }

    fn snapshot(&self) -> PathBuf {
        self.folder().join("snapshots").join(COMMIT)
    }
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn logits(model: &Model) -> Vec<f32> {
    let run = model.decoder.run(&Inputs::tokens(vec![vec![1, 2, 3, 4]]).unwrap(), &Plan::default()).unwrap();
    run.outputs.flatten_all().unwrap().to_vec1().unwrap()
}

fn files_asked_for(requests: &[Request]) -> Vec<String> {
    let files = requests.iter().filter(|request| request.path.contains("/resolve/") && request.method == "GET");
    let mut files: Vec<String> = files.map(|request| request.path.rsplit('/').next().unwrap().to_string()).collect();
    files.sort();
    files
}

#[test]
fn a_repository_opens_as_its_directory_does() {
    for name in ["gpt2-odd", "llama-sharded"] {
        let directory = goldens().join(name);
        let behaviour = Behaviour::of(&directory).with("pytorch_model.bin", "pickle").with("README.md", "# hello");
        let mut world = World::new(behaviour);
        let model = world.open().unwrap();
        assert_eq!(logits(&model), logits(&Model::open(&directory).unwrap()));
        let revision = model.revision.unwrap();
        assert_eq!((revision.repository.as_str(), revision.revision.as_str()), (ID, "main"));
        assert_eq!(revision.commit, COMMIT);
        // What is needed, each file once, and nothing else.
        let mut expected = names(&directory);
        expected.retain(|name| !name.starts_with("seq"));
        assert_eq!(names(&world.snapshot()), expected);
        assert_eq!(files_asked_for(&world.hub.requests()), expected);
        assert_eq!(fs::read_to_string(world.folder().join("refs/main")).unwrap(), COMMIT);
        for name in names(&world.folder().join("blobs")) {
            assert!([40, 64].contains(&name.len()), "{name}");
        }
        #[cfg(unix)]
        for name in names(&world.snapshot()) {
            let link = fs::read_link(world.snapshot().join(name)).unwrap();
            assert!(link.starts_with("../../blobs"), "{}", link.display());
        }
        // Again: one question, what `main` is now.
        world.open().unwrap();
        let requests = world.hub.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        // Offline: none.
        world.offline();
        assert_eq!(world.open().unwrap().revision.unwrap().commit, COMMIT);
        assert_eq!(world.open_as(&format!("{ID}@{COMMIT}"), NUMBERS).unwrap().parameters, model.parameters);
        world.open_as(ID, Depth::Headers).unwrap();
        assert_eq!(world.hub.requests(), []);
    }
}

#[test]
fn a_revision_is_escaped_and_remembered() {
    let world = World::of("gpt2-odd");
    let model = world.open_as(&format!("{ID}@refs/pr/1"), NUMBERS).unwrap();
    assert_eq!(model.revision.unwrap().commit, COMMIT);
    assert!(world.hub.requests()[0].path.ends_with("/revision/refs%2Fpr%2F1"));
    assert_eq!(fs::read_to_string(world.folder().join("refs/refs/pr/1")).unwrap(), COMMIT);
    assert!(!world.folder().join("refs/main").exists());
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let world = World::of("gpt2-odd");
    world.open().unwrap();
    let (hub, store): (Vec<_>, Vec<_>) = world.hub.requests().into_iter().partition(|request| request.at_hub);
    assert!(hub.len() > 3 && !store.is_empty());
    assert!(hub.iter().all(|request| request.headers["authorization"] == "Bearer hf_secret"), "{hub:?}");
    assert!(store.iter().all(|request| !request.headers.contains_key("authorization")), "{store:?}");
}

#[test]
fn a_repository_that_was_renamed_is_followed_with_the_token() {
    let world = World::of("gpt2-odd");
    world.hub.change(|now| now.former = Some("former/name"));
    let model = world.open_as("former/name", NUMBERS).unwrap();
    assert_eq!(model.revision.unwrap().repository, "former/name");
    let requests = world.hub.requests();
    assert!(requests.iter().filter(|r| r.at_hub).all(|r| r.headers.contains_key("authorization")), "{requests:?}");
}

#[test]
fn headers_come_without_the_weights() {
    for name in ["gpt2-odd", "llama-sharded"] {
        // A header that is longer than what is asked for at first.
        for padding in [0, 300_000] {
            let mut behaviour = Behaviour::of(&goldens().join(name));
            for (name, bytes) in behaviour.files.iter_mut().filter(|(name, _)| name.ends_with(".safetensors")) {
                *bytes = padded(bytes, padding);
                assert!(bytes.len() > 8 + padding, "{name}");
            }
            for ranges in [true, false] {
                let mut world = World::new(behaviour.clone());
                world.hub.change(|now| now.ranges = ranges);
                let model = world.open_as(ID, Depth::Headers).unwrap();
                assert_eq!(model.parameters, Model::open_headers(goldens().join(name)).unwrap().parameters);
                assert_eq!(model.sites().len(), Model::open(goldens().join(name)).unwrap().sites().len());
                let kept = names(&world.folder().join("blobs"));
                assert!(kept.iter().all(|name| name.len() == 40), "a large file was kept: {kept:?}");
                if ranges {
                    let asked: Vec<Request> = world.hub.requests().into_iter().filter(|r| !r.at_hub).collect();
                    assert!(asked.iter().all(|request| request.headers.contains_key("range")), "{asked:?}");
                }
                // What is in the cache is not asked for.
                world.open().unwrap();
                world.hub.requests();
                world.open_as(ID, Depth::Headers).unwrap();
                assert_eq!(world.hub.requests().len(), 1);
                world.offline();
                world.open().unwrap();
            }
        }
    }
}

/// A safetensors file with `padding` bytes more in its header.
fn padded(bytes: &[u8], padding: usize) -> Vec<u8> {
    let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let mut padded = ((header + padding) as u64).to_le_bytes().to_vec();
    padded.extend(&bytes[8..8 + header]);
    padded.extend(vec![b' '; padding]);
    padded.extend(&bytes[8 + header..]);
    padded
}

#[test]
fn a_broken_download_goes_on_where_it_was() {
    let world = World::of("gpt2-odd");
    world.hub.change(|now| now.breaks = (10_000, 2));
    let model = world.open().unwrap();
    assert_eq!(logits(&model), logits(&Model::open(goldens().join("gpt2-odd")).unwrap()));
    let ranges: Vec<Option<String>> =
        world.hub.requests().iter().filter(|r| !r.at_hub).map(|r| r.headers.get("range").cloned()).collect();
    assert_eq!(ranges, [None, Some("bytes=10000-".into()), Some("bytes=20000-".into())]);
}

#[test]
fn a_download_that_breaks_for_good_leaves_nothing_half() {
    for ranges in [true, false] {
        let mut world = World::of("gpt2-odd");
        world.hub.change(|now| (now.breaks, now.ranges) = ((5_000, usize::MAX), ranges));
        world.refused(&["broke off after", "model.safetensors", "run the same again"]);
        assert!(!world.snapshot().join("model.safetensors").exists());
        let partial: Vec<String> = names(&world.folder().join("blobs"));
        assert_eq!(partial.iter().filter(|name| name.ends_with(".incomplete")).count(), 1, "{partial:?}");
        // Offline that is no model.
        world.offline();
        world.refused(&["HF_HUB_OFFLINE is set and model.safetensors of", "not in the cache"]);
        world.settings.network = Network::Allowed;
        // Another day.
        world.hub.change(|now| now.breaks = (usize::MAX, 0));
        world.hub.requests();
        let mut first = None;
        let repository = Repository::parse(ID).unwrap();
        let mut watch = |event: Event<'_>| {
            if let Event::Has { bytes } = event {
                first.get_or_insert(bytes);
            }
        };
        let model = Model::open_hub(&world.settings, &repository, NUMBERS, &mut watch).unwrap();
        assert_eq!(first, Some(if ranges { 25_000 } else { 0 }));
        assert_eq!(logits(&model), logits(&Model::open(goldens().join("gpt2-odd")).unwrap()));
        let blobs = names(&world.folder().join("blobs"));
        assert!(blobs.iter().all(|name| !name.contains('.')), "{blobs:?}");
    }
}

#[test]
fn what_came_is_checked_against_its_hash() {
    let world = World::of("gpt2-odd");
    world.hub.change(|now| now.corrupt = true);
    world.refused(&["its SHA-256 is", "nothing of it was kept"]);
    let blobs = names(&world.folder().join("blobs"));
    assert!(blobs.iter().all(|name| name.len() == 40), "{blobs:?}");
    world.hub.change(|now| now.corrupt = false);
    world.open().unwrap();
}

#[test]
fn a_length_that_is_not_true_is_found_out() {
    let world = World::of("gpt2-odd");
    world.hub.change(|now| now.longer = 7);
    world.refused(&["127.0.0.1"]);
    assert_eq!(names(&world.snapshot()), Vec::<String>::new());
}

#[test]
fn hostile_names_lead_nowhere() {
    let index = |name: &str| format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#);
    for name in ["../x", "/etc/passwd", "a/b.safetensors", "..", ""] {
        let behaviour = Behaviour::of(&goldens().join("gpt2-odd")).without("model.safetensors");
        let world = World::new(behaviour.with("model.safetensors.index.json", index(name)).with(name, "x"));
        world.refused(&["is not a plain file name"]);
        assert_eq!(names(world.cache.path()), ["hub"]);
        world.open_as(ID, Depth::Headers).unwrap_err();
    }
    let behaviour = Behaviour::of(&goldens().join("gpt2-odd")).without("model.safetensors");
    World::new(behaviour.with("model.safetensors.index.json", index("gone.safetensors")))
        .refused(&["`gone.safetensors`"]);

    let world = World::of("gpt2-odd");
    world.hub.change(|now| now.etag = Some("../../../../x"));
    world.refused(&["no usable ETag"]);
    assert_eq!(names(world.cache.path()), Vec::<String>::new());

    let world = World::of("gpt2-odd");
    world.hub.change(|now| now.commit = "../../../../../../x\x07".into());
    let error = world.refused(&["is no commit"]);
    assert!(!error.contains('\x07'), "{error:?}");
    assert_eq!(names(world.cache.path()), Vec::<String>::new());
}

#[test]
fn redirects_to_other_protocols_are_refused() {
    for elsewhere in ["file:///etc/passwd", "ftp://127.0.0.1/x", "x", "//127.0.0.1/x"] {
        let world = World::of("gpt2-odd");
        world.hub.change(|now| now.elsewhere = Some(elsewhere));
        world.refused(&["it points to"]);
    }
    let world = World::of("gpt2-odd");
    world.hub.change(|now| now.refusal = Some(("302 Found", "Location: /round\r\n")));
    world.refused(&["points elsewhere more than"]);
}

#[test]
fn pickles_and_adapters_are_refused_before_anything_large_comes() {
    let pickle = Behaviour::of(&goldens().join("gpt2-odd")).without("model.safetensors").with("pytorch_model.bin", "x");
    let world = World::new(pickle);
    let convert = "M.from_pretrained('some-org/tiny.model', revision='main').save_pretrained('./tiny.model')";
    world.refused(&["is never executed", convert]);
    assert!(!files_asked_for(&world.hub.requests()).contains(&"pytorch_model.bin".to_string()));

    let config = r#"{"base_model_name_or_path": "org/base", "peft_type": "LORA"}"#;
    let adapter = Behaviour::of(&goldens().join("gpt2-odd")).with("adapter_config.json", config);
    let world = World::new(adapter);
    world.refused(&["an adapter (adapter_config.json) of org/base", "merge_and_unload"]);
    assert!(!files_asked_for(&world.hub.requests()).contains(&"model.safetensors".to_string()));

    let world = World::new(Behaviour::of(&goldens().join("gpt2-odd")).without("model.safetensors"));
    world.refused(&["some-org/tiny.model@main cannot be opened: it has neither model.safetensors"]);
    let world = World::new(Behaviour::of(&goldens().join("gpt2-odd")).without("config.json"));
    world.refused(&["it has no config.json"]);
}

#[test]
fn refusals_say_what_to_do() {
    let accept = "accept its licence at http://127.0.0.1";
    for (status, headers, parts) in [
        (
            "403 Forbidden",
            "X-Error-Code: GatedRepo\r\nX-Error-Message: ask first\r\n",
            &["is gated", accept, "(it says: ask first)"][..],
        ),
        ("401 Unauthorized", "X-Error-Code: GatedRepo\r\n", &["is gated", accept, "HF_TOKEN"]),
        ("403 Forbidden", "", &["is gated", accept]),
        (
            "401 Unauthorized",
            "X-Error-Message: Invalid credentials in Authorization header\r\n",
            &["refuses the token"],
        ),
        ("401 Unauthorized", "", &["refuses the token"]),
        (
            "404 Not Found",
            "X-Error-Code: RepoNotFound\r\n",
            &["shows no repository some-org/tiny.model", "no such directory"],
        ),
        ("404 Not Found", "", &["shows no repository"]),
        ("404 Not Found", "X-Error-Code: RevisionNotFound\r\n", &["has no revision `main`"]),
        ("429 Too Many Requests", "", &["status 429", "wait a while"]),
        ("503 Service Unavailable", "X-Error-Message: down\r\n", &["status 503 (it says: down)", "try again later"]),
        ("302 Found", "", &["points nowhere"]),
        ("200 OK", "", &["does not answer as a hub does"]),
    ] {
        let mut world = World::of("gpt2-odd");
        world.hub.change(|now| now.refusal = Some((status, headers)));
        world.refused(parts);
        assert!(!world.folder().join("refs").exists());
        if status.starts_with("401") && headers.is_empty() {
            world.settings.token = None;
            world.refused(&["shows no repository", "if it is private"]);
        }
    }
    let world = World::of("gpt2-odd");
    let error = world.open_as(&format!("{ID}@v9"), NUMBERS).unwrap_err().to_string();
    assert!(error.contains("some-org/tiny.model has no revision `v9`"), "{error}");
}

#[test]
fn offline_and_not_in_the_cache() {
    let mut world = World::of("gpt2-odd");
    world.offline();
    world.refused(&["HF_HUB_OFFLINE is set and the repository of some-org/tiny.model@main is not in the cache"]);
    assert_eq!(world.hub.requests(), []);
}

#[test]
fn without_a_connection_the_cache_is_taken_and_said() {
    let mut world = World::of("gpt2-odd");
    world.open().unwrap();
    // Nobody listens there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    world.settings.endpoint = format!("http://{closed}");
    let mut said = Vec::new();
    let mut watch = |event: Event<'_>| said.push(format!("{event:?}"));
    let repository = Repository::parse(ID).unwrap();
    Model::open_hub(&world.settings, &repository, NUMBERS, &mut watch).unwrap();
    assert!(said.len() == 1 && said[0].contains("FromCache") && said[0].contains(COMMIT), "{said:?}");
    let error = world.open_as("other-org/model", NUMBERS).unwrap_err().to_string();
    assert!(error.contains("cannot reach http://127.0.0.1"), "{error}");
}

/// A cache as Python's huggingface_hub leaves it, with files of ours that it never asked for.
#[test]
#[cfg(unix)]
fn a_cache_of_pythons_opens() {
    let mut world = World::of("gpt2-odd");
    let (folder, snapshot) = (world.folder(), world.snapshot());
    for part in ["blobs", "refs", ".no_exist"] {
        fs::create_dir_all(folder.join(part)).unwrap();
    }
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(folder.join("refs/main"), COMMIT).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(goldens().join("gpt2-odd").join(name), folder.join("blobs").join(format!("of-{name}"))).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/of-{name}"), snapshot.join(name)).unwrap();
    }
    world.offline();
    let model = world.open().unwrap();
    assert_eq!(logits(&model), logits(&Model::open(goldens().join("gpt2-odd")).unwrap()));
    assert_eq!(world.hub.requests(), []);
    // Online, what is missing beside them is fetched, and they are not.
    world.settings.network = Network::Allowed;
    world.open().unwrap();
    assert_eq!(files_asked_for(&world.hub.requests()), ["generation_config.json"]);
}

#[test]
fn two_at_once_download_once() {
    let world = World::of("llama-sharded");
    std::thread::scope(|scope| {
        let both = [0, 1].map(|_| scope.spawn(|| logits(&world.open().unwrap())));
        let [one, two] = both.map(|thread| thread.join().unwrap());
        assert_eq!(one, two);
    });
    let requests = world.hub.requests();
    let mut stored: Vec<&str> = requests.iter().filter(|r| !r.at_hub).map(|r| r.path.as_str()).collect();
    stored.sort_unstable();
    let all = stored.len();
    stored.dedup();
    assert_eq!(stored.len(), all, "a large file was downloaded twice: {stored:?}");
}
