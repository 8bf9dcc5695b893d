//! Subnets for networks: which are taken, which are free, and which are none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{definition::Definition, error::NetworkError};

/// For networks that are given none: the first that nothing of the host overlaps.
const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 213, 0, 0), 16);
/// Bits of each.
const POOL_PREFIX: u8 = 24;

/// A subnet, and whose it is in words.
pub type Taken = (IpNet, String);

/// Those of other networks.
pub fn of_networks(networks: &[Definition]) -> Vec<Taken> {
    networks
        .iter()
        .flat_map(|network| {
            let four = IpNet::V4(network.subnet);
            [Some(four), network.subnet6.map(IpNet::V6)]
                .into_iter()
                .flatten()
                .map(|subnet| (subnet, format!("network {:?}", network.name)))
        })
        .collect()
}

/// The subnets as given, or a free one.
pub fn choose(given: Option<Ipv4Net>, taken: &[Taken]) -> Result<Ipv4Net, NetworkError> {
    let Some(subnet) = given else {
        // A prefix longer than the pool's is one.
        let mut subnets = POOL.subnets(POOL_PREFIX).into_iter().flatten();
        return subnets
            .find(|subnet| overlap(&IpNet::V4(*subnet), taken).is_none())
            .ok_or(NetworkError::NoSubnet);
    };
    let subnet = subnet.trunc();
    let first = subnet.network();
    if !(8..=29).contains(&subnet.prefix_len()) || first.is_loopback() || first.is_multicast() {
        return Err(NetworkError::Subnet(subnet.to_string()));
    }
    check(subnet.into(), taken)?;
    Ok(subnet)
}

/// The same of IPv6, where a free one is of our own making (RFC 4193, 3.2.2).
pub fn choose6(given: Option<Ipv6Net>, taken: &[Taken]) -> Result<Ipv6Net, NetworkError> {
    let subnet = match given {
        Some(subnet) => subnet.trunc(),
        None => {
            let mut bytes = [0; 16];
            getrandom::fill(&mut bytes[1..6]).map_err(|_| NetworkError::NoSubnet)?;
            bytes[0] = 0xfd;
            Ipv6Net::new_assert(Ipv6Addr::from(bytes), 64)
        }
    };
    let first = subnet.network();
    let is_usable = !first.is_multicast() && !first.is_unicast_link_local();
    if !(48..=112).contains(&subnet.prefix_len()) || !is_usable || first.segments()[0] == 0 {
        return Err(NetworkError::Subnet(subnet.to_string()));
    }
    check(subnet.into(), taken)?;
    Ok(subnet)
}

/// The host's address on a subnet: that given, or the first.
pub fn gateway(given: Option<IpAddr>, subnet: IpNet) -> Result<IpAddr, NetworkError> {
    let gateway = given.unwrap_or_else(|| nth(subnet, 1));
    let is_edge =
        gateway == subnet.network() || subnet.addr().is_ipv4() && gateway == subnet.broadcast();
    match subnet.contains(&gateway) && !is_edge {
        true => Ok(gateway),
        false => Err(NetworkError::Gateway(gateway)),
    }
}

/// The address at that place of a subnet, which has as many.
pub fn nth(subnet: IpNet, place: u32) -> IpAddr {
    match subnet {
        IpNet::V4(subnet) => Ipv4Addr::from_bits(subnet.network().to_bits() | place).into(),
        IpNet::V6(subnet) => {
            Ipv6Addr::from_bits(subnet.network().to_bits() | u128::from(place)).into()
        }
    }
}

fn overlap(subnet: &IpNet, taken: &[Taken]) -> Option<String> {
    let overlaps = |other: &IpNet| other.contains(subnet) || subnet.contains(other);
    let found = taken.iter().find(|(other, _)| overlaps(other))?;
    Some(found.1.clone())
}

fn check(subnet: IpNet, taken: &[Taken]) -> Result<(), NetworkError> {
    match overlap(&subnet, taken) {
        Some(with) => Err(NetworkError::Overlap {
            subnet: subnet.to_string(),
            with,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_of_both_families_are_given_once() {
        let first = choose(None, &[]).unwrap();
        let taken = [(IpNet::V4(first), "network \"one\"".to_owned())];
        assert_ne!(choose(None, &taken).unwrap(), first);
        let error = choose(Some(first), &taken).unwrap_err().to_string();
        assert_eq!(error, "the subnet 10.213.0.0/24 overlaps network \"one\"");
        let six = choose6(None, &[]).unwrap();
        assert_eq!((six.addr().octets()[0], six.prefix_len()), (0xfd, 64));
        assert!(choose6(Some(six), &[(six.into(), String::new())]).is_err());
        for text in ["fe80::/64", "ff00::/64", "::/64", "fd00::/16", "fd00::/120"] {
            assert!(choose6(Some(text.parse().unwrap()), &[]).is_err(), "{text}");
        }
        let given = choose6(Some("2001:db8:7::9/64".parse().unwrap()), &[]).unwrap();
        assert_eq!(
            gateway(None, given.into()).unwrap().to_string(),
            "2001:db8:7::1"
        );
        assert!(gateway(Some([10, 213, 0, 0].into()), first.into()).is_err());
        assert!(gateway(Some([10, 9, 0, 1].into()), first.into()).is_err());
    }
}
