//! What actions and the engine's events do to the state. Nothing here draws, waits or touches files: what is to be done
//! outside comes back as [`Effect`]s.

mod blend;
mod events;
mod grid;
mod history;
mod paint;
mod queue;
mod recipe;
mod start;
pub mod strength;
mod training;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use image::{GrayImage, RgbImage};
use scumble::{
    engine::{Command, Draw, Export, JobId},
    pipeline::{InitSource, infotext::Recipe},
};

pub use blend::{adapters, mix, not_a_file, request};
pub use events::receive;
pub use grid::{choices, defaults, estimate, grid, typed};
pub use history::HISTORY;
pub use paint::Paint;
pub use queue::job;
pub use start::Then;
pub use training::{config, eta_secs, out_path, pictures_per_sec};

use crate::{
    keep::{history::Kept, runs::Record},
    state::{Open, Purpose, Session, Settings, Shot, StartFile, State, Tab, Typing},
};

/// What the user does.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Draw, with another seed if this one was drawn and is not kept.
    Generate,
    /// Something changed that the picture depends on.
    Changed,
    /// Stop what is drawn; or close what is open.
    Cancel,
    /// Another seed, and draw.
    NewSeed,
    /// Open a model.
    OpenModel(String),
    /// Put adapters into the blend.
    AddStyles(Vec<PathBuf>),
    /// Take one out.
    RemoveStyle(usize),
    /// Put words at the prompt's end.
    AddWords(String),
    /// What an adapter looks like was found.
    Cover(PathBuf, Arc<RgbImage>),
    /// Something about a mask.
    Paint(Paint),
    /// Everything as in a picture's recipe. With the picture's file, if it came from one.
    Restore(Box<Recipe>, Option<PathBuf>),
    /// A picture of the history, with everything.
    RestoreShot(u64),
    /// A picture of an earlier run was read.
    Remember(Box<Kept>),
    /// A picture of the history: away with it and its file.
    ForgetShot(u64),
    /// The history cannot be kept on the disk: why.
    CannotKeep((String, Option<String>)),
    /// Choose what a grid is to show.
    OpenGrid,
    /// Draw it.
    DrawGrid,
    /// Stop one job, whether it runs or waits.
    CancelJob(JobId),
    /// Start from the picture in a file.
    StartFrom(PathBuf),
    /// That picture has been read.
    SetStart(Arc<RgbImage>, Option<InitSource>, Then),
    /// It could not be: why, if it is not just gone.
    StartUnread(Option<(String, Option<String>)>, Then),
    /// Start from the picture in the middle.
    StartFromShot,
    /// Start from noise.
    DropStart,
    /// Base and blend side by side.
    ToggleCompare,
    /// The picture to the clipboard.
    Copy,
    /// The picture to a file.
    SaveTo(PathBuf),
    /// The blend to a file.
    ExportTo(PathBuf),
    /// Look through a folder of adapters.
    ScanLibrary(PathBuf),
    /// The pictures to train on.
    TrainFolder(PathBuf),
    /// Look at them again.
    Rescan,
    /// How a training went that was stopped in an earlier run was read: the adapter's file, and that.
    ReadRun(PathBuf, Box<Record>),
    /// A caption was edited: write it beside its picture.
    SaveCaption(usize),
    /// Train.
    StartTraining,
    /// Stop for now.
    PauseTraining,
    /// Go on.
    ResumeTraining,
    /// Stop and use the style.
    StopTraining,
    /// Away with a message.
    Dismiss(usize),
    /// The newest report of a crash: away with its file.
    RemoveCrash,
    /// All reports: not now.
    HideCrashes,
    /// Tell a message from outside of the engine.
    Tell(String, Option<String>),
    /// Something that is only to be known, and what to do about it.
    Note(String, String),
    /// A file or folder is to be chosen.
    Ask(Dialog),
    /// The system has no dialog for that: its path is to be typed, beginning with this.
    AskPath(Dialog, String),
    /// That path was typed.
    PathTyped,
    /// The window is asked to close.
    CloseRequested,
    /// It closes although a style is trained.
    StopAndClose,
    /// It stays open.
    Stay,
}

/// What the system's dialogs are opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialog {
    /// Adapters to add.
    Styles,
    /// A picture to start from.
    StartPicture,
    /// A model's file.
    ModelFile,
    /// A model's folder.
    ModelFolder,
    /// Where to save the picture.
    SavePicture,
    /// Where to save the blend.
    ExportBlend,
    /// The library's folder.
    Library,
    /// The pictures to train on.
    TrainFolder,
}

