//! `pillbug top`: the processes of a container.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use protocol::{ProcessInfo, ProcessList};

use crate::{
    container::{state::Containers, usage},
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug top web
  pillbug top web -o pid,rss,args     these columns

Columns, by the names that ps(1) has for them: user, uid, pid, ppid, c, s, stime, etime, tty, time, rss, comm, args. IDs are
those in the container.";

/// Ticks in a second, to programs.
const TICKS: u64 = 100;
/// Major device number of pseudo-terminals.
const PTS: u32 = 136;

/// Show the processes of a container
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct TopArgs {
    /// The container
    container: String,
    /// Which columns: '-o LIST' as ps(1) has it, or '-ef'
    #[arg(
        value_name = "PS OPTIONS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    options: Vec<String>,
}

/// Prints a line a process.
pub fn run(arguments: &TopArgs) -> anyhow::Result<ExitCode> {
    let columns = columns(&arguments.options)?;
    let containers = Containers::open(&state_root::locate()?)?;
    let id = containers.find(&arguments.container)?;
    let list = match usage::processes(&containers, &id) {
        Ok(list) => list,
        Err(error) => return Ok(super::failure(error)),
    };
    let head: Vec<&str> = columns.iter().map(|column| column.head).collect();
    let now = Timestamp::now();
    let rows = list.processes.iter().map(|process| {
        let moment = Moment { list: &list, now };
        let cells = columns.iter().map(|column| (column.cell)(process, &moment));
        cells.map(|cell| super::escape(&cell)).collect()
    });
    super::print(&(super::table(&head, rows) + "\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// When the processes were looked at.
struct Moment<'a> {
    list: &'a ProcessList,
    now: Timestamp,
}

impl Moment<'_> {
    /// How long a process has lived in seconds.
    fn age(&self, process: &ProcessInfo) -> u64 {
        self.list.at_ticks.saturating_sub(process.started_ticks) / TICKS
    }
}

/// A column: its names, its heading, and what it shows.
struct Column {
    names: &'static [&'static str],
    head: &'static str,
    cell: fn(&ProcessInfo, &Moment<'_>) -> String,
}

const COLUMNS: [Column; 13] = [
    Column {
        names: &["user", "euser"],
        head: "USER",
        cell: |process, _| user(process.uid),
    },
    Column {
        names: &["uid", "euid"],
        head: "UID",
        cell: |process, _| process.uid.to_string(),
    },
    Column {
        names: &["pid"],
        head: "PID",
        cell: |process, _| process.pid.to_string(),
    },
    Column {
        names: &["ppid"],
        head: "PPID",
        cell: |process, _| process.ppid.to_string(),
    },
    Column {
        names: &["c", "%cpu", "pcpu"],
        head: "C",
        cell: |process, moment| {
            let age = moment.age(process).max(1);
            (process.cpu_ticks * 100 / TICKS / age).to_string()
        },
    },
    Column {
        names: &["s", "state", "stat"],
        head: "S",
        cell: |process, _| process.state.to_string(),
    },
    Column {
        names: &["stime", "start"],
        head: "STIME",
        cell: started,
    },
    Column {
        names: &["etime"],
        head: "ELAPSED",
        cell: |process, moment| clock(moment.age(process)),
    },
    Column {
        names: &["tty", "tt"],
        head: "TTY",
        cell: |process, _| terminal(process.terminal),
    },
    Column {
        names: &["time", "cputime"],
        head: "TIME",
        cell: |process, _| clock(process.cpu_ticks / TICKS),
    },
    Column {
        names: &["rss"],
        head: "RSS",
        cell: |process, _| (process.resident_bytes >> 10).to_string(),
    },
    Column {
        names: &["comm"],
        head: "COMMAND",
        cell: |process, _| {
            let program = process.command.split(' ').next().unwrap_or_default();
            program.rsplit('/').next().unwrap_or_default().into()
        },
    },
    Column {
        names: &["args", "cmd", "command"],
        head: "CMD",
        cell: |process, _| process.command.clone(),
    },
];

/// Those of `ps -ef`, in which the user's column has the heading `UID`.
const FULL: [(&str, &str); 8] = [
    ("user", "UID"),
    ("pid", "PID"),
    ("ppid", "PPID"),
    ("c", "C"),
    ("stime", "STIME"),
    ("tty", "TTY"),
    ("time", "TIME"),
    ("args", "CMD"),
];

/// What the options of ps(1) ask for, as far as they choose columns.
fn columns(options: &[String]) -> anyhow::Result<Vec<Column>> {
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let list = match options[..] {
        [] | ["-ef"] => {
            let columns = FULL.iter().map(|(name, head)| {
                Ok(Column {
                    head,
                    ..column(name)?
                })
            });
            return columns.collect();
        }
        ["-o" | "-eo" | "-Ao", list] => list,
        [option] => match ["-o", "-eo", "-Ao"]
            .iter()
            .find_map(|flag| option.strip_prefix(flag))
        {
            Some(list) => list,
            None => bail!("{option:?} chooses no columns: give -o LIST, such as -o pid,rss,args"),
        },
        _ => bail!("too many options: give -o LIST, such as -o pid,rss,args"),
    };
    list.split(',').map(column).collect()
}

fn column(name: &str) -> anyhow::Result<Column> {
    match COLUMNS
        .into_iter()
        .find(|column| column.names.contains(&name))
    {
        Some(column) => Ok(column),
        None => {
            let known: Vec<&str> = COLUMNS.iter().map(|column| column.names[0]).collect();
            bail!("there is no column {name:?}: one of {}", known.join(", "))
        }
    }
}

/// Other names are the image's to give, and it may say anything.
fn user(uid: u32) -> String {
    match uid {
        0 => "root".into(),
        uid => uid.to_string(),
    }
}

fn started(process: &ProcessInfo, moment: &Moment<'_>) -> String {
    let age = moment.age(process);
    let ago = SignedDuration::from_secs(i64::try_from(age).unwrap_or(i64::MAX));
    let Ok(start) = moment.now.checked_sub(ago) else {
        return "?".into();
    };
    let start = start.to_zoned(TimeZone::system());
    let format = if age < 86_400 { "%H:%M" } else { "%b%d" };
    start.strftime(format).to_string()
}

/// The kernel's encoding of a device number (proc_pid_stat(5), `tty_nr`).
fn terminal(device: u32) -> String {
    let major = device >> 8 & 0xfff;
    let minor = device & 0xff | device >> 12 & 0xf_ff00;
    match (device, major) {
        (0, _) => "?".into(),
        (_, PTS) => format!("pts/{minor}"),
        _ => format!("{major}:{minor}"),
    }
}

fn clock(seconds: u64) -> String {
    format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads(options: &[&str]) -> anyhow::Result<String> {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let columns = columns(&options)?;
        Ok(columns
            .iter()
            .map(|column| column.head)
            .collect::<Vec<_>>()
            .join(" "))
    }

    #[test]
    fn columns_are_chosen_as_ps_has_it() {
        assert_eq!(heads(&[]).unwrap(), "UID PID PPID C STIME TTY TIME CMD");
        assert_eq!(heads(&["-o", "pid,cmd"]).unwrap(), "PID CMD");
        assert_eq!(heads(&["-eopid,rss"]).unwrap(), "PID RSS");
        for options in [&["aux"][..], &["-o", "wings"], &["-o", "pid", "x"]] {
            assert!(heads(options).is_err());
        }
    }

    #[test]
    fn numbers_are_shown_as_ps_does() {
        assert_eq!(terminal(0), "?");
        assert_eq!(terminal(34816 + 3), "pts/3");
        assert_eq!(clock(3_725), "01:02:05");
    }
}
