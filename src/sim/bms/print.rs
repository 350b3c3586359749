//! How the list and the show call print a server: every documented field, as text. Decides nothing.
//!
//! Written piece by piece instead of through a tree of values: a page of 1000 servers is more than
//! a megabyte.

use std::fmt::{self, Write as _};

use super::server::{Server, Shown};
use crate::model::UtcMillis;
use crate::sim::answer::in_quotes;
use crate::sim::scenario::Unset;

/// [`CREATED`](super::server::CREATED) as it is printed, without its zone.
const CREATED_TEXT: &str = "2026-01-01T00:00:00";

/// Prints servers of one project.
#[derive(Debug, Clone)]
pub(super) struct Printer {
    pub(super) project: String,
    pub(super) idle_task_state: Unset,
}

impl Printer {
    /// Appends `server` as it is at `now`.
    pub(super) fn write(&self, out: &mut String, server: &Server, now: UtcMillis) {
        let written = write_identity(out, server)
            .and_then(|()| write_flavor_and_metadata(out, server))
            .and_then(|()| self.write_state(out, server, now))
            .and_then(|()| write_place(out, server));
        written.expect("a String takes any text");
    }

    fn write_state(&self, out: &mut String, server: &Server, now: UtcMillis) -> fmt::Result {
        let Shown {
            status,
            vm_state,
            task_state,
            power_state,
        } = server.shown(now);
        let project = &self.project;
        let updated = whole_seconds(server.updated);
        let locked = server.is_locked;
        write!(
            out,
            r#""status":"{status}","updated":"{updated}Z","locked":{locked},"tenant_id":"{project}","#
        )?;
        write!(
            out,
            r#""OS-EXT-STS:vm_state":"{vm_state}","OS-EXT-STS:power_state":{power_state},"#
        )?;
        match (task_state, self.idle_task_state) {
            (Some(word), _) => write!(out, r#""OS-EXT-STS:task_state":"{word}","#),
            (None, Unset::Null) => out.write_str(r#""OS-EXT-STS:task_state":null,"#),
            (None, Unset::Omitted) => Ok(()),
        }
    }
}

fn write_identity(out: &mut String, server: &Server) -> fmt::Result {
    let id = &server.id;
    let name = in_quotes(&server.name);
    let number = server.index + 1;
    let high = (server.index >> 8) & 0xff;
    let low = server.index & 0xff;
    write!(
        out,
        r#"{{"id":"{id}","name":"{name}","description":"{name}","OS-EXT-SRV-ATTR:hostname":"{name}","#
    )?;
    write!(
        out,
        r#""addresses":{{"5849fdf1-9d79-4589-80c2-fe557990c417":[{{"version":"4","addr":"10.0.{high}.{low}","#
    )?;
    write!(
        out,
        r#""OS-EXT-IPS-MAC:mac_addr":"fa:16:3e:00:{high:02x}:{low:02x}","OS-EXT-IPS:type":"fixed","#
    )?;
    write!(
        out,
        r#""OS-EXT-IPS:port_id":"9e62503b-094e-4c6e-bc95-{number:012x}"}}]}},"accessIPv4":"","accessIPv6":"","#
    )
}

fn write_flavor_and_metadata(out: &mut String, server: &Server) -> fmt::Result {
    let number = server.index + 1;
    out.write_str(r#""flavor":{"id":"physical.o2.medium","name":"physical.o2.medium","disk":"9309","vcpus":"32","#)?;
    out.write_str(
        r#""ram":"193047"},"image":{"id":"8589958c-6bc7-40c6-b81b-3fe4cd2e3d85"},"tags":["__type_baremetal"],"#,
    )?;
    out.write_str(r#""metadata":{"metering.image_id":"8589958c-6bc7-40c6-b81b-3fe4cd2e3d85","image_name":"linux","#)?;
    out.write_str(
        r#""metering.resourcespeccode":"physical.o2.medium.linux","metering.resourcetype":"__type_baremetal","#,
    )?;
    out.write_str(
        r#""os_bit":"64","os_type":"Linux","chargingMode":"0","vpc_id":"5849fdf1-9d79-4589-80c2-fe557990c417","#,
    )?;
    write!(
        out,
        r#""baremetalPortIDList":"[9e62503b-094e-4c6e-bc95-{number:012x}]"}},"#
    )
}

fn write_place(out: &mut String, server: &Server) -> fmt::Result {
    let number = server.index + 1;
    let created = CREATED_TEXT;
    write!(
        out,
        r#""created":"{created}Z","OS-SRV-USG:launched_at":"{created}.000000","progress":0,"config_drive":"","#
    )?;
    out.write_str(r#""hostId":"cd243addb5d2c64e89218180b7a3ed95abe6882e81c337cc563137df","host_status":"UP","#)?;
    out.write_str(
        r#""user_id":"3fc5ab2b0c544979abcaafd86edd80e6","OS-EXT-SRV-ATTR:host":"bms.dc1","#,
    )?;
    write!(
        out,
        r#""OS-EXT-SRV-ATTR:instance_name":"instance-{number:08x}","OS-EXT-SRV-ATTR:user_data":"","#
    )?;
    write!(
        out,
        r#""OS-EXT-SRV-ATTR:reservation_id":"r-{number:08x}","OS-EXT-SRV-ATTR:launch_index":0,"#
    )?;
    out.write_str(
        r#""OS-EXT-SRV-ATTR:hypervisor_hostname":"nova002@2","OS-EXT-SRV-ATTR:root_device_name":"/dev/sda","#,
    )?;
    out.write_str(r#""OS-EXT-SRV-ATTR:ramdisk_id":"","OS-EXT-SRV-ATTR:kernel_id":"","OS-DCF:diskConfig":"MANUAL","#)?;
    out.write_str(r#""OS-EXT-AZ:availability_zone":"az-dc-1","os:scheduler_hints":{},"enterprise_project_id":"0","#)?;
    out.write_str(r#""sys_tags":[{"key":"_sys_enterprise_project_id","value":"0"}]}"#)
}

/// `YYYY-MM-DDTHH:MM:SS`
fn whole_seconds(time: UtcMillis) -> String {
    let mut text = time.to_string();
    text.truncate(19);
    text
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::server::{CREATED, Operation};
    use super::*;
    use crate::model::{PowerAction, ServerId};

    fn print(server: &Server, idle_task_state: Unset) -> Value {
        let mut out = String::new();
        Printer {
            project: "p".into(),
            idle_task_state,
        }
        .write(&mut out, server, UtcMillis(1500));
        serde_json::from_str(&out).expect("JSON")
    }

    #[test]
    fn a_printed_server_is_json_with_the_documented_fields() {
        let mut server = Server::new(
            ServerId("616fb98f-46ca-475e-917e-2563e5a8cd19".into()),
            0,
            true,
        );
        assert_eq!(whole_seconds(CREATED), CREATED_TEXT);
        let idle = print(&server, Unset::Omitted);
        assert_eq!(idle.get("OS-EXT-STS:task_state"), None);
        assert_eq!(
            (
                idle["OS-EXT-STS:power_state"].as_u64(),
                idle["OS-EXT-STS:vm_state"].as_str()
            ),
            (Some(1), Some("active"))
        );
        assert_eq!(
            (idle["created"].as_str(), idle["tenant_id"].as_str()),
            (Some("2026-01-01T00:00:00Z"), Some("p"))
        );
        assert!(idle["updated"].is_string() && idle["locked"] == false);
        assert_eq!(
            print(&server, Unset::Null).get("OS-EXT-STS:task_state"),
            Some(&Value::Null)
        );
        server.begin(Operation {
            action: PowerAction::Stop,
            begin: UtcMillis(1000),
            end: None,
            succeeds: true,
        });
        assert_eq!(
            print(&server, Unset::Null)["OS-EXT-STS:task_state"],
            "powering-off"
        );
    }
}
