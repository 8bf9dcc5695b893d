//! The command line: one file a verb, each with typed arguments and one call into the engine.
//!
//! Nothing outside this folder prints, parses arguments or chooses exit codes.

mod attach;
mod bench;
mod commit;
mod completions;
mod container_inspect;
mod cp;
mod create;
mod diff;
mod doctor;
mod events;
mod exec;
mod export;
mod filter;
mod foreground;
mod format;
mod health_flags;
mod history;
mod image_filter;
mod image_prune;
mod images;
mod import;
mod inspect;
mod limit_flags;
mod load;
mod login;
mod logs;
mod mount_flags;
mod network;
mod network_flags;
mod network_list;
mod network_settings;
mod pause;
mod person;
mod port;
mod progress;
mod ps;
mod pull;
mod push;
mod rename;
mod rm;
mod rmi;
mod run;
mod save;
mod search;
mod start;
mod stats;
mod stop;
mod system_check;
mod system_df;
mod system_prune;
mod system_start;
mod tag;
mod terminal;
mod top;
mod units;
mod update;
mod volume;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, Write},
    os::fd::AsFd,
    process::ExitCode,
};

use anyhow::Context;
use clap::{Parser, Subcommand};
use comfy_table::{Table, presets};

use crate::{
    container::{
        error::RunError,
        event::{Events, Kind},
        name::Id,
        state::Containers,
        supervisor::{self, SUPERVISE},
    },
    image::{reference::Reference, registry::settings::Settings, store::Store},
    network::switch::{self, SWITCH_PROCESS},
    sandbox::{
        VMM_PROCESS,
        share::{self, SHARE_PROCESS},
    },
    state_root,
    volume::tree::{self, VOLUME_PROCESS},
};

/// Exit code of pillbug's own failures, as Docker's.
const OWN_FAILURE: u8 = 125;

/// Run container images in virtual machines of their own.
#[derive(Debug, Parser)]
#[command(
    name = "pillbug",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(after_help = "Run 'pillbug help VERB' for the flags and examples of a verb.")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    #[command(flatten)]
    Containers(ContainerVerb),
    Events(events::EventsArgs),
    Doctor(doctor::DoctorArgs),
    Bench(bench::BenchArgs),
    Pull(pull::PullArgs),
    Push(push::PushArgs),
    Images(images::ImagesArgs),
    Tag(tag::TagArgs),
    History(history::HistoryArgs),
    Rmi(rmi::RmiArgs),
    Load(load::LoadArgs),
    Save(save::SaveArgs),
    Import(import::ImportArgs),
    Search(search::SearchArgs),
    Inspect(inspect::AnyInspectArgs),
    Login(login::LoginArgs),
    Logout(login::LogoutArgs),
    #[command(subcommand)]
    Container(ContainerGroup),
    #[command(subcommand)]
    Image(ImageVerb),
    #[command(subcommand)]
    Network(network::NetworkVerb),
    #[command(subcommand)]
    Volume(volume::VolumeVerb),
    #[command(subcommand)]
    System(SystemVerb),
    Completions(completions::CompletionsArgs),
}

/// What is done to containers, also as `pillbug container VERB`.
#[derive(Debug, Subcommand)]
enum ContainerVerb {
    Run(Box<run::RunArgs>),
    Create(Box<create::CreateArgs>),
    Start(start::StartArgs),
    Stop(stop::StopArgs),
    Restart(start::RestartArgs),
    Kill(stop::KillArgs),
    Pause(pause::PauseArgs),
    Unpause(pause::UnpauseArgs),
    Wait(stop::WaitArgs),
    Exec(exec::ExecArgs),
    Logs(logs::LogsArgs),
    Attach(attach::AttachArgs),
    #[command(visible_alias = "list", alias = "ls")]
    Ps(ps::PsArgs),
    Port(port::PortArgs),
    Stats(stats::StatsArgs),
    Top(top::TopArgs),
    Update(update::UpdateArgs),
    Rm(rm::RmArgs),
    Rename(rename::RenameArgs),
    Cp(cp::CpArgs),
    Diff(diff::DiffArgs),
    Export(export::ExportArgs),
    Commit(commit::CommitArgs),
}

/// Manage containers
#[derive(Debug, Subcommand)]
enum ContainerGroup {
    #[command(flatten)]
    Verb(ContainerVerb),
    Inspect(container_inspect::ContainerInspectArgs),
    Prune(rm::PruneArgs),
}

/// Manage the state folder
#[derive(Debug, Subcommand)]
enum SystemVerb {
    Check(system_check::CheckArgs),
    Df(system_df::DfArgs),
    Prune(system_prune::SystemPruneArgs),
    Start(system_start::SystemStartArgs),
    Events(events::EventsArgs),
}

