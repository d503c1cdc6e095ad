//! Downloads against a hub of our own: a thread with a socket that answers like Hugging Face's.
#![cfg(feature = "hub")]

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use candle_core::{DType, Device, Tensor};
use scumble::{
    progress::{CancelToken, Event},
    weights::{
        Component, Family, ModelSource, OpenOptions, cache::HubCache, hashes::HashCache,
        writer::SafetensorsWriter,
    },
};
use sha2::{Digest as _, Sha256};

type Done = Result<(), Box<dyn Error>>;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const UNET: &str = "unet/diffusion_pytorch_model.fp16.safetensors";

/// What the hub has and how it behaves.
#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// Whoever lacks it is turned away.
    token: Option<String>,
    /// Breaks the next answer with this file after so many bytes.
    cut: Option<(String, usize)>,
    /// Sends other bytes than the listing promises.
    damage: Option<String>,
    ignores_ranges: bool,
    /// The path all addresses begin with, as behind a company's proxy.
    prefix: String,
    /// Sends whoever asks for a file to this address.
    storage: Option<String>,
    /// Sent instead of the true listing.
    listing: Option<serde_json::Value>,
    /// Every request: path, and the range asked for.
    log: Vec<(String, Option<String>)>,
    /// The token of every request.
    tokens: Vec<Option<String>>,
}

#[derive(Debug)]
struct Hub {
    address: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    fn start() -> Result<Self, Box<dyn Error>> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = format!("http://{}", listener.local_addr()?);
        let state = Arc::new(Mutex::new(State { files: model()?, ..State::default() }));
        let shared = state.clone();
        std::thread::Builder::new().name("hub".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes away is its own business.
                answer(stream, &shared).ok();
            }
        })?;
        Ok(Self { address, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn options(&self, cache: &Path) -> OpenOptions {
        OpenOptions {
            cache: Some(cache.into()),
            endpoint: Some(self.address.clone()),
            // Not the machine's own token.
            token: Some("wrong".into()),
            ..OpenOptions::default()
        }
    }

    /// The ranges a file was asked for with.
    fn requests(&self, file: &str) -> Vec<Option<String>> {
        self.state()
            .log
            .iter()
            .filter(|(path, _)| path.ends_with(file))
            .map(|(_, range)| range.clone())
            .collect()
    }
}

/// A model as small as can be, with what a hub repository has besides.
fn model() -> Result<BTreeMap<String, Vec<u8>>, Box<dyn Error>> {
    let weights = |name: &str, elements: usize| -> Result<Vec<u8>, Box<dyn Error>> {
        let tensor = Tensor::arange(0u32, u32::try_from(elements)?, &Device::Cpu)?.to_dtype(DType::F32)?;
        Ok(SafetensorsWriter::new([(name, &tensor)])?.to_bytes(&BTreeMap::new())?)
    };
    let json = |value: serde_json::Value| value.to_string().into_bytes();
    let index = serde_json::json!({
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [null, null],
    });
    let files = [
        ("README.md", b"# A model".to_vec()),
        ("model_index.json", json(index)),
        ("scheduler/scheduler_config.json", json(serde_json::json!({ "prediction_type": "v_prediction" }))),
        ("tokenizer/vocab.json", b"{\"a\":0}".to_vec()),
        ("tokenizer/merges.txt", b"#version: 0.2\n".to_vec()),
        ("unet/config.json", json(serde_json::json!({ "cross_attention_dim": 768, "in_channels": 4 }))),
        (UNET, weights("conv_in.weight", 1_000_000)?),
        ("unet/diffusion_pytorch_model.safetensors", weights("conv_in.weight", 1)?),
        ("vae/config.json", b"{}".to_vec()),
        ("vae/diffusion_pytorch_model.safetensors", weights("decoder.conv_in.weight", 10)?),
        ("text_encoder/config.json", b"{}".to_vec()),
        ("text_encoder/model.safetensors", weights("text_model.final_layer_norm.weight", 10)?),
        ("text_encoder/pytorch_model.bin", b"PK\x03\x04".to_vec()),
    ];
    Ok(files.into_iter().map(|(name, bytes)| (name.to_string(), bytes)).collect())
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_string());
    }
    let path = request.split(' ').nth(1).unwrap_or_default().to_string();
    let range = headers.get("range").cloned();
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    state.tokens.push(headers.get("authorization").cloned());
    let Some(path) = path.strip_prefix(&state.prefix).map(String::from) else {
        return send(&mut stream, "404 Not Found", &[], b"");
    };
    state.log.push((path.clone(), range.clone()));

    if state.token.as_ref().is_some_and(|t| headers.get("authorization") != Some(&format!("Bearer {t}"))) {
        return send(&mut stream, "401 Unauthorized", &["X-Error-Code: GatedRepo"], b"");
    }
    let revision = path.strip_prefix("/api/models/owner/name/revision/");
    if revision.is_some_and(|r| ["main?blobs=true", "refs%2Fpr%2F3?blobs=true"].contains(&r)) {
        let listing = state.listing.clone().unwrap_or_else(|| listing(&state.files));
        return send(&mut stream, "200 OK", &[], listing.to_string().as_bytes());
    }
    if path.starts_with("/api/models/owner/name/") {
        return send(&mut stream, "404 Not Found", &["X-Error-Code: RevisionNotFound"], b"");
    }
    let file = path.strip_prefix(&format!("/owner/name/resolve/{COMMIT}/"));
    if let Some(storage) = state.storage.as_ref().filter(|_| file.is_some()) {
        return send(&mut stream, "302 Found", &[&format!("Location: {storage}{path}")], b"");
    }
    let file = file.map(|f| f.replace("%20", " ").replace("%23", "#"));
    let Some((name, bytes)) = file.and_then(|f| state.files.get_key_value(&f)) else {
        return send(&mut stream, "404 Not Found", &["X-Error-Code: RepoNotFound"], b"");
    };
    let (name, mut bytes) = (name.clone(), bytes.clone());
    if state.damage.as_deref() == Some(&name) {
        bytes.reverse();
    }
    let start = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let start = start.filter(|_| !state.ignores_ranges);
    let (status, part) = match start {
        Some(start) => ("206 Partial Content", &bytes[start.min(bytes.len())..]),
        None => ("200 OK", bytes.as_slice()),
    };
    let content_range =
        format!("Content-Range: bytes {}-{}/{}", start.unwrap_or(0), bytes.len() - 1, bytes.len());
    if let Some((_, after)) = state.cut.take_if(|(cut, _)| *cut == name) {
        // Promises all of it, sends a part, hangs up.
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{content_range}\r\n\r\n", part.len())?;
        return stream.write_all(&part[..after]);
    }
    send(&mut stream, status, &[&content_range], part)
}

