//! The front door: which path is which call, and who may make it. Takes requests as values; sockets
//! are `http`'s.

use super::answer::Answer;
use super::auth::Denied;
use super::bms::ListQuery;
use super::clouddc::PageQuery;
use super::iam;
use super::record::Call;
use super::signature;
use super::world::World;
use crate::model::{JobId, ServerId, Service, UtcMillis};

/// One HTTP request, as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: String,
    /// The path as sent, still encoded.
    pub path: String,
    /// The query as sent, still encoded, without the question mark.
    pub query: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The exact bytes.
    pub body: Vec<u8>,
}

impl Request {
    /// The first header of this name; `name` in any case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn query_value(&self, name: &str) -> Option<String> {
        let mut pairs = signature::query_pairs(&self.query);
        pairs.find_map(|(key, value)| {
            (key == name.as_bytes()).then(|| String::from_utf8_lossy(&value).into_owned())
        })
    }
}

/// A path that somebody answers.
enum Route<'a> {
    Ledger,
    Servers,
    Token,
    Service {
        project: &'a str,
        call: ServiceCall<'a>,
    },
}

/// A call of BMS or CloudDC; these need a signature or a token for their project.
enum ServiceCall<'a> {
    BmsSubmit,
    BmsJob(&'a str),
    BmsList,
    BmsShow(&'a str),
    CloudDcPowerState,
    CloudDcList,
    CloudDcStatus,
    CloudDcShow(&'a str),
}

impl ServiceCall<'_> {
    fn kind(&self) -> (Service, Call) {
        match self {
            Self::BmsSubmit => (Service::Bms, Call::Submit),
            Self::BmsJob(_) => (Service::Bms, Call::Job),
            Self::BmsList => (Service::Bms, Call::List),
            Self::BmsShow(_) => (Service::Bms, Call::Show),
            Self::CloudDcPowerState => (Service::CloudDc, Call::Submit),
            Self::CloudDcList | Self::CloudDcStatus => (Service::CloudDc, Call::List),
            Self::CloudDcShow(_) => (Service::CloudDc, Call::Show),
        }
    }
}

fn route(request: &Request) -> Option<Route<'_>> {
    let segments: Vec<&str> = request.path.split('/').skip(1).collect();
    let (project, call) = match (request.method.as_str(), segments.as_slice()) {
        ("GET", ["_sim", "ledger"]) => return Some(Route::Ledger),
        ("GET", ["_sim", "servers"]) => return Some(Route::Servers),
        ("POST", ["v3", "auth", "tokens"]) => return Some(Route::Token),
        ("POST", ["v1", project, "baremetalservers", "action"]) => {
            (project, ServiceCall::BmsSubmit)
        }
        ("GET", ["v1", project, "jobs", id]) => (project, ServiceCall::BmsJob(id)),
        ("GET", ["v1", project, "baremetalservers", "detail"]) => (project, ServiceCall::BmsList),
        ("GET", ["v1", project, "baremetalservers", id]) => (project, ServiceCall::BmsShow(id)),
        ("PUT", ["v1", project, "physicalservers", "power-state"]) => {
            (project, ServiceCall::CloudDcPowerState)
        }
        ("GET", ["v1", project, "physicalservers"]) => (project, ServiceCall::CloudDcList),
        ("GET", ["v1", project, "physicalservers", "status"]) => {
            (project, ServiceCall::CloudDcStatus)
        }
        ("GET", ["v1", project, "physicalservers", id]) => (project, ServiceCall::CloudDcShow(id)),
        _ => return None,
    };
    Some(Route::Service { project, call })
}

