//! The end of the machine.

use std::io::Write;

use rustix::system::{RebootCommand, reboot};

use crate::sys;

/// Any byte written to this I/O port powers the machine off.
const POWER_OFF_PORT: u16 = 0x600;

/// Powers the machine off. Whatever should last must be on its disk.
pub fn off() -> ! {
    if let Err(error) = sys::write_port(POWER_OFF_PORT, 0) {
        report("cannot power off", &error);
    }
    // A machine without that port: the kernel halts or resets it.
    loop {
        if let Err(error) = reboot(RebootCommand::PowerOff) {
            report("cannot power off", &error);
        }
        std::thread::park();
    }
}

/// Tells the console what nobody else can be told.
pub fn report(what: &str, error: &dyn std::error::Error) {
    let mut console = std::io::stderr();
    let mut cause = error.source();
    // A console that does not take it leaves nobody to tell.
    let _ = write!(console, "pillbug agent: {what}: {error}");
    while let Some(error) = cause {
        let _ = write!(console, ": {error}");
        cause = error.source();
    }
    let _ = writeln!(console);
}