fn send(stream: &mut TcpStream, status: &str, headers: &[&str], body: &[u8]) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for header in headers {
        write!(head, "{header}\r\n").ok();
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(body)
}

fn listing(files: &BTreeMap<String, Vec<u8>>) -> serde_json::Value {
    let sibling = |(name, bytes): (&String, &Vec<u8>)| {
        let sha256 = format!("{:x}", Sha256::digest(bytes));
        let mut entry = serde_json::json!({ "rfilename": name, "size": bytes.len(), "blobId": sha256[..40] });
        if name.ends_with(".safetensors") {
            entry["lfs"] = serde_json::json!({ "sha256": sha256, "size": bytes.len(), "pointerSize": 134 });
        }
        entry
    };
    serde_json::json!({ "id": "owner/name", "sha": COMMIT, "siblings": files.iter().map(sibling).collect::<Vec<_>>() })
}

fn source() -> Result<ModelSource, Box<dyn Error>> {
    Ok(ModelSource::parse("owner/name")?)
}

fn blobs(cache: &Path) -> PathBuf {
    HubCache::new(cache).repository("owner/name").join("blobs")
}

#[test]
fn a_model_is_fetched_once_and_then_opens_without_the_hub() -> Done {
    let (hub, cache) = (Hub::start()?, tempfile::tempdir()?);
    let mut options = hub.options(cache.path());
    let (mut total, mut last) = (0, 0);
    let mut observer = |event: &Event<'_>| match event {
        Event::Started { total: all, .. } => total = *all,
        Event::Advanced { done, .. } => {
            assert!(*done >= last, "progress went back from {last} to {done}");
            last = *done;
        }
        _ => {}
    };
    let checkpoint = source()?.open(&options, &mut observer, &CancelToken::default())?;
    assert_eq!((checkpoint.family, checkpoint.origin.as_str()), (Family::Sd1, "owner/name"));
    assert_eq!(checkpoint.prediction().prediction_type.as_deref(), Some("v_prediction"));
    assert!(checkpoint.tokenizer_files(false)?.is_some());
    let unet = checkpoint.component(Component::Unet)?;
    assert_eq!(unet.store.load("conv_in.weight")?.elem_count(), 1_000_000);
    assert_eq!((last, total > 4_000_000), (total, true));
    let sha256 = format!("{:x}", Sha256::digest(&hub.state().files[UNET]));
    assert_eq!(checkpoint.hash(&HashCache::new(cache.path()), &CancelToken::default())?, sha256[..10]);

    let fetched: BTreeSet<String> = hub.state().log.iter().map(|(path, _)| path.clone()).collect();
    assert_eq!(fetched.len(), hub.state().log.len(), "something was fetched twice");
    for unused in ["README.md", "pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors"] {
        assert!(!fetched.iter().any(|path| path.ends_with(unused)), "{unused} was fetched");
    }

    hub.state().log.clear();
    source()?.open(&options, &mut (), &CancelToken::default())?;
    options.offline = true;
    source()?.open(&options, &mut (), &CancelToken::default())?;
    assert!(hub.state().log.is_empty());

    let listed = HubCache::new(cache.path()).list()?;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].id.as_str(), listed[0].partial), ("owner/name", false));
    assert!(listed[0].size_bytes > 4_000_000);
    Ok(())
}

