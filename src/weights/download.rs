//! One file over HTTP: resumed where it stopped, cancelled within a read, checked before it counts. The only part
//! of the program that uses the network.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek as _, SeekFrom, Write as _},
    path::Path,
    time::Duration,
};

use hf_hub::{
    Repo, RepoType,
    api::sync::{Api, ApiBuilder, ApiRepo},
};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use ureq::{
    Body, RequestBuilder,
    http::{Response, StatusCode, Uri},
    typestate::WithoutBody,
};

use super::{cache::HubCache, hub::Repository};
use crate::{
    error::{Error, Result},
    files,
    progress::CancelToken,
};

/// Tries in a row that bring nothing; each goes on where the last one stopped.
const TRIES: u32 = 5;
/// A server that says nothing for this long is asked again. Also how long a cancel may go unheard.
const SILENCE: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(15);
const BUFFER_BYTES: usize = 1 << 18;
/// An answer of the hub's API is never longer.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// Talks to one hub. (No `Debug`: it holds the token.)
pub(super) struct Client {
    api: Api,
    endpoint: String,
    has_token: bool,
}

/// What to fetch and where to put it.
#[derive(Debug)]
pub(super) struct Download<'a> {
    /// The revision is a commit.
    pub repository: Repository<'a>,
    /// In the repository, with `/`.
    pub name: &'a str,
    /// Where the whole file goes.
    pub target: &'a Path,
    /// As the hub's listing says.
    pub size_bytes: u64,
    /// For large files the hub says it; small ones are checked by their size.
    pub sha256: Option<&'a str>,
}

/// Why a try failed: some things are worth another one.
enum Failure {
    Again(Error),
    Final(Error),
}

