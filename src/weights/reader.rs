//! Checked safetensors files, mapped or read into memory, and a [`Store`] over one or more of them.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
};

use candle_core::{Shape, Tensor};
use memmap2::Mmap;

pub use super::{
    dtype::StoredDtype,
    header::{Entry, Header},
};
use super::{
    header::MAX_HEADER_BYTES,
    sniff,
    store::{Store, TensorInfo},
};
use crate::{
    error::{Error, Result},
    files,
};

/// What is read of a file at once, where all of it is.
const PIECE_BYTES: usize = 1 << 22;
/// Of the widest number that is stored.
const NUMBER_BYTES: usize = 8;

/// A safetensors file whose header has been checked: no claim in it reaches outside the file.
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: Bytes,
    header: Header,
}

enum Bytes {
    Mapped(Mmap),
    Memory(Cow<'static, [u8]>),
    /// The header, and a few tensors by where they begin.
    Parts {
        header: Vec<u8>,
        tensors: BTreeMap<usize, Vec<u8>>,
    },
}

impl SafetensorsFile {
    /// Maps a file: pages are read when touched, and shared with other processes. For base weights. A file that
    /// another program shortens meanwhile would end this one, which is why small files go through
    /// [`SafetensorsFile::read`].
    ///
    /// # Errors
    /// If it cannot be opened, is something else, or its header lies.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = files::open_regular(path, "a safetensors file")?;
        let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
        if length == 0 {
            // An empty file cannot be mapped; let the sniffer say what is wrong with it.
            return Self::new(path, Bytes::Memory(Cow::Borrowed(&[])));
        }
        // SAFETY: the map is read-only and private to this struct. The caller is told not to change the file while
        // it is in use; every program that maps model weights rests on that.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Self::new(path, Bytes::Mapped(map))
    }

    /// Reads a whole file into memory. For adapters: they are small, and users overwrite them while we run.
    ///
    /// # Errors
    /// As [`SafetensorsFile::open`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (mut file, mut bytes, header) = read_header(path)?;
        let tensors = header.tensors.values().map(|entry| entry.range.end).max();
        let length = tensors.unwrap_or(header.data_start);
        // What the checked header promises is asked for at once; a machine that lacks it says so instead of dying.
        let reserved = bytes.try_reserve_exact(length.saturating_sub(bytes.len()));
        reserved
            .map_err(|_| Error::file(path, format!("has {length} bytes, more than there is memory for")))?;
        file.read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
        // Checked once more: the file may have changed in between.
        Self::new(path, Bytes::Memory(Cow::Owned(bytes)))
    }

    /// Reads a file's header and nothing else, whatever its size: tensors can be listed, and none can be read. For
    /// looking through thousands of files, some of which may be changing.
    ///
    /// # Errors
    /// As [`SafetensorsFile::open`].
    pub fn open_header(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (_, mut bytes, header) = read_header(path)?;
        bytes.truncate(header.data_start);
        Ok(Self { path: path.to_path_buf(), bytes: Bytes::Memory(Cow::Owned(bytes)), header })
    }

    /// Takes a file's bytes; `origin` is what messages call it.
    ///
    /// # Errors
    /// If they are something else, or the header lies.
    pub fn from_bytes(origin: impl AsRef<Path>, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        Self::new(origin.as_ref(), Bytes::Memory(bytes.into()))
    }

    /// [`SafetensorsFile::open_header`], and every tensor that is a single number: alphas. They are read one by one,
    /// because pages of a map bring their neighbours along, and soon the whole file.
    ///
    /// # Errors
    /// As [`SafetensorsFile::open`].
    pub fn open_numbers(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let looked = Self::open_header(path)?;
        let (mut file, mut tensors) = (files::open_regular(path, "a safetensors file")?, BTreeMap::new());
        let is_number = |range: &Range<usize>| (1..=NUMBER_BYTES).contains(&range.len());
        let ranges = looked.header.tensors.values().map(|entry| entry.range.clone());
        for range in ranges.filter(is_number) {
            let mut bytes = vec![0; range.len()];
            let read =
                file.seek(SeekFrom::Start(range.start as u64)).and_then(|_| file.read_exact(&mut bytes));
            read.map_err(|e| Error::io(path, e))?;
            tensors.insert(range.start, bytes);
        }
        let header = looked.bytes.as_slice().to_vec();
        Ok(Self { bytes: Bytes::Parts { header, tensors }, ..looked })
    }

    fn new(path: &Path, bytes: Bytes) -> Result<Self> {
        let all = bytes.as_slice();
        sniff::refuse_foreign(path, &all[..all.len().min(sniff::PREFIX_BYTES)], all.len() as u64)?;
        let header = Header::parse(path, all, all.len() as u64)?;
        Ok(Self { path: path.to_path_buf(), bytes, header })
    }

    /// Where it came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that the bytes are mapped from; `None` if they are in memory.
    pub(super) fn mapped_path(&self) -> Option<&Path> {
        matches!(self.bytes, Bytes::Mapped(_)).then_some(&*self.path)
    }

    /// The checked header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The `__metadata__` strings.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// Every tensor's key, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// A tensor's bytes as stored.
    pub fn tensor_bytes(&self, name: &str) -> Option<&[u8]> {
        let range = self.header.tensors.get(name)?.range.clone();
        match &self.bytes {
            Bytes::Parts { tensors, .. } => {
                tensors.get(&range.start).map(Vec::as_slice).filter(|bytes| bytes.len() == range.len())
            }
            whole => whole.as_slice().get(range),
        }
    }

    /// All tensors' bytes: what `sshs_model_hash` and AutoV3 are computed over.
    pub fn data(&self) -> &[u8] {
        self.bytes.as_slice().get(self.header.data_start..).unwrap_or_default()
    }

    /// The whole file, header included: what AutoV2 is computed over.
    pub fn file_bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// The file from one of its bytes on, in pieces that do not stay in memory if they are mapped.
    ///
    /// # Errors
    /// Those of `f`, which end it.
    pub(super) fn pieces(&self, start: usize, mut f: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let bytes = self.bytes.as_slice().get(start..).unwrap_or_default();
        for (i, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
            f(piece)?;
            let first = start + i * PIECE_BYTES;
            self.bytes.let_go(&(first..first + piece.len()));
        }
        Ok(())
    }

    /// Copies a tensor to the CPU in its stored dtype (formats candle lacks are widened, see
    /// [`StoredDtype::tensor_dtype`]).
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let (Some(entry), Some(bytes)) = (self.header.tensors.get(name), self.tensor_bytes(name)) else {
            return Err(Error::file(&self.path, format!("tensor `{name}` is missing")));
        };
        let decoded = entry.dtype.decode(bytes, &entry.shape);
        self.bytes.let_go(&entry.range);
        decoded.map_err(|e| Error::file(&self.path, format!("tensor `{name}`: {e}")))
    }
}