#[test]
fn a_broken_connection_is_resumed_where_it_broke() -> Done {
    let (hub, cache) = (Hub::start()?, tempfile::tempdir()?);
    hub.state().cut = Some((UNET.into(), 1_234_567));
    source()?.open(&hub.options(cache.path()), &mut (), &CancelToken::default())?;
    assert_eq!(hub.requests(UNET), [None, Some("bytes=1234567-".into())]);
    Ok(())
}

#[test]
fn a_server_without_ranges_starts_over() -> Done {
    let (hub, cache) = (Hub::start()?, tempfile::tempdir()?);
    hub.state().cut = Some((UNET.into(), 1_234_567));
    hub.state().ignores_ranges = true;
    source()?.open(&hub.options(cache.path()), &mut (), &CancelToken::default())?;
    assert_eq!(hub.requests(UNET).len(), 2);
    Ok(())
}

#[test]
fn a_cancelled_download_goes_on_in_the_next_run() -> Done {
    let (hub, cache) = (Hub::start()?, tempfile::tempdir()?);
    let cancel = CancelToken::default();
    let stop = cancel.clone();
    let mut observer = move |event: &Event<'_>| {
        if matches!(event, Event::Advanced { done, .. } if *done > 2_000_000) {
            stop.cancel();
        }
    };
    let error = source()?.open(&hub.options(cache.path()), &mut observer, &cancel).expect_err("cancelled");
    assert!(error.is_cancelled(), "{error}");
    // The revision is not named before all of it is there.
    assert_eq!(HubCache::new(cache.path()).find("owner/name", "main"), None);

    hub.state().log.clear();
    source()?.open(&hub.options(cache.path()), &mut (), &CancelToken::default())?;
    let resumed = hub.requests(UNET);
    assert!(matches!(resumed.as_slice(), [Some(range)] if range != "bytes=0-"), "{resumed:?}");
    assert!(hub.requests("model_index.json").is_empty(), "what was there is fetched again");
    Ok(())
}

#[test]
fn a_damaged_file_is_not_kept() -> Done {
    let (hub, cache) = (Hub::start()?, tempfile::tempdir()?);
    hub.state().damage = Some(UNET.into());
    let error =
        source()?.open(&hub.options(cache.path()), &mut (), &CancelToken::default()).expect_err("damaged");
    assert!(error.to_string().contains("arrived damaged"), "{error}");
    let large = fs::read_dir(blobs(cache.path()))?
        .flatten()
        .filter(|e| e.metadata().is_ok_and(|m| m.len() > 1 << 20));
    assert_eq!(large.count(), 0);
    hub.state().damage = None;
    source()?.open(&hub.options(cache.path()), &mut (), &CancelToken::default())?;
    Ok(())
}

