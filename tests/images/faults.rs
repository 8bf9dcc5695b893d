//! Registries that are slow, broken, busy or hostile.

use std::{fs, sync::Arc};

use serde_json::Value;

use crate::{
    fixture::{Fixture, Packing, Place, fail, succeed},
    server::{Answer, Hostile, Request},
};

/// Settings with which a test does not wait long.
const IMPATIENT: &str =
    "[transfer]\nbackoff-ms = 1\nlongest-wait-ms = 20\nprogress-timeout-ms = 500\nretries = 3\n";

fn place() -> Place {
    let place = Place::new();
    fs::write(place.path("registries.toml"), IMPATIENT).unwrap();
    place
}

fn image() -> Arc<Fixture> {
    let mut image = Fixture::new("remote", &[Packing::Plain]);
    let manifest = image.manifest.to_string().into_bytes();
    image.put("manifest", manifest);
    Arc::new(image)
}

/// What a registry answers that does everything right.
fn good(image: &Fixture, request: &Request) -> Answer {
    let last = request.path.rsplit('/').next().unwrap();
    if request.path.contains("/manifests/") {
        return Answer::ok(image.manifest.to_string().as_bytes()).with(
            "content-type",
            image.manifest["mediaType"].as_str().unwrap(),
        );
    }
    let Some(blob) = image.blobs.get(last) else {
        return Answer::status(404);
    };
    match request.header("range") {
        Some(range) => {
            let from: usize = range
                .trim_start_matches("bytes=")
                .trim_end_matches('-')
                .parse()
                .unwrap();
            let rest = &blob[from..];
            Answer {
                status: 206,
                ..Answer::ok(rest)
            }
            .with(
                "content-range",
                format!("bytes {from}-{}/{}", blob.len() - 1, blob.len()),
            )
        }
        None => Answer::ok(blob),
    }
}

/// Pulls from a registry that is good but for what `fault` changes of its answers.
fn pull(
    place: &Place,
    image: &Arc<Fixture>,
    fault: impl Fn(&Request, usize, Answer) -> Answer + Send + Sync + 'static,
) -> (Hostile, std::process::Output) {
    let served = Arc::clone(image);
    let registry =
        Hostile::start(move |request, before| fault(request, before, good(&served, request)));
    let output = place
        .pillbug(&["pull", "-q", &format!("{}/app:1", registry.address)])
        .output()
        .unwrap();
    (registry, output)
}

/// Whether a request is for the layer of the image.
fn is_layer(image: &Fixture, request: &Request) -> bool {
    request.path.ends_with(&image.first_layer())
}

fn blob_requests(registry: &Hostile, image: &Fixture) -> Vec<Request> {
    registry
        .requests()
        .into_iter()
        .filter(|request| is_layer(image, request))
        .collect()
}

#[test]
fn a39_a_transfer_that_stalls_goes_on_where_it_stopped() {
    let (place, image) = (place(), image());
    let told = Arc::clone(&image);
    let (registry, output) = pull(&place, &image, move |request, before, answer| Answer {
        stall_after: (is_layer(&told, request) && before < 2).then_some(300),
        ..answer
    });
    succeed(output);
    let requests = blob_requests(&registry, &image);
    let ranges: Vec<_> = requests
        .iter()
        .map(|request| request.header("range"))
        .collect();
    assert_eq!(ranges, [None, Some("bytes=300-"), Some("bytes=600-")]);
    assert_eq!(place.images()[0][2], image.id());
}

#[test]
fn a39_a_transfer_that_is_cut_goes_on_also_in_the_next_pull() {
    let (place, image) = (place(), image());
    let told = Arc::clone(&image);
    let (_, output) = pull(&place, &image, move |request, _, answer| {
        let first = is_layer(&told, request) && request.header("range").is_none();
        let cut_after = is_layer(&told, request).then_some(if first { 700 } else { 0 });
        Answer {
            cut_after,
            ..answer
        }
    });
    assert!(fail(&output).contains(&image.first_layer()));

    let (registry, output) = pull(&place, &image, |_, _, answer| answer);
    succeed(output);
    assert_eq!(
        blob_requests(&registry, &image)[0].header("range"),
        Some("bytes=700-")
    );
}

