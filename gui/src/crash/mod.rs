//! What is kept when the program makes a mistake: a report without anything of the user's in it, shown until it is removed.

mod private;

use std::{
    backtrace::Backtrace,
    io::{Read as _, Write as _},
    panic::{self, PanicHookInfo},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use scumble::{device, files};

use crate::state::CrashReport;

/// Reports kept: a mistake made with every picture is one mistake.
const KEPT: usize = 20;
/// Bytes of a report that are read: nobody copies more.
const LONGEST: u64 = 256 << 10;

/// Written since somebody asked.
static FRESH: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// The folder of reports, beside what is remembered between runs.
pub fn folder() -> Option<PathBuf> {
    eframe::storage_dir(crate::APP_ID).map(|folder| folder.join("crashes"))
}

/// From here on every panic, on whatever thread, is written into `folder`, and said.
pub fn install(folder: PathBuf) {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        usual(info);
        let said = match write(&folder, &report(info)) {
            Some(path) => {
                let said =
                    format!("a report without anything of yours in it was written: {}", path.display());
                FRESH.lock().unwrap_or_else(PoisonError::into_inner).push(path);
                said
            }
            None => format!("no report could be written into {}", folder.display()),
        };
        writeln!(std::io::stderr(), "{said}").ok();
    }));
}

/// Reports written by this process since the last call.
pub(crate) fn fresh() -> Vec<CrashReport> {
    // Whoever writes one has it locked for a moment; a frame does not wait for that.
    let paths = FRESH.try_lock().map(|mut fresh| std::mem::take(&mut *fresh)).unwrap_or_default();
    paths.into_iter().filter_map(read).collect()
}

/// The reports of a folder, the newest first.
pub fn left(folder: &Path) -> Vec<CrashReport> {
    let mut paths = paths(folder);
    paths.sort_by(|a, b| b.cmp(a));
    paths.into_iter().filter_map(read).collect()
}

fn paths(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("crash-") && name.ends_with(".txt")
    });
    named.take(4 * KEPT).collect()
}

fn read(path: PathBuf) -> Option<CrashReport> {
    let mut bytes = Vec::new();
    files::open_regular(&path, "a report").ok()?.take(LONGEST).read_to_end(&mut bytes).ok()?;
    Some(CrashReport { path, text: String::from_utf8_lossy(&bytes).into_owned() })
}

fn write(folder: &Path, report: &str) -> Option<PathBuf> {
    if paths(folder).len() >= KEPT {
        return None;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let process = std::process::id();
    (0..100).find_map(|n| {
        let path = folder.join(format!("crash-{:013}-{process}-{n:02}.txt", since.as_millis()));
        // Never over another one, never half of one.
        files::write_new(&path, report.as_bytes()).ok()?.then_some(path)
    })
}

fn report(info: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let place = info.location().map(|at| format!("{}:{}:{}", at.file(), at.line(), at.column()));
    let text = format!(
        "Scumble {version}, {os} {arch}, {build} build, with {with}\nthread: {thread}\nat: {place}\n\
         message: {message}\n\n{trace}",
        version = env!("CARGO_PKG_VERSION"),
        os = std::env::consts::OS,
        arch = std::env::consts::ARCH,
        build = if cfg!(debug_assertions) { "debug" } else { "release" },
        with = device::built_with().join(", "),
        thread = thread.name().unwrap_or("without a name"),
        place = place.as_deref().unwrap_or("unknown"),
        message = private::message(info),
        trace = Backtrace::force_capture(),
    );
    private::without_user(&text)
}
