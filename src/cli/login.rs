//! `pillbug login` and `logout`: credentials for registries, kept where Docker keeps them.

use std::{
    io::{self, BufRead, IsTerminal, Read, Write},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::image::registry::Client;

const DEFAULT: &str = "docker.io";

const EXAMPLES: &str = "\
Examples:
  pillbug login -u me ghcr.io
  pillbug login -u me --password-stdin ghcr.io < token

Credentials are kept in Docker's config.json, or with the credential helper that it names.";

/// Log in to a registry
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct LoginArgs {
    /// Registry
    #[arg(default_value = DEFAULT)]
    server: String,
    /// Name of the user
    #[arg(short, long)]
    username: Option<String>,
    /// Password; other users of this machine may see it
    #[arg(short, long, conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
}

const LOGOUT_EXAMPLES: &str = "\
Examples:
  pillbug logout ghcr.io";

/// Log out of a registry
#[derive(Debug, Args)]
#[command(after_help = LOGOUT_EXAMPLES)]
pub struct LogoutArgs {
    /// Registry
    #[arg(default_value = DEFAULT)]
    server: String,
}

/// Checks the credentials with the registry and keeps them.
pub fn run(arguments: &LoginArgs) -> anyhow::Result<ExitCode> {
    /// Longer than any token.
    const MAX_PASSWORD: u64 = 64 << 10;
    let user = match &arguments.username {
        Some(user) => user.clone(),
        None if arguments.password_stdin => bail!("name the user with -u"),
        None => ask("Username: ")?,
    };
    let password = match &arguments.password {
        Some(password) => password.clone(),
        None if arguments.password_stdin => {
            let mut password = String::new();
            let mut input = io::stdin().take(MAX_PASSWORD);
            input
                .read_to_string(&mut password)
                .context("cannot read the password")?;
            password.trim_end_matches(['\r', '\n']).into()
        }
        None => without_echo(|| ask("Password: "))?,
    };
    Client::new()?.log_in(domain(&arguments.server), &user, &password)?;
    super::print("Login Succeeded\n")?;
    Ok(ExitCode::SUCCESS)
}

/// Forgets them.
pub fn run_logout(arguments: &LogoutArgs) -> anyhow::Result<ExitCode> {
    let domain = domain(&arguments.server);
    let was_known = Client::new()?.log_out(domain)?;
    let words = if was_known {
        "Removing login credentials for"
    } else {
        "Not logged in to"
    };
    super::print(&format!("{words} {domain}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// The registry in what people write, which may be an address.
fn domain(server: &str) -> &str {
    let host = server
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    match host.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT,
        host => host,
    }
}

fn ask(prompt: &str) -> anyhow::Result<String> {
    if !io::stdin().is_terminal() {
        bail!("there is no terminal to ask for the login on: use -u and --password-stdin");
    }
    let mut error = io::stderr();
    let asked = write!(error, "{prompt}").and_then(|()| error.flush());
    asked.context("cannot ask for the login")?;
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .context("cannot read the login")?;
    Ok(answer.trim_end_matches(['\r', '\n']).into())
}

/// Does something while the terminal does not show what is typed.
fn without_echo<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let terminal = io::stdin();
    let Ok(before) = tcgetattr(&terminal) else {
        return work();
    };
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&terminal, OptionalActions::Flush, &silent).context("cannot hide the password")?;
    let result = work();
    let restored = tcsetattr(&terminal, OptionalActions::Flush, &before);
    restored.context("cannot restore the terminal")?;
    eprintln!();
    result
}