#[test]
fn a_registry_without_ranges_is_read_from_the_beginning() {
    let (place, image) = (place(), image());
    let (told, whole) = (Arc::clone(&image), Arc::clone(&image));
    let (_, output) = pull(&place, &image, move |request, before, answer| {
        if !is_layer(&told, request) {
            return answer;
        }
        let blob = &whole.blobs[&whole.first_layer()];
        Answer {
            cut_after: (before == 0).then_some(100),
            ..Answer::ok(blob)
        }
    });
    succeed(output);
}

#[test]
fn a30_wrong_content_is_refused_and_not_kept() {
    let (place, image) = (place(), image());
    let told = Arc::clone(&image);
    let (_, output) = pull(&place, &image, move |request, _, mut answer| {
        if is_layer(&told, request) {
            answer.body[600] ^= 1;
        }
        answer
    });
    assert!(fail(&output).contains("other content"));
    assert_eq!(place.content(), [""; 0]);
}

#[test]
fn a30_more_content_than_announced_is_refused() {
    let (place, image) = (place(), image());
    let told = Arc::clone(&image);
    let (_, output) = pull(&place, &image, move |request, _, mut answer| {
        if is_layer(&told, request) {
            answer.body.extend([0; 4096]);
        }
        answer
    });
    assert!(fail(&output).contains("has more"));
    assert_eq!(place.content(), [""; 0]);
}

#[test]
fn a30_another_manifest_than_the_digest_is_refused() {
    let (place, image) = (place(), image());
    let served = Arc::clone(&image);
    let registry = Hostile::start(move |request, _| good(&served, request));
    let name = format!("{}/app@{}", registry.address, image.first_layer());
    let error = fail(&place.pillbug(&["pull", &name]).output().unwrap());
    assert!(error.contains("another image at the registry"), "{error}");
}

#[test]
fn a_manifest_without_end_is_refused() {
    let (place, image) = (place(), image());
    let (_, output) = pull(&place, &image, |request, _, answer| {
        if request.path.contains("/manifests/") {
            Answer::ok(&vec![b' '; 5 << 20])
        } else {
            answer
        }
    });
    assert!(fail(&output).contains("larger than the 4194304 bytes allowed"));
}

#[test]
fn a41_a_busy_registry_is_asked_again_but_not_for_ever() {
    for status in [429, 503, 500] {
        let (place, image) = (place(), image());
        let (registry, output) = pull(&place, &image, move |_, before, answer| {
            if before < 2 {
                Answer::status(status).with("retry-after", "1000000000")
            } else {
                answer
            }
        });
        succeed(output);
        assert!(registry.requests().len() >= 9, "{status}");

        let (registry, output) = pull(&place, &image, move |_, _, _| Answer::status(status));
        let error = fail(&output);
        assert!(
            error.contains(if status == 429 {
                "limiting requests"
            } else {
                "answered 50"
            }),
            "{error}"
        );
        assert_eq!(registry.requests().len(), 4, "{error}");
    }
}

#[test]
fn an_error_says_what_the_registry_says() {
    let (place, image) = (place(), image());
    let (_, output) = pull(&place, &image, |_, _, _| Answer {
        body: br#"{"errors":[{"code":"X","message":"because \u001b[31mred"}]}"#.to_vec(),
        ..Answer::status(418)
    });
    let error = fail(&output);
    assert!(
        error.contains("answered 418") && error.contains("because \\u{1b}[31mred"),
        "{error}"
    );
}

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
    let auths = format!(
        "{{\"auths\": {{\"{}\": {{\"auth\": \"dXNlcjpzZWNyZXQ=\"}}}}}}",
        registry.address
    );
    fs::create_dir(place.path("docker")).unwrap();
    fs::write(place.path("docker/config.json"), auths).unwrap();
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
    let (place, image) = (place(), image());
    let thief = Hostile::start(|_, _| Answer::ok(b"{\"token\": \"t\"}"));
    let realm = format!("http://{}/token", thief.address);
    let (_, output) = pull(&place, &image, move |_, _, _| {
        Answer::status(401).with("www-authenticate", format!("Bearer realm=\"{realm}\""))
    });
    assert!(fail(&output).contains("asks for a login that is not supported"));
    assert!(thief.requests().is_empty());
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

#[test]
fn a_registry_that_is_not_reached_is_named() {
    let place = place();
    // Bound and closed again: nobody listens.
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let error = fail(
        &place
            .pillbug(&["pull", &format!("{address}/app")])
            .output()
            .unwrap(),
    );
    assert!(
        error.contains(&format!("cannot reach {address}")),
        "{error}"
    );
}
