//! What can go wrong, said for people: lower case, what was expected and found, then a hint.

use std::path::{Path, PathBuf};

/// The result of everything fallible in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One error enum for the crate. [`Error::hint`] finds what the user may do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write a path.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is there but is not what it should be (truncated, wrong format, hostile).
    #[error("{}: {message}", path.display())]
    File {
        /// The offending file.
        path: PathBuf,
        /// What was expected and what was found.
        message: String,
    },
    /// A request that cannot be carried out as it stands (unknown name, value out of range, wrong family).
    #[error("{0}")]
    Invalid(String),
    /// The user asked to stop. Whatever was made until then is kept.
    #[error("cancelled")]
    Cancelled,
    /// A tensor operation failed: shapes, dtypes, or the device.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
    /// Where another error happened.
    #[error("{context}: {source}")]
    Context {
        /// What was being done, lower case.
        context: String,
        /// What happened.
        source: Box<Error>,
    },
    /// The file another error is about.
    #[error("{}: {source}", path.display())]
    At {
        /// Which.
        path: PathBuf,
        /// What happened.
        source: Box<Error>,
    },
    /// Another error, with what the user may do about it.
    #[error("{source}")]
    Hinted {
        /// What happened.
        source: Box<Error>,
        /// What to do, lower case, no period.
        hint: String,
    },
}

/// Of many known names only the most similar ones are listed.
const MOST_KNOWN: usize = 20;

impl Error {
    /// A request that cannot be carried out.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }

    /// A file that is not what it should be.
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// An operating-system error on a path; use as `.map_err(|e| Error::io(path, e))`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// Adds what the user may do about it.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self::Hinted { source: Box::new(self), hint: hint.into() }
    }

    /// Adds what was being done.
    #[must_use]
    pub fn context(self, context: impl Into<String>) -> Self {
        Self::Context { context: context.into(), source: Box::new(self) }
    }

    /// Adds which file it is about.
    #[must_use]
    pub fn at(self, path: impl AsRef<Path>) -> Self {
        Self::At { path: path.as_ref().to_path_buf(), source: Box::new(self) }
    }

    /// Says `to` wherever it says `from`: what is written under a temporary name is known by its own.
    #[must_use]
    pub(crate) fn renamed(self, from: &Path, to: &Path) -> Self {
        let path = |path: PathBuf| match path.strip_prefix(from) {
            Ok(rest) if rest.as_os_str().is_empty() => to.to_path_buf(),
            Ok(rest) => to.join(rest),
            Err(_) => path,
        };
        let text = |text: String| text.replace(&*from.to_string_lossy(), &to.to_string_lossy());
        match self {
            Self::Io { path: p, source } => Self::Io { path: path(p), source },
            Self::File { path: p, message } => Self::File { path: path(p), message: text(message) },
            Self::Invalid(message) => Self::Invalid(text(message)),
            Self::Context { context, source } => source.renamed(from, to).context(text(context)),
            Self::At { path: p, source } => source.renamed(from, to).at(path(p)),
            Self::Hinted { source, hint } => source.renamed(from, to).with_hint(hint),
            other => other,
        }
    }

    /// The outermost hint, printed on its own line as `hint: …`.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Hinted { hint, .. } => Some(hint),
            Self::Context { source, .. } | Self::At { source, .. } => source.hint(),
            Self::Tensor(_) if self.is_out_of_memory() => Some(
                "a smaller size, or fewer pictures at once, needs less memory; so does `--dtype bf16` or `f16`",
            ),
            _ => None,
        }
    }

    /// True if the device had no room for a tensor.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Context { source, .. } | Self::At { source, .. } | Self::Hinted { source, .. } => {
                source.is_out_of_memory()
            }
            Self::Tensor(e) => {
                let reason = e.to_string().to_lowercase();
                ["out_of_memory", "out of memory", "alloc_failed"].iter().any(|word| reason.contains(word))
            }
            _ => false,
        }
    }

    /// The file it is about, if it is about one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Io { path, .. } | Self::File { path, .. } => Some(path),
            Self::At { path, source } => source.path().or(Some(path)),
            Self::Context { source, .. } | Self::Hinted { source, .. } => source.path(),
            Self::Invalid(_) | Self::Cancelled | Self::Tensor(_) => None,
        }
    }

    /// True if the cause is the user's wish to stop.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Cancelled => true,
            Self::Context { source, .. } | Self::At { source, .. } | Self::Hinted { source, .. } => {
                source.is_cancelled()
            }
            _ => false,
        }
    }

    /// An unknown name, with the nearest known ones as the hint.
    pub fn unknown<'a>(what: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let error = Self::invalid(format!("unknown {what} `{name}`"));
        let mut known: Vec<&str> = known.into_iter().collect();
        let all = known.len();
        let likeness = |k: &str| strsim::jaro_winkler(&name.to_lowercase(), &k.to_lowercase());
        let nearest = known.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        if all > MOST_KNOWN {
            known.sort_by(|a, b| likeness(b).total_cmp(&likeness(a)));
            known.truncate(MOST_KNOWN);
        }
        let more =
            if all > known.len() { format!(", and {} more", all - known.len()) } else { String::new() };
        let listed = format!("known: {}{more}", known.join(", "));
        match nearest.filter(|k| likeness(k) > 0.75) {
            Some(k) => error.with_hint(format!("did you mean `{k}`? {listed}")),
            None if all == 0 => error.with_hint("none is known"),
            None => error.with_hint(listed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hint_survives_context() {
        let e = Error::invalid("no").with_hint("try yes").context("asking");
        assert_eq!(e.to_string(), "asking: no");
        assert_eq!(e.hint(), Some("try yes"));
    }

    #[test]
    fn a_full_card_says_what_needs_less() {
        let full = candle_core::Error::Msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".into());
        let e = Error::from(full).context("step 3");
        assert!(e.is_out_of_memory() && e.hint().is_some_and(|hint| hint.contains("smaller size")));
        assert!(!Error::invalid("out of memory of old days").is_out_of_memory());
    }

    #[test]
    fn temporary_names_are_not_shown() {
        let (from, to) = (Path::new("a/.tmp"), Path::new("a/style"));
        let e = Error::file("a/.tmp/unet/x", "too long").context("writing a/.tmp").with_hint("shorten it");
        let e = e.renamed(from, to);
        assert_eq!(e.to_string().replace('\\', "/"), "writing a/style: a/style/unet/x: too long");
        assert_eq!(e.hint(), Some("shorten it"));
        assert_eq!(e.path(), Some(Path::new("a/style/unet/x")));
    }

    #[test]
    fn unknown_names_the_nearest() {
        let e = Error::unknown("sampler", "dpmpp2m", ["euler", "dpmpp_2m", "ddim"]);
        assert!(e.hint().unwrap_or_default().starts_with("did you mean `dpmpp_2m`?"));
        let many: Vec<String> = (0..1000).map(|i| format!("style{i}")).collect();
        let e = Error::unknown("adapter", "style77x", many.iter().map(String::as_str));
        let hint = e.hint().unwrap_or_default();
        assert!(hint.contains("style77, ") && hint.ends_with(", and 980 more"), "{hint}");
    }
}