impl Dialog {
    /// What is to be done with the file or folder that was chosen.
    pub fn chosen(self, path: PathBuf) -> Action {
        match self {
            Self::Styles => Action::AddStyles(vec![path]),
            Self::StartPicture => Action::StartFrom(path),
            Self::ModelFile | Self::ModelFolder => Action::OpenModel(path.display().to_string()),
            Self::SavePicture => Action::SaveTo(path),
            Self::ExportBlend => Action::ExportTo(path),
            Self::Library => Action::ScanLibrary(path),
            Self::TrainFolder => Action::TrainFolder(path),
        }
    }

    /// The same with a path as people type and paste it: with `~`, in quotation marks.
    fn typed(self, typed: &str) -> Option<Action> {
        let plain = typed.trim().trim_matches(['"', '\'']);
        let home = |rest: &str| Some(std::env::home_dir()?.join(rest.trim_start_matches(['/', '\\'])));
        let path = match plain.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with(['/', '\\']) => home(rest)?,
            _ => PathBuf::from(plain),
        };
        // A picture is a PNG.
        let path = match self {
            Self::SavePicture if path.extension().is_none() => path.with_extension("png"),
            _ => path,
        };
        (!plain.is_empty()).then(|| self.chosen(path))
    }
}

/// What is to be done outside.
#[derive(Debug)]
pub enum Effect {
    /// Ask the engine.
    Submit(Purpose, Command),
    /// Stop a job.
    Stop(JobId),
    /// A picture to the clipboard.
    Copy(Shot),
    /// A picture to a file.
    Save(Shot, PathBuf),
    /// Something to the disk, after what was to be kept before it.
    Keep(Keep),
    /// Read a picture to start from; [`Action::SetStart`] is done with it.
    ReadStart(StartFile, Then),
    /// Keep a picture that was drawn here to start from it; [`Action::SetStart`] is done with it.
    KeepStart(Shot),
    /// Read how the training of an adapter went so far.
    ReadRun(PathBuf),
    /// Look for a picture of an adapter.
    FindCover(PathBuf),
    /// Read the mask of a style.
    ReadMask(PathBuf, PathBuf),
    /// Keep a mask of a style in a file: which writing it is, and what.
    WriteMask(PathBuf, u64, Arc<GrayImage>),
    /// Text to a file.
    WriteCaption(PathBuf, String),
    /// Away with a report.
    Remove(PathBuf),
    /// Open a dialog.
    Ask(Dialog),
    /// Close the window.
    Close,
}

/// What lasts longer than the window. Trainings are known by their adapter's file.
#[derive(Debug)]
pub enum Keep {
    /// A picture of the history, in its file.
    Picture(Shot, PathBuf),
    /// That file no longer.
    Not(PathBuf),
    /// The losses of a training so far.
    Losses(PathBuf, Vec<[f64; 2]>),
    /// A preview of a training, with its step.
    Sample(PathBuf, u64, Shot),
    /// Nothing of a training.
    NoRun(PathBuf),
}

