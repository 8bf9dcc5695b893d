//! The process of one machine: what runs when a program is started to be one.
//!
//! It is steered by nothing but its control socket (see [`run`]), and lives no longer than the
//! other end of it.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::thread::Builder;

use nix::cmsg_space;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recv, recvmsg, sendmsg};
use nix::time::{ClockId, clock_gettime};

use crate::config::VmConfig;
use crate::control::{Command, Ending, Event};
use crate::machine::{Controls, Machine, MachineError, error_chain};
use crate::virtio::Connector;

/// Longest configuration in bytes.
const MAX_CONFIG: usize = 64 << 10;
/// Longest command in bytes.
const MAX_COMMAND: usize = 1 << 10;
/// Most descriptors in one message (`SCM_MAX_FD`).
const MAX_DESCRIPTORS: usize = 253;
/// Address space of the stack of the thread that listens to the parent.
const STACK: usize = 64 << 10;

/// Why a process never became a machine.
#[derive(Debug, thiserror::Error)]
enum ProcessError {
    #[error("cannot receive the configuration")]
    Receive(#[source] nix::Error),
    #[error("the control socket was closed before a configuration came")]
    NoConfig,
    #[error("the configuration is over {MAX_CONFIG} bytes or {MAX_DESCRIPTORS} descriptors")]
    TooLong,
    #[error("the configuration cannot be understood")]
    Config(#[source] serde_json::Error),
    #[error("cannot listen to the control socket")]
    Listen(#[source] io::Error),
    #[error("cannot build the machine")]
    Machine(#[from] MachineError),
}

/// Becomes the machine that the parent describes over `control`, a `SOCK_SEQPACKET` Unix socket.
///
/// The first datagram from the parent is a [`VmConfig`] in JSON with all its descriptors. From
/// then on the parent sends [`Command`]s and listens to [`Event`]s, one in JSON a datagram; the last
/// event is [`Event::Ended`]. When the parent closes its end, or dies, the process exits at once.
///
/// The process does nothing else: this returns when the machine has ended, and the caller exits.
#[must_use]
pub fn run(control: OwnedFd) -> ExitCode {
    let process_started_ns = monotonic_ns();
    limit_heap();
    ignore_the_host();
    let control = Arc::new(control);
    let (ending, code) = match serve(&control, process_started_ns) {
        Ok(ending) => (ending, ExitCode::SUCCESS),
        Err(error) => {
            let message = error_chain(&error);
            (Ending::HostError { message }, ExitCode::FAILURE)
        }
    };
    // Without a parent there is nobody to tell.
    let _ = send(&control, &Event::Ended(ending), None, MsgFlags::empty());
    code
}

fn serve(control: &Arc<OwnedFd>, process_started_ns: u64) -> Result<Ending, ProcessError> {
    let (config, descriptors) = receive(control)?;
    let controls = Arc::new(OnceLock::new());
    listen(control.clone(), controls.clone())?;
    let machine = Machine::new(config, descriptors, connector(control.clone()))?;
    let _ = controls.set(machine.controls());
    let running = Event::Running {
        process_started_ns,
        built_ns: monotonic_ns(),
    };
    let _ = send(control, &running, None, MsgFlags::empty());
    Ok(machine.start()?.wait())
}

/// The configuration and its descriptors.
fn receive(control: &OwnedFd) -> Result<(VmConfig, Vec<OwnedFd>), ProcessError> {
    let mut buffer = vec![0; MAX_CONFIG];
    let mut space = cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let (length, descriptors, flags) = {
        let mut vectors = [IoSliceMut::new(&mut buffer)];
        let message = loop {
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(control.as_raw_fd(), &mut vectors, Some(&mut space), flags) {
                Err(nix::Error::EINTR) => {}
                result => break result.map_err(ProcessError::Receive)?,
            }
        };
        let mut descriptors = Vec::new();
        for control in message.cmsgs().map_err(ProcessError::Receive)? {
            if let ControlMessageOwned::ScmRights(received) = control {
                descriptors.extend(received.into_iter().map(own));
            }
        }
        (message.bytes, descriptors, message.flags)
    };
    if length == 0 {
        return Err(ProcessError::NoConfig);
    }
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(ProcessError::TooLong);
    }
    let config = serde_json::from_slice(&buffer[..length]).map_err(ProcessError::Config)?;
    Ok((config, descriptors))
}

/// Does what the parent says, and ends the process at once when its end of the control socket is gone.
fn listen(control: Arc<OwnedFd>, controls: Arc<OnceLock<Controls>>) -> Result<(), ProcessError> {
    let listen = move || {
        let mut buffer = [0; MAX_COMMAND];
        loop {
            match recv(control.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(nix::Error::EINTR) => {}
                // Whatever the reason: a machine without a parent must not go on.
                Ok(0) | Err(_) => break,
                // What nobody understands, or comes before there is a machine, is passed over.
                Ok(length) => {
                    if let (Ok(command), Some(controls)) =
                        (serde_json::from_slice(&buffer[..length]), controls.get())
                    {
                        obey(&control, controls, &command);
                    }
                }
            }
        }
        let _ = send(
            &control,
            &Event::Ended(Ending::Killed),
            None,
            MsgFlags::MSG_DONTWAIT,
        );
        // SAFETY: Ends the process without anything that other threads could be in the middle of.
        unsafe { libc::_exit(0) }
    };
    Builder::new()
        .name("parent".to_owned())
        .stack_size(STACK)
        .spawn(listen)
        .map_err(ProcessError::Listen)?;
    Ok(())
}

fn obey(control: &OwnedFd, controls: &Controls, command: &Command) {
    match command {
        Command::Balloon { bytes } => controls.balloon(*bytes),
        Command::Pause => controls.pause(),
        Command::Resume => controls.resume(),
        Command::Throttle { nano_cpus } => {
            // Without a thread for it the limit is what it was.
            let _ = controls.throttle(*nano_cpus);
        }
        Command::Count => {
            let counters = Event::Counters(controls.counters());
            // A parent that does not listen does not want to know.
            let _ = send(control, &counters, None, MsgFlags::MSG_DONTWAIT);
        }
    }
}

/// Gives the parent the host's end of each connection. One that the parent is too slow to take
/// note of is refused rather than waited for.
fn connector(control: Arc<OwnedFd>) -> Connector {
    Arc::new(move |port, peer| {
        let event = Event::Connected { port };
        send(
            &control,
            &event,
            Some(peer.as_raw_fd()),
            MsgFlags::MSG_DONTWAIT,
        )
    })
}

/// Sends one event, with at most one descriptor.
fn send(
    control: &OwnedFd,
    event: &Event,
    descriptor: Option<RawFd>,
    flags: MsgFlags,
) -> io::Result<()> {
    let text = serde_json::to_vec(event)?;
    let descriptors: Vec<_> = descriptor.into_iter().collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let rights = if descriptors.is_empty() {
        &rights[..0]
    } else {
        &rights
    };
    let flags = flags | MsgFlags::MSG_NOSIGNAL;
    loop {
        match sendmsg::<()>(
            control.as_raw_fd(),
            &[IoSlice::new(&text)],
            rights,
            flags,
            None,
        ) {
            Err(nix::Error::EINTR) => {}
            result => return Ok(result.map(drop)?),
        }
    }
}

fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: The descriptor was just received: it is open and belongs to nothing else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Signals that ask every process of a host, or of a group, to end are for the parent: it lets the guest write down what
/// it has, and this ends with it.
fn ignore_the_host() {
    let signals = [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ];
    // Threads begin with the mask of the one that starts them. Where it is refused they end the machine.
    let _ = SigSet::from_iter(signals).thread_block();
}

/// One heap for all threads: each of glibc's own would cost memory of which little is used.
fn limit_heap() {
    // SAFETY: Sets one number inside the allocator.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        // Neither is negative.
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}
