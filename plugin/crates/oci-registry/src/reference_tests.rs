use super::*;
use proptest::prelude::*;

const HEX: &str = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

#[test]
fn normalises() {
    let at = format!("@sha256:{HEX}");
    let table = [
        ("alpine", "docker.io/library/alpine:latest", "registry-1.docker.io"),
        ("rabbitmq:3", "docker.io/library/rabbitmq:3", "registry-1.docker.io"),
        ("user/x", "docker.io/user/x:latest", "registry-1.docker.io"),
        ("docker.io/alpine", "docker.io/library/alpine:latest", "registry-1.docker.io"),
        ("index.docker.io/user/x:1", "docker.io/user/x:1", "registry-1.docker.io"),
        ("localhost/x", "localhost/x:latest", "localhost"),
        ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000"),
        ("localhost:5000/x:5000", "localhost:5000/x:5000", "localhost:5000"),
        ("127.0.0.1:5000/a/b:t", "127.0.0.1:5000/a/b:t", "127.0.0.1:5000"),
        ("[::1]:5000/a:t", "[::1]:5000/a:t", "[::1]:5000"),
        ("[2001:db8::1]/a", "[2001:db8::1]/a:latest", "[2001:db8::1]"),
        ("ghcr.io/o/r", "ghcr.io/o/r:latest", "ghcr.io"),
        ("FOO/bar", "FOO/bar:latest", "FOO"),
        ("a--b/c__d.e_f", "docker.io/a--b/c__d.e_f:latest", "registry-1.docker.io"),
        ("x:Tag_1.2-3", "docker.io/library/x:Tag_1.2-3", "registry-1.docker.io"),
    ];
    for (text, full, host) in table {
        let reference = Reference::parse(text).unwrap();
        assert_eq!((reference.to_string().as_str(), reference.host()), (full, host), "{text}");
        assert_eq!(Reference::parse(full).unwrap(), reference, "{full}");
    }
    let by_digest = Reference::parse(&format!("localhost:5000/x{at}")).unwrap();
    assert_eq!((by_digest.tag(), by_digest.digest().unwrap().digest()), (None, HEX));
    assert_eq!(by_digest.to_string(), format!("localhost:5000/x{at}"));
    let both = Reference::parse(&format!("x:1{at}")).unwrap();
    assert_eq!(both.to_string(), format!("docker.io/library/x:1{at}"));
    assert_eq!((both.tag(), both.target()), (Some("1"), format!("sha256:{HEX}").as_str()));
}

#[test]
fn familiar_names() {
    let table = [
        ("docker.io/library/alpine:3", "alpine:3"),
        ("docker.io/library/a/b:3", "library/a/b:3"),
        ("user/x:1", "user/x:1"),
        ("ghcr.io/library/x:1", "ghcr.io/library/x:1"),
    ];
    for (text, familiar) in table {
        assert_eq!(Reference::parse(text).unwrap().familiar(), familiar);
    }
}

#[test]
fn refuses() {
    let long = "a".repeat(256);
    let tag = format!("x:{}", "t".repeat(129));
    let cases = [
        "",
        HEX,
        "Alpine",
        "docker.io/Alpine",
        "x:",
        ":x",
        "x@",
        "x@sha256:12",
        "x@md5:0123",
        "/x",
        "x/",
        "a//b",
        "a..b/c",
        "a___b",
        "-a",
        "a-",
        "x y",
        "x\n",
        "a/../b",
        "ghcr.io/../x",
        "x:.t",
        "x:-t",
        "x:t/y",
        "http://x/y",
        "localhost:port/x",
        "localhost:99999/x",
        "-bad.io/x",
        "bad-.io/x",
        "[::1/x",
        "[]/x",
        "[::1]x/y",
        "ghcr.io/",
        "ghcr.io/:t",
        "é",
        "x?y",
        "x#y",
        "x%2f",
        "user@ghcr.io/x",
        "ghcr.io:5000:1/x",
        &long,
        &tag,
    ];
    for text in cases {
        assert!(Reference::parse(text).is_err(), "{text}");
    }
    let sha512 = format!("x@sha512:{HEX}{HEX}");
    assert!(Reference::parse(&sha512).is_err());
}

proptest! {
    #[test]
    fn what_is_read_is_written_so_that_it_is_read_again(text in "[a-zA-Z0-9./:@_\\-\\[\\]]{0,40}|\\PC{0,20}") {
        if let Ok(reference) = Reference::parse(&text) {
            let full = reference.to_string();
            prop_assert_eq!(Reference::parse(&full).unwrap(), reference.clone());
            prop_assert_eq!(Reference::parse(&reference.familiar()).unwrap(), reference);
            prop_assert!(full.is_ascii() && !full.contains(".."));
        }
    }
}
