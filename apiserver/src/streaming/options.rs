//! Query parameters of log, exec and attach requests: checked, and said again in the kubelet's words. Pure.

use hawser_api::status::{FieldError, Status};
use serde_json::json;
use url::form_urlencoded::Serializer;

use crate::request_info::RequestInfo;

/// Parameters of logs that the kubelet takes as they are.
const LOG_PARAMS: [&str; 8] =
    ["follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes", "stream"];

/// A boolean parameter with a default.
fn flag(info: &RequestInfo, name: &str, default: bool) -> bool {
    if info.query.iter().any(|(key, _)| key == name) { info.flag(name) } else { default }
}

/// The kubelet's query for `pods/log`.
///
/// # Errors
/// 400 for what is no number, 422 for what makes no sense.
pub(super) fn log_query(info: &RequestInfo) -> Result<String, Status> {
    let mut errors = Vec::new();
    let mut number = |name: &str, least: i64, why: &str| -> Result<(), Status> {
        let Some(text) = info.param(name) else { return Ok(()) };
        let value: i64 = text.parse().map_err(|_| {
            Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
        })?;
        if value < least {
            errors.push(FieldError::invalid(name, json!(value), why));
        }
        Ok(())
    };
    number("tailLines", 0, "must be greater than or equal to 0")?;
    number("limitBytes", 1, "must be greater than 0")?;
    number("sinceSeconds", 1, "must be greater than 0")?;
    if info.param("sinceSeconds").is_some() && info.param("sinceTime").is_some() {
        errors
            .push(FieldError::forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    if let Some(stream) = info.param("stream") {
        let known = ["All", "Stdout", "Stderr"];
        if !known.contains(&stream) {
            errors.push(FieldError::not_supported("stream", stream, &known));
        } else if stream != "All" && info.param("tailLines").is_some() {
            errors.push(FieldError::forbidden(
                "",
                "`tailLines` and specific `stream` are mutually exclusive for now",
            ));
        }
    }
    if !errors.is_empty() {
        return Err(Status::invalid("", "PodLogOptions", &info.name, &errors));
    }
    let mut query = Serializer::new(String::new());
    for name in LOG_PARAMS {
        if let Some(value) = info.param(name) {
            query.append_pair(name, value);
        }
    }
    Ok(query.finish())
}

/// The kubelet's query for exec and attach: `input`, `output`, `error`, `tty`, and the command.
pub(super) fn stream_query(info: &RequestInfo) -> String {
    let mut query = Serializer::new(String::new());
    // The kinds' defaults: output and errors are wanted unless said otherwise.
    let streams = [
        ("stdin", "input", false),
        ("stdout", "output", true),
        ("stderr", "error", true),
        ("tty", "tty", false),
    ];
    let tty = flag(info, "tty", false);
    for (theirs, kubelets, default) in streams {
        // A terminal has one output.
        if flag(info, theirs, default) && !(theirs == "stderr" && tty) {
            query.append_pair(kubelets, "1");
        }
    }
    if info.subresource == "exec" {
        for (_, argument) in info.query.iter().filter(|(key, _)| key == "command") {
            query.append_pair("command", argument);
        }
    }
    query.finish()
}

/// The kubelet's query for port-forward: the ports, for clients that name them here.
///
/// # Errors
/// 400 for what is no port.
pub(super) fn port_query(info: &RequestInfo) -> Result<String, Status> {
    let mut query = Serializer::new(String::new());
    for ports in info.params("ports") {
        for port in ports.split(',') {
            if port.parse::<u16>().is_ok_and(|p| p != 0) {
                query.append_pair("port", port);
            } else {
                return Err(Status::bad_request(format!("invalid port {port:?}")));
            }
        }
    }
    Ok(query.finish())
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn info(sub: &str, query: &str) -> RequestInfo {
        let uri = format!("/api/v1/namespaces/ns/pods/p/{sub}?{query}");
        RequestInfo::parse(&Method::GET, &uri.parse().expect("uri"))
    }

    #[test]
    fn log_parameters() {
        let query = |q: &str| log_query(&info("log", q)).map_err(|status| (status.code, status.message));
        assert_eq!(query("follow=true&container=c&tailLines=10"), Ok("follow=true&tailLines=10".to_owned()));
        assert_eq!(
            query("sinceTime=2026-01-01T00%3A00%3A00Z"),
            Ok("sinceTime=2026-01-01T00%3A00%3A00Z".to_owned())
        );
        assert_eq!(query("tailLines=x").expect_err("refused").0, 400);
        assert_eq!(
            query("tailLines=-1"),
            Err((422, "PodLogOptions \"p\" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0".to_owned()))
        );
        for bad in [
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z",
            "stream=x",
            "stream=Stdout&tailLines=1",
        ] {
            assert_eq!(query(bad).expect_err("refused").0, 422, "{bad}");
        }
    }

    #[test]
    fn streams_are_said_in_the_kubelets_words() {
        for (sub, query, expected) in [
            (
                "exec",
                "command=ls&command=-l+a&stdout=true&stderr=true",
                "output=1&error=1&command=ls&command=-l+a",
            ),
            ("exec", "command=sh&stdin=true&tty=true", "input=1&output=1&tty=1&command=sh"),
            ("exec", "command=ls&stdout=false", "error=1&command=ls"),
            ("attach", "stdin=1&command=no", "input=1&output=1&error=1"),
        ] {
            assert_eq!(stream_query(&info(sub, query)), expected, "{query}");
        }
        assert_eq!(
            port_query(&info("portforward", "ports=80,81&ports=82")),
            Ok("port=80&port=81&port=82".to_owned())
        );
        assert_eq!(port_query(&info("portforward", "")), Ok(String::new()));
        assert_eq!(port_query(&info("portforward", "ports=70000")).expect_err("refused").code, 400);
    }
}
