//! Real images from Debian's packages do what they are for.

use crate::command::{output_of, run};

#[test]
fn nginx_serves_a_page_and_logs_to_its_output() {
    // Its upper layer took the documentation away from the one below.
    let fetch = "test ! -e /usr/share/doc; nginx; exec 3<>/dev/tcp/127.0.0.1/80; \
                 printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
    let output = output_of(["nginx", "bash", "-ec", fetch]);
    for part in [
        "HTTP/1.1 200 OK",
        "Welcome to nginx!",
        "\"GET / HTTP/1.0\" 200",
    ] {
        assert!(output.contains(part), "{output}");
    }
}

#[test]
fn redis_answers_as_its_own_user() {
    let line = "id -un; pwd; redis-server --save '' | { grep -om1 'Ready to accept'; \
                redis-cli set a 1; redis-cli get a; redis-cli shutdown nosave; }";
    let output = output_of(["redis", "sh", "-c", line]);
    assert_eq!(output, "redis\n/data\nReady to accept\nOK\n1\n");
}

#[test]
fn java_says_its_version() {
    let output = output_of(["openjdk", "java", "-Xint", "--version"]);
    assert!(output.starts_with("openjdk 17."), "{output}");
}

#[test]
fn postgresql_becomes_its_own_user_and_says_what_is_missing() {
    let refused = run(["postgresql"]).assert().failure();
    let error = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    let missing = "POSTGRES_PASSWORD: must be set to make a database";
    assert!(error.contains(missing), "{error}");
    let version = output_of(["postgresql", "psql", "--version"]);
    assert!(version.starts_with("psql (PostgreSQL) 15."), "{version}");
}
