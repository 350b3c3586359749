//! The clouds' error codes and what each means for us: one table, to be compared with the
//! documents.
//!
//! Owns which code has which class. Stays away from bodies and reactions: `cloud::answer` turns a class
//! into a `Fault`.
//!
//! Sources: BMS API Reference, Error Codes (OTC and Huawei Cloud); ECS API Reference, Error Codes
//! (`Common.*`, the same job engine); API Request Signing Guide and API Gateway User Guide
//! (`APIGW.*`, printed `APIG.*` in older guides); IAM API Reference. The codes, statuses and texts
//! are documented; the classes are our judgement.

use crate::model::CodeClass::*;
use crate::model::{CodeClass, Service};

/// Which part of the cloud a code comes from, as far as its prefix tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeOrigin {
    /// `APIGW.` and `APIG.`: in front of the service.
    Gateway,
    /// `IAM.`: identity management.
    Iam,
    /// `BMS.`: the service itself.
    Bms,
    /// `Common.`: the job engine behind the service.
    JobEngine,
    /// Any other prefix, or a bare number.
    Unknown,
}

/// One documented code, with its class under the HTTP status it came with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Which part of the cloud it comes from.
    pub origin: CodeOrigin,
    /// What it means.
    pub class: CodeClass,
    /// True when the code is about too many calls, not about a fault.
    pub throttles: bool,
}

/// The class of `code`, where no HTTP status belongs to it (a job's or sub-job's error). Unlisted
/// codes are `Other`.
pub fn class(code: &str) -> CodeClass {
    documented(code, None).map_or(Other, |known| known.class)
}

/// Looks `code` up; `status` decides if one code is used with several HTTP statuses.
///
/// A code with one class has it under any status, because the documents warn that the status may be
/// wrong. One with several classes and an unlisted status is `Ambiguous`. None: no document lists
/// it (bare numbers included).
pub fn documented(code: &str, status: Option<u16>) -> Option<Known> {
    let name = canonical(code)?;
    let from = CODES.partition_point(|(listed, ..)| *listed < name.as_str());
    let rows = &CODES[from..];
    let rows = &rows[..rows.partition_point(|(listed, ..)| *listed == name)];
    let (_, _, first) = *rows.first()?;
    let by_status = rows.iter().find(|(_, listed, _)| Some(*listed) == status);
    let class = match by_status {
        Some((_, _, class)) => *class,
        None if rows.iter().all(|(_, _, class)| *class == first) => first,
        None => Ambiguous,
    };
    Some(Known {
        origin: origin(&name),
        class,
        throttles: THROTTLING.contains(&name.as_str()),
    })
}

/// As `documented`, for an answer of `service`: from another service than BMS only the codes of the
/// gateway and of IAM count. BMS's own codes and its job engine's are documented for BMS, and no
/// document lists CloudDC's.
pub fn documented_for(service: Service, code: &str, status: Option<u16>) -> Option<Known> {
    documented(code, status).filter(|known| match known.origin {
        CodeOrigin::Gateway | CodeOrigin::Iam => true,
        CodeOrigin::Bms | CodeOrigin::JobEngine | CodeOrigin::Unknown => {
            service.documents_its_refusals()
        }
    })
}

/// The class of `code`, said by `service` under an HTTP status that is not known any more; see
/// `documented_for`. Unlisted codes are `Other`.
pub fn class_for(service: Service, code: &str) -> CodeClass {
    documented_for(service, code, None).map_or(Other, |known| known.class)
}

/// Codes that say "too many calls", under whatever HTTP status they travel.
const THROTTLING: [&str; 4] = ["APIGW.0308", "BMS.0212", "Common.0024", "Common.1503"];

/// The code as the table spells it: prefix in its usual case, `APIG.` as `APIGW.`. None: no prefix
/// that we know.
fn canonical(code: &str) -> Option<String> {
    let (prefix, number) = code.trim().split_once('.')?;
    let prefix = match prefix.to_ascii_uppercase().as_str() {
        "APIGW" | "APIG" => "APIGW",
        "BMS" => "BMS",
        "COMMON" => "Common",
        "IAM" => "IAM",
        _ => return None,
    };
    Some(format!("{prefix}.{number}"))
}

