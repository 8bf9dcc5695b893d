//! How transfers of layers are shown: bars on a terminal, plain lines in a log, nothing when quiet.

use std::{
    collections::HashMap,
    io::{self, IsTerminal},
    sync::{Mutex, PoisonError},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::image::{
    digest::Digest,
    import::Progress,
    push::{PushProgress, PushedBy},
};

/// Somebody who watches layers come.
pub enum Transfers {
    /// Nobody.
    Quiet,
    /// A log, with the last thing it was told about each layer.
    Lines(Mutex<HashMap<Digest, String>>),
    /// A person.
    Bars(MultiProgress, Mutex<HashMap<Digest, ProgressBar>>),
}

impl Transfers {
    /// Shown on standard error unless `quiet`.
    pub fn new(quiet: bool) -> Self {
        if quiet {
            Self::Quiet
        } else if io::stderr().is_terminal() {
            Self::Bars(MultiProgress::new(), Mutex::default())
        } else {
            Self::Lines(Mutex::default())
        }
    }

    /// Shows what happened to a layer that is pulled.
    pub fn pulling(&self, progress: Progress) {
        match progress {
            Progress::Found(layer) => self.show(layer, "Pulling fs layer", None, false),
            Progress::Present(layer) => self.show(layer, "Already exists", None, true),
            Progress::Waiting(layer) => {
                self.show(layer, "Waiting for another download", None, false);
            }
            Progress::Received {
                layer,
                bytes,
                total,
            } => self.show(layer, "Downloading", Some((bytes, total)), false),
            Progress::Converting {
                layer,
                bytes,
                total,
            } => self.show(layer, "Extracting", Some((bytes, total)), false),
            Progress::Ready(layer) => self.show(layer, "Pull complete", None, true),
        }
    }

    /// Shows what happened to a layer that is pushed.
    pub fn pushing(&self, progress: PushProgress) {
        match progress {
            PushProgress::Sending {
                layer,
                bytes,
                total,
            } => self.show(layer, "Pushing", Some((bytes, total)), false),
            PushProgress::Done(layer, PushedBy::Presence) => {
                self.show(layer, "Layer already exists", None, true);
            }
            PushProgress::Done(layer, PushedBy::Mount(from)) => {
                self.show(layer, &format!("Mounted from {from}"), None, true);
            }
            PushProgress::Done(layer, PushedBy::Sending) => self.show(layer, "Pushed", None, true),
        }
    }

    fn show(&self, layer: Digest, words: &str, moved: Option<(u64, u64)>, is_over: bool) {
        match self {
            Self::Quiet => {}
            Self::Lines(told) => {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                if told.get(&layer).is_none_or(|before| before != words) {
                    super::tell(&format!("{}: {words}\n", layer.short()));
                    told.insert(layer, words.into());
                }
            }
            Self::Bars(all, bars) => {
                let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
                let bar = bars.entry(layer).or_insert_with(|| {
                    let bar = all.add(ProgressBar::no_length().with_style(style(WORDS)));
                    bar.set_prefix(layer.short());
                    bar
                });
                if bar.message() != words {
                    bar.set_style(style(if moved.is_some() { BAR } else { WORDS }));
                    bar.set_message(words.to_owned());
                    // Rate and time left are those of what is being done now.
                    bar.reset();
                }
                if let Some((bytes, total)) = moved {
                    bar.set_length(total);
                    bar.set_position(bytes);
                }
                if is_over {
                    bar.abandon();
                }
            }
        }
    }
}

const WORDS: &str = "{prefix}: {msg}";
const BAR: &str = "{prefix}: {msg} [{bar:32}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