#[test]
fn a_gated_model_asks_for_a_token() -> Done {
    let (hub, cache) = (Hub::start()?, tempfile::tempdir()?);
    hub.state().token = Some("right".into());
    let mut options = hub.options(cache.path());
    let error = source()?.open(&options, &mut (), &CancelToken::default()).expect_err("gated");
    assert!(error.to_string().contains("may not be read with this token"), "{error}");
    assert!(error.hint().is_some_and(|h| h.contains("accept its licence")));
    options.token = Some("right".into());
    source()?.open(&options, &mut (), &CancelToken::default())?;
    Ok(())
}

#[test]
fn what_is_not_there_is_said() -> Done {
    let (hub, cache) = (Hub::start()?, tempfile::tempdir()?);
    let mut options = hub.options(cache.path());
    let open = |text: &str, options: &OpenOptions| -> Result<String, Box<dyn Error>> {
        let opened = ModelSource::parse(text)?.open(options, &mut (), &CancelToken::default());
        let error = opened.expect_err(text);
        assert!(error.hint().is_some(), "{error} has no hint");
        Ok(error.to_string())
    };
    assert!(open("owner/other", &options)?.contains("there is no model owner/other"));
    assert!(open("owner/name@v9", &options)?.contains("owner/name has no such revision"));
    hub.state().files.retain(|name, _| !name.starts_with("unet/") || name == "unet/config.json");
    hub.state().files.insert("unet/diffusion_pytorch_model.bin".into(), vec![0]);
    assert!(open("owner/name", &options)?.contains("`unet` has no safetensors weights"));
    options.offline = true;
    assert!(open("owner/name", &options)?.contains("this run is offline"));
    options.offline = false;
    // Port 9 discards; nothing listens there.
    options.endpoint = Some("http://127.0.0.1:9".into());
    assert!(open("owner/name", &options)?.contains("cannot reach http://127.0.0.1:9"));
    Ok(())
}

#[test]
fn a_snapshot_with_a_file_missing_is_completed() -> Done {
    let (hub, cache) = (Hub::start()?, tempfile::tempdir()?);
    let mut options = hub.options(cache.path());
    source()?.open(&options, &mut (), &CancelToken::default())?;
    let snapshot = HubCache::new(cache.path()).snapshot("owner/name", COMMIT);
    let small =
        ["model_index.json", "scheduler/scheduler_config.json", "vae/config.json", "tokenizer/merges.txt"];
    for name in small.into_iter().chain(["vae/diffusion_pytorch_model.safetensors", UNET]) {
        let link = snapshot.join(name);
        // The blob alone, as a cleaner does, leaving a link to nowhere; and the link, as a part of a download does.
        fs::remove_file(fs::canonicalize(&link)?)?;
        if name.ends_with(".json") {
            fs::remove_file(&link)?;
        }
        options.offline = true;
        let error = source()?.open(&options, &mut (), &CancelToken::default()).expect_err(name);
        assert!(error.to_string().contains("this run is offline"), "{name}: {error}");
        assert!(error.hint().is_some_and(|h| h.contains("fetch what is missing")), "{name}: {error}");
        options.offline = false;
        hub.state().log.clear();
        source()?.open(&options, &mut (), &CancelToken::default())?;
        assert_eq!(hub.state().log.len(), 2, "the listing and {name}");
    }
    Ok(())
}

#[test]
fn the_token_stays_with_the_hub() -> Done {
    let (hub, storage, cache) = (Hub::start()?, Hub::start()?, tempfile::tempdir()?);
    // The same machine by another name, which is another host.
    hub.state().storage = Some(storage.address.replace("127.0.0.1", "localhost"));
    storage.state().cut = Some((UNET.into(), 1_234_567));
    source()?.open(&hub.options(cache.path()), &mut (), &CancelToken::default())?;
    assert_eq!(storage.requests(UNET), [None, Some("bytes=1234567-".into())]);
    let asked = hub.state();
    assert!(asked.tokens.len() > 2 && asked.tokens.iter().all(|t| t.as_deref() == Some("Bearer wrong")));
    assert!(storage.state().tokens.iter().all(Option::is_none), "{:?}", storage.state().tokens);
    Ok(())
}