/// Which part of the cloud a code comes from, by its prefix; also for codes that no document lists.
pub fn origin(code: &str) -> CodeOrigin {
    match canonical(code)
        .as_deref()
        .and_then(|name| name.split_once('.'))
        .map(|(prefix, _)| prefix)
    {
        Some("APIGW") => CodeOrigin::Gateway,
        Some("BMS") => CodeOrigin::Bms,
        Some("Common") => CodeOrigin::JobEngine,
        Some("IAM") => CodeOrigin::Iam,
        _ => CodeOrigin::Unknown,
    }
}

/// Code, HTTP status, class; in the order of the codes. The text is the documents', abridged.
#[rustfmt::skip]
const CODES: &[(&str, u16, CodeClass)] = &[
    ("APIGW.0101", 404, ConfigPermanent), // The API does not exist or has not been published in the environment.
    ("APIGW.0103", 404, Retryable), // The backend does not exist. (500 in the APIG table)
    ("APIGW.0104", 400, Retryable), // The plug-ins do not exist. (500 in the APIG table)
    ("APIGW.0105", 400, Retryable), // The backend configurations do not exist. (500 in the APIG table)
    ("APIGW.0106", 400, BatchInvalid), // Orchestration error.
    ("APIGW.0201", 400, BatchInvalid), // API request error.
    ("APIGW.0201", 413, BatchInvalid), // Request entity too large. (body over 12 MB)
    ("APIGW.0201", 414, BatchInvalid), // Request URI too large. (over 32 KB)
    ("APIGW.0201", 494, BatchInvalid), // Request headers too large. (one over 32 KB, all over 128 KB)
    ("APIGW.0201", 500, Ambiguous), // An unexpected error occurred
    ("APIGW.0201", 502, Ambiguous), // Backend unavailable.
    ("APIGW.0201", 504, Ambiguous), // Backend timeout.
    ("APIGW.0202", 502, Ambiguous), // Backend unavailable
    ("APIGW.0203", 504, Ambiguous), // Backend timeout
    ("APIGW.0301", 401, AuthToken), // Incorrect IAM authentication information.
    ("APIGW.0302", 403, AuthPermission), // The IAM user is not authorized to access the API.
    ("APIGW.0303", 401, AuthToken), // Incorrect app authentication information.
    ("APIGW.0304", 403, AuthPermission), // The app is not authorized to access the API.
    ("APIGW.0305", 401, AuthToken), // Incorrect authentication information.
    ("APIGW.0306", 403, AuthPermission), // API access denied.
    ("APIGW.0307", 401, AuthToken), // The token must be updated.
    ("APIGW.0308", 429, Retryable), // The throttling threshold has been reached.
    ("APIGW.0310", 403, AuthPermission), // The project is unavailable.
    ("APIGW.0401", 403, AuthPermission), // Unknown client IP address.
    ("APIGW.0402", 403, AuthPermission), // The IP address is not authorized to access the API.
    ("APIGW.0501", 405, AuthPermission), // The app quota has been used up.
    ("APIGW.0502", 405, AuthPermission), // The app has been frozen.
    ("APIGW.0601", 500, Ambiguous), // Internal server error.
    ("APIGW.0602", 400, BatchInvalid), // Bad request.
    ("APIGW.0605", 500, Retryable), // Domain name resolution failed.
    ("APIGW.0606", 500, Retryable), // Failed to load the API configurations.
    ("APIGW.0607", 400, ConfigPermanent), // The following protocol is supported: {xxx}
    ("APIGW.0608", 500, Retryable), // Failed to obtain the admin token.
    ("APIGW.0609", 500, Retryable), // The VPC backend does not exist.
    ("APIGW.0610", 502, Retryable), // No backend available.
    ("APIGW.0611", 500, Retryable), // The backend port does not exist.
    ("APIGW.0612", 500, ConfigPermanent), // An API cannot call itself.
    ("APIGW.0613", 503, Retryable), // The IAM service is currently unavailable.
    ("APIGW.0705", 500, Retryable), // Backend signature calculation failed.
    ("APIGW.0802", 403, AuthPermission), // The IAM user is forbidden in the currently selected region
    ("BMS.0001", 400, BatchInvalid), // Fail to parse request, reason: %s.
    ("BMS.0002", 400, ConfigPermanent), // The BMS service is unavailable.
    ("BMS.0003", 400, BatchInvalid), // Create BareMetal Server error, request is null.
    ("BMS.0004", 400, AuthPermission), // Role check fail, reason: %s.
    ("BMS.0005", 400, AuthPermission), // Role check fail, reason: You do not have permission or your balance is …
    ("BMS.0006", 400, RetryableUncertain), // Fail to operate baremetal server.
    ("BMS.0008", 400, Other), // Fail to query flavor [%s], reason: %s.
    ("BMS.0009", 400, Other), // Fail to query flavor extra specs[%s], reason: %s.
    ("BMS.0010", 400, Other), // Fail to query image [%s], reason: %s.
    ("BMS.0011", 400, Other), // The selected images cannot be used to apply for BMSs, %s.
    ("BMS.0012", 400, Other), // The number of IP addresses in the selected subnet[%s] is insufficient.
    ("BMS.0013", 400, Other), // Fail to query ports by subnet [%s], reason: %s.
    ("BMS.0014", 400, Other), // The specified IP address conflicts with an existing IP address in subnet[%s].
    ("BMS.0015", 400, Other), // Fail to query subnet, reason: %s.
    ("BMS.0017", 400, Other), // The number[%d] of EIPs has reached the maximum[%d] allowed. Apply for a higher …
    ("BMS.0018", 400, BatchInvalid), // Request parameter is invalid.
    ("BMS.0019", 400, Other), // publicIp parameter is illegal, reason: %s.
    ("BMS.0020", 400, Other), // Fail to check chargingMode, reason: %s.
    ("BMS.0021", 400, Other), // Flavor parameter is illegal, reason: %s.
    ("BMS.0022", 400, BatchInvalid), // Request parameter is invalid.
    ("BMS.0023", 400, Other), // Fail to query limits, reason: %s
    ("BMS.0025", 400, Other), // The number of cloud servers has reached the maximum allowed.
    ("BMS.0026", 400, Other), // The number of CPU cores used by all cloud servers has reached the maximum allowed.
    ("BMS.0027", 400, Other), // The memory space used by all cloud servers has reached the maximum allowed.
    ("BMS.0028", 400, Other), // The number of CPU cores used by all cloud servers and that of cloud servers have …
    ("BMS.0029", 400, Other), // The memory space used by all cloud servers and the number of cloud servers have …
    ("BMS.0030", 400, Other), // The memory space and number of CPU cores used by all cloud servers have reached the …
    ("BMS.0031", 400, Other), // The number of cloud servers, the memory space used by all cloud servers, and the …
    ("BMS.0032", 400, AuthPermission), // Token check fail.
    ("BMS.0033", 403, AuthPermission), // Fail to check roles, reason: %s.
    ("BMS.0034", 400, Other), // Not support create Bare Metal Server.
    ("BMS.0035", 400, ServerBusy), // Server is powering on, not allow to %s.
    ("BMS.0036", 400, ServerBusy), // Server is powering off, not allow to %s.
    ("BMS.0037", 400, ServerBusy), // Server is rebooting, not allow to %s.
    ("BMS.0038", 400, AlreadyInTargetState), // Server is running, not allow to start.
    ("BMS.0039", 400, AlreadyInTargetState), // Server is stopped, not allow to stop.
    ("BMS.0040", 400, ServerPermanent), // The server does not exist.
    ("BMS.0047", 400, Other), // Root volume is illegal, reason: %s.
    ("BMS.0049", 400, Other), // Query keypair fail, reason is: %s.
    ("BMS.0054", 400, Other), // Check capacity fail, the number of capacity is: [%d], and req num is: [%d].
    ("BMS.0055", 400, Other), // Query capacity fail, Flavor id is [%s], reason: [%s].
    ("BMS.0071", 400, Other), // Using an existing EIP and creating a new EIP can't be used at the same time.
    ("BMS.0072", 400, Other), // An existing EIP cannot be assigned to the ECSs created in batches.
    ("BMS.0073", 400, Other), // Bandwidth info in EIP is null.
    ("BMS.0074", 400, Other), // Parameter extendparam or chargingMode is null.
    ("BMS.0075", 400, Other), // Bandwidth info in EIP is null.
    ("BMS.0076", 400, Other), // Parameter chargingMode only supports postPaid when shared type is whole.
    ("BMS.0077", 400, Other), // PublicIp parameter is illegal, reason: %s.
    ("BMS.0078", 400, Other), // Shared bandwidth has been bound to %d EIPs, quota is %d.
    ("BMS.0079", 400, Other), // Specifies the bandwidth of the shared type and the id cannot be empty.
    ("BMS.0080", 400, Other), // Check subnet status failed.
    ("BMS.0102", 400, Other), // The image does not support attach volume.
    ("BMS.0103", 400, Other), // Attach volume %s fail, volume info is null.
    ("BMS.0104", 400, Other), // Attach volume %s fail, data volume can not attach in root volume device.
    ("BMS.0105", 400, Other), // Attach volume %s fail, device is illegal.
    ("BMS.0106", 400, Other), // Attach volume %s fail, volume's az is not equal with server's az.
    ("BMS.0108", 400, Other), // Attach volume %s fail, root volume does not match the VM, do not change image.
    ("BMS.0111", 400, Other), // none or multiple passwords specified, please specify one.
    ("BMS.0114", 400, Other), // Volume %s is not in server %s attach volume list.
    ("BMS.0201", 400, Other), // Fail to check the baremetal server params, reason: %s.
    ("BMS.0202", 400, Other), // All volumes must be in same type.
    ("BMS.0203", 400, Other), // Volume is illegal, %s.
    ("BMS.0204", 400, Other), // The num of datavolume is illegal, the num is %d, max num allow is %d.
    ("BMS.0205", 400, BatchInvalid), // The number of baremetal servers is out of range for one REquest.
    ("BMS.0206", 400, Other), // The baremetal server name [%s] is include invalid char.
    ("BMS.0207", 400, Other), // VPC is illegal, reason: %s.
    ("BMS.0208", 400, Other), // Fail to get RegionInfo by tenant [%s], reason: %s.
    ("BMS.0210", 400, Other), // The size of userdata [%d] is over quota limits [%d].
    ("BMS.0211", 400, Other), // The image platform is [%s], support publicKey, reason: the publicKey is illegal, …
    ("BMS.0212", 400, Retryable), // System is overloaded, please try again later.
    ("BMS.0213", 400, AuthPermission), // OBTAZ role verify fail: not allowed role.
    ("BMS.0214", 400, Other), // Query subnet[%s] failed: response is null.
    ("BMS.0215", 400, Other), // The response of inquiry order info is null or invalid.
    ("BMS.0216", 400, Other), // Submit order[%s] failed: %s.
    ("BMS.0217", 400, Other), // Create server fail, reason: metaData is illegal.
    ("BMS.0218", 400, Other), // Fail to create order, reason: %s.
    ("BMS.0219", 400, Other), // OpenStack nova change ServerName fail.
    ("BMS.0222", 400, Other), // primary port can not be deleted.
    ("BMS.0223", 400, Other), // Only SCSI disks are supported.
    ("BMS.0246", 400, Other), // The vpcId[%s] is invalid or not-existing.
    ("BMS.0288", 403, AuthPermission), // Policy doesn't allow %s to be performed.
    ("BMS.0290", 400, Other), // Batch attach volume type must be shareable.
    ("BMS.0291", 400, Other), // enterprise_project_id can not be empty.
    ("BMS.0292", 400, Other), // enterprise_project_id[%s] is deactive.
    ("BMS.0293", 400, Other), // Query enterprise_project_id[%s] failed: response is null.
    ("BMS.0294", 400, Other), // Query enterprise_project_id[%s] failed %.
    ("BMS.0297", 400, Other), // Fail to attach volume[%s]: volume is locked.
    ("BMS.0315", 400, Other), // Disks cannot be attached to a BMS using this flavor[%s].
    ("BMS.0316", 400, Other), // RAID level and RAID type do not match.
    ("BMS.0317", 400, Other), // Disk information is empty.
    ("BMS.0320", 400, Other), // This flavor does not support RAID formed by disks of this type.
    ("BMS.0321", 400, Other), // This flavor does not support RAID formed by disks of this size.
    ("BMS.0322", 400, Other), // Disk quantity and RAID level do not match.
    ("BMS.0323", 400, Other), // Disk quantity does not match that in the flavor.
    ("BMS.0325", 400, Other), // Disk quantity exceeds that supported by the flavor.
    ("BMS.0327", 400, Other), // Only JBOD is supported.
    ("BMS.0328", 400, Other), // Only single-disk RAID 0 is supported.
    ("BMS.0329", 400, Other), // Disk type is empty.
    ("BMS.0330", 400, Other), // RAID is not supported.
    ("BMS.0331", 400, Other), // No IPv6 Open Beta Test permissions.
    ("BMS.0333", 400, Other), // IPv6 is not supported.
    ("BMS.0360", 400, ServerPermanent), // This operation cannot be performed because EVS Disk %s is frozen.
    ("BMS.0395", 400, Other), // The server[%s] is windows system and cannot support remote login.
    ("BMS.0400", 400, Other), // the image[%s] is not support IPv6.
    ("BMS.0605", 400, ServerPermanent), // the BMS is locked.
    ("BMS.1001", 400, Other), // Volume can only be attached when server %s stopped or active.
    ("BMS.1002", 400, Other), // Attach volume fail, server %s attachment num over limit.
    ("BMS.1003", 400, Other), // Attach shareable volume %s fail, volume status is %s, not available or inuse.
    ("BMS.1004", 400, Other), // Attach shareable volume %s fail, volume status is %s, not available or inuse.
    ("BMS.1006", 400, Retryable), // Server %s info is null or its status or its metadata is null.
    ("BMS.1007", 400, RetryableUncertain), // Calling interface failed
    ("BMS.1008", 400, Other), // The server[%s] is not HANA server, volume[%s] does not match the server.
    ("BMS.1009", 400, Other), // Attach shareable volume %s fail, volume status is %s, the volume has been attached …
    ("BMS.1011", 400, Other), // Attach shareable volume %s fail, volume status is %s, not available or inuse.
    ("BMS.2005", 400, Other), // Network could not be found.
    ("BMS.3001", 400, Other), // Query security group failed: %s.
    ("BMS.3004", 400, Other), // Failed to create the BMS due to an internal system error.
    ("BMS.3005", 400, Other), // Failed to create the port.
    ("BMS.3006", 400, Other), // Failed to assign the floating IP address.
    ("BMS.3011", 400, AuthPermission), // Decoded token is null.
    ("BMS.3019", 400, Other), // Failed to attach the data disk.
    ("BMS.3021", 400, Other), // Failed to create the data disk.
    ("BMS.3025", 400, Other), // Not support create shareable data volumes.
    ("BMS.3026", 400, Other), // Password does not meet the requirements of the rule.
    ("BMS.3027", 400, Other), // VPC parameter is illegal.
    ("BMS.3028", 400, Other), // cinder quota check fail.
    ("BMS.3029", 400, Other), // Failed to create the system disk. The disk status is abnormal.
    ("BMS.3033", 400, Other), // Failed to create the system disk.
    ("BMS.3035", 400, Other), // Attach volume fail: the bmsid [%s] in volume metadata is not the same with bmsid …
    ("BMS.3037", 400, ServerFailed), // Insufficient resources or failed to start the BMS.
    ("BMS.3038", 400, Other), // Failed to assign the EIP.
    ("BMS.3039", 400, Other), // The password is illegal, reason: %s.
    ("Common.0001", 500, RetryableUncertain), // A system exception occurred. Try again later or contact customer …
    ("Common.0002", 400, BatchInvalid), // The request body cannot be left blank.
    ("Common.0011", 400, JobUnknown), // Failed to query system tasks.
    ("Common.0013", 401, AuthToken), // Invalid token.
    ("Common.0018", 400, AuthPermission), // tenantId in token is not the same with in URL.
    ("Common.0020", 400, Retryable), // A system exception occurred. Try again later or contact customer service.
    ("Common.0021", 400, SubJobFailed), // Sub job fail!
    ("Common.0022", 400, RetryableUncertain), // Mission fail!
    ("Common.0024", 202, Retryable), // exceeds flow over limit
    ("Common.0025", 400, Retryable), // Query job Error because %s.
    ("Common.0026", 400, Retryable), // Fail to get Region Info
    ("Common.0999", 400, RetryableUncertain), // The system was broken, exit.
    ("Common.1503", 503, Retryable), // Api flow control Error because %s.
    ("IAM.0001", 401, AuthToken), // The request you have made requires authentication.
    ("IAM.0002", 403, AuthPermission), // You are not authorized to perform the requested action.
    ("IAM.0003", 403, AuthPermission), // Policy doesn't allow %(actions)s to be performed.
    ("IAM.0061", 401, AuthPermission), // Account locked.
    ("IAM.0062", 401, AuthPermission), // Incorrect password.
    ("IAM.0066", 401, AuthToken), // The token has expired.
    ("IAM.0067", 401, AuthToken), // Invalid token.
    ("IAM.0080", 403, AuthPermission), // The user %s with access key %s is disabled.
    ("IAM.0081", 403, AuthPermission), // This user only supports console access, not programmatic access.
    ("IAM.0082", 403, AuthPermission), // The user %s is disabled.
    ("IAM.0083", 403, AuthPermission), // You do not have permission to access the private region %s.
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;

    const DOCUMENTS: &str = include_str!("../../tests/fixtures/error-codes.json");

    fn class_word(class: CodeClass) -> &'static str {
        match class {
            Retryable => "retryable",
            RetryableUncertain => "retryable-uncertain",
            Ambiguous => "ambiguous",
            ServerBusy => "server-busy",
            AlreadyInTargetState => "already-in-target-state",
            ServerPermanent => "server-permanent",
            ServerFailed => "server-failed",
            BatchInvalid => "batch-invalid",
            AuthToken => "auth-token",
            AuthPermission => "auth-permission",
            ConfigPermanent => "config-permanent",
            JobUnknown => "job-unknown",
            SubJobFailed => "sub-job-failed",
            Other => "other",
        }
    }

    /// (code, status) → class, as the documents' copy has them.
    fn documents() -> BTreeMap<(String, u64), String> {
        let all: Value = serde_json::from_str(DOCUMENTS).expect("the fixture is JSON");
        let lists = [
            ("", &all["bms"]),
            ("", &all["common_job_engine"]),
            ("APIGW.", &all["gateway"]["codes"]),
            ("", &all["iam"]),
        ];
        let mut found = BTreeMap::new();
        for (prefix, list) in lists {
            for row in list.as_array().expect("a list of codes") {
                let code = format!("{prefix}{}", row["code"].as_str().expect("a code"));
                let status = row["http_status"].as_u64().expect("a status");
                found.insert(
                    (code, status),
                    row["class_judgement"].as_str().expect("a class").to_owned(),
                );
            }
        }
        found
    }

    #[test]
    fn the_table_is_the_documents_row_by_row() {
        let ours: BTreeMap<_, _> = CODES
            .iter()
            .map(|(code, status, class)| {
                (
                    ((*code).to_owned(), u64::from(*status)),
                    class_word(*class).to_owned(),
                )
            })
            .collect();
        assert_eq!(ours.len(), CODES.len(), "no row is there twice");
        assert_eq!(ours, documents());
    }

    #[test]
    fn the_table_is_sorted_so_that_it_can_be_searched() {
        assert!(CODES.is_sorted_by_key(|(code, status, _)| (*code, *status)));
    }

    #[test]
    fn every_row_is_found_under_its_own_status() {
        for (code, status, class) in CODES {
            let known = documented(code, Some(*status)).expect("listed");
            assert_eq!(known.class, *class, "{code} {status}");
            assert_ne!(known.origin, CodeOrigin::Unknown, "{code}");
        }
    }

    #[test]
    fn a_gateway_number_counts_after_either_prefix_and_in_any_case() {
        assert_eq!(
            documented("APIG.0308", Some(429)),
            documented("apigw.0308", Some(429))
        );
        assert_eq!(class(" bms.0039 "), AlreadyInTargetState);
    }

    #[test]
    fn one_code_under_seven_statuses_goes_by_status_else_the_careful_way() {
        assert_eq!(
            documented("APIGW.0201", Some(413)).map(|known| known.class),
            Some(BatchInvalid)
        );
        assert_eq!(
            documented("APIGW.0201", Some(504)).map(|known| known.class),
            Some(Ambiguous)
        );
        assert_eq!(
            documented("APIGW.0201", Some(503)).map(|known| known.class),
            Some(Ambiguous)
        );
        assert_eq!(class("APIGW.0201"), Ambiguous);
    }

    #[test]
    fn another_services_answer_is_not_read_by_the_codes_of_bms() {
        for code in ["APIGW.0308", "APIG.0301", "IAM.0066"] {
            assert_eq!(
                documented_for(Service::CloudDc, code, None),
                documented(code, None),
                "{code}"
            );
        }
        for code in [
            "BMS.0038",
            "BMS.0040",
            "Common.0002",
            "Common.1503",
            "CloudDC.0000",
        ] {
            assert_eq!(documented_for(Service::CloudDc, code, None), None, "{code}");
            assert_eq!(
                documented_for(Service::Bms, code, None),
                documented(code, None),
                "{code}"
            );
            assert_eq!(class_for(Service::CloudDc, code), Other, "{code}");
            assert_eq!(class_for(Service::Bms, code), class(code), "{code}");
        }
    }

    #[test]
    fn codes_that_no_document_lists_are_other() {
        for code in [
            "",
            "400",
            "BMS.9999",
            "BMS.",
            ".0040",
            "Ecs.0204",
            "APIGW.0308.1",
        ] {
            assert_eq!(class(code), Other, "{code}");
        }
    }
}
