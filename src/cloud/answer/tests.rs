use proptest::prelude::*;
use reqwest::header::{HeaderName, HeaderValue};

use super::*;

/// 2026-11-21T12:00:00Z.
const NOW: UtcMillis = UtcMillis(1_795_262_400_000);

macro_rules! example {
    ($name:literal) => {
        include_str!(concat!(
            "../../../tests/fixtures/api-examples/",
            $name,
            ".json"
        ))
    };
}

fn answer(status: u16, headers: &[(&'static str, &'static str)], body: impl AsRef<[u8]>) -> Answer {
    let headers = headers
        .iter()
        .map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        })
        .collect();
    Answer {
        status,
        headers,
        body: body.as_ref().to_vec(),
        ..Answer::default()
    }
}

fn submit(status: u16, body: &str) -> CallError {
    answer(status, &[], body).error(CallKind::Submit, NOW)
}

fn read(status: u16, body: &str) -> CallError {
    answer(status, &[], body).error(CallKind::Read, NOW)
}

fn coded(code: &str) -> String {
    format!(r#"{{"error":{{"message":"text","code":"{code}"}}}}"#)
}

#[test]
fn each_documented_refusal_of_a_submit_gets_its_class() {
    use CodeClass::*;
    for (body, code, class) in [
        (
            example!("bms-submit-error-running"),
            "BMS.0038",
            AlreadyInTargetState,
        ),
        (
            example!("bms-submit-error-stopped"),
            "BMS.0039",
            AlreadyInTargetState,
        ),
        (
            example!("bms-submit-error-powering-on"),
            "BMS.0035",
            ServerBusy,
        ),
        (
            example!("bms-submit-error-powering-off"),
            "BMS.0036",
            ServerBusy,
        ),
        (
            example!("bms-submit-error-rebooting"),
            "BMS.0037",
            ServerBusy,
        ),
        (
            example!("bms-submit-error-not-exist"),
            "BMS.0040",
            ServerPermanent,
        ),
        (
            example!("bms-submit-error-locked"),
            "BMS.0605",
            ServerPermanent,
        ),
        (
            example!("bms-submit-error-invalid-parameter"),
            "BMS.0018",
            BatchInvalid,
        ),
        (example!("bms-submit-error-numeric-code"), "", Other),
        (example!("bms-error-flat"), "AS.0001", Other),
        (example!("clouddc-error-400"), "CloudDC.0000", Other),
    ] {
        let error = submit(400, body);
        assert_eq!(
            (error.fault, error.code.as_str()),
            (Fault::Refused(class), code)
        );
        assert_eq!(error.status, Some(400));
    }
}

#[test]
fn each_example_of_a_call_that_was_not_carried_out_gets_its_fault() {
    let throttled = |limit| Fault::Throttled {
        retry_after: None,
        limit,
    };
    let per_minute = Some((50, Duration::from_secs(60)));
    for (status, body, fault) in [
        (
            400,
            example!("bms-submit-error-overloaded"),
            throttled(None),
        ),
        (
            429,
            example!("gateway-error-429-throttled"),
            throttled(per_minute),
        ),
        (403, example!("bms-submit-error-policy"), Fault::Permission),
        (
            400,
            example!("bms-submit-error-tenant-mismatch"),
            Fault::Configuration,
        ),
        (404, example!("gateway-error-404-api"), Fault::Configuration),
        (
            401,
            example!("gateway-error-401-signature"),
            Fault::Credentials,
        ),
        (
            401,
            example!("gateway-error-401-token-expired"),
            Fault::Credentials,
        ),
        (
            401,
            example!("gateway-error-401-token-update"),
            Fault::Credentials,
        ),
        (
            401,
            example!("gateway-error-401-aksk-locked"),
            Fault::Credentials,
        ),
    ] {
        assert_eq!(submit(status, body).fault, fault, "{body}");
        assert_eq!(read(status, body).fault, fault, "{body}");
    }
}

#[test]
fn gateway_examples_of_502_and_504_leave_a_submit_in_doubt() {
    for (status, body) in [
        (502, example!("gateway-error-502")),
        (504, example!("gateway-error-504")),
    ] {
        let error = submit(status, body);
        assert_eq!(error.fault, Fault::Lost);
        assert_eq!(
            error.request_id.as_deref(),
            Some("fd6530a01c09807640189e65e837b8ad")
        );
        assert_eq!(read(status, body).fault, Fault::Unavailable);
    }
}

#[test]
fn the_code_decides_where_the_status_misleads() {
    let throttled = Fault::Throttled {
        retry_after: None,
        limit: None,
    };
    assert_eq!(submit(202, &coded("Common.0024")).fault, throttled);
    assert_eq!(submit(503, &coded("Common.1503")).fault, throttled);
    assert_eq!(
        submit(500, &coded("BMS.0039")).fault,
        Fault::Refused(CodeClass::AlreadyInTargetState)
    );
    assert_eq!(
        submit(200, &coded("BMS.0040")).fault,
        Fault::Refused(CodeClass::ServerPermanent)
    );
    for code in ["APIGW.0613", "APIG.0605", "APIGW.0610"] {
        assert_eq!(
            submit(503, &coded(code)).fault,
            Fault::Unavailable,
            "{code}"
        );
    }
}

#[test]
fn a_submit_that_may_have_been_begun_is_never_called_not_carried_out() {
    let looks = [
        Fault::Refused(CodeClass::RetryableUncertain),
        Fault::Refused(CodeClass::Other),
        Fault::Lost,
    ];
    for code in [
        "BMS.0006",
        "BMS.1007",
        "BMS.9999",
        "Common.0001",
        "Common.0020",
        "Common.0022",
        "Common.0021",
        "X",
    ] {
        for status in [200, 400, 500] {
            let error = submit(status, &coded(code));
            assert!(
                looks.contains(&error.fault),
                "{code} with {status}: {:?}",
                error.fault
            );
        }
    }
    assert_eq!(submit(500, &coded("BMS.9999")).fault, Fault::Lost);
    assert_eq!(
        submit(400, &coded("BMS.1006")).fault,
        Fault::Refused(CodeClass::Retryable)
    );
}

#[test]
fn without_a_code_the_status_decides() {
    for body in [
        "",
        "<html><title>502</title></html>",
        "upstream error",
        "{}",
        "[1]",
    ] {
        let is_page = body.starts_with(['<', 'u']);
        for (status, fault) in [
            (401, Fault::Credentials),
            // A page is nobody's answer but a proxy's or a firewall's, and those keep answers
            // back, too.
            (
                403,
                if is_page {
                    Fault::Lost
                } else {
                    Fault::Permission
                },
            ),
            (404, Fault::Configuration),
            (405, Fault::Configuration),
            (413, Fault::Refused(CodeClass::BatchInvalid)),
            (
                429,
                Fault::Throttled {
                    retry_after: None,
                    limit: None,
                },
            ),
            (400, Fault::Refused(CodeClass::Other)),
            (307, Fault::Configuration),
            (200, Fault::Lost),
            (408, Fault::Lost),
            (500, Fault::Lost),
            (502, Fault::Lost),
            (503, Fault::Lost),
            (504, Fault::Lost),
        ] {
            assert_eq!(submit(status, body).fault, fault, "{status} {body}");
        }
        assert_eq!(read(500, body).fault, Fault::Unavailable);
        assert_eq!(read(200, body).fault, Fault::Unavailable);
    }
}

#[test]
fn a_429_that_is_a_bare_string_tells_its_text_and_its_limit() {
    let limit = Some((10, Duration::from_secs(60)));
    for (body, text, limit) in [
        (
            "\"The request is overloaded.\"",
            "The request is overloaded.",
            None,
        ),
        (
            "over ratelimit,limit:10,time:1 minute",
            "over ratelimit,limit:10,time:1 minute",
            limit,
        ),
        ("", "the answer is empty", None),
        (
            "<html>429</html>",
            "the answer is an HTML page, not the service's",
            None,
        ),
    ] {
        let error = submit(429, body);
        assert_eq!(
            (error.message.as_str(), error.fault),
            (
                text,
                Fault::Throttled {
                    retry_after: None,
                    limit
                }
            )
        );
    }
    assert_eq!(submit(400, "\"text\"").message, "the answer is not JSON");
}

#[test]
fn codes_of_bms_do_not_class_another_services_answer() {
    let clouddc = |status, code: &str| {
        answer(status, &[], coded(code))
            .error_of(Service::CloudDc, CallKind::Submit, NOW)
            .fault
    };
    for code in [
        "BMS.0038",
        "BMS.0212",
        "Common.0002",
        "Common.0021",
        "Common.1503",
    ] {
        assert_eq!(
            clouddc(400, code),
            Fault::Refused(CodeClass::Other),
            "{code}"
        );
        assert_eq!(clouddc(500, code), Fault::Lost, "{code}");
        assert_eq!(clouddc(401, code), Fault::Credentials, "{code}");
    }
    assert_eq!(clouddc(400, "APIGW.0307"), Fault::Credentials);
    assert_eq!(clouddc(503, "APIGW.0613"), Fault::Unavailable);
}

#[test]
fn a_404_that_the_service_explains_is_not_taken_for_a_wrong_address() {
    assert_eq!(
        read(404, example!("nova-error-not-found")).fault,
        Fault::Refused(CodeClass::Other)
    );
    assert_eq!(
        read(404, r#"{"error_code":"APIGW.9999","error_msg":"?"}"#).fault,
        Fault::Configuration
    );
}

#[test]
fn retry_after_is_read_as_seconds_and_as_a_date() {
    let wait = |headers: &[(&'static str, &'static str)]| {
        let error = answer(429, headers, "").error(CallKind::Submit, NOW);
        let Fault::Throttled { retry_after, .. } = error.fault else {
            panic!("{error}")
        };
        retry_after
    };
    assert_eq!(
        wait(&[("retry-after", "120")]),
        Some(Duration::from_secs(120))
    );
    assert_eq!(
        wait(&[("retry-after", "Sat, 21 Nov 2026 12:01:30 GMT")]),
        Some(Duration::from_secs(90))
    );
    let date = ("date", "Sat, 21 Nov 2026 12:01:00 GMT");
    assert_eq!(
        wait(&[("retry-after", "Sat, 21 Nov 2026 12:01:30 GMT"), date]),
        Some(Duration::from_secs(30))
    );
    for older in [
        "Saturday, 21-Nov-26 12:01:30 GMT",
        "Sat Nov 21 12:01:30 2026",
    ] {
        assert_eq!(
            wait(&[("retry-after", older)]),
            Some(Duration::from_secs(90)),
            "{older}"
        );
    }
    for seconds in ["86400.5", "86400s", "86400 sec"] {
        assert_eq!(
            wait(&[("retry-after", seconds)]),
            Some(Duration::from_secs(86_400)),
            "{seconds}"
        );
    }
    for other in ["soon", "-5", "", "5m", "1.5h"] {
        assert_eq!(wait(&[("retry-after", other)]), None, "{other}");
    }
}

#[test]
fn a_wait_of_days_is_heard_as_days() {
    for (text, seconds) in [
        ("259200", 259_200),
        ("99999999999999", 99_999_999_999_999),
        ("9".repeat(30).leak(), u64::MAX),
    ] {
        let error = answer(429, &[("retry-after", text)], "").error(CallKind::Read, NOW);
        assert_eq!(
            error.fault,
            Fault::Throttled {
                retry_after: Some(Duration::from_secs(seconds)),
                limit: None
            }
        );
    }
}

#[test]
fn a_read_that_is_told_to_come_later_waits_and_a_call_is_still_lost() {
    let later = answer(503, &[("retry-after", "3600")], "");
    let wait = Fault::Throttled {
        retry_after: Some(Duration::from_secs(3600)),
        limit: None,
    };
    assert_eq!(later.error(CallKind::Read, NOW).fault, wait);
    let call = later.error(CallKind::Submit, NOW);
    assert_eq!(
        (call.fault, call.retry_after),
        (Fault::Lost, Some(Duration::from_secs(3600)))
    );
    assert_eq!(
        answer(503, &[], "").error(CallKind::Read, NOW).fault,
        Fault::Unavailable
    );
}

#[test]
fn a_code_of_the_service_is_a_refusal_whatever_the_status_says() {
    let body = r#"{"error":{"code":"BMS.0777","message":"The server is frozen"}}"#;
    for status in [200, 400, 403, 405, 409, 410, 415, 423] {
        let error = answer(status, &[], body).error(CallKind::Submit, NOW);
        assert_eq!(error.fault, Fault::Refused(CodeClass::Other), "{status}");
    }
    for (status, body) in [
        (403, r#"{"error_code":"APIGW.0999","error_msg":"no"}"#),
        (403, r#"{"error":{"message":"no"}}"#),
    ] {
        assert_eq!(
            answer(status, &[], body).error(CallKind::Submit, NOW).fault,
            Fault::Permission,
            "{body}"
        );
    }
}

#[test]
fn the_gateways_limit_is_read_from_its_text() {
    assert_eq!(
        named_limit("over ratelimit,limit:50,time:1 minute"),
        Some((50, Duration::from_secs(60)))
    );
    assert_eq!(
        named_limit("limit:10, time:1 second."),
        Some((10, Duration::from_secs(1)))
    );
    assert_eq!(
        named_limit("limit: 200, time: 2 Minutes"),
        Some((200, Duration::from_secs(120)))
    );
    for other in [
        "",
        "limit:",
        "limit:x,time:1 minute",
        "limit:5",
        "limit:5,time:1 fortnight",
        "limit:99999999999",
    ] {
        assert_eq!(named_limit(other), None, "{other}");
    }
}

#[test]
fn a_wrong_clock_is_named_when_credentials_are_refused() {
    let body = example!("gateway-error-401-signature");
    let error = answer(401, &[("date", "Sat, 21 Nov 2026 12:20:00 GMT")], body)
        .error(CallKind::Submit, NOW);
    assert!(
        error
            .message
            .ends_with("(this machine's clock is 20 minutes behind the cloud's)"),
        "{}",
        error.message
    );
    let error = answer(401, &[("date", "Sat, 21 Nov 2026 11:50:00 GMT")], body)
        .error(CallKind::Submit, NOW);
    assert!(
        error
            .message
            .ends_with("(this machine's clock is 10 minutes ahead of the cloud's)"),
        "{}",
        error.message
    );
    let error = answer(401, &[("date", "Sat, 21 Nov 2026 12:04:00 GMT")], body)
        .error(CallKind::Submit, NOW);
    assert!(!error.message.contains("clock"), "{}", error.message);
}

#[test]
fn a_locked_key_and_a_wrong_password_are_not_tried_again() {
    assert!(!worth_renewing(&submit(
        401,
        example!("gateway-error-401-aksk-locked")
    )));
    assert!(!worth_renewing(&read(
        401,
        r#"{"error_code":"IAM.0062","error_msg":"Incorrect password."}"#
    )));
    assert!(worth_renewing(&submit(
        401,
        example!("gateway-error-401-signature")
    )));
    assert!(worth_renewing(&submit(
        401,
        example!("gateway-error-401-token-expired")
    )));
    assert!(!worth_renewing(&submit(403, "")));
}

#[test]
fn the_header_names_the_call_before_the_body_does() {
    let body = example!("gateway-error-502");
    let error = answer(502, &[("x-request-id", "from-header")], body).error(CallKind::Submit, NOW);
    assert_eq!(error.request_id.as_deref(), Some("from-header"));
    assert_eq!(
        error.to_string(),
        "HTTP 502, APIGW.0201: Backend unavailable. (request id from-header)"
    );
}

#[test]
fn a_huge_error_body_is_not_repeated() {
    let body = format!(
        r#"{{"error_code":"BMS.0018","error_msg":"{}"}}"#,
        "long text ".repeat(1000)
    );
    assert_eq!(
        submit(400, &body).message.chars().count(),
        MESSAGE_CHARS_MAX
    );
    assert_eq!(
        submit(400, &"x".repeat(ERROR_BODY_BYTES_MAX + 1)).message,
        "the answer is not JSON"
    );
}

/// Statuses that say nothing about whether a submit was carried out.
fn doubtful_status() -> impl Strategy<Value = u16> {
    prop_oneof![200_u16..300, Just(408_u16), 500_u16..1000, 100_u16..200]
}

proptest! {
    #[test]
    fn garbage_after_a_submit_is_never_classed_as_not_carried_out(
        status in doubtful_status(),
        body in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            "[{\\[\"a-zA-Z0-9:,.}\\] ]{0,200}".prop_map(String::into_bytes),
            "[A-Za-z]{1,8}\\.[0-9]{5,6}".prop_map(|code| coded(&code).into_bytes()),
        ],
    ) {
        let error = answer(status, &[], body).error(CallKind::Submit, NOW);
        prop_assert!(matches!(error.fault, Fault::Lost), "{error:?}");
    }

    #[test]
    fn garbage_that_refuses_a_submit_sends_the_caller_to_look(
        status in prop_oneof![Just(400_u16), Just(402), Just(409), Just(412), Just(422), Just(499)],
        body in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let error = answer(status, &[], body).error(CallKind::Submit, NOW);
        prop_assert_eq!(error.fault, Fault::Refused(CodeClass::Other));
    }

    #[test]
    fn no_answer_makes_the_reader_panic_or_talk_long(
        status in any::<u16>(),
        date in "\\PC{0,40}",
        body in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let mut answer = answer(status, &[], body);
        if let Ok(value) = HeaderValue::from_str(&date) {
            for name in ["date", "retry-after", "x-request-id"] {
                answer.headers.insert(name, value.clone());
            }
        }
        for kind in [CallKind::Read, CallKind::Submit] {
            prop_assert!(answer.error(kind, NOW).message.chars().count() <= MESSAGE_CHARS_MAX);
        }
    }
}

#[test]
fn what_stands_in_between_is_named_and_no_missing_permission() {
    let answer = |status, headers: &[(&'static str, &'static str)], body: &str| {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().expect("a header"));
        }
        Answer {
            status,
            headers: map,
            body: body.as_bytes().to_vec(),
            ..Answer::default()
        }
    };
    const NAMED: &str = "a proxy, firewall or gateway answered, not the cloud";
    for (headers, body) in [
        ([].as_slice(), "<html>Access denied by policy</html>"),
        (&[], "Forbidden"),
        (&[("via", "1.1 proxy (squid)")], ""),
        (&[("server", "squid/5.7")], "{}"),
        (&[("x-squid-error", "ERR_ACCESS_DENIED 0")], ""),
    ] {
        for (kind, fault) in [
            (CallKind::Submit, Fault::Lost),
            (CallKind::Read, Fault::Unavailable),
        ] {
            let error = answer(403, headers, body).error(kind, NOW);
            assert_eq!(
                (error.fault, error.message.as_str()),
                (fault, NAMED),
                "{headers:?} {body}"
            );
        }
        for status in [502, 503, 504] {
            assert_eq!(
                answer(status, headers, body)
                    .error(CallKind::Submit, NOW)
                    .message,
                NAMED
            );
        }
    }
    let own = answer(
        403,
        &[("via", "1.1 proxy")],
        r#"{"error":{"code":"BMS.0033","message":"no right"}}"#,
    );
    assert_eq!(
        own.error(CallKind::Submit, NOW).fault,
        Fault::Permission,
        "the cloud's answer, through a proxy"
    );
    let password = answer(407, &[("proxy-authenticate", "Basic")], "").error(CallKind::Submit, NOW);
    assert_eq!(password.fault, Fault::Configuration);
    assert!(
        password.message.contains("proxy_password_file"),
        "{password}"
    );
    let tls = answer(
        400,
        &[],
        "<html>The plain HTTP request was sent to HTTPS port</html>",
    );
    let tls = tls.error(CallKind::Submit, NOW);
    assert_eq!(tls.fault, Fault::Configuration);
    assert!(tls.message.contains("write https://"), "{tls}");
}
