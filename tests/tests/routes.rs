//! `template.yaml` is the truth about routes; `openapi.yaml`, the binaries and `events/` must say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Display};
use std::path::{Path, PathBuf};

use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::Value;

/// A function of the template.
#[derive(Debug)]
struct Function {
    logical_id: String,
    routes: BTreeSet<String>,
    streamed: BTreeSet<String>,
    /// The route of the event named `Route`.
    canonical: Option<String>,
    /// What the function is told its route is.
    announced: Option<String>,
    code: String,
    log_group: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Tags such as `!Ref` are dropped by the parser: what matters here is plain text.
fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn functions() -> BTreeMap<String, Function> {
    let template = yaml("template.yaml");
    members(&template["Resources"])
        .filter(|(_, resource)| resource["Type"] == "AWS::Serverless::Function")
        .map(|(logical_id, resource)| {
            let properties = &resource["Properties"];
            let name = text(&properties["FunctionName"]);
            let bin = name.strip_prefix("${AWS::StackName}-").unwrap_or(&name).to_owned();
            let events: Vec<_> = members(&properties["Events"]).filter(|(_, event)| event["Type"] == "Api").collect();
            let route = |event: &Value| {
                let properties = &event["Properties"];
                format!("{} {}", text(&properties["Method"]).to_uppercase(), text(&properties["Path"]))
            };
            let function = Function {
                logical_id: logical_id.clone(),
                routes: events.iter().map(|(_, event)| route(event)).collect(),
                streamed: events
                    .iter()
                    .filter(|(_, event)| event["Properties"]["ResponseTransferMode"] == "RESPONSE_STREAM")
                    .map(|(_, event)| route(event))
                    .collect(),
                canonical: events.iter().find(|(name, _)| *name == "Route").map(|(_, event)| route(event)),
                announced: properties["Environment"]["Variables"]["ROUTE"].as_str().map(str::to_owned),
                code: text(&properties["CodeUri"]),
                log_group: text(&properties["LoggingConfig"]["LogGroup"]),
            };
            (bin, function)
        })
        .collect()
}

/// Operations of the description: route, operation id, whether it streams.
fn operations() -> BTreeMap<String, (String, bool)> {
    let description = yaml("openapi.yaml");
    members(&description["paths"])
        .flat_map(|(path, item)| members(item).map(move |(method, operation)| (path, method, operation)))
        .filter(|(_, method, _)| ["get", "put", "post", "delete", "patch"].contains(&method.as_str()))
        .map(|(path, method, operation)| {
            let streams = members(&operation["responses"])
                .any(|(_, response)| response["content"].get("text/event-stream").is_some());
            // Operation ids are unique in a description, so that an alias needs one of its own.
            let id = text(&operation["operationId"]).trim_end_matches("-alias").to_owned();
            (format!("{} {path}", method.to_uppercase()), (id, streams))
        })
        .collect()
}

fn files(folder: impl AsRef<Path>, extension: &str) -> BTreeSet<String> {
    let folder = root().join(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect()
}

/// What cargo makes a binary of: a file, or a folder with a `main.rs`.
fn binaries() -> BTreeSet<String> {
    let domains = std::fs::read_dir(root().join("functions")).unwrap();
    let folders = domains.map(|domain| domain.unwrap().path().join("src/bin"));
    let entries = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.extension().is_some_and(|found| found == "rs") || path.join("main.rs").exists())
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect()
}

#[track_caller]
fn same<T: Ord + Display>(left_name: &str, left: &BTreeSet<T>, right_name: &str, right: &BTreeSet<T>) {
    let only = |name: &str, a: &BTreeSet<T>, b: &BTreeSet<T>| -> String {
        a.difference(b).map(|item| format!("\n  only in {name}: {item}")).collect()
    };
    let difference = only(left_name, left, right) + &only(right_name, right, left);
    assert!(difference.is_empty(), "{left_name} and {right_name} differ:{difference}");
}

#[track_caller]
fn all<T: Debug>(what: &str, items: impl IntoIterator<Item = T>, holds: impl Fn(&T) -> bool) {
    let wrong: String = items.into_iter().filter(|item| !holds(item)).map(|item| format!("\n  {item:?}")).collect();
    assert!(wrong.is_empty(), "{what}:{wrong}");
}

#[test]
fn the_description_has_the_routes_of_the_template() {
    let described = operations().into_iter().map(|(route, (id, _))| format!("{route} ({id})")).collect();
    let deployed = functions()
        .iter()
        .flat_map(|(bin, function)| function.routes.iter().map(move |route| format!("{route} ({bin})")))
        .filter(|route| !route.starts_with("ANY "))
        .collect();
    same("template.yaml", &deployed, "openapi.yaml", &described);
}

#[test]
fn the_description_streams_where_the_template_does() {
    let described = operations().into_iter().filter(|(_, (_, streams))| *streams).map(|(route, _)| route).collect();
    let deployed = functions().into_values().flat_map(|function| function.streamed).collect();
    same("RESPONSE_STREAM in template.yaml", &deployed, "text/event-stream in openapi.yaml", &described);
}

#[test]
fn every_stream_may_say_that_it_is_the_ai_sdks() {
    let description = yaml("openapi.yaml");
    let operations = members(&description["paths"]).flat_map(|(_, item)| members(item));
    let responses = operations.flat_map(|(_, operation)| members(&operation["responses"]));
    let streams = responses.filter(|(_, response)| response["content"].get("text/event-stream").is_some());
    all("x-vercel-ai-ui-message-stream is not described", streams, |(_, response)| {
        response["headers"].get("x-vercel-ai-ui-message-stream").is_some()
    });
}

#[test]
fn every_function_has_a_binary_and_a_binary_its_function() {
    same("template.yaml", &functions().into_keys().collect(), "functions/*/src/bin", &binaries());
}

#[test]
fn every_function_has_an_event_of_its_own_route() {
    let functions = functions();
    same("template.yaml", &functions.keys().cloned().collect(), "events", &files("events", "json"));
    for (bin, function) in functions {
        let event: Value = serde_json::from_str(&read(format!("events/{bin}.json"))).unwrap();
        let Some(route) = function.canonical else { continue };
        let (method, path) = route.split_once(' ').unwrap();
        assert_eq!(event["resource"], path, "events/{bin}.json is of another route");
        assert_eq!(event["requestContext"]["resourcePath"], path, "events/{bin}.json is of another route");
        assert!(
            method == "ANY" || event["httpMethod"] == method,
            "events/{bin}.json is of another method than {method}"
        );
    }
}

#[test]
fn every_function_is_named_alike_everywhere() {
    all("the logical id is not the binary's name in PascalCase", functions(), |(bin, function)| {
        let pascal: String = bin.split('-').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
        function.logical_id == pascal
    });
    all("CodeUri is not the binary's zip", functions(), |(bin, function)| {
        function.code == format!("target/lambda/{bin}/bootstrap.zip")
    });
    all("the log group is not the domain's", functions(), |(bin, function)| {
        let domain = bin.split('-').next().unwrap();
        function.log_group == format!("{}{}Logs", domain[..1].to_uppercase(), &domain[1..])
    });
    all("ROUTE is not the route of the event named Route", functions(), |(_, function)| {
        function.announced == function.canonical
    });
}

#[test]
fn one_function_takes_what_no_other_does() {
    let catch_all: BTreeSet<_> = functions()
        .into_iter()
        .flat_map(|(bin, function)| function.routes.into_iter().map(move |route| format!("{route} ({bin})")))
        .filter(|route| route.starts_with("ANY "))
        .collect();
    let expected = ["ANY / (gateway-fallback)", "ANY /{proxy+} (gateway-fallback)"].map(str::to_owned);
    same("template.yaml", &catch_all, "what preflights and 404s need", &expected.into());
}

/// What every error of the gateway itself carries, as a template writes it: the headers of every other reply, with a
/// policy that needs no quotation marks, and as the one origin that may read it the frontend's.
fn gateway_headers() -> HeaderMap {
    let mut sent = HeaderMap::new();
    sent.insert("content-security-policy", HeaderValue::from_static("sandbox"));
    sent.insert("content-type", HeaderValue::from_static("application/problem+json"));
    sent.insert("cache-control", HeaderValue::from_static("no-store"));
    sent.insert("vary", HeaderValue::from_static("Origin"));
    sent.insert("access-control-allow-origin", HeaderValue::from_static("${AppUrl}"));
    sent.insert("access-control-allow-credentials", HeaderValue::from_static("true"));
    let exposed = "x-request-id, Retry-After, RateLimit, RateLimit-Policy";
    sent.insert("access-control-expose-headers", HeaderValue::from_static(exposed));
    lib::http::headers::secure(&mut sent);
    for value in sent.values_mut() {
        *value = HeaderValue::try_from(format!("'{}'", value.to_str().unwrap())).unwrap();
    }
    sent.insert("x-request-id", HeaderValue::from_static("context.requestId"));
    sent
}

#[test]
fn errors_of_the_gateway_itself_are_problem_documents() {
    let codes = yaml("openapi.yaml")["components"]["schemas"]["Code"]["enum"].clone();
    let template = yaml("template.yaml");
    let responses = &template["Resources"]["Api"]["Properties"]["GatewayResponses"];
    assert!(members(responses).count() > 10, "the gateway responses are gone from template.yaml");
    for (kind, response) in members(responses) {
        let body = text(&response["ResponseTemplates"]["application/json"]);
        let problem: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{kind}: {error}: {body}"));
        let code = text(&problem["code"]);
        assert_eq!(problem["status"], response["StatusCode"], "{kind}");
        assert_eq!(problem["type"], format!("urn:problem:{code}"), "{kind}");
        assert_eq!(problem["requestId"], "$context.requestId", "{kind}");
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{kind}");
        assert!(codes.as_array().unwrap().contains(&problem["code"]), "{kind}: {code} is not in openapi.yaml");
        let headers = &response["ResponseParameters"]["Headers"];
        for (name, value) in &gateway_headers() {
            let given = members(headers).find(|(given, _)| given.eq_ignore_ascii_case(name.as_str()));
            assert_eq!(
                given.unwrap_or_else(|| panic!("{kind}: no {name}")).1,
                value.to_str().unwrap(),
                "{kind}: {name}"
            );
        }
        if problem["status"] == 429 {
            assert_eq!(headers["Retry-After"], format!("'{}'", problem["retryAfterSeconds"]), "{kind}");
        }
    }
}

/// Follows the reference that a part of the description may be.
fn resolved<'a>(description: &'a Value, part: &'a Value) -> &'a Value {
    part["$ref"].as_str().map_or(part, |reference| description.pointer(&reference[1..]).unwrap())
}

/// What API Gateway answers before or instead of a function, it answers on any route.
#[test]
fn every_operation_describes_the_errors_of_the_gateway_itself() {
    let (template, description) = (yaml("template.yaml"), yaml("openapi.yaml"));
    let responses = &template["Resources"]["Api"]["Properties"]["GatewayResponses"];
    for kind in ["WAF_FILTERED", "THROTTLED", "DEFAULT_5XX", "INTEGRATION_FAILURE"] {
        let body = text(&responses[kind]["ResponseTemplates"]["application/json"]);
        let problem: Value = serde_json::from_str(&body).unwrap();
        let (status, code) = (problem["status"].to_string(), &problem["code"]);
        let is_described = |operation: &Value| {
            let response = resolved(&description, &operation["responses"][&status]);
            let schema = resolved(&description, &response["content"]["application/problem+json"]["schema"]);
            schema["allOf"][1]["properties"]["code"]["enum"].as_array().is_some_and(|codes| codes.contains(code))
        };
        let operations = members(&description["paths"]).flat_map(|(_, item)| members(item));
        let missing = operations.filter(|(_, operation)| !is_described(operation));
        let missing: Vec<_> = missing.map(|(_, operation)| text(&operation["operationId"])).collect();
        assert!(missing.is_empty(), "{status} {code} is not described: {missing:?}");
    }
}

/// It goes out as it is: the firewall writes no request's id, and knows no type of problem documents.
#[test]
fn the_answer_of_the_firewall_is_the_described_one() {
    let template = yaml("template.yaml");
    let firewall = &template["Resources"]["Firewall"]["Properties"];
    let body = &firewall["CustomResponseBodies"]["rate_limited"];
    assert_eq!(body["ContentType"], "APPLICATION_JSON");
    let problem: Value = serde_json::from_str(body["Content"].as_str().unwrap()).unwrap();
    let description = yaml("openapi.yaml");
    let schema = &description["components"]["schemas"]["FirewallProblem"];
    let sent = members(&problem).map(|(name, _)| name.clone()).collect();
    let required = schema["required"].as_array().unwrap().iter().map(text).collect();
    same("template.yaml", &sent, "FirewallProblem in openapi.yaml", &required);
    for name in ["type", "status", "code"] {
        assert_eq!(problem[name], schema["properties"][name]["const"], "{name}");
    }
    let rules = firewall["Rules"].as_array().unwrap();
    let rate = rules.iter().find(|rule| rule["Name"] == "rate").unwrap();
    let headers = rate["Action"]["Block"]["CustomResponse"]["ResponseHeaders"].as_array().unwrap();
    let wait = headers.iter().find(|header| header["Name"] == "Retry-After").unwrap();
    assert_eq!(wait["Value"], problem["retryAfterSeconds"].to_string());
}

/// The names of variables that the template gives to any function.
fn given_variables() -> BTreeSet<String> {
    let template = yaml("template.yaml");
    let functions = members(&template["Resources"])
        .filter(|(_, resource)| resource["Type"] == "AWS::Serverless::Function")
        .map(|(_, function)| &function["Properties"]);
    std::iter::once(&template["Globals"]["Function"])
        .chain(functions)
        .flat_map(|properties| members(&properties["Environment"]["Variables"]))
        .map(|(name, _)| name.clone())
        .collect()
}

/// Texts in the code that look like the name of a variable.
fn named_variables(folder: &Path, found: &mut BTreeSet<String>) {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            named_variables(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let code = std::fs::read_to_string(&path).unwrap();
            // Those of Cargo are read by the compiler.
            let code = code.replace("env!(\"", "");
            let looks_like_one = |text: &&str| {
                text.len() > 4
                    && text.starts_with(|first: char| first.is_ascii_uppercase())
                    && text.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
            };
            found.extend(code.split('"').filter(looks_like_one).map(str::to_owned));
        }
    }
}