impl Client {
    /// The token is sent to the hub and never to the storage hosts it redirects to.
    ///
    /// # Errors
    /// If the endpoint is no web address, or the token no token.
    pub fn new(cache: &HubCache, endpoint: &str, token: Option<String>) -> Result<Self> {
        let endpoint = endpoint.trim().trim_end_matches('/');
        let web = |uri: Uri| {
            let scheme = uri.scheme_str().is_some_and(|s| matches!(s, "http" | "https"));
            scheme && uri.host().is_some_and(|host| !host.is_empty())
        };
        if !endpoint.parse().is_ok_and(web) || endpoint.contains(['?', '#', ' ']) {
            return Err(Error::invalid(format!("the hub's address is `{endpoint}`, expected https://…"))
                .with_hint("unset HF_ENDPOINT to use huggingface.co"));
        }
        let token = token.map(|t| t.trim().to_string()).filter(|t| !t.is_empty());
        if token.as_ref().is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::invalid("the hub's token holds characters that no token has")
                .with_hint("set HF_TOKEN to what the account's settings show, or `hf auth login` again"));
        }
        let has_token = token.is_some();
        let api = ApiBuilder::from_cache(cache.hf().clone())
            .with_endpoint(endpoint.into())
            .with_token(token)
            .with_user_agent("scumble", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|e| Error::invalid(format!("cannot set up the connection to {endpoint}: {e}")))?;
        Ok(Self { api, endpoint: endpoint.into(), has_token })
    }

    /// What the hub says of a repository, its files with sizes and hashes included.
    pub fn listing<T: DeserializeOwned>(&self, repository: Repository<'_>) -> Result<T> {
        let id = repository.id;
        let request = self.repo(repository).info_request().query("blobs", "true");
        let mut response = self.send(request)?;
        if !response.status().is_success() {
            return Err(self.refusal(id, &response));
        }
        let mut text = Vec::new();
        let mut body = response.body_mut().as_reader().take(MAX_JSON_BYTES);
        body.read_to_end(&mut text).map_err(|e| Error::invalid(format!("{}: {e}", self.endpoint)))?;
        serde_json::from_slice(&text)
            .map_err(|e| Error::invalid(format!("{id}: the hub's listing is not understood: {e}")))
    }

    /// Fetches a file, or the rest of it. `progress` gets the bytes of this file that are here.
    pub fn fetch(
        &self,
        download: &Download<'_>,
        progress: &mut dyn FnMut(u64),
        cancel: &CancelToken,
    ) -> Result<()> {
        let partial = download.target.with_extension("incomplete");
        if let Some(folder) = partial.parent() {
            files::create_folder(folder)?;
        }
        let mut file = open_partial(&partial)?;
        let (mut tries, mut most) = (0, 0);
        while let Err(failure) = self.attempt(download, &mut file, progress, cancel) {
            let have = file.metadata().map_err(|e| Error::io(&partial, e))?.len();
            tries = if have > most { 1 } else { tries + 1 };
            most = most.max(have);
            match failure {
                Failure::Again(_) if tries < TRIES => pause(tries, cancel)?,
                Failure::Again(error) | Failure::Final(error) => return Err(error),
            }
        }
        file.sync_all().map_err(|e| Error::io(&partial, e))?;
        if let Err(error) = verify(&mut file, download, cancel) {
            drop(file);
            if !error.is_cancelled() {
                fs::remove_file(&partial).map_err(|e| Error::io(&partial, e))?;
            }
            return Err(error);
        }
        drop(file);
        fs::rename(&partial, download.target).map_err(|e| Error::io(download.target, e))
    }

    fn attempt(
        &self,
        download: &Download<'_>,
        file: &mut File,
        progress: &mut dyn FnMut(u64),
        cancel: &CancelToken,
    ) -> Result<(), Failure> {
        cancel.check().map_err(Failure::Final)?;
        let model = download.repository.id;
        let disk = |e: io::Error| Failure::Final(files::failure(download.target, e));
        let mut have = file.seek(SeekFrom::End(0)).map_err(disk)?;
        if have > download.size_bytes {
            have = 0;
        }
        if have < download.size_bytes || download.size_bytes == 0 {
            let response = self.get(download, have).map_err(Failure::Again)?;
            have = match response.status() {
                StatusCode::PARTIAL_CONTENT if starts_at(&response, have) => have,
                // The server does not resume, or not where it was asked to: from the start.
                StatusCode::OK => 0,
                StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                    file.set_len(0).map_err(disk)?;
                    return Err(Failure::Again(Error::invalid("the hub sent another part than asked for")));
                }
                status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                    return Err(Failure::Again(self.refusal(model, &response)));
                }
                _ => return Err(Failure::Final(self.refusal(model, &response))),
            };
            file.set_len(have).and_then(|()| file.seek(SeekFrom::Start(have))).map_err(disk)?;
            // One byte more than was promised tells an endless answer, before it fills the disk.
            let promised = download.size_bytes - have;
            let mut body = response.into_body().into_reader().take(promised.saturating_add(1));
            copy(&mut body, file, download, |bytes| progress(have + bytes), cancel)?;
            have = file.stream_position().map_err(disk)?;
        }
        progress(have);
        if have == download.size_bytes {
            return Ok(());
        }
        let (name, expected) = (download.name, download.size_bytes);
        if have > expected {
            file.set_len(0).map_err(disk)?;
            let message = format!("{model}: {name}: the hub sent more than the {expected} bytes it listed");
            return Err(Failure::Final(Error::invalid(message)));
        }
        Err(Failure::Again(Error::invalid(format!(
            "{model}: {name}: the connection ended after {have} of {expected} bytes"
        ))))
    }

    /// Asks for a file from a byte on. hf-hub's own downloads cannot be cancelled and do not check what they append.
    fn get(&self, download: &Download<'_>, from: u64) -> Result<Response<Body>> {
        let repo = self.repo(download.repository);
        // Through `info_request`, which is the way to hf-hub's client with its token.
        let mut request = repo.info_request().uri(repo.url(&escaped(download.name)));
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        // A compressed answer could not be resumed by its bytes.
        self.send(request.header("Accept-Encoding", "identity"))
    }

    fn repo(&self, repository: Repository<'_>) -> ApiRepo {
        let Repository { id, revision } = repository;
        self.api.repo(Repo::with_revision(id.into(), RepoType::Model, revision.into()))
    }

    fn send(&self, request: RequestBuilder<WithoutBody>) -> Result<Response<Body>> {
        let request = request.config().http_status_as_error(false);
        let request = request.timeout_connect(Some(CONNECT)).timeout_per_read(Some(SILENCE)).build();
        request.call().map_err(|e| {
            Error::invalid(format!("cannot reach {}: {e}", self.endpoint))
                .with_hint("check the connection; models that are in the cache open with `--offline`")
        })
    }

    /// What a status means, and what to do about it.
    fn refusal(&self, model: &str, response: &Response<Body>) -> Error {
        let header =
            |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let code = header("x-error-code");
        let page = format!("{}/{model}", self.endpoint);
        let status = response.status();
        match (status, code) {
            (StatusCode::NOT_FOUND, "RevisionNotFound") => {
                Error::invalid(format!("{model} has no such revision"))
                    .with_hint(format!("see {page}/tree/main"))
            }
            (StatusCode::NOT_FOUND, _) => {
                Error::invalid(format!("there is no model {model} on {}", self.endpoint))
                    .with_hint("check the spelling: owner/name")
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) if self.has_token => {
                Error::invalid(format!("{model} may not be read with this token"))
                    .with_hint(format!("accept its licence at {page} with the token's account"))
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                Error::invalid(format!("{model} needs a token, or does not exist")).with_hint(format!(
                    "accept its licence at {page}, make a token in the account's settings, then set HF_TOKEN"
                ))
            }
            (StatusCode::TOO_MANY_REQUESTS, _) => Error::invalid(format!("{} is busy", self.endpoint))
                .with_hint("try again in a few minutes; a token raises the limit"),
            _ => Error::invalid(format!("{} answered {status} for {model}", self.endpoint)),
        }
    }
}

