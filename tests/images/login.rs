//! Registries that not everybody may use, and how credentials for them are kept.

use std::{
    fs::{self, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    process::{Output, Stdio},
};

use serde_json::Value;

use crate::{
    fixture::{Fixture, Packing, Place, fail, succeed},
    registry::{place_with, run},
    server::{Demand, Registry},
    token::TokenServer,
};

/// Logs in with a password on standard input.
fn log_in(place: &Place, registry: &str, password: &str) -> Output {
    let mut login = place
        .pillbug(&["login", "-u", "user", "--password-stdin", registry])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = login.stdin.take().unwrap();
    writeln!(input, "{password}").unwrap();
    drop(input);
    login.wait_with_output().unwrap()
}

fn config(place: &Place) -> Value {
    serde_json::from_slice(&fs::read(place.path("docker/config.json")).unwrap()).unwrap()
}

#[test]
fn a_registry_that_demands_a_password_gets_it_after_a_login() {
    let registry = Registry::start(Demand::Password);
    let place = place_with(&Fixture::new("login", &[Packing::Gzip]), "app:1");
    let name = format!("{}/app:1", registry.address);
    run(&place, &["tag", "app:1", &name]);

    let denied = fail(&place.pillbug(&["push", &name]).output().unwrap());
    assert!(
        denied.contains(&format!("run `pillbug login {}`", registry.address)),
        "{denied}"
    );
    let wrong = fail(&log_in(&place, &registry.address, "wrong"));
    assert!(wrong.contains("does not accept the login"), "{wrong}");
    assert_eq!(
        succeed(log_in(&place, &registry.address, "secret")),
        "Login Succeeded\n"
    );
    let kept = &config(&place)["auths"][&registry.address]["auth"];
    assert_eq!(kept, "dXNlcjpzZWNyZXQ=");
    run(&place, &["push", &name]);
    run(&place, &["pull", &name]);
    run(&place, &["logout", &registry.address]);
    fail(&place.pillbug(&["pull", &name]).output().unwrap());
}

#[test]
fn a_certificate_must_be_trusted_also_on_this_machine() {
    let registry = Registry::start(Demand::Tls);
    let place = place_with(&Fixture::new("tls", &[Packing::Gzip]), "app:1");
    let name = format!("{}/app:1", registry.address);
    run(&place, &["tag", "app:1", &name]);
    let refused = fail(&place.pillbug(&["push", &name]).output().unwrap());
    assert!(refused.contains("certificate"), "{refused}");

    let settings = format!(
        "[registry.\"{}\"]\nca-files = [\"{}\"]\n",
        registry.address,
        registry.file("ca.pem").display()
    );
    fs::write(place.path("registries.toml"), settings).unwrap();
    run(&place, &["push", &name]);
    run(&place, &["pull", &name]);
}

#[test]
fn a_token_server_is_given_the_login_and_its_tokens_to_the_registry() {
    let tokens = TokenServer::start();
    let registry = Registry::start(Demand::Token(&tokens));
    let place = place_with(
        &Fixture::new("token", &[Packing::Gzip, Packing::Plain]),
        "app:1",
    );
    let names = ["one/app:1", "two/app:1"].map(|name| format!("{}/{name}", registry.address));
    for name in &names {
        run(&place, &["tag", "app:1", name]);
    }
    let denied = fail(&place.pillbug(&["push", "-q", &names[0]]).output().unwrap());
    assert!(denied.contains("pillbug login"), "{denied}");
    let wrong = fail(&log_in(&place, &registry.address, "wrong"));
    assert!(wrong.contains("does not accept the login"), "{wrong}");
    assert_eq!(
        succeed(log_in(&place, &registry.address, "secret")),
        "Login Succeeded\n"
    );
    run(&place, &["push", "-q", &names[0]]);
    // What to mount from is in another repository, for which the token must be good, too.
    let mounted = place.pillbug(&["push", &names[1]]).output().unwrap();
    let told = String::from_utf8_lossy(&mounted.stderr).into_owned();
    succeed(mounted);
    assert_eq!(told.matches("Mounted from one/app").count(), 2, "{told}");
    run(&place, &["rmi", "-f", &names[1]]);
    run(&place, &["pull", "-q", &names[1]]);

    // As others do with what is kept.
    let authfile = place.path("docker/config.json");
    let copy = std::process::Command::new("skopeo")
        .args(["copy", "-q", "--src-tls-verify=false", "--authfile"])
        .arg(authfile)
        .arg(format!("docker://{}", names[1]))
        .arg(format!("oci:{}", place.path("copy").display()))
        .output()
        .unwrap();
    succeed(copy);
}

#[test]
fn a_helper_keeps_the_login_where_the_configuration_names_one() {
    let registry = Registry::start(Demand::Password);
    let place = place_with(&Fixture::new("helper", &[Packing::Gzip]), "app:1");
    let name = format!("{}/app:1", registry.address);
    run(&place, &["tag", "app:1", &name]);
    let kept = place.path("kept");
    let helper = format!(
        "#!/bin/sh\ncase $1 in\n\
         store) cat > {kept} ;;\n\
         get) cat >/dev/null; cat {kept} 2>/dev/null || {{ echo credentials not found in native keychain; exit 1; }} ;;\n\
         erase) cat >/dev/null; rm {kept} ;;\nesac\n",
        kept = kept.display()
    );
    let program = place.write("docker-credential-test", helper.as_bytes());
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(place.path("docker")).unwrap();
    let helpers = format!(
        "{{\"credHelpers\": {{\"{}\": \"test\"}}}}",
        registry.address
    );
    fs::write(place.path("docker/config.json"), &helpers).unwrap();
    let path = format!(
        "{}:{}",
        program.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let pillbug = |arguments: &[&str]| {
        let mut command = place.pillbug(arguments);
        command.env("PATH", &path).output().unwrap()
    };
    fail(&pillbug(&["push", "-q", &name]));
    let login = ["login", "-u", "user", "-p", "secret", &registry.address];
    succeed(pillbug(&login));
    let entry: Value = serde_json::from_slice(&fs::read(&kept).unwrap()).unwrap();
    assert_eq!(entry["Username"], "user");
    assert_eq!(entry["ServerURL"], registry.address.as_str());
    // The secret is with the helper alone.
    assert_eq!(config(&place).to_string().find("auth\""), None);
    succeed(pillbug(&["push", "-q", &name]));
    succeed(pillbug(&["logout", &registry.address]));
    assert!(!kept.exists());
    fail(&pillbug(&["pull", "-q", &name]));
}
