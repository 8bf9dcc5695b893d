//! `pillbug logs`: what a container has written.

use std::{
    collections::VecDeque,
    io::{self, Write},
    os::fd::AsFd,
    process::ExitCode,
    str::FromStr,
};

use anyhow::Context;
use clap::Args;
use jiff::Timestamp;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::image_filter::moment;
use crate::{
    container::{
        launch::connect,
        log::{Entry, LogReader, LogWatch, Stream},
        session::{Request, Session},
        state::Containers,
    },
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug logs web                         all that is kept
  pillbug logs -f -n 10 web                the last ten lines, and what comes
  pillbug logs -t --since 10m web          of the last ten minutes, with times
  pillbug logs web 2> errors > output      standard output and error stay apart";

/// Print what a container has written
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct LogsArgs {
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Only so many lines from the end, or all
    #[arg(short = 'n', long, value_name = "COUNT", default_value = "all")]
    tail: Tail,
    /// Only what came after a moment: RFC 3339, seconds since 1970, or how long ago, such as 1h30m
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Only what came before a moment
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// Print times
    #[arg(short, long)]
    timestamps: bool,
    /// Name, ID, or start of an ID
    container: String,
}

/// How many lines from the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tail(Option<usize>);

impl FromStr for Tail {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" | "-1" => Ok(Self(None)),
            count => count.parse().map(|count| Self(Some(count))),
        }
    }
}

/// Prints what there is, and what comes.
pub fn run(arguments: &LogsArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open(&state_root::locate()?)?;
    containers.sweep()?;
    let id = containers.find(&arguments.container)?;
    let folder = containers.container_folder(&id);
    let unreadable = || format!("cannot read the log of container {}", id.short());
    // Before the first read, so that nothing comes between.
    let following = match arguments.follow {
        true => {
            let watch = LogWatch::new(&folder).with_context(unreadable)?;
            connect(&containers, &id, Request::Wait)?.map(|session| (watch, session))
        }
        false => None,
    };
    let mut reader = LogReader::open(&folder).with_context(unreadable)?;
    let printed = match tail(&mut reader, arguments).with_context(unreadable) {
        Ok(last) => last.iter().try_for_each(|entry| put(entry, arguments)),
        Err(error) => return Err(error),
    };
    let printed = printed.and_then(|()| match following {
        Some((watch, session)) => {
            // One that is started again goes on.
            let again = || connect(&containers, &id, Request::Wait).map_err(io::Error::other);
            follow(&mut reader, &watch, session, &again, arguments)
        }
        None => Ok(()),
    });
    match printed {
        // Somebody has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        printed => {
            printed.with_context(unreadable)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What is asked for of what there is now. Without a count it is printed at once.
fn tail(reader: &mut LogReader, arguments: &LogsArgs) -> io::Result<VecDeque<Entry>> {
    let mut last = VecDeque::new();
    while let Some(entry) = reader.read()? {
        if !is_wanted(&entry, arguments) {
            continue;
        }
        match arguments.tail.0 {
            None => put(&entry, arguments)?,
            Some(count) => {
                last.push_back(entry);
                if last.len() > count {
                    last.pop_front();
                }
            }
        }
    }
    Ok(last)
}

fn follow(
    reader: &mut LogReader,
    watch: &LogWatch,
    mut session: Session,
    again: &dyn Fn() -> io::Result<Option<Session>>,
    arguments: &LogsArgs,
) -> io::Result<()> {
    loop {
        let mut watched = [
            PollFd::new(watch.descriptor(), PollFlags::POLLIN),
            PollFd::new(session.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ended = watched[1].any() == Some(true);
        watch.clear();
        loop {
            match reader.read() {
                Ok(Some(entry)) if is_wanted(&entry, arguments) => put(&entry, arguments)?,
                Ok(Some(_)) => {}
                Ok(None) => break,
                // Removed, with its container.
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        if ended {
            match again()? {
                Some(next) => session = next,
                None => return Ok(()),
            }
        }
    }
}

fn is_wanted(entry: &Entry, arguments: &LogsArgs) -> bool {
    arguments.since.is_none_or(|since| entry.time >= since)
        && arguments.until.is_none_or(|until| entry.time <= until)
}

fn put(entry: &Entry, arguments: &LogsArgs) -> io::Result<()> {
    let mut text = String::new();
    if arguments.timestamps {
        text = format!("{:.9} ", entry.time);
    }
    text += &entry.log;
    let write = |mut sink: Box<dyn Write>| {
        sink.write_all(text.as_bytes())?;
        sink.flush()
    };
    match entry.stream {
        Stream::Stdout => write(Box::new(io::stdout().lock())),
        Stream::Stderr => write(Box::new(io::stderr().lock())),
    }
}
