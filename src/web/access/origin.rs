//! By which name the server was called, and by which page: `Host` and `Origin`. A foreign name is
//! how a web page of somebody else makes a browser ask this server (DNS rebinding). Pure.

use std::net::IpAddr;

/// The host of `Host`, without its port and without the brackets of IPv6; in lower case.
pub(super) fn host_name(authority: &str) -> Option<String> {
    let name = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            if !port.is_empty() && !is_port(port.strip_prefix(':')?) {
                return None;
            }
            address
        }
        None => match authority.split_once(':') {
            Some((name, port)) if is_port(port) => name,
            Some(_) => return None,
            None => authority,
        },
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    (!name.is_empty()).then(|| name.to_ascii_lowercase())
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok()
}

/// True if `name` is one of those by which this server may be called.
pub(super) fn is_own_name(name: &str, hosts: &[String], addresses: &[IpAddr]) -> bool {
    if hosts.iter().any(|host| host == name) {
        return true;
    }
    let is_local = addresses
        .iter()
        .any(|address| address.to_canonical().is_loopback());
    match name.parse::<IpAddr>() {
        Ok(address) => addresses
            .iter()
            .any(|own| own.to_canonical() == address.to_canonical()),
        Err(_) => is_local && name == "localhost",
    }
}

/// True if a page of this origin was served under this `Host`.
pub(super) fn is_same_origin(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else {
        return false;
    };
    let usual_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let bare = |authority: &str| {
        let lower = authority.to_ascii_lowercase();
        lower
            .strip_suffix(usual_port)
            .map(str::to_owned)
            .unwrap_or(lower)
    };
    bare(authority) == bare(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_taken_without_its_port() {
        for (authority, name) in [
            ("127.0.0.1:9642", "127.0.0.1"),
            ("Power.Example.com", "power.example.com"),
            ("power.example.com.:443", "power.example.com"),
            ("[::1]:9642", "::1"),
            ("[::1]", "::1"),
        ] {
            assert_eq!(host_name(authority).as_deref(), Some(name));
        }
        for odd in ["", ":80", "a:b", "a:80:80", "[::1", "[::1]x", "a:99999"] {
            assert_eq!(host_name(odd), None, "{odd}");
        }
    }

    #[test]
    fn only_its_addresses_and_the_names_of_the_config_are_its_own() {
        let hosts = ["power.example.com".to_owned()];
        let loopback = ["127.0.0.1".parse().expect("an address")];
        for own in ["127.0.0.1", "localhost", "power.example.com"] {
            assert!(is_own_name(own, &hosts, &loopback), "{own}");
        }
        for foreign in ["evil.example", "127.0.0.2", "x.power.example.com", "::2"] {
            assert!(!is_own_name(foreign, &hosts, &loopback), "{foreign}");
        }
        let outer = ["192.0.2.7".parse().expect("an address")];
        assert!(!is_own_name("localhost", &hosts, &outer));
    }

    #[test]
    fn another_port_is_another_origin_and_the_usual_one_may_be_left_out() {
        assert!(is_same_origin("http://127.0.0.1:9642", "127.0.0.1:9642"));
        assert!(is_same_origin("https://Power.example", "power.example:443"));
        for origin in [
            "null",
            "http://127.0.0.1",
            "http://127.0.0.1:8000",
            "file://",
            "http://evil",
        ] {
            assert!(!is_same_origin(origin, "127.0.0.1:9642"), "{origin}");
        }
    }
}
