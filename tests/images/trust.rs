//! Who gets to see credentials, and whom they do not reach.

use std::{fs, sync::Arc};

use serde_json::Value;

use crate::{
    faults::{good, image, is_layer, place, pull},
    fixture::{Fixture, Packing, Place, fail, succeed},
    hostile::{Answer, Hostile, Request},
};

/// Answers 401 with the token server's address until the request has `token`.
fn demand(request: &Request, token: &str, answer: Answer) -> Answer {
    let address = request.header("host").unwrap();
    if request.header("authorization") == Some(&format!("Bearer {token}")) {
        return answer;
    }
    Answer::status(401).with(
        "www-authenticate",
        format!("Bearer realm=\"http://{address}/token\",service=\"s\""),
    )
}

#[test]
fn a41_a_token_that_expires_within_a_layer_is_renewed() {
    let (place, image) = (place(), image());
    let told = Arc::clone(&image);
    let (registry, output) = pull(&place, &image, move |request, before, answer| {
        if request.path.starts_with("/token") {
            return Answer::ok(format!("{{\"token\": \"t{before}\"}}").as_bytes());
        }
        if is_layer(&told, request) && request.header("range").is_none() {
            return Answer {
                cut_after: Some(200),
                ..demand(request, "t0", answer)
            };
        }
        let current = if is_layer(&told, request) { "t1" } else { "t0" };
        demand(request, current, answer)
    });
    succeed(output);
    let tokens: Vec<_> = registry
        .requests()
        .into_iter()
        .filter(|request| request.path.starts_with("/token"))
        .collect();
    assert_eq!(tokens.len(), 2);
    assert!(
        tokens[0].path.contains("scope=repository%3Aapp%3Apull")
            && tokens[0].path.contains("service=s")
    );
}

#[test]
fn a_token_that_is_never_accepted_is_fetched_once() {
    let (place, image) = (place(), image());
    let (registry, output) = pull(&place, &image, |request, _, answer| {
        if request.path.starts_with("/token") {
            Answer::ok(b"{\"token\": \"t\"}")
        } else {
            demand(request, "other", answer)
        }
    });
    assert!(fail(&output).contains("not for everybody"));
    assert_eq!(registry.requests().len(), 3);
}

/// Keeps a login for a registry.
fn know(place: &Place, registry: &str) {
    let auths = format!("{{\"auths\": {{\"{registry}\": {{\"auth\": \"dXNlcjpzZWNyZXQ=\"}}}}}}");
    fs::create_dir(place.path("docker")).unwrap();
    fs::write(place.path("docker/config.json"), auths).unwrap();
}

#[test]
fn a38_https_is_not_left_for_http() {
    let (place, image) = (place(), image());
    let served = Arc::clone(&image);
    let elsewhere = Hostile::start(move |request, _| good(&served, request));
    let (address, told) = (elsewhere.address.clone(), Arc::clone(&image));
    let folder = place.path("tls");
    fs::create_dir(&folder).unwrap();
    let registry = Hostile::start_secure(&folder, move |request, _| {
        if is_layer(&told, request) {
            let there = format!("http://{address}{}", request.path);
            return Answer::status(307).with("location", there);
        }
        good(&told, request)
    });
    // Even where plain HTTP is allowed, as it is on loopback.
    let settings = format!(
        "[registry.\"{}\"]\nca-files = [\"{}\"]\nplain-http = true\n",
        registry.address,
        folder.join("ca.pem").display()
    );
    fs::write(place.path("registries.toml"), settings).unwrap();
    let name = format!("{}/app:1", registry.address);
    let error = fail(&place.pillbug(&["pull", "-q", &name]).output().unwrap());
    assert!(error.contains("https only"), "{error}");
    assert!(
        registry
            .requests()
            .iter()
            .any(|request| is_layer(&image, request))
    );
    assert!(elsewhere.requests().is_empty());
}

#[test]
fn a38_a_mirror_gets_no_login_of_the_registry() {
    let (place, image) = (place(), image());
    let mirror =
        Hostile::start(|_, _| Answer::status(401).with("www-authenticate", "Basic realm=\"x\""));
    let served = Arc::clone(&image);
    let registry = Hostile::start(move |request, _| {
        if request.header("authorization").is_none() {
            return Answer::status(401).with("www-authenticate", "Basic realm=\"x\"");
        }
        good(&served, request)
    });
    let settings = format!(
        "[registry.\"{}\"]\nmirrors = [\"{}\"]\n",
        registry.address, mirror.address
    );
    fs::write(place.path("registries.toml"), settings).unwrap();
    know(&place, &registry.address);
    let name = format!("{}/app:1", registry.address);
    succeed(place.pillbug(&["pull", "-q", &name]).output().unwrap());
    let asked = mirror.requests();
    assert!(!asked.is_empty());
    assert!(
        asked
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
}

#[test]
fn a38_no_credentials_follow_a_redirect() {
    let (place, image) = (place(), image());
    let served = Arc::clone(&image);
    let elsewhere = Hostile::start(move |request, _| good(&served, request));
    let address = elsewhere.address.clone();
    let told = Arc::clone(&image);
    let registry = Hostile::start(move |request, _| {
        if request.header("authorization") != Some("Basic dXNlcjpzZWNyZXQ=") {
            return Answer::status(401).with("www-authenticate", "Basic realm=\"x\"");
        }
        if is_layer(&told, request) {
            return Answer::status(307)
                .with("location", format!("http://{address}{}", request.path));
        }
        good(&told, request)
    });
    know(&place, &registry.address);
    succeed(
        place
            .pillbug(&["pull", "-q", &format!("{}/app:1", registry.address)])
            .output()
            .unwrap(),
    );
    let redirected = elsewhere.requests();
    assert_eq!(redirected.len(), 1);
    assert_eq!(redirected[0].header("authorization"), None);
}

#[test]
fn a38_a_token_server_elsewhere_gets_no_login_over_plain_http() {
    for realm in [
        "http://thief.example/token",
        "http://localhost:80@thief.example/token",
        "http://127.0.0.1.thief.example/token",
        "ftp://localhost/token",
        "//localhost/token",
    ] {
        let (place, image) = (place(), image());
        let (_, output) = pull(&place, &image, move |_, _, _| {
            Answer::status(401).with("www-authenticate", format!("Bearer realm=\"{realm}\""))
        });
        assert!(fail(&output).contains("asks for a login that is not supported"));
    }
}

#[test]
fn a38_layers_are_never_fetched_from_urls_of_a_manifest() {
    let place = place();
    let elsewhere =
        Hostile::start(|_, _| Answer::status(401).with("www-authenticate", "Basic realm=\"x\""));
    let mut image = Fixture::new("urls", &[Packing::Plain]);
    let url = format!("http://{}/layer", elsewhere.address);
    image.layers[0]["urls"] = Value::from(vec![url]);
    let missing = image.first_layer();
    image.seal();
    image.blobs.remove(&missing);
    let (_, output) = pull(&place, &Arc::new(image), |_, _, answer| answer);
    assert!(fail(&output).contains(&missing));
    assert!(elsewhere.requests().is_empty());
}