impl World {
    /// Answers any request, from the path to the last fault.
    pub fn handle(&mut self, now: UtcMillis, request: &Request) -> Answer {
        self.act_late(now);
        match route(request) {
            Some(Route::Ledger) => self.aside(|world, _| Answer::json(200, &world.ledger())),
            Some(Route::Servers) => self.aside(|world, _| Answer::json(200, &world.servers(now))),
            Some(Route::Token) => iam::issue_token(self, now, request),
            Some(Route::Service { project, call }) => {
                match self.auth.admit(now, request, project) {
                    Ok(()) => self.carry_out(now, call, request),
                    Err(denied) => {
                        let (service, kind) = call.kind();
                        self.reject_call(now, service, kind, |request_id| {
                            denied.answer(service, request_id)
                        })
                    }
                }
            }
            None => self.aside(|_, request_id| {
                let text = "The API does not exist or has not been published in the environment.";
                Answer::gateway(404, "APIGW.0101", text, request_id)
            }),
        }
    }

    fn carry_out(&mut self, now: UtcMillis, call: ServiceCall<'_>, request: &Request) -> Answer {
        match call {
            ServiceCall::BmsSubmit => self.submit_body(now, &request.body),
            ServiceCall::BmsJob(id) => self.job(now, &JobId(id.to_owned())),
            ServiceCall::BmsShow(id) => self.show(now, &ServerId(id.to_owned())),
            ServiceCall::BmsList => self.list(now, &list_query(request)),
            ServiceCall::CloudDcPowerState => self.power_state_body(now, &request.body),
            ServiceCall::CloudDcShow(id) => self.clouddc_show(now, &ServerId(id.to_owned())),
            ServiceCall::CloudDcList => self.clouddc_list(now, &page_query(request)),
            ServiceCall::CloudDcStatus => self.clouddc_status(now),
        }
    }

    /// Answers a request whose body is longer than the gateway takes.
    pub(super) fn refuse_large(&mut self) -> Answer {
        self.aside(|_, request_id| {
            Answer::gateway(413, "APIGW.0201", "Request entity too large.", request_id)
        })
    }

    /// Answers outside the counted calls.
    fn aside(&mut self, answer: impl FnOnce(&mut Self, &str) -> Answer) -> Answer {
        let request_id = self.request_id();
        let answer = answer(self, &request_id);
        Answer {
            request_id,
            ..answer
        }
    }
}

impl Denied {
    fn answer(&self, service: Service, request_id: &str) -> Answer {
        match self {
            Self::Unauthenticated(reason) => {
                let text = format!("Incorrect IAM authentication information: {reason}");
                Answer::gateway(401, "APIGW.0301", &text, request_id)
            }
            Self::WrongProject => {
                let text = "tenantId in token is not the same with in URL.";
                Answer::refusal_by(Some(service), 400, "Common.0018", text)
            }
        }
    }
}

/// Reads the query; a limit or an offset that is no number becomes 0, which the list call refuses.
fn list_query(request: &Request) -> ListQuery {
    let number = |name| {
        request
            .query_value(name)
            .map(|text| text.parse().unwrap_or(0))
    };
    ListQuery {
        limit: number("limit"),
        offset: number("offset"),
        status: request.query_value("status"),
        name: request.query_value("name"),
    }
}