impl fmt::Debug for SafetensorsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tensors = self.header.tensors.len();
        f.debug_struct("SafetensorsFile").field("path", &self.path).field("tensors", &tensors).finish()
    }
}

impl Bytes {
    /// Gives mapped pages back that were just read, so that a model is not counted twice. Reading them again brings
    /// them back.
    #[cfg(unix)]
    fn let_go(&self, range: &Range<usize>) {
        use memmap2::UncheckedAdvice;
        /// Less is not worth a call.
        const LARGE: usize = 1 << 20;
        if let Self::Mapped(map) = self
            && range.len() >= LARGE
        {
            // SAFETY: nothing writes to the mapping, so what the file says comes back. A refusal changes nothing.
            unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) }.ok();
        }
    }

    #[cfg(not(unix))]
    fn let_go(&self, _: &Range<usize>) {}

    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Memory(bytes) => bytes,
            Self::Parts { header, .. } => header,
        }
    }
}

/// The file, its beginning up to the header's end or a little further, and the checked header.
fn read_header(path: &Path) -> Result<(File, Vec<u8>, Header)> {
    let failed = |e| Error::io(path, e);
    let mut file = files::open_regular(path, "a safetensors file")?;
    let file_bytes = file.metadata().map_err(failed)?.len();
    let mut bytes = Vec::new();
    file.by_ref().take(sniff::PREFIX_BYTES as u64).read_to_end(&mut bytes).map_err(failed)?;
    sniff::refuse_foreign(path, &bytes, file_bytes)?;
    let claimed = bytes.first_chunk::<8>().map_or(0, |n| u64::from_le_bytes(*n));
    // What claims more is refused below; nothing is allocated before it has been read.
    let end = 8 + claimed.min(MAX_HEADER_BYTES);
    let left = end.saturating_sub(bytes.len() as u64);
    file.by_ref().take(left).read_to_end(&mut bytes).map_err(failed)?;
    let header = Header::parse(path, &bytes, file_bytes)?;
    Ok((file, bytes, header))
}

/// The tensors of one or more files (shards) as one [`Store`], under the names the files give them.
pub struct SafetensorsStore {
    files: Vec<SafetensorsFile>,
    /// Name to index into `files`.
    index: BTreeMap<String, usize>,
    origin: String,
}

impl SafetensorsStore {
    /// Maps one file.
    ///
    /// # Errors
    /// As [`SafetensorsFile::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::new(vec![SafetensorsFile::open(path)?], path.display().to_string())
    }

    /// Joins checked files.
    ///
    /// # Errors
    /// If two of them hold the same name.
    pub fn new(files: Vec<SafetensorsFile>, origin: impl Into<String>) -> Result<Self> {
        let mut index = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(first) = index.insert(name.to_string(), i) {
                    let other = files[first].path().display();
                    return Err(Error::file(file.path(), format!("tensor `{name}` is in {other} too")));
                }
            }
        }
        Ok(Self { files, index, origin: origin.into() })
    }

    /// The files it is made of.
    pub fn files(&self) -> &[SafetensorsFile] {
        &self.files
    }

    /// The file that holds a name.
    pub fn file_of(&self, name: &str) -> Option<&SafetensorsFile> {
        self.files.get(*self.index.get(name)?)
    }
}

impl fmt::Debug for SafetensorsStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SafetensorsStore").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Store for SafetensorsStore {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        let entry = self.file_of(name)?.header().tensors.get(name)?;
        Some(TensorInfo { dtype: entry.dtype.tensor_dtype(), shape: Shape::from(entry.shape.as_slice()) })
    }

    fn load(&self, name: &str) -> Result<Tensor> {
        let missing = || Error::invalid(format!("{}: tensor `{name}` is missing", self.origin));
        self.file_of(name).ok_or_else(missing)?.tensor(name)
    }

    fn names(&self) -> Vec<String> {
        self.index.keys().cloned().collect()
    }

    fn origin(&self) -> String {
        self.origin.clone()
    }
}
