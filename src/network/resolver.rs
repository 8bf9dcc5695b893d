//! The host's name servers, as far as they can be reached from elsewhere.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
};

/// Where they are written down, the second by systemd-resolved, which puts itself into the first.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Those of the first file that names any but the host itself.
pub fn of_host() -> Vec<Ipv4Addr> {
    FILES
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .map(|text| servers(&text))
        .find(|found| !found.is_empty())
        .unwrap_or_default()
}

/// All of them, for who asks as the host: loopback ones, too.
pub fn all_of_host() -> Vec<IpAddr> {
    let text = fs::read_to_string(FILES[0]).unwrap_or_default();
    words(&text, "nameserver")
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// The domains in which the host looks names up.
pub fn search_of_host() -> Vec<String> {
    let text = fs::read_to_string(FILES[0]).unwrap_or_default();
    words(&text, "search").map(str::to_owned).collect()
}

/// What follows a keyword (resolv.conf(5)).
fn words<'a>(text: &'a str, keyword: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines()
        .filter_map(move |line| line.trim_start().strip_prefix(keyword))
        .filter(|rest| rest.starts_with([' ', '\t']))
        .flat_map(str::split_whitespace)
}

fn servers(text: &str) -> Vec<Ipv4Addr> {
    words(text, "nameserver")
        .filter_map(|word| word.parse::<Ipv4Addr>().ok())
        .filter(|server| !server.is_loopback() && !server.is_unspecified())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_itself_is_no_server_for_others() {
        let text = "# nameserver 9.9.9.9\nnameserver 127.0.0.53\nnameserver\t192.0.2.1\n\
                    nameserver fd00::1\nsearch nameserver\n";
        assert_eq!(servers(text), [Ipv4Addr::new(192, 0, 2, 1)]);
    }
}
