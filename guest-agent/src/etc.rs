//! Content of the files below `/etc` that say who the machine is.

use protocol::Setup;

/// `/etc/hostname` (hostname(5)).
pub fn hostname(setup: &Setup) -> String {
    format!("{}\n", setup.hostname)
}

/// `/etc/hosts` (hosts(5)).
pub fn hosts(setup: &Setup) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    for host in &setup.extra_hosts {
        text.extend([&host.address, "\t", &host.name, "\n"]);
    }
    let addresses = setup
        .interfaces
        .iter()
        .flat_map(|interface| &interface.addresses)
        .map(|address| address.ip.to_string());
    let mut addresses: Vec<String> = addresses.collect();
    if addresses.is_empty() {
        // One of the machine's own that no other name has.
        addresses.push("127.0.1.1".into());
    }
    for address in &addresses {
        text.extend([address, "\t", &setup.hostname, "\n"]);
    }
    text
}

#[cfg(test)]
mod tests {
    use protocol::{HostEntry, Interface, InterfaceAddress, Resolver, Upper};

    use super::*;

    #[test]
    fn the_host_name_and_further_hosts_are_in_the_files() {
        let mut setup = Setup {
            lower_device: "/dev/vda".into(),
            upper: Upper::Tmpfs { size_bytes: 0 },
            read_only_root: false,
            hostname: "shell".into(),
            extra_hosts: vec![HostEntry {
                address: "10.0.0.7".into(),
                name: "db".into(),
            }],
            interfaces: vec![],
            resolver: Resolver::default(),
            mounts: vec![],
            shm_bytes: 0,
            limits: protocol::Limits::default(),
            sysctls: Vec::new(),
            privileged: false,
        };
        assert_eq!(hostname(&setup), "shell\n");
        let hosts = hosts(&setup);
        let lines: Vec<_> = hosts.lines().collect();
        assert_eq!(lines[0], "127.0.0.1\tlocalhost");
        assert_eq!(lines[6..], ["10.0.0.7\tdb", "127.0.1.1\tshell"]);

        setup.interfaces.push(Interface {
            addresses: vec![InterfaceAddress {
                ip: [10, 0, 0, 2].into(),
                prefix: 24,
            }],
            gateways: vec![],
        });
        assert!(super::hosts(&setup).ends_with("10.0.0.7\tdb\n10.0.0.2\tshell\n"));
    }
}
