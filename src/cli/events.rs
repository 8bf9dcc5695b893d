//! `pillbug events`: what happens to containers, images, networks and volumes, as it happens.

use std::{
    io::{self, Write},
    process::ExitCode,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use jiff::Timestamp;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde_json::{Value, json};

use super::{escape, format::Format, image_filter::moment};
use crate::{
    container::{
        event::{Event, Events, Kind},
        log::{LogReader, LogWatch},
    },
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug events                                       from now on, until Ctrl-C
  pillbug events --since 10m --until 0s                the last ten minutes
  pillbug events --filter container=web --filter event=die
  pillbug events --filter event=health_status --format '{{.Actor.Attributes.name}} {{.Action}}'
  pillbug events --format json                         one object a line

Filters: type=container|image|network|volume, event=ACTION, container=NAME|ID, image=NAME, network=NAME, volume=NAME,
label=NAME[=VALUE]. Of several of one kind one must match, labels all.
Fields: Type, Action, Status, ID, From, Actor.ID, Actor.Attributes, Scope, Time, TimeNano.";

/// Print what happens to containers, images, networks and volumes
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct EventsArgs {
    /// Also what came after a moment: RFC 3339, seconds since 1970, or how long ago, such as 1h30m
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Nothing after a moment; when that has come this ends
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// Only what matches
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// 'json', or a Go template such as '{{.Type}} {{.Action}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
}

/// One condition: a key and a value.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Filter {
    key: String,
    value: String,
}

impl FromStr for Filter {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        const KEYS: [&str; 7] = [
            "type",
            "event",
            "container",
            "image",
            "network",
            "volume",
            "label",
        ];
        match text.split_once('=') {
            Some((key, value)) if KEYS.contains(&key) => Ok(Self {
                key: key.into(),
                value: value.into(),
            }),
            _ => bail!(
                "{text:?} is no filter of events: give KEY=VALUE, of {}",
                KEYS.join(", ")
            ),
        }
    }
}

impl Filter {
    fn is_met(&self, event: &Event) -> bool {
        let value = self.value.as_str();
        let attribute = |name: &str| event.attributes.get(name).map(String::as_str);
        let is_of = |kind: Kind| event.kind == kind && event.id == value;
        match self.key.as_str() {
            "type" => event.kind.word() == value,
            "event" => event.action == value || event.action.split(':').next() == Some(value),
            "container" => {
                event.kind == Kind::Container
                    && (attribute("name") == Some(value)
                        || !value.is_empty() && event.id.starts_with(value))
            }
            "image" => {
                let plain = |name: &str| name.strip_suffix(":latest").unwrap_or(name).to_owned();
                let is_it = |name: &str| plain(name) == plain(value);
                event.kind == Kind::Image && is_it(&event.id)
                    || attribute("image").is_some_and(is_it)
            }
            "network" => is_of(Kind::Network),
            "volume" => is_of(Kind::Volume),
            _ => match value.split_once('=') {
                Some((name, value)) => attribute(name) == Some(value),
                None => attribute(value).is_some(),
            },
        }
    }
}

