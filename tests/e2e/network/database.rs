//! A database that another machine uses by its name.

use super::{nothing_is_left, remove, world::World};
use crate::{command::told, supervision::Events};

/// Lets everybody in, and is the image's own server then.
const SERVE: &str = "echo 'host all all all trust' >> $PGDATA/pg_hba.conf; \
    exec docker-entrypoint.sh postgres -c 'listen_addresses=*'";

/// Prints of which family a connection is: one by each address that the name has, and one as it comes.
const ASK: &str = "ask() { psql \"host=db user=postgres dbname=template1 $1\" -tAc \
        'select family(inet_client_addr()), family(inet_server_addr())'; }; \
    at() { getent ahostsv$1 db | { read address rest; echo hostaddr=$address; }; }; \
    ask $(at 4); ask $(at 6); ask";

#[test]
fn postgresql_is_used_by_name_over_ipv4_and_ipv6() {
    let _world = World::new();
    told(&["network", "create", "--ipv6", "app"]);
    let mut events = Events::of("db");
    let run = ["run", "-d", "--name", "db", "--network", "app"];
    let check = ["--health-cmd", "pg_isready -q", "--health-interval", "3s"];
    told(&[&run[..], &check, &["pgready", "sh", "-c", SERVE]].concat());
    events.until("health_status: healthy");
    let client = ["run", "--rm", "--network", "app", "pgready"];
    let seen = told(&[&client[..], &["sh", "-c", ASK]].concat());
    assert_eq!(seen, "4|4\n6|6\n6|6\n");
    remove(&["db"]);
    told(&["network", "rm", "app"]);
    nothing_is_left();
}
