//! What can go wrong between here and the hub, in words that say what to do.

use std::path::PathBuf;

/// A repository that cannot be named, found, reached or fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A name that no repository can have.
    #[error(
        "`{text}` is no hub id: {reason}; one is written org/name or org/name@revision, and a directory here ./org/name"
    )]
    Name {
        /// What was written.
        text: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// An environment variable or a token file that cannot be used.
    #[error("{name} {reason}")]
    Setting {
        /// The variable or file.
        name: String,
        /// What is wrong, and what would do.
        reason: String,
    },
    /// Nothing of this name is shown to this user.
    #[error(
        "{endpoint} shows no repository {id}, and there is no such directory here: check the spelling; \
         if it is private, set HF_TOKEN to a token that may read it"
    )]
    NoRepository {
        /// `org/name`.
        id: String,
        /// Where it was looked for.
        endpoint: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error(
        "{id} has no revision `{revision}` (a branch, a tag or a commit); its page is {endpoint}/{id}/commits/main"
    )]
    NoRevision {
        /// `org/name`.
        id: String,
        /// What was asked for.
        revision: String,
        /// Where it was looked for.
        endpoint: String,
    },
    /// A licence must be accepted first.
    #[error(
        "{id} is gated: accept its licence at {endpoint}/{id}, and set HF_TOKEN to a token of the account that did{detail}"
    )]
    Gated {
        /// `org/name`.
        id: String,
        /// Where its page is.
        endpoint: String,
        /// What the hub said, in brackets.
        detail: String,
    },
    /// The token is not valid, or not for this.
    #[error(
        "{endpoint} refuses the token for {id}{detail}: set HF_TOKEN to a valid one, or unset it for public models"
    )]
    Token {
        /// `org/name`.
        id: String,
        /// Who refuses.
        endpoint: String,
        /// What the hub said, in brackets.
        detail: String,
    },
    /// Any other answer than the one that was expected.
    #[error("{url} answers with status {status}{detail}{advice}")]
    Status {
        /// What was asked.
        url: String,
        /// The status.
        status: u16,
        /// What the hub said, in brackets.
        detail: String,
        /// What to do.
        advice: &'static str,
    },
    /// An answer that makes no sense.
    #[error("{url} does not answer as a hub does: {reason}")]
    Answer {
        /// What was asked.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no way to the hub.
    #[error(
        "cannot reach {url} ({reason}): check the connection, or name a model directory; what is in the cache opens without one"
    )]
    Unreachable {
        /// What was asked.
        url: String,
        /// What the network says.
        reason: String,
    },
    /// Offline, and not in the cache.
    #[error(
        "HF_HUB_OFFLINE is set and {what} of {id}@{revision} is not in the cache ({cache}): unset it to download, or name a \
         model directory"
    )]
    Offline {
        /// What is missing.
        what: String,
        /// `org/name`.
        id: String,
        /// The revision.
        revision: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The connection broke again and again.
    #[error(
        "{url} broke off after {received} of {expected} bytes ({reason}); what came is kept: run the same again to go on"
    )]
    Truncated {
        /// What was downloaded.
        url: String,
        /// How much there is.
        received: u64,
        /// How much there should be.
        expected: u64,
        /// What the network says.
        reason: String,
    },
    /// What came is not what was announced.
    #[error("{url} was downloaded, but its SHA-256 is {found} and not {announced}; nothing of it was kept, try again")]
    Corrupt {
        /// What was downloaded.
        url: String,
        /// The hash that the hub announced.
        announced: String,
        /// The hash of what came.
        found: String,
    },
    /// No room for the download.
    #[error("no space is left for {path} ({bytes} bytes): make room, or set HF_HUB_CACHE to a folder on a larger disk")]
    Full {
        /// What was being written.
        path: PathBuf,
        /// How large the file is.
        bytes: u64,
    },
    /// The repository holds nothing that can be opened.
    #[error("{id}@{revision} cannot be opened: {reason}")]
    NotAModel {
        /// `org/name`.
        id: String,
        /// The revision.
        revision: String,
        /// What is missing, and what to do.
        reason: String,
    },
}
