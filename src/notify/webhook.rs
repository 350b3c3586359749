//! A hook that is a URL: one POST of a JSON object, no redirects. The URL may contain a secret, so
//! only its host is named.

use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Url};

use crate::cloud::http::{address, causes};
use crate::settings::NotifySettings;

/// A client for the settings that it was made from.
#[derive(Debug)]
pub(super) struct Webhook {
    settings: NotifySettings,
    client: Client,
}

/// POSTs `text` to `url`. The client is made when it is first needed, and again when the settings
/// have changed.
///
/// # Errors
/// A sentence: no connection, no answer in time, or an answer other than 2xx.
pub(super) async fn post(
    webhook: &mut Option<Webhook>,
    url: &Url,
    settings: &NotifySettings,
    text: &str,
) -> Result<(), String> {
    let host = address(url);
    let client = match webhook {
        Some(webhook) if webhook.settings == *settings => webhook.client.clone(),
        _ => {
            let client = client(url, settings)
                .map_err(|error| format!("no client for {host}: {}", causes(&error)))?;
            *webhook = Some(Webhook {
                settings: settings.clone(),
                client: client.clone(),
            });
            client
        }
    };
    let request = client
        .post(url.clone())
        .header(CONTENT_TYPE, "application/json")
        .body(text.to_owned());
    match request.send().await {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(format!("{host} answered HTTP {}", answer.status().as_u16())),
        Err(error) if error.is_timeout() => Err(format!(
            "{host} did not answer within {}",
            humantime::format_duration(settings.timeout)
        )),
        Err(error) => Err(format!("{host}: {}", causes(&error.without_url()))),
    }
}

fn client(url: &Url, settings: &NotifySettings) -> Result<Client, reqwest::Error> {
    // Somebody else in this process may have installed a provider already; either will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("poweryard/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .timeout(settings.timeout)
        .pool_max_idle_per_host(0)
        .no_proxy();
    if url.scheme() == "http" {
        // Nothing here speaks TLS, so the system's certificate authorities need not be read.
        builder = builder.tls_certs_only([]);
    }
    builder.build()
}