#[test]
fn variables_are_given_read_and_described_alike() {
    let given = given_variables();
    let operations = read("docs/operations.md");
    let section = operations.split("## Environment variables").nth(1).unwrap().split("\n## ").next().unwrap();
    let (table, platform) = section.rsplit_once("|\n").unwrap();
    let in_backquotes =
        |text: &str| -> BTreeSet<String> { text.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let described = rows.flat_map(|row| in_backquotes(row.split('|').nth(1).unwrap())).collect();
    same("template.yaml", &given, "docs/operations.md", &described);

    let mut named = BTreeSet::new();
    for folder in ["lib/src", "functions"] {
        named_variables(&root().join(folder), &mut named);
    }
    // The runtime's own, and one whose change alone is of use: it ends warm sandboxes.
    let not_ours = ["AWS_LAMBDA_HTTP_IGNORE_STAGE_IN_PATH".to_owned(), "RELEASE".to_owned()];
    let unread: Vec<_> = given.difference(&named).filter(|name| !not_ours.contains(name)).collect();
    assert!(unread.is_empty(), "template.yaml gives variables that no code reads: {unread:?}");
    let of_platform = in_backquotes(platform);
    let endings = ["_ARN", "_URL", "_TABLE", "_DSN", "_ARG"];
    let unknown: Vec<_> = named
        .difference(&given)
        .filter(|name| name.starts_with("AWS_") || endings.iter().any(|ending| name.ends_with(ending)))
        .filter(|name| !of_platform.contains(*name))
        .collect();
    assert!(unknown.is_empty(), "code reads variables that nothing gives: {unknown:?}");
}

#[test]
fn every_alarm_has_its_row_in_the_operations_guide() {
    let template = yaml("template.yaml");
    let alarms = members(&template["Resources"])
        .filter(|(_, resource)| resource["Type"] == "AWS::CloudWatch::Alarm")
        .map(|(id, _)| id.trim_end_matches("Alarm").to_owned())
        .collect();
    let operations = read("docs/operations.md");
    let section = operations.split("## Alarms").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Alarm |"));
    let described = rows.flat_map(|row| row.split('|').nth(1).unwrap().split(',').map(|name| name.trim().to_owned()));
    same("template.yaml", &alarms, "docs/operations.md", &described.collect());
}