/// Manage images
#[derive(Debug, Subcommand)]
enum ImageVerb {
    #[command(visible_alias = "list")]
    Ls(images::ImagesArgs),
    Inspect(inspect::InspectArgs),
    History(history::HistoryArgs),
    Pull(pull::PullArgs),
    Push(push::PushArgs),
    Tag(tag::TagArgs),
    Load(load::LoadArgs),
    Save(save::SaveArgs),
    Import(import::ImportArgs),
    #[command(visible_alias = "remove")]
    Rm(rmi::RmiArgs),
    Prune(image_prune::ImagePruneArgs),
}

/// The whole command: parses the process's arguments, runs the verb, reports an error.
#[must_use]
pub fn main() -> ExitCode {
    let verb = std::env::args_os().nth(1).unwrap_or_default();
    if verb == VMM_PROCESS {
        return vmm_process();
    }
    if verb == SHARE_PROCESS {
        return share::process::run(std::env::args_os().skip(2));
    }
    if verb == SWITCH_PROCESS {
        return switch::process::run(std::env::args_os().skip(2));
    }
    if verb == VOLUME_PROCESS {
        return tree::run();
    }
    if verb == SUPERVISE {
        return supervisor::supervise();
    }
    command_line(std::env::args_os())
}

/// The process of one virtual machine; its control socket is its standard input.
fn vmm_process() -> ExitCode {
    match io::stdin().as_fd().try_clone_to_owned() {
        Ok(control) => vmm::process::run(control),
        Err(error) => {
            eprintln!("pillbug: no control socket: {error}");
            ExitCode::from(OWN_FAILURE)
        }
    }
}

fn command_line(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let verb = match Arguments::try_parse_from(arguments) {
        Ok(parsed) => parsed.verb,
        Err(error) => {
            let code = if error.use_stderr() { OWN_FAILURE } else { 0 };
            // A closed standard output leaves nobody to tell.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let result = match verb {
        Verb::Containers(verb) | Verb::Container(ContainerGroup::Verb(verb)) => container(verb),
        Verb::Container(ContainerGroup::Inspect(arguments)) => container_inspect::run(&arguments),
        Verb::Container(ContainerGroup::Prune(arguments)) => rm::prune(&arguments),
        Verb::Network(verb) => network::run(verb),
        Verb::Events(arguments) | Verb::System(SystemVerb::Events(arguments)) => {
            events::run(&arguments)
        }
        Verb::Volume(verb) => volume::run(verb),
        Verb::Doctor(arguments) => doctor::run(&arguments),
        Verb::Bench(arguments) => bench::run(arguments),
        Verb::Pull(arguments) | Verb::Image(ImageVerb::Pull(arguments)) => pull::run(&arguments),
        Verb::Push(arguments) | Verb::Image(ImageVerb::Push(arguments)) => push::run(&arguments),
        Verb::Images(arguments) | Verb::Image(ImageVerb::Ls(arguments)) => images::run(&arguments),
        Verb::Tag(arguments) | Verb::Image(ImageVerb::Tag(arguments)) => tag::run(arguments),
        Verb::History(arguments) | Verb::Image(ImageVerb::History(arguments)) => {
            history::run(&arguments)
        }
        Verb::Rmi(arguments) | Verb::Image(ImageVerb::Rm(arguments)) => rmi::run(&arguments),
        Verb::Load(arguments) | Verb::Image(ImageVerb::Load(arguments)) => load::run(&arguments),
        Verb::Save(arguments) | Verb::Image(ImageVerb::Save(arguments)) => save::run(&arguments),
        Verb::Import(arguments) | Verb::Image(ImageVerb::Import(arguments)) => {
            import::run(arguments)
        }
        Verb::Search(arguments) => search::run(&arguments),
        Verb::Inspect(arguments) => inspect::run_any(&arguments),
        Verb::Image(ImageVerb::Inspect(arguments)) => inspect::run(&arguments),
        Verb::Image(ImageVerb::Prune(arguments)) => image_prune::run(&arguments),
        Verb::System(SystemVerb::Check(arguments)) => system_check::run(&arguments),
        Verb::System(SystemVerb::Df(arguments)) => system_df::run(&arguments),
        Verb::System(SystemVerb::Prune(arguments)) => system_prune::run(&arguments),
        Verb::System(SystemVerb::Start(arguments)) => system_start::run(&arguments),
        Verb::Login(arguments) => login::run(&arguments),
        Verb::Logout(arguments) => login::run_logout(&arguments),
        Verb::Completions(arguments) => completions::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        report(&error);
        ExitCode::from(OWN_FAILURE)
    })
}

