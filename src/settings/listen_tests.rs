//! `[listen]`: what reads, and the sentence for what does not.

#![expect(clippy::unwrap_used, reason = "a test may fail by a panic")]

use std::path::Path;

use super::*;

const TARGET: &str = "[targets.default]\nservice = \"bms\"\nendpoint = \"https://bms.example.com\"\nproject_id = \"p1\"\n\
                      [targets.default.auth]\nkind = \"aksk\"\naccess_key_file = \"access_key\"\nsecret_key_file = \"secret_key\"\n";

fn parse(listen: &str) -> Result<ListenSettings, String> {
    let text = format!("{listen}\n{TARGET}");
    Settings::parse(&text, Path::new("f"))
        .map(|settings| settings.listen.unwrap())
        .map_err(|error| error.to_string())
}

fn token(lines: &str) -> String {
    format!("[[listen.tokens]]\nname = \"a\"\ntoken_file = \"/t\"\nrole = \"reader\"\n{lines}")
}

#[test]
fn tokens_read_with_role_targets_and_actions() {
    let text = format!(
        "[listen]\naddress = \"0.0.0.0:9642\"\nhosts = [\"Power.Example.com\", \"192.0.2.7\"]\nbehind_proxy = true\n{}\
         [[listen.tokens]]\nname = \"rack 7\"\ntoken_file = \"token\"\nrole = \"operator\"\ntargets = [\"default\"]\n\
         actions = [\"stop\", \"start\"]\n",
        token("")
    );
    let listen = parse(&text).unwrap();
    assert_eq!(listen.hosts, ["power.example.com", "192.0.2.7"]);
    let [first, second] = &listen.tokens[..] else {
        panic!("two tokens")
    };
    assert_eq!(
        (first.role, &first.targets, &first.actions),
        (Role::Reader, &None, &None)
    );
    assert_eq!(second.targets, Some(vec![TargetName("default".to_owned())]));
    assert_eq!(
        second.actions,
        Some(vec![PowerAction::Start, PowerAction::Stop])
    );
}

#[test]
fn an_address_that_others_reach_needs_tokens_and_tls_or_a_proxy() {
    let outside = "[listen]\naddress = \"192.0.2.7:9642\"\n";
    let said = parse(outside).unwrap_err();
    assert!(
        said.contains("f:2: listen.address: ")
            && said.contains("tokens are needed")
            && said.contains("TLS is needed"),
        "{said}"
    );
    let said = parse(&format!("{outside}{}", token(""))).unwrap_err();
    assert!(
        said.contains("TLS is needed") && !said.contains("tokens are"),
        "{said}"
    );
    let tls = format!(
        "{outside}tls_cert_file = \"/c\"\ntls_key_file = \"/k\"\n{}",
        token("")
    );
    assert!(parse(&tls).unwrap().tls.is_some());
    for local in ["127.0.0.1:0", "[::1]:80", "127.9.9.9:1"] {
        assert!(
            parse(&format!("[listen]\naddress = \"{local}\"\n")).is_ok(),
            "{local}"
        );
    }
}

#[test]
fn each_mistake_of_listen_has_its_line_and_key() {
    let listen = |lines: &str| format!("[listen]\naddress = \"127.0.0.1:1\"\n{lines}");
    let cases = [
        (
            listen("tls_cert_file = \"/c\""),
            "f:3: listen.tls_cert_file: needs tls_key_file",
        ),
        (listen("tokens = []"), "f:3: listen.tokens: is empty"),
        (
            listen("tokens = [\"x\"]"),
            "f:3: listen.tokens: must be a table, written as [[listen.tokens]]",
        ),
        (
            listen("hosts = [\"http://x\"]"),
            "f:3: listen.hosts: \"http://x\" is not the name of a host",
        ),
        (
            listen("[[listen.tokens]]\nname = \"a\""),
            "f:3: listen.tokens.role: is missing",
        ),
        (
            listen(&token("token = \"secret\"")),
            "f:7: listen.tokens.token: a secret must not be in this file",
        ),
        (
            listen(&token("targets = [\"x\"]")),
            "f:7: listen.tokens.targets: \"x\" is not a target",
        ),
        (
            listen(&token("targets = []")),
            "f:7: listen.tokens.targets: is empty",
        ),
        (
            listen(&token("actions = [\"off\"]")),
            "f:7: listen.tokens.actions: 'off' is not an action",
        ),
        (
            listen(&token("").replace("reader", "root")),
            "f:6: listen.tokens.role: 'root' is not a role",
        ),
        (
            listen(&token("").replace("\"a\"", "\" a\"")),
            "f:4: listen.tokens.name: \" a\" is not a name",
        ),
        (
            listen(&format!("{0}{0}", token(""))),
            "f:8: listen.tokens.name: \"a\" is the name of another token",
        ),
        (
            listen("behind_proxy = 1"),
            "f:3: listen.behind_proxy: must be true or false",
        ),
    ];
    for (text, wanted) in cases {
        let said = parse(&text).unwrap_err();
        assert!(said.contains(wanted), "{said}\nis not {wanted}");
    }
}
