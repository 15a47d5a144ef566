use super::*;

const DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

fn manifest(config: &str, rest: &str) -> String {
    format!(r#"{{"schemaVersion":2,"config":{{"mediaType":"{config}","digest":"{DIGEST}","size":2}}{rest}}}"#)
}

#[test]
fn version_comes_from_the_config_alone() {
    let v1 = SociIndex::parse(manifest(ARTIFACT_TYPE_V1, "").as_bytes()).unwrap();
    assert_eq!((v1.version(), v1.subject()), (Version::V1, None));
    let v2 = SociIndex::parse(manifest(ARTIFACT_TYPE_V2, r#","artifactType":"x/y""#).as_bytes()).unwrap();
    assert_eq!(v2.version(), Version::V2);
    let other = SociIndex::parse(manifest("application/vnd.oci.image.config.v1+json", "").as_bytes());
    assert!(matches!(other, Err(ParseError::UnknownVersion(_))));
    assert!(matches!(SociIndex::parse(b"{}"), Err(ParseError::UnknownVersion(_))));
}

#[test]
fn lenient_about_null_order_space_and_strangers() {
    let text = format!(
        r#" {{ "annotations": null, "layers": null, "x": [1, {{}}],
            "config": {{"size": 2, "data": null, "mediaType": "{ARTIFACT_TYPE_V2}"}}, "schemaVersion": null }} "#
    );
    let index = SociIndex::parse(text.as_bytes()).unwrap();
    assert_eq!(index.ztocs().count(), 0);
    let twice = manifest("x/y", &format!(r#","config":{{"mediaType":"{ARTIFACT_TYPE_V1}"}}"#));
    assert_eq!(SociIndex::parse(twice.as_bytes()).unwrap().version(), Version::V1);
}

#[test]
fn bad_descriptors_are_errors() {
    for layer in [
        r#"{"mediaType":"application/octet-stream","size":1}"#.to_owned(),
        r#"{"digest":"sha256:../../etc/passwd","size":1}"#.to_owned(),
        format!(r#"{{"digest":"{DIGEST}","size":-1}}"#),
        format!(r#"{{"digest":"sha512:{0}{0}","size":1}}"#, "0".repeat(64)),
        format!(r#"{{"digest":"{DIGEST}","size":1.5}}"#),
        "3".to_owned(),
    ] {
        let text = manifest(ARTIFACT_TYPE_V1, &format!(r#","layers":[{layer}]"#));
        assert!(SociIndex::parse(text.as_bytes()).is_err(), "{layer}");
    }
    assert!(matches!(SociIndex::parse(&vec![b' '; MAX_INDEX_SIZE + 1]), Err(ParseError::TooLarge(_))));
    let deep = "[".repeat(100_000);
    assert!(matches!(SociIndex::parse(deep.as_bytes()), Err(ParseError::Json(_))));
}

#[test]
fn the_last_ztoc_of_a_layer_counts_and_other_types_never() {
    let layer = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let entry = |media_type: &str, size: u64| {
        format!(
            r#"{{"mediaType":"{media_type}","digest":"{DIGEST}","size":{size},"annotations":{{"{ANNOTATION_LAYER_DIGEST}":"{layer}"}}}}"#
        )
    };
    let layers = [
        entry(ZTOC_MEDIA_TYPE, 1),
        entry(ZTOC_MEDIA_TYPE, 2),
        entry("x/y", 3),
        entry(PREFETCH_MEDIA_TYPE, 4),
    ];
    let text = manifest(ARTIFACT_TYPE_V1, &format!(r#","layers":[{}]"#, layers.join(",")));
    let index = SociIndex::parse(text.as_bytes()).unwrap();
    let digest = Digest::try_from(layer).unwrap();
    assert_eq!(index.ztoc_for_layer(&digest).unwrap().size(), 2);
    assert_eq!(index.prefetch_for_layer(&digest).unwrap().size(), 4);
    assert_eq!(index.ztocs().count(), 2);
    assert!(index.ztoc_for_layer(&Digest::try_from(DIGEST).unwrap()).is_none());
}

#[test]
fn platform_and_data_survive_a_round_trip() {
    let layers = format!(
        r#","layers":[{{"mediaType":"a/b","digest":"{DIGEST}","size":1,"urls":["http://x"],"annotations":{{"a":"1","b":"2"}},"data":"e30=","platform":{{"architecture":"arm64","os":"linux","os.version":"1","os.features":["f"],"variant":"v8"}},"artifactType":"c/d"}}]"#
    );
    let text = manifest(ARTIFACT_TYPE_V2, &layers);
    let text = text.replace(
        r#""schemaVersion":2,"#,
        &format!(r#""schemaVersion":2,"mediaType":"{MANIFEST_MEDIA_TYPE}","#),
    );
    assert_eq!(String::from_utf8(SociIndex::parse(text.as_bytes()).unwrap().to_json()).unwrap(), text);
}