/// Reads the query; a limit that is no number becomes 0, which the list call takes for its least.
fn page_query(request: &Request) -> PageQuery {
    PageQuery {
        limit: request
            .query_value("limit")
            .map(|text| text.parse().unwrap_or(0)),
        marker: request.query_value("marker").map(ServerId),
        manage_state: request.query_value("manage_state"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::auth::tests::{NOW, signed};
    use super::super::scenario::Scenario;
    use super::*;

    #[test]
    fn a_signed_call_is_carried_out_and_an_unknown_path_is_the_gateways_404() {
        let mut world = World::new(Scenario::default());
        let mut request = signed("poweryard-sim-secret-key", "20240102T030405Z");
        let answer = world.handle(NOW, &request);
        assert_eq!(
            (answer.status, answer.value()["error"]["code"].as_str()),
            (400, Some("Common.0011"))
        );
        assert_eq!(answer.request_id.len(), 32);
        request.path = "/v1/p/jobs".into();
        let answer = world.handle(NOW, &request);
        assert_eq!(
            (answer.status, answer.value()["error_code"].as_str()),
            (404, Some("APIGW.0101"))
        );
        assert_eq!(answer.value()["request_id"], answer.request_id);
    }

    #[test]
    fn a_refused_signature_is_recorded_but_reaches_no_service() {
        let mut world = World::new(Scenario::default());
        let answer = world.handle(NOW, &signed("wrong", "20240102T030405Z"));
        assert_eq!(
            (answer.status, answer.value()["error_code"].as_str()),
            (401, Some("APIGW.0301"))
        );
        assert_eq!(answer.value()["request_id"], answer.request_id);
        let calls: Vec<_> = world
            .calls()
            .iter()
            .map(|record| (record.call, record.status))
            .collect();
        assert_eq!(calls, [(Call::Job, 401)]);
    }

    #[test]
    fn another_project_is_refused_in_the_shape_of_the_service() {
        let mut world = World::new(Scenario::default());
        world.auth.remember(NOW, "t".into(), true);
        let mut answer = |method: &str, path: &str| {
            let mut request = signed("", "");
            (request.method, request.path) = (method.into(), path.into());
            request.headers = vec![("x-auth-token".into(), "t".into())];
            world.handle(NOW, &request)
        };
        let bms = answer("GET", "/v1/other/baremetalservers/detail");
        assert_eq!(
            (bms.status, bms.value()["error"]["code"].as_str()),
            (400, Some("Common.0018"))
        );
        let clouddc = answer("PUT", "/v1/other/physicalservers/power-state");
        assert_eq!(
            (clouddc.status, clouddc.value()["error_code"].as_str()),
            (400, Some("Common.0018"))
        );
        let wrong_method = answer("POST", "/v1/other/physicalservers/power-state");
        assert_eq!(
            (
                wrong_method.status,
                wrong_method.value()["error_code"].as_str()
            ),
            (404, Some("APIGW.0101"))
        );
        let kinds: Vec<_> = world
            .calls()
            .iter()
            .map(|record| (record.service, record.call))
            .collect();
        assert_eq!(
            kinds,
            [
                (Some(Service::Bms), Call::List),
                (Some(Service::CloudDc), Call::Submit)
            ]
        );
    }

    #[test]
    fn the_ledger_and_the_servers_need_no_credentials() {
        let mut world = World::new(Scenario::default());
        let id = world.server_ids(Service::Bms).remove(0);
        let begun = world.submit(
            NOW,
            crate::model::PowerAction::Stop,
            std::slice::from_ref(&id),
        );
        let get = |path: &str| Request {
            method: "GET".into(),
            path: path.into(),
            query: String::new(),
            headers: Vec::new(),
            body: Vec::new(),
        };
        let ledger = world.handle(NOW, &get("/_sim/ledger")).value();
        let entry = serde_json::json!({
            "at": NOW.to_string(), "service": "bms", "server_id": id, "action": "stop", "batch": begun.value()["job_id"],
        });
        assert_eq!(ledger, serde_json::json!([entry]));
        let other = world.server_ids(Service::CloudDc).remove(0);
        let begun = world.power_state(
            NOW,
            crate::model::PowerAction::Stop,
            std::slice::from_ref(&other),
        );
        let second = world.handle(NOW, &get("/_sim/ledger")).value()[1].clone();
        assert_eq!(
            (&second["service"], &second["server_id"], &second["batch"]),
            (
                &"clouddc".into(),
                &other.0.clone().into(),
                &begun.request_id.into()
            )
        );
        let servers = world.handle(NOW, &get("/_sim/servers")).value();
        let last = &servers[1099];
        assert_eq!(
            (&last["service"], &last["name"], &last["locked"]),
            (&"clouddc".into(), &"clouddc-0100".into(), &false.into())
        );
        let first = serde_json::json!({"service": "bms", "server_id": id, "name": "bms-0001", "power": "on", "locked": false});
        assert_eq!(
            (servers.as_array().map(Vec::len), &servers[0]),
            (Some(1100), &first)
        );
    }
}
