//! A yard in use: a running daemon, a producer, and short words for what tests ask of them.

use poweryard::model::PowerAction;
use poweryard::sim::{Call, CallRecord};
use sqlx::SqliteConnection;

use crate::common::process::run;
use crate::common::{Running, Yard, insert_many, outcomes, text, wait_for};

/// A yard with a running daemon and a producer.
pub(crate) struct Scene {
    pub(crate) yard: Yard,
    pub(crate) daemon: Running,
    pub(crate) producer: SqliteConnection,
}

impl Scene {
    pub(crate) async fn new(scenario: &str, lines: &[&str]) -> Self {
        let mut yard = Yard::new(scenario).await;
        lines.iter().for_each(|line| yard.set(line));
        let daemon = yard.start();
        let producer = yard.producer().await;
        Self {
            yard,
            daemon,
            producer,
        }
    }

    /// Inserts requests for the servers with these numbers.
    pub(crate) async fn ask(
        &mut self,
        action: PowerAction,
        numbers: impl IntoIterator<Item = usize>,
    ) {
        let servers: Vec<String> = numbers
            .into_iter()
            .map(|number| self.yard.server(number))
            .collect();
        insert_many(&mut self.producer, &servers, action.as_str()).await;
    }

    pub(crate) async fn outcomes(&mut self) -> String {
        outcomes(&mut self.producer).await
    }

    pub(crate) async fn text(&mut self, sql: &str) -> String {
        text(&mut self.producer, sql).await
    }

    pub(crate) async fn wait_for(&mut self, sql: &str, wanted: &str) {
        wait_for(&mut self.producer, sql, wanted).await;
    }

    pub(crate) fn calls(&self, kind: Call) -> Vec<CallRecord> {
        self.yard
            .cloud
            .calls()
            .into_iter()
            .filter(|call| call.call == kind)
            .collect()
    }

    pub(crate) fn submits(&self) -> usize {
        self.calls(Call::Submit).len()
    }

    pub(crate) fn carried_out(&self) -> usize {
        self.yard.cloud.ledger().len()
    }

    /// Returns once the daemon has gone through the queue after everything that is in it now.
    pub(crate) async fn a_round_passes(&mut self) {
        let marker = format!(
            "nobody-{}",
            self.text("SELECT count(*) FROM power_requests").await
        );
        sqlx::query(
            "INSERT INTO power_requests (server_id, action, target) VALUES ('x', 'stop', ?)",
        )
        .bind(&marker)
        .execute(&mut self.producer)
        .await
        .expect("accepted");
        self.wait_for(
            &format!("SELECT count(*) FROM holds WHERE target = '{marker}'"),
            "1",
        )
        .await;
        sqlx::query("UPDATE power_requests SET state = 'cancelled' WHERE target = ?")
            .bind(&marker)
            .execute(&mut self.producer)
            .await
            .expect("accepted");
    }

    pub(crate) async fn command(&self, args: &[&str]) {
        let database = self.yard.database().display().to_string();
        let args: Vec<String> = args
            .iter()
            .map(ToString::to_string)
            .chain(["--database".into(), database])
            .collect();
        let said = tokio::task::spawn_blocking(move || {
            run(&args.iter().map(String::as_str).collect::<Vec<_>>())
        });
        let said = said.await.expect("it ran");
        assert!(said.status.success(), "{said:?}");
    }
}

/// One `[[faults]]` entry of a scenario.
pub(crate) fn fault(kind: &str, more: &str) -> String {
    format!("[[faults]]\nkind = \"{kind}\"\n{more}\n")
}

/// Calls whose signature, token or password the cloud refused.
pub(crate) fn bad_signatures(yard: &Yard) -> usize {
    yard.cloud
        .calls()
        .iter()
        .filter(|call| call.status == 401)
        .count()
}