/// A file's name for an address, where spaces and `#` mean something else.
fn escaped(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b);
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Opens, or makes, the part that is there, and keeps other programs from writing to it.
fn open_partial(path: &Path) -> Result<File> {
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = options.map_err(|e| files::failure(path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            Err(Error::file(path, "is being downloaded by another program")
                .with_hint("wait for it to finish"))
        }
        // A file system without locks: two at once are then the user's business.
        Err(fs::TryLockError::Error(_)) => Ok(file),
    }
}

fn starts_at(response: &Response<Body>, expected: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|v| v.to_str().ok()).unwrap_or_default();
    range.strip_prefix("bytes ").is_some_and(|r| r.starts_with(&format!("{expected}-")))
}

/// Copies until the end or an error; what arrived before an error stays.
fn copy(
    body: &mut impl Read,
    file: &mut File,
    download: &Download<'_>,
    mut progress: impl FnMut(u64),
    cancel: &CancelToken,
) -> Result<(), Failure> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut copied = 0;
    loop {
        cancel.check().map_err(Failure::Final)?;
        match body.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                file.write_all(&buffer[..n])
                    .map_err(|e| Failure::Final(files::failure(download.target, e)))?;
                copied += n as u64;
                progress(copied);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // The length is looked at afterwards: a broken connection is an early end.
            Err(_) => return Ok(()),
        }
    }
}

/// Compares the file with its promised hash, through the handle that holds the lock: Windows lets no other one read.
fn verify(file: &mut File, download: &Download<'_>, cancel: &CancelToken) -> Result<()> {
    let Some(expected) = download.sha256 else { return Ok(()) };
    let io = |e| Error::io(download.target, e);
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; BUFFER_BYTES]);
    loop {
        cancel.check()?;
        match file.read(&mut buffer).map_err(io)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    let found = format!("{:x}", hash.finalize());
    if found.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    let message =
        format!("{}: the file arrived damaged (sha256 {found}, expected {expected})", download.name);
    Err(Error::invalid(message).with_hint("it was deleted; try again"))
}

/// 0.2 s, 0.4 s, 0.8 s, …, in which a cancel is heard.
fn pause(attempt: u32, cancel: &CancelToken) -> Result<()> {
    for _ in 0..1u32 << attempt.min(6) {
        cancel.check()?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
