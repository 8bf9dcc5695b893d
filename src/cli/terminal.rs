//! The user's terminal: its size, and raw mode.

use std::{io, panic};

use anyhow::Context;
use protocol::WindowSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Size of the terminal on standard output or input; 80 by 24 where neither is one.
pub fn size() -> WindowSize {
    let found = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin()));
    match found {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => WindowSize {
            rows: size.ws_row,
            columns: size.ws_col,
        },
        _ => WindowSize {
            rows: 24,
            columns: 80,
        },
    }
}

/// Standard input's terminal in raw mode until this is dropped: each key goes to the guest, Ctrl-C too.
#[derive(Debug)]
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Enters raw mode.
    pub fn enter() -> anyhow::Result<Self> {
        let before = tcgetattr(io::stdin()).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)
            .context("cannot change the terminal's settings")?;
        // A panic aborts, and drops nothing.
        let (saved, report) = (before.clone(), panic::take_hook());
        panic::set_hook(Box::new(move |panic| {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &saved);
            report(panic);
        }));
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that has gone needs no settings. Drain: what the guest wrote last is still raw.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}