fn container(verb: ContainerVerb) -> anyhow::Result<ExitCode> {
    match verb {
        ContainerVerb::Run(arguments) => run::run(*arguments),
        ContainerVerb::Create(arguments) => create::run(*arguments),
        ContainerVerb::Start(arguments) => start::run(&arguments),
        ContainerVerb::Stop(arguments) => stop::run(&arguments),
        ContainerVerb::Restart(arguments) => start::restart(&arguments),
        ContainerVerb::Kill(arguments) => stop::kill(&arguments),
        ContainerVerb::Pause(arguments) => pause::run(&arguments),
        ContainerVerb::Unpause(arguments) => pause::unpause(&arguments),
        ContainerVerb::Wait(arguments) => stop::wait(&arguments),
        ContainerVerb::Exec(arguments) => exec::run(arguments),
        ContainerVerb::Logs(arguments) => logs::run(&arguments),
        ContainerVerb::Attach(arguments) => attach::run(arguments),
        ContainerVerb::Ps(arguments) => ps::run(&arguments),
        ContainerVerb::Port(arguments) => port::run(&arguments),
        ContainerVerb::Stats(arguments) => stats::run(&arguments),
        ContainerVerb::Top(arguments) => top::run(&arguments),
        ContainerVerb::Update(arguments) => update::run(arguments),
        ContainerVerb::Rm(arguments) => rm::run(&arguments),
        ContainerVerb::Rename(arguments) => rename::run(&arguments),
        ContainerVerb::Cp(arguments) => cp::run(&arguments),
        ContainerVerb::Diff(arguments) => diff::run(&arguments),
        ContainerVerb::Export(arguments) => export::run(&arguments),
        ContainerVerb::Commit(arguments) => commit::run(arguments),
    }
}

/// Does something to each container, and prints what it was called by; an error does not keep it from the others.
fn each(
    wanted: &[String],
    action: impl Fn(&Containers, &Id) -> Result<(), RunError>,
) -> anyhow::Result<ExitCode> {
    each_printing(wanted, |containers, id, wanted| {
        action(containers, id).map(|()| wanted.to_owned())
    })
}

/// As [`each`], printing what comes out.
fn each_printing(
    wanted: &[String],
    action: impl Fn(&Containers, &Id, &str) -> Result<String, RunError>,
) -> anyhow::Result<ExitCode> {
    let containers = Containers::open(&state_root::locate()?)?;
    let mut code = ExitCode::SUCCESS;
    for wanted in wanted {
        let done = containers
            .find(wanted)
            .map_err(RunError::from)
            .and_then(|id| action(&containers, &id, wanted));
        match done {
            Ok(text) => print(&format!("{text}\n"))?,
            Err(error) => {
                report(&error.into());
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// Reports why a container does not run; the exit code that says so.
fn failure(error: RunError) -> ExitCode {
    let code = error.exit_code();
    report(&error.into());
    ExitCode::from(code)
}

/// This user's images.
fn image_store() -> anyhow::Result<Store> {
    let store = Store::open(&state_root::locate()?)?;
    Ok(store.with_short_names(Settings::load()?.short_names))
}

/// Writes down what happened to an image, a network or a volume. One that cannot be written is lost.
fn record(kind: Kind, action: &str, id: &str) {
    let events = state_root::locate().and_then(|root| Events::open(&root));
    if let Ok(events) = events {
        let name = BTreeMap::from([("name".to_owned(), id.to_owned())]);
        events.record(kind, action, id, name);
    }
}

/// The image that an argument names.
fn reference(text: &str) -> anyhow::Result<Reference> {
    Ok(Settings::load()?.short_names.parse(text)?)
}

/// Prints what a verb found. Somebody who has read enough and closed the pipe is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    match output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write the output")
        }
        _ => Ok(()),
    }
}

/// Tells something on standard error, where it is no failure that nobody listens.
fn tell(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Prints an error and its causes in one line.
fn report(error: &anyhow::Error) {
    tell(&format!("pillbug: {}\n", escape(&format!("{error:#}"))));
}

/// Rows below a head, in columns as wide as they need to be.
fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(head)
        .add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.trim_fmt()
}

/// Text that may come from an image or a guest, with control characters made visible, so that it
/// cannot steer the terminal it is printed on.
fn escape(text: &str) -> String {
    text.chars().fold(
        String::with_capacity(text.len()),
        |mut escaped, character| {
            if character.is_control() && character != '\n' && character != '\t' {
                escaped.extend(character.escape_default());
            } else {
                escaped.push(character);
            }
            escaped
        },
    )
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    fn without_examples(command: &clap::Command, path: &str, found: &mut Vec<String>) {
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let path = format!("{path} {}", verb.get_name());
            let help = verb.get_after_help().map(ToString::to_string);
            let has_examples = help.is_some_and(|help| help.contains("Examples:\n  pillbug"));
            if verb.has_subcommands() {
                without_examples(verb, &path, found);
            } else if !has_examples {
                found.push(path);
            }
        }
    }

    #[test]
    fn the_help_of_every_verb_has_examples() {
        let mut found = Vec::new();
        without_examples(&Arguments::command(), "pillbug", &mut found);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn control_sequences_are_made_visible() {
        assert_eq!(escape("a\x1b[31mb\nc"), "a\\u{1b}[31mb\nc");
    }
}