/// Does what the user wants. `now` counts seconds from the program's start.
pub fn act(state: &mut State, action: Action, now: f64) -> Vec<Effect> {
    let mut effects = Vec::new();
    let State { settings, session } = state;
    match action {
        Action::Generate => {
            // What was only to be known has been read.
            session.problems.retain(|problem| problem.is_error);
            let again = !settings.keep_seed && session.drawn_seed == Some(settings.seed);
            let seed = if again { another_seed(settings.seed, now) } else { settings.seed };
            queue::reseed(settings, session, seed);
            // What only followed changes is not waited for; what was asked for is, one after the other.
            let live = session.jobs.iter().filter(|(_, job)| job.purpose == Purpose::Live);
            effects.extend(live.map(|(id, _)| Effect::Stop(*id)));
            draw(settings, session, (Purpose::Draw, false), &mut effects);
        }
        Action::StartFrom(path) => {
            effects.push(Effect::ReadStart(StartFile::new(path), Then::Change));
        }
        Action::SetStart(pixels, source, then) if start::is_wanted(settings, session, then) => {
            start::set(settings, session, pixels, source);
            start::then(settings, session, then, &mut effects);
        }
        Action::SetStart(..) => {}
        Action::StartUnread(reason, then) => {
            start::unread((settings, session), reason, then, &mut effects);
        }
        Action::StartFromShot => start::from_shot(settings, session, &mut effects),
        Action::DropStart => {
            start::put(settings, session, None);
            changed(settings, session, &mut effects);
        }
        Action::OpenGrid => {
            session.grid = defaults(settings);
            session.open.grid = true;
        }
        Action::DrawGrid => grid::draw(settings, session, &mut effects),
        Action::CancelJob(job) => queue::cancel(session, job, &mut effects),
        Action::NewSeed => {
            let seed = another_seed(settings.seed, now);
            queue::reseed(settings, session, seed);
            // A series is not lost to a slider.
            draw(settings, session, (Purpose::Draw, settings.count == 1), &mut effects);
        }
        Action::Changed => changed(settings, session, &mut effects),
        Action::Cancel => cancel(session, &mut effects),
        Action::OpenModel(name) => open_model(settings, session, &name, &mut effects),
        Action::AddStyles(paths) => blend::add(settings, session, paths, &mut effects),
        Action::RemoveStyle(index) => {
            if let Some(styles) = settings.styles.as_mut().filter(|styles| index < styles.len()) {
                styles.remove(index);
                changed(settings, session, &mut effects);
            }
        }
        Action::AddWords(words) => {
            let joint = if settings.prompt.trim().is_empty() { "" } else { ", " };
            settings.prompt = format!("{}{joint}{words}", settings.prompt.trim_end());
            changed(settings, session, &mut effects);
        }
        Action::Cover(adapter, picture) => {
            let id = next(session);
            session.covers.insert(adapter, Some((id, picture)));
        }
        Action::Paint(what) => paint::act(settings, session, what, &mut effects),
        Action::Restore(recipe, file) => {
            recipe::restore(settings, session, &recipe, file.as_deref().and_then(Path::parent));
            describe_new(settings, session, &mut effects);
            session.offer = file;
            match start::noted(session, &recipe) {
                Some(file) => effects.push(Effect::ReadStart(file, Then::Draw)),
                None => draw(settings, session, (Purpose::Draw, true), &mut effects),
            }
        }
        Action::RestoreShot(id) => {
            if let Some(shot) = session.history.iter().find(|shot| shot.id == id).cloned() {
                recipe::restore(settings, session, &shot.recipe, None);
                let known = shot.start.clone();
                session.offer = None;
                let noted = known.is_none().then(|| start::noted(session, &shot.recipe)).flatten();
                // A change from here on is a new picture.
                session.canvas.shot = Some(Shot { live: false, ..shot });
                session.drawn_seed = Some(settings.seed);
                start::put(settings, session, known);
                match noted {
                    Some(file) => effects.push(Effect::ReadStart(file, Then::Show(id))),
                    None => ensure_base(settings, session, &mut effects),
                }
            }
        }
        Action::Remember(kept) => history::remember(session, *kept, &mut effects),
        Action::ForgetShot(id) => history::forget(session, id, &mut effects),
        Action::CannotKeep((message, hint)) => {
            // Once is enough.
            if session.keeping.take().is_some() {
                session.tell(message, hint, true);
            }
        }
        Action::ToggleCompare => {
            session.canvas.compare = !session.canvas.compare;
            ensure_base(settings, session, &mut effects);
        }
        Action::Copy => effects.extend(session.canvas.shot.clone().map(Effect::Copy)),
        Action::SaveTo(path) => {
            effects.extend(session.canvas.shot.clone().map(|shot| Effect::Save(shot, path)));
        }
        Action::ExportTo(out) => {
            let rank = session.library.export_rank;
            let out = if out.extension().is_none() { out.with_extension("safetensors") } else { out };
            let export = Export { mix: mix(settings, 1.0), out, rank };
            session.open.export = false;
            effects.push(Effect::Submit(Purpose::Export, Command::Export(Box::new(export))));
        }
        Action::ScanLibrary(folder) => {
            settings.library = Some(folder.clone());
            effects.push(Effect::Submit(Purpose::Library, Command::Library(folder)));
        }
        Action::Dismiss(index) if index < session.problems.len() => drop(session.problems.remove(index)),
        Action::Dismiss(_) => {}
        Action::RemoveCrash if !session.crashes.is_empty() => {
            effects.push(Effect::Remove(session.crashes.remove(0).path));
        }
        Action::RemoveCrash => {}
        Action::HideCrashes => session.crashes.clear(),
        Action::Tell(message, hint) => session.tell(message, hint, true),
        Action::Note(message, hint) => session.tell(message, Some(hint), false),
        Action::Ask(dialog) => effects.push(Effect::Ask(dialog)),
        Action::AskPath(dialog, path) => session.typing = Some(Typing { dialog, path }),
        Action::PathTyped => {
            let typed = session.typing.take();
            let chosen = typed.and_then(|typed| typed.dialog.typed(&typed.path));
            effects.extend(chosen.map(|chosen| act(state, chosen, now)).unwrap_or_default());
        }
        Action::CloseRequested => {
            if session.is_training() {
                session.open.closing = !session.closing;
            } else {
                effects.push(Effect::Close);
            }
        }
        Action::StopAndClose => {
            session.open.closing = false;
            session.closing = true;
            training::stop(session, true, &mut effects);
        }
        Action::Stay => session.open.closing = false,
        training_action => training::act(settings, session, training_action, &mut effects),
    }
    effects
}

