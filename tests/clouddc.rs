//! CloudDC, where no job tells and the servers' own states must: against the running daemon.

mod common;

use common::{Running, Yard, insert_many, outcomes};
use poweryard::model::PowerAction::{self, Reboot, Stop};
use poweryard::model::Service;
use poweryard::sim::{Call, CallRecord};
use sqlx::SqliteConnection;

struct Scene {
    yard: Yard,
    daemon: Running,
    producer: SqliteConnection,
}

impl Scene {
    async fn new(scenario: &str, lines: &[&str]) -> Self {
        let mut yard = Yard::new(&format!("[bms]\nservers = 0\n[clouddc]\n{scenario}")).await;
        yard.service = Service::CloudDc;
        lines.iter().for_each(|line| yard.set(line));
        let daemon = yard.start();
        let producer = yard.producer().await;
        Self { yard, daemon, producer }
    }

    /// Inserts requests for the servers with these numbers.
    async fn ask(&mut self, action: PowerAction, numbers: impl IntoIterator<Item = usize>) {
        let servers: Vec<String> = numbers.into_iter().map(|number| self.yard.server(number)).collect();
        insert_many(&mut self.producer, &servers, action.as_str()).await;
    }

    async fn outcomes(&mut self) -> String {
        outcomes(&mut self.producer).await
    }

    fn calls(&self, kind: Call) -> Vec<CallRecord> {
        self.yard.cloud.calls().into_iter().filter(|call| call.call == kind).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_fifty_go_out_and_each_server_is_settled_by_its_own_state() {
    let mut scene = Scene::new("servers = 180\nrunning = 1.0\noperation_ms = [1500, 2500]\n", &[]).await;
    scene.ask(Stop, 1..=60).await;
    scene.ask(Reboot, 61..=180).await;
    assert_eq!(scene.outcomes().await, "180 succeeded/observed");
    let mut sizes: Vec<usize> = scene.calls(Call::Submit).iter().map(|call| call.servers).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [10, 20, 50, 50, 50]);
    assert_eq!(scene.yard.cloud.ledger().len(), 180);
    scene.daemon.stop().await;
}