#[test]
fn the_hub_may_be_below_a_path_and_a_revision_have_slashes() -> Done {
    let (hub, cache) = (Hub::start()?, tempfile::tempdir()?);
    hub.state().prefix = "/mirrors/hf".into();
    let mut options = hub.options(cache.path());
    options.endpoint = Some(format!("{}/mirrors/hf/", hub.address));
    let source = ModelSource::parse("owner/name@refs/pr/3")?;
    source.open(&options, &mut (), &CancelToken::default())?;
    options.offline = true;
    source.open(&options, &mut (), &CancelToken::default())?;
    assert_eq!(HubCache::new(cache.path()).find("owner/name", "main"), None);
    Ok(())
}

#[test]
fn another_kind_of_model_is_refused_before_its_weights_are_here() -> Done {
    let (hub, cache) = (Hub::start()?, tempfile::tempdir()?);
    hub.state().files.insert("model_index.json".into(), br#"{"_class_name": "FluxPipeline"}"#.to_vec());
    let error =
        source()?.open(&hub.options(cache.path()), &mut (), &CancelToken::default()).expect_err("Flux");
    assert!(error.to_string().contains("is a FluxPipeline"), "{error}");
    assert!(hub.requests(".safetensors").is_empty());
    Ok(())
}

#[test]
fn a_file_may_have_an_odd_name() -> Done {
    let (hub, cache) = (Hub::start()?, tempfile::tempdir()?);
    let weights = hub.state().files.remove(UNET).unwrap_or_default();
    hub.state().files = BTreeMap::from([("my model #1.safetensors".to_string(), weights)]);
    let error =
        source()?.open(&hub.options(cache.path()), &mut (), &CancelToken::default()).expect_err("no model");
    assert_eq!(hub.requests("/my%20model%20%231.safetensors"), [None]);
    assert!(error.to_string().contains("my model #1.safetensors"), "{error}");
    Ok(())
}

#[test]
fn a_hostile_hub_writes_nowhere_else() -> Done {
    let (hub, cache) = (Hub::start()?, tempfile::tempdir()?);
    let honest = listing(&hub.state().files);
    let hub_folder = cache.path().join("hub");
    let hostile: [(&str, serde_json::Value, &str); 6] = [
        ("/sha", "../../evil".into(), "names the commit"),
        ("/siblings/1/blobId", "../../../evil".into(), "has no hash for"),
        ("/siblings/1/size", serde_json::Value::Null, "has no size for"),
        ("/siblings/9/lfs/size", 10.into(), "sent more than the 10 bytes"),
        ("/siblings", "none".into(), "listing is not understood"),
        ("/siblings/1/rfilename", "../../../model_index.json".into(), "holds no Stable Diffusion model"),
    ];
    for (field, value, said) in hostile {
        let mut listing = honest.clone();
        *listing.pointer_mut(field).ok_or(field)? = value;
        hub.state().listing = Some(listing);
        let error =
            source()?.open(&hub.options(&hub_folder), &mut (), &CancelToken::default()).expect_err(field);
        assert!(error.to_string().contains(said), "{field}: {error}");
    }
    let outside: Vec<_> = fs::read_dir(cache.path())?.flatten().map(|e| e.file_name()).collect();
    assert!(outside.iter().all(|name| name == "hub"), "{outside:?}");
    Ok(())
}

#[test]
fn what_cannot_be_an_address_or_a_token_is_said() -> Done {
    let (hub, cache) = (Hub::start()?, tempfile::tempdir()?);
    let mut options = hub.options(cache.path());
    for endpoint in
        ["huggingface.co", "ftp://huggingface.co", "https://", "https://h/?q", "https://h/#f", "a b"]
    {
        options.endpoint = Some(endpoint.into());
        let error = source()?.open(&options, &mut (), &CancelToken::default()).expect_err(endpoint);
        assert!(error.hint().is_some_and(|h| h.contains("HF_ENDPOINT")), "{endpoint}: {error}");
    }
    options = hub.options(cache.path());
    options.token = Some("hf_ab\ncd".into());
    let error = source()?.open(&options, &mut (), &CancelToken::default()).expect_err("token");
    assert!(error.to_string().contains("no token has") && !error.to_string().contains("hf_ab"), "{error}");
    assert!(hub.state().log.is_empty());
    Ok(())
}