/// Asks for everything at the start: the first picture, and what styles say of themselves.
pub fn begin(state: &mut State) -> Vec<Effect> {
    let mut effects = Vec::new();
    let State { settings, session } = state;
    // What is looked at comes first.
    if let Some(folder) = settings.train.folder.clone() {
        training::act(settings, session, Action::TrainFolder(folder), &mut effects);
    }
    let scan = match settings.tab {
        Tab::Train => Vec::new(),
        Tab::Draw => std::mem::take(&mut effects),
    };
    describe_new(settings, session, &mut effects);
    match settings.start.clone() {
        Some(file) => effects.push(Effect::ReadStart(file, Then::Remembered)),
        None if settings.live => draw(settings, session, (Purpose::Live, true), &mut effects),
        None => {}
    }
    effects.extend(settings.library.clone().map(|f| Effect::Submit(Purpose::Library, Command::Library(f))));
    effects.extend(scan);
    effects
}

/// What is to be done before the window closes, and now and then before that: the newest picture is kept, too.
pub fn keep(state: &mut State) -> Vec<Effect> {
    let mut effects = Vec::new();
    history::keep(&mut state.session, 0, &mut effects);
    effects
}

/// The number of a new picture.
fn next(session: &mut Session) -> u64 {
    session.next_shot += 1;
    session.next_shot
}

/// With `replace`, the picture gives way to the next such one.
fn draw(
    settings: &Settings,
    session: &mut Session,
    (purpose, replace): (Purpose, bool),
    effects: &mut Vec<Effect>,
) {
    let mut request = request(settings, session);
    if purpose != Purpose::Draw {
        request.count = 1;
    }
    session.drawn_seed = Some(settings.seed);
    let draw = Draw { mix: mix(settings, 1.0), request, replace };
    effects.push(Effect::Submit(purpose, Command::Draw(Box::new(draw))));
}

fn changed(settings: &Settings, session: &mut Session, effects: &mut Vec<Effect>) {
    if settings.live && !session.is_training() {
        draw(settings, session, (Purpose::Live, true), effects);
    }
}

fn cancel(session: &mut Session, effects: &mut Vec<Effect>) {
    if session.typing.take().is_some() {
        return;
    }
    if session.open != Open::default() {
        session.open = Open::default();
        return;
    }
    if session.painting.take().is_some() {
        return;
    }
    let stopped = session.jobs.iter().filter(|(_, job)| job.purpose != Purpose::Train);
    effects.extend(stopped.map(|(job, _)| Effect::Stop(*job)));
}

fn open_model(settings: &mut Settings, session: &mut Session, name: &str, effects: &mut Vec<Effect>) {
    let name = name.trim();
    if name.is_empty() {
        return;
    }
    settings.model = name.to_owned();
    session.report = None;
    (settings.size, settings.cfg) = (None, None);
    if settings.live {
        changed(settings, session, effects);
    } else {
        effects.push(Effect::Submit(Purpose::Load, Command::Load(settings.model.clone())));
    }
}

/// Asks what the blend's adapters say of themselves, once each.
fn describe_new(settings: &Settings, session: &mut Session, effects: &mut Vec<Effect>) {
    for style in settings.styles.iter().flatten() {
        session.known.insert(style.name(), style.path.clone());
        if !session.covers.contains_key(&style.path) {
            session.covers.insert(style.path.clone(), None);
            effects.push(Effect::FindCover(style.path.clone()));
        }
        if !session.cards.contains_key(&style.path) {
            let purpose = Purpose::Describe(style.path.clone());
            effects.push(Effect::Submit(purpose, Command::Describe(style.path.clone())));
        }
    }
}

/// Draws the picture's base if it is to be compared with and not there.
fn ensure_base(settings: &Settings, session: &mut Session, effects: &mut Vec<Effect>) {
    // A grid shows many blends.
    let compared = |shot: &&Shot| session.canvas.compare && !shot.recipe.is_grid();
    let Some(shot) = session.canvas.shot.as_ref().filter(compared) else { return };
    let key = recipe::base_key(shot);
    let there = session.canvas.base.as_ref().is_some_and(|(of, _)| *of == key);
    if there || session.has(|p| *p == Purpose::Base(key.clone())) {
        return;
    }
    let mut request = request(settings, session);
    (request.count, request.seed) = (1, shot.recipe.seed.unwrap_or(settings.seed));
    request.init =
        start::init(shot.start.as_ref(), shot.recipe.denoising_strength.unwrap_or(settings.strength));
    request.hires = request.hires.filter(|_| request.init.is_none());
    // The same adapters at weight 0: they stay in memory, and the result is the base model's, bit for bit.
    let draw = Draw { mix: mix(settings, 0.0), request, replace: false };
    effects.push(Effect::Submit(Purpose::Base(key), Command::Draw(Box::new(draw))));
}

/// `SplitMix64`'s step, from the old seed and the time: short enough to be typed.
fn another_seed(seed: u64, now: f64) -> u64 {
    let mut z = seed.wrapping_add(now.to_bits()).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z ^ (z >> 31)) >> 32
}
