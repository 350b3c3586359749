//! The identity service: `POST /v3/auth/tokens` by password. Issues tokens; checking them is the
//! auth's.

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::Answer;
use super::auth::microseconds;
use super::call_context::About;
use super::gateway::Request;
use super::record::Call;
use super::scenario::Credentials;
use super::world::World;
use crate::model::UtcMillis;

#[derive(Deserialize)]
struct TokenBody {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    identity: Identity,
    scope: Option<TokenScope>,
}

#[derive(Deserialize)]
struct Identity {
    methods: Vec<String>,
    password: Password,
}

#[derive(Deserialize)]
struct Password {
    user: User,
}

#[derive(Deserialize)]
struct User {
    name: String,
    password: String,
    domain: Named,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct TokenScope {
    project: Option<Project>,
}

#[derive(Deserialize)]
struct Project {
    id: Option<String>,
    name: Option<String>,
}

/// What a readable token request asks for, as far as the user may have it.
enum Wish {
    Scoped,
    Unscoped,
    Denied,
}

/// Issues a token, or refuses as documented: 400 for what is no such body, 401 for a wrong user,
/// password or project.
pub(super) fn issue_token(world: &mut World, now: UtcMillis, request: &Request) -> Answer {
    let about = About::read(None, Call::Token, &[]);
    world.handle_call(now, about, |world, _| {
        match read_wish(&request.body, &world.scenario.credentials) {
            None => refusal(400, "The request body is invalid", "Bad Request"),
            Some(Wish::Denied) => {
                refusal(401, "The username or password is wrong.", "Unauthorized")
            }
            Some(Wish::Scoped) => issue(world, now, request, true),
            Some(Wish::Unscoped) => issue(world, now, request, false),
        }
    })
}

fn issue(world: &mut World, now: UtcMillis, request: &Request, has_project: bool) -> Answer {
    let token = world.token_text();
    let expires = world.auth.remember(now, token.clone(), has_project);
    let Credentials {
        domain,
        user,
        project_id,
        project_name,
        ..
    } = &world.scenario.credentials;
    let domain = json!({"id": "d78cbac186b744899480f25bd022f000", "name": domain});
    let mut body = json!({
        "catalog": catalog(request, project_id),
        "expires_at": microseconds(expires),
        "issued_at": microseconds(now),
        "methods": ["password"],
        "roles": [{"id": "0", "name": "te_admin"}],
        "user": {"domain": domain, "id": "7116d09f88fa41908676fdd4b039e000", "name": user, "password_expires_at": ""},
    });
    if has_project {
        body["project"] = json!({"domain": domain, "id": project_id, "name": project_name});
    } else {
        body["domain"] = domain;
    }
    Answer::json(201, &json!({"token": body})).with_header("X-Subject-Token", token)
}

fn read_wish(body: &[u8], credentials: &Credentials) -> Option<Wish> {
    let TokenBody { auth } = serde_json::from_slice(body).ok()?;
    if !auth
        .identity
        .methods
        .iter()
        .any(|method| method == "password")
    {
        return None;
    }
    let user = auth.identity.password.user;
    let found = [&user.domain.name, &user.name, &user.password];
    if found
        != [
            &credentials.domain,
            &credentials.user,
            &credentials.password,
        ]
    {
        return Some(Wish::Denied);
    }
    let Some(project) = auth.scope.and_then(|scope| scope.project) else {
        return Some(Wish::Unscoped);
    };
    match (project.id, project.name) {
        (None, None) => None,
        (Some(id), _) if id == credentials.project_id => Some(Wish::Scoped),
        (None, Some(name)) if name == credentials.project_name => Some(Wish::Scoped),
        (Some(_), _) | (None, Some(_)) => Some(Wish::Denied),
    }
}

/// The catalogue names this very server, unless `?nocatalog=true`.
fn catalog(request: &Request, project_id: &str) -> Value {
    if request.query_value("nocatalog").as_deref() == Some("true") {
        return json!([]);
    }
    let url = format!(
        "http://{}/v1/{project_id}",
        request.header("host").unwrap_or_default()
    );
    let endpoint = json!({"id": "sim-bms", "interface": "public", "region": "sim", "region_id": "sim", "url": url});
    json!([{"endpoints": [endpoint], "id": "bms", "name": "bms", "type": "bms"}])
}

fn refusal(status: u16, message: &str, title: &str) -> Answer {
    Answer::json(
        status,
        &json!({"error": {"code": status, "message": message, "title": title}}),
    )
}

#[cfg(test)]
mod tests {
    use super::super::auth::tests::NOW;
    use super::super::scenario::Scenario;
    use super::*;

