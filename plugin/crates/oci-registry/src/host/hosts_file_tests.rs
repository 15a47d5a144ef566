//! Tests of `hosts.toml`.

use super::*;

fn read(text: &str) -> Vec<HostEntry> {
    parse(text, Path::new("/etc/hosts.d/r.example")).unwrap()
}

fn one(text: &str) -> HostEntry {
    read(text).pop().unwrap()
}

fn mistake(text: &str) -> String {
    let Mistake { key, reason } = parse(text, Path::new("/x")).unwrap_err();
    format!("{key} {reason}")
}

fn base(text: &str) -> String {
    let url = one(text).url.unwrap();
    assert!(url.base.path().ends_with('/'));
    format!("{} {}", url.authority, url.base)
}

#[test]
fn hosts_come_in_the_order_of_the_file_and_the_server_last() {
    let text = r#"
server = "https://origin.example"
capabilities = ["push"]
[host."https://z.example"]
[host."http://a.example:5000"]
  capabilities = ["pull", "Resolve"]
[host."https://m.example"]
"#;
    let all = read(text);
    let hosts: Vec<_> = all.iter().map(|entry| entry.url.as_ref().unwrap().authority.as_str()).collect();
    assert_eq!(hosts, ["z.example", "a.example:5000", "m.example", "origin.example"]);
    assert_eq!(all[0].capabilities, Capabilities::ALL);
    assert_eq!(all[1].capabilities, Capabilities::PULL.and(Capabilities::RESOLVE));
    assert_eq!(all[3].capabilities, Capabilities::PUSH);
    // Without a server it is the registry itself.
    let all = read("skip_verify = true\n[host.'https://m']");
    assert!(all[0].url.is_some() && all[0].skip_verify.is_none());
    assert!(all[1].url.is_none() && all[1].skip_verify == Some(true));
    assert!(one("server = ''").url.is_none());
    assert_eq!(one("capabilities = []").capabilities, Capabilities::ALL);
}

#[test]
fn urls_get_the_root_of_the_api() {
    assert_eq!(base("server = 'https://r.example'"), "r.example https://r.example/v2/");
    assert_eq!(base("server = 'R.example:443/'"), "r.example:443 https://r.example/v2/");
    assert_eq!(base("server = 'http://127.0.0.1:5000/v2'"), "127.0.0.1:5000 http://127.0.0.1:5000/v2/");
    assert_eq!(base("server = 'https://r/v2/'"), "r https://r/v2/");
    assert_eq!(base("server = 'https://r/cache'"), "r https://r/cache/v2/");
    assert_eq!(base("server = 'https://r/v2/cache'\noverride_path = true"), "r https://r/v2/cache/");
    assert_eq!(base("server = 'https://r'\noverride_path = true"), "r https://r/");
    assert_eq!(base("server = 'https://[::1]:5000'"), "[::1]:5000 https://[::1]:5000/v2/");
    assert_eq!(base("server = 'https://docker.io'"), "registry-1.docker.io https://registry-1.docker.io/v2/");
}

#[test]
fn paths_are_relative_to_the_file() {
    let folder = Path::new("/etc/hosts.d/r.example");
    assert_eq!(one("ca = 'ca.pem'").ca, [folder.join("ca.pem")]);
    let absolute = PathBuf::from("/abs/b.pem");
    assert_eq!(one("ca = ['a.pem', '/abs/b.pem']").ca, [folder.join("a.pem"), absolute]);
    let both = (folder.join("c.pem"), folder.join("c.pem"));
    let pair = (folder.join("c.pem"), folder.join("k.pem"));
    for text in ["client = 'c.pem'", "client = ['c.pem']"] {
        assert_eq!(one(text).client, std::slice::from_ref(&both), "{text}");
    }
    assert_eq!(one("client = [['c.pem', 'k.pem'], ['c.pem', '']]").client, [pair, both]);
}

#[test]
fn headers_are_not_shown() {
    let entry = one("[header]\nX-One = 'hunter2'\nx-two = ['a', 'hunter3']");
    assert_eq!(entry.header.get("x-one").unwrap(), "hunter2");
    assert_eq!(entry.header.get_all("x-two").iter().collect::<Vec<_>>(), ["a", "hunter3"]);
    assert!(!format!("{entry:?}").contains("hunter"));
    let broken = mistake("[header]\nx = 'hunter2\ny = 1");
    assert!(broken.starts_with("line 2 ") && !broken.contains("hunter2"), "{broken}");
}

#[test]
fn timeouts() {
    let timeout = |text: &str| one(&format!("dial_timeout = '{text}'")).dial_timeout;
    assert_eq!(timeout("3s"), Some(Duration::from_secs(3)));
    assert_eq!(timeout("1m30s500ms"), Some(Duration::from_millis(90_500)));
    assert_eq!(timeout(""), None);
    for bad in ["3", "s", "0s", "-3s", "1.5s", "3 s", "99999999999999999999s", "18446744073709551615h"] {
        assert!(mistake(&format!("dial_timeout = '{bad}'")).contains("is not a duration"), "{bad}");
    }
}

#[test]
fn mistakes_name_the_key() {
    for (text, expected) in [
        ("server = 3", "server has to be a string, not an integer"),
        ("server = 'ftp://x'", "server is neither http nor https"),
        ("server = 'https://'", "server is not a URL"),
        (
            "server = 'https://me:hunter2@x'",
            "server has a user name: credentials come from docker's configuration",
        ),
        ("server = 'https://x?y=1'", "server has a query or a fragment"),
        ("host = []", "host has to be a table, not an array"),
        ("[host]\n'https://m' = 1", "host.\"https://m\" has to be a table, not an integer"),
        ("[host.'ht tp://m']", "host.\"ht tp://m\" is not a URL"),
        ("capabilities = 'pull'", "capabilities has to be an array, not a string"),
        ("capabilities = [1]", "capabilities has to be an array of strings, not an integer"),
        (
            "[host.m]\ncapabilities = ['delete']",
            "host.\"m\".capabilities \"delete\" is none of pull, resolve, push, referrers",
        ),
        ("[host.m]\nca = { }", "host.\"m\".ca has to be a path or an array of paths, not a table"),
        ("ca = ['a', 1]", "ca has to be a path or an array of paths, not an integer"),
        ("client = [['a', 'b', 'c']]", "client 3 paths make no pair"),
        ("client = [[]]", "client 0 paths make no pair"),
        (
            "client = true",
            "client has to be a path, an array of paths, or an array of pairs of paths, not a boolean",
        ),
        ("skip_verify = 'true'", "skip_verify has to be true or false, not a string"),
        ("[host.m]\noverride_path = 1", "host.\"m\".override_path has to be true or false, not an integer"),
        ("header = 'x: y'", "header has to be a table, not a string"),
        ("[header]\nx = 1", "header.x has to be a string or an array of strings, not an integer"),
        ("[header]\n'x y' = ''", "header.x y is not a header's name"),
        ("[header]\nx = \"a\\nb\"", "header.x is not a header's value"),
        ("dial_timeout = 3", "dial_timeout has to be a string such as \"3s\", not an integer"),
    ] {
        assert_eq!(mistake(text), expected, "{text}");
    }
}
