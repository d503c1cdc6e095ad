//! Textual inversions as users name them: files and folders on the command line, names in recipes.

use std::path::PathBuf;

use super::{Context, loras::stem};
use crate::{
    adapter::Embedding,
    error::{Error, Result},
    files::walk,
    pipeline::{GenerateRequest, Pipeline, infotext::EmbeddingUse},
};

/// Endings of the files in folders. Pickles are refused when a prompt names one, rather than left out in silence.
const ENDINGS: [&str; 3] = ["safetensors", "pt", "bin"];

/// Which embeddings to use and where to look for those that are only named.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Files, and folders of files that are used if a prompt names them.
    pub given: Vec<PathBuf>,
    /// What the repeated recipe used.
    pub named: Vec<EmbeddingUse>,
    /// Searched for these after the folders given.
    pub folders: Vec<PathBuf>,
}

struct Candidate {
    path: PathBuf,
    name: String,
    /// Given as a file; a folder's are used if a prompt names them.
    by_hand: bool,
}

/// Makes embeddings known to the pipeline and returns those the prompts call, but for those adapters bring.
pub(super) fn apply(
    wanted: &Wanted,
    request: &GenerateRequest,
    pipeline: &mut Pipeline,
    context: &Context,
) -> Result<Vec<EmbeddingUse>> {
    let prompts = [request.prompt.as_str(), request.negative.as_str()];
    let candidates = candidates(wanted)?;
    let names: Vec<String> = candidates.iter().map(|c| c.name.clone()).collect();
    let named = pipeline.text.named_in(&names, &prompts)?;
    let mut known: Vec<Embedding> = Vec::new();
    for (candidate, named) in candidates.iter().zip(named) {
        let warn =
            |what: &str| context.console.note(&format!("warning: embedding `{}`: {what}", candidate.name));
        match (load(pipeline, candidate, named), candidate.by_hand) {
            (Ok(embedding), true) if !named => {
                warn("no prompt names it");
                known.extend(embedding);
            }
            (Ok(embedding), _) => known.extend(embedding),
            (Err(e), true) => return Err(e),
            // Folders hold files for many models.
            (Err(e), false) => warn(&format!("not used: {e}")),
        }
    }
    pipeline.set_embeddings(known)?;
    let called = pipeline.text.called_in(&prompts)?;
    let used = called.iter().filter(|e| e.hash.is_some());
    let used: Vec<EmbeddingUse> =
        used.map(|e| EmbeddingUse { name: e.name.clone(), hash: e.hash.clone() }).collect();
    for embedding in &called {
        let (count, vectors) =
            (embedding.length(), if embedding.length() == 1 { "vector" } else { "vectors" });
        context.console.note(&format!("embedding {}: {count} {vectors}", embedding.name));
    }
    for expected in &wanted.named {
        let other = used
            .iter()
            .find(|u| expected.is_called(&u.name) && expected.hash.is_some() && u.hash != expected.hash);
        if let Some(other) = other {
            context.console.note(&format!(
                "warning: the embedding `{}` is another file than the recipe names (hash {}, expected {}): the picture will differ",
                other.name,
                other.hash.as_deref().unwrap_or_default(),
                expected.hash.as_deref().unwrap_or_default()
            ));
        }
    }
    Ok(used)
}

fn load(pipeline: &mut Pipeline, candidate: &Candidate, named: bool) -> Result<Option<Embedding>> {
    if !candidate.by_hand && !named {
        return Ok(None);
    }
    pipeline.load_embedding(&candidate.path).map(Some)
}

/// Every file given or found; of several with the same name the one given first.
fn candidates(wanted: &Wanted) -> Result<Vec<Candidate>> {
    let mut found: Vec<Candidate> = Vec::new();
    let (folders, given): (Vec<&PathBuf>, Vec<&PathBuf>) =
        wanted.given.iter().partition(|path| path.is_dir());
    let by_hand = given.into_iter().map(|path| (path.clone(), true));
    let in_folders = folders.into_iter().map(|folder| walk::files_in(folder, &ENDINGS, walk::ALL));
    let in_folders = in_folders.collect::<Result<Vec<_>>>()?;
    for (path, by_hand) in by_hand.chain(in_folders.into_iter().flatten().map(|path| (path, false))) {
        let name = stem(&path);
        match found.iter().find(|other| other.name.to_lowercase() == name.to_lowercase()) {
            Some(other) if other.by_hand && by_hand && other.path != path => {
                return Err(Error::invalid(format!(
                    "`{}` and `{}` have the same name in prompts",
                    other.path.display(),
                    path.display()
                ))
                .with_hint("give one of them, or rename it"));
            }
            Some(_) => {}
            None => found.push(Candidate { path, name, by_hand }),
        }
    }
    for embedding in &wanted.named {
        if found.iter().any(|candidate| embedding.is_called(&candidate.name)) {
            continue;
        }
        let path = search(embedding, wanted)?;
        found.push(Candidate { name: stem(&path), path, by_hand: true });
    }
    Ok(found)
}

/// A recipe's embedding in the usual folders.
fn search(embedding: &EmbeddingUse, wanted: &Wanted) -> Result<PathBuf> {
    for folder in &wanted.folders {
        // Folders inside the one here are not meant unless the user says so.
        let depth = if folder.ends_with("embeddings") { walk::NEAR } else { 0 };
        let files = walk::files_in(folder, &ENDINGS, depth).unwrap_or_default();
        if let Some(path) = files.into_iter().find(|path| embedding.is_called(&stem(path))) {
            return Ok(path);
        }
    }
    let looked: Vec<String> =
        wanted.given.iter().chain(&wanted.folders).map(|f| f.display().to_string()).collect();
    Err(Error::invalid(format!("the recipe uses the embedding `{}`, which is not there", embedding.name))
        .with_hint(format!(
            "looked in {}: `--embedding` names its file or another folder",
            looked.join(", ")
        )))
}