    fn ask(world: &mut World, password: &str, scope: Value) -> Answer {
        let user = json!({"name": "sim", "password": password, "domain": {"name": "sim"}});
        let identity = json!({"methods": ["password"], "password": {"user": user}});
        let body = json!({"auth": {"identity": identity, "scope": scope}});
        let request = Request {
            method: "POST".into(),
            path: "/v3/auth/tokens".into(),
            query: "nocatalog=true".into(),
            headers: vec![("host".into(), "localhost".into())],
            body: serde_json::to_vec(&body).expect("JSON"),
        };
        world.handle(NOW, &request)
    }

    fn list_with(world: &mut World, token: &str) -> Answer {
        let request = Request {
            method: "GET".into(),
            path: "/v1/bbf1946d374b44a0a2a95533562ba954/baremetalservers/detail".into(),
            query: String::new(),
            headers: vec![("x-auth-token".into(), token.into())],
            body: Vec::new(),
        };
        world.handle(NOW, &request)
    }

    #[test]
    fn a_token_by_project_name_or_id_opens_the_services() {
        let mut world = World::new(Scenario::default());
        for project in [
            json!({"name": "sim"}),
            json!({"id": "bbf1946d374b44a0a2a95533562ba954"}),
        ] {
            let answer = ask(&mut world, "sim-password", json!({"project": project}));
            assert_eq!(answer.status, 201);
            let body = answer.value();
            assert_eq!(body["token"]["expires_at"], "2024-01-03T03:04:05.000000Z");
            assert_eq!(
                body["token"]["project"]["id"],
                "bbf1946d374b44a0a2a95533562ba954"
            );
            assert_eq!(body["token"]["catalog"], json!([]));
            let (name, token) = &answer.headers[0];
            assert_eq!(*name, "X-Subject-Token");
            assert_eq!(list_with(&mut world, token).status, 200);
        }
    }

    #[test]
    fn wrong_credentials_are_a_401_and_other_bodies_a_400() {
        let mut world = World::new(Scenario::default());
        let wrong = ask(&mut world, "guess", json!({"project": {"name": "sim"}}));
        assert_eq!(
            (wrong.status, wrong.value()["error"]["code"].as_u64()),
            (401, Some(401))
        );
        assert_eq!(wrong.value()["error"]["title"], "Unauthorized");
        assert_eq!(
            ask(
                &mut world,
                "sim-password",
                json!({"project": {"name": "other"}})
            )
            .status,
            401
        );
        let empty = ask(&mut world, "sim-password", json!({"project": {}}));
        assert_eq!(
            (empty.status, empty.value()["error"]["title"].as_str()),
            (400, Some("Bad Request"))
        );
    }

    #[test]
    fn a_token_without_a_project_does_not_open_a_project() {
        let mut world = World::new(Scenario::default());
        let answer = ask(&mut world, "sim-password", Value::Null);
        assert_eq!(answer.status, 201);
        let refused = list_with(&mut world, &answer.headers[0].1);
        assert_eq!(
            (refused.status, refused.value()["error"]["code"].as_str()),
            (400, Some("Common.0018"))
        );
    }
}
