//! The sample events: every deployed function takes its own.

use serde_json::Value;

use crate::support::*;

#[tokio::test]
async fn every_function_takes_its_sample_event() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../events");
    let mut taken = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let function = path.file_stem().unwrap().to_string_lossy().into_owned();
        let reply = invoke(&function, std::fs::read_to_string(&path).unwrap()).await;
        match reply.get("statusCode").and_then(Value::as_u64) {
            Some(status) => assert!(status < 500 && status != 404, "{function}: {reply}"),
            None => assert!(reply.get("errorMessage").is_none(), "{function}: {reply}"),
        }
        if reply.get("batchItemFailures").is_some() {
            assert_eq!(reply["batchItemFailures"], serde_json::json!([]), "{function} refused messages of its sample");
        }
        taken += 1;
    }
    assert!(taken > 30, "{taken} events in {folder}");
}