/// Prints what there was, where that is asked for, and what comes.
pub fn run(arguments: &EventsArgs) -> anyhow::Result<ExitCode> {
    let events = Events::open(&state_root::locate()?)?;
    let unreadable = "cannot read the events";
    // Before the first read, so that nothing comes between.
    let watch = events.watch().context(unreadable)?;
    let now = Timestamp::now();
    let printer = Printer {
        arguments,
        since: arguments.since.unwrap_or(now),
    };
    let mut reader = events.read().context(unreadable)?;
    // The deadline is the monotonic clock's: one that is set meanwhile moves nothing.
    let until = arguments.until.map(|until| {
        let left = Duration::try_from(until - now).unwrap_or(Duration::ZERO);
        Instant::now() + left
    });
    match printer.follow(&mut reader, &watch, until) {
        // Somebody has read enough.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        followed => followed.context(unreadable).map(|()| ExitCode::SUCCESS),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

struct Printer<'a> {
    arguments: &'a EventsArgs,
    since: Timestamp,
}

impl Printer<'_> {
    fn follow(
        &self,
        reader: &mut LogReader<Event>,
        watch: &LogWatch,
        until: Option<Instant>,
    ) -> anyhow::Result<()> {
        loop {
            while let Some(event) = reader.read()? {
                if self.is_wanted(&event) {
                    let mut output = io::stdout().lock();
                    output.write_all(self.line(&event)?.as_bytes())?;
                    output.flush()?;
                }
            }
            let timeout = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Ok(()),
                Some(left) => PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
                None => PollTimeout::NONE,
            };
            let mut watched = [PollFd::new(watch.descriptor(), PollFlags::POLLIN)];
            match poll(&mut watched, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
            watch.clear();
        }
    }

    fn is_wanted(&self, event: &Event) -> bool {
        let filters = &self.arguments.filter;
        let until = self.arguments.until;
        event.time >= self.since
            && until.is_none_or(|until| event.time <= until)
            && filters.iter().all(|filter| {
                filter.is_met(event)
                    || filter.key != "label"
                        && filters
                            .iter()
                            .any(|other| other.key == filter.key && other.is_met(event))
            })
    }

    fn line(&self, event: &Event) -> anyhow::Result<String> {
        match &self.arguments.format {
            None | Some(Format::Table(None)) => Ok(text(event)),
            Some(Format::Json) => Ok(format!("{}\n", json(event))),
            Some(format) => Format::objects(Some(format), &[fields(event)]),
        }
    }
}

/// As Docker prints it.
fn text(event: &Event) -> String {
    let attributes = event.attributes.iter();
    let attributes: Vec<String> = attributes
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let line = format!(
        "{:.9} {} {} {} ({})",
        event.time,
        event.kind.word(),
        event.action,
        event.id,
        attributes.join(", ")
    );
    escape(&line).replace('\n', "\\n") + "\n"
}

/// Docker's object.
fn json(event: &Event) -> Value {
    let mut object = json!({
        "Type": event.kind.word(),
        "Action": event.action,
        "Actor": { "ID": event.id, "Attributes": event.attributes },
        "scope": "local",
        "time": event.time.as_second(),
        "timeNano": nanoseconds(event),
    });
    if matches!(event.kind, Kind::Container | Kind::Image) {
        object["status"] = json!(event.action);
        object["id"] = json!(event.id);
    }
    if event.kind == Kind::Container {
        object["from"] = json!(event.attributes.get("image"));
    }
    object
}

/// The names by which Docker's templates know it.
fn fields(event: &Event) -> Value {
    json!({
        "Type": event.kind.word(),
        "Action": event.action,
        "Status": event.action,
        "ID": event.id,
        "From": event.attributes.get("image"),
        "Actor": { "ID": event.id, "Attributes": event.attributes },
        "Scope": "local",
        "Time": event.time.as_second(),
        "TimeNano": nanoseconds(event),
    })
}

fn nanoseconds(event: &Event) -> i64 {
    i64::try_from(event.time.as_nanosecond()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn event() -> Event {
        let attributes = [("image", "busybox"), ("name", "web"), ("exitCode", "0")];
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Event {
            time: "2026-01-02T03:04:05.000000006Z".parse().unwrap(),
            kind: Kind::Container,
            action: "exec_create: sh".into(),
            id: "0123".into(),
            attributes: BTreeMap::from(attributes),
        }
    }

    #[test]
    fn an_event_is_printed_as_docker_does() {
        assert_eq!(
            text(&event()),
            "2026-01-02T03:04:05.000000006Z container exec_create: sh 0123 \
             (exitCode=0, image=busybox, name=web)\n"
        );
        let json = json(&event());
        assert_eq!(json["timeNano"], 1_767_323_045_000_000_006_i64);
        assert_eq!(json["from"], "busybox");
    }

    #[test]
    fn filters_choose() {
        let met = |filter: &str| filter.parse::<Filter>().unwrap().is_met(&event());
        for filter in [
            "type=container",
            "event=exec_create",
            "container=web",
            "container=01",
            "image=busybox:latest",
            "label=name",
            "label=name=web",
        ] {
            assert!(met(filter), "{filter}");
        }
        for filter in [
            "type=image",
            "event=exec",
            "container=we",
            "network=web",
            "label=x",
        ] {
            assert!(!met(filter), "{filter}");
        }
        assert!("colour=red".parse::<Filter>().is_err());
    }
}
