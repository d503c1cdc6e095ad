//! What `logic` wants to be done outside: the engine asked, files read and written beside the window.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use eframe::egui::{Context, ViewportCommand};
use scumble::{
    engine::{self, Command},
    error::{Error, Result},
    files,
    pipeline::infotext,
};

use super::App;
use crate::{
    background, dialogs,
    keep::{self, masks, runs, starts},
    logic::{self, Action, Dialog, Effect, Keep, Paint, Then},
    state::{Purpose, StartFile},
    widgets::textures,
};

impl App {
    pub(super) fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Submit(purpose, command) => self.submit(purpose, command),
                Effect::Stop(job) => self.engine.cancel(job),
                Effect::Copy(shot) => self.ctx.copy_image(textures::colour(&shot.image)),
                Effect::Keep(what) => self.keep(what),
                Effect::ReadStart(file, then) => self.read_start(file, then),
                Effect::Ask(dialog) => {
                    let (name, has_dialogs) = (self.suggested(dialog), self.has_dialogs);
                    self.later(move || dialogs::ask(dialog, name, has_dialogs));
                }
                Effect::Close => self.ctx.send_viewport_cmd(ViewportCommand::Close),
                Effect::ReadRun(_) if self.folder.is_none() => {}
                file => self.aside(file),
            }
        }
    }

    fn submit(&mut self, purpose: Purpose, command: Command) {
        let now = self.now();
        let session = &mut self.state.session;
        let job = logic::job(session, purpose, &command, now);
        match self.engine.submit(command) {
            Ok(id) => {
                session.tally.submitted += 1;
                session.jobs.insert(id, job);
            }
            Err(e) => session.tell(e.to_string(), e.hint().map(str::to_owned), true),
        }
    }

    /// Files that are read and written once, in no order.
    fn aside(&mut self, effect: Effect) {
        let folder = self.folder.clone().unwrap_or_else(keep::folder);
        self.later(move || match effect {
            Effect::Save(shot, path) => wrong(infotext::write_png(&path, &shot.image, &shot.recipe)),
            Effect::WriteCaption(path, text) => wrong(files::write_bytes(&path, text.as_bytes())),
            Effect::Remove(path) => wrong(std::fs::remove_file(&path).map_err(|e| Error::io(&path, e))),
            Effect::KeepStart(shot) => {
                let seed = shot.recipe.seed.unwrap_or_default();
                Some(match starts::drawn(&folder, &shot.image, seed) {
                    Ok(init) => Action::SetStart(init.pixels, init.source, Then::Change),
                    Err(e) => told(&e),
                })
            }
            Effect::ReadRun(out) => {
                let record = runs::read(&runs::place(&folder, &out));
                Some(Action::ReadRun(out, Box::new(record)))
            }
            Effect::FindCover(adapter) => {
                let picture = engine::cover(&adapter)?;
                Some(Action::Cover(adapter, Arc::new(picture)))
            }
            Effect::ReadMask(style, file) => {
                let mask = engine::read_mask(&file).map(|mask| mask.picture).map_err(|e| why(&e));
                Some(Action::Paint(Paint::Read(style, mask)))
            }
            Effect::WriteMask(style, number, mask) => Some(match masks::keep(&folder, &mask) {
                Ok(file) => Action::Paint(Paint::Kept(style, number, file)),
                Err(e) => told(&e),
            }),
            _ => None,
        });
    }

    fn read_start(&mut self, file: StartFile, then: Then) {
        let folder = self.folder.clone();
        self.later(move || {
            Some(match starts::read(folder.as_deref(), &file) {
                Ok(Some(init)) => Action::SetStart(init.pixels, init.source, then),
                Ok(None) => Action::StartUnread(None, then),
                Err(e) => Action::StartUnread(Some(why(&e)), then),
            })
        });
    }

    /// Runs something that takes time, and does what comes out of it.
    pub(super) fn later(&mut self, work: impl FnOnce() -> Option<Action> + Send + 'static) {
        let (answer, ctx) = (self.answers.0.clone(), self.ctx.clone());
        let started = background::run(move || {
            // Also when the work panics: its report is to be seen.
            let _wake = Wake(ctx);
            if let Some(action) = work() {
                answer.send(action).ok();
            }
        });
        if let Err(e) = started {
            self.state.session.tell(e.to_string(), None, true);
        }
    }

    /// Writes what lasts, one thing after the other.
    fn keep(&mut self, what: Keep) {
        let Some(folder) = self.folder.clone() else { return };
        let (answer, wake) = (self.answers.0.clone(), Wake(self.ctx.clone()));
        let put = self.line.put(move || {
            let _wake = wake;
            if let Err(e) = keep(&folder, what) {
                answer.send(Action::CannotKeep(why(&e))).ok();
            }
        });
        if let Err(e) = put {
            self.state.session.tell(e.to_string(), None, true);
        }
    }

    /// The name a dialog starts with.
    fn suggested(&self, dialog: Dialog) -> String {
        match dialog {
            Dialog::ExportBlend => "blend.safetensors".into(),
            Dialog::SavePicture => {
                let shot = self.state.session.canvas.shot.as_ref();
                let seed = shot.and_then(|shot| shot.recipe.seed).unwrap_or_default();
                format!("{seed}.png")
            }
            // What is there is not known.
            _ => String::new(),
        }
    }
}

fn keep(folder: &Path, what: Keep) -> Result<()> {
    let run = |out: PathBuf| runs::place(folder, &out);
    match what {
        Keep::Picture(shot, file) => infotext::write_png(&file, &shot.image, &shot.recipe),
        Keep::Not(file) => match std::fs::remove_file(&file) {
            // Somebody was faster.
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|e| Error::io(&file, e)),
        },
        Keep::Losses(out, losses) => runs::keep_losses(&run(out), &losses),
        Keep::Sample(out, step, shot) => runs::keep_sample(&run(out), step, (&shot.image, &shot.recipe)),
        Keep::NoRun(out) => {
            runs::forget(&run(out));
            Ok(())
        }
    }
}

/// Asks for a frame when it goes.
struct Wake(Context);

impl Drop for Wake {
    fn drop(&mut self) {
        self.0.request_repaint();
    }
}

fn why(error: &Error) -> (String, Option<String>) {
    (error.to_string(), error.hint().map(str::to_owned))
}

fn told(error: &Error) -> Action {
    let (message, hint) = why(error);
    Action::Tell(message, hint)
}

fn wrong(outcome: Result<()>) -> Option<Action> {
    outcome.err().map(|e| told(&e))
}
