//! `/containerLogs/NS/POD/CONTAINER`.

use super::{Body, State, text};
use crate::logs::{self, Options};
use crate::pod::{Instance, State as ContainerState};
use crate::worker::PodView;
use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use std::io;
use std::path::PathBuf;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

/// Pieces of log that may wait for a slow client.
const QUEUE: usize = 8;

/// The parameters of a request.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub fn of<B>(request: &Request<B>) -> Query {
        let raw = request.uri().query().unwrap_or_default();
        Query(url::form_urlencoded::parse(raw.as_bytes()).into_owned().collect())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    pub fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(k, _)| k == name).map(|(_, v)| v.clone()).collect()
    }

    pub fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("1" | "true" | "True" | "TRUE" | "t"))
    }

    /// stdin, stdout, stderr and tty, by the kubelet's names or by the API's.
    pub fn streams(&self) -> [bool; 4] {
        [("input", "stdin"), ("output", "stdout"), ("error", "stderr"), ("tty", "tty")]
            .map(|(a, b)| self.flag(a) || self.flag(b))
    }

    fn number(&self, name: &str) -> Result<Option<u64>, String> {
        self.get(name)
            .filter(|v| !v.is_empty())
            .map_or(Ok(None), |v| v.parse().map(Some).map_err(|_| format!("{name}: invalid value {v:?}")))
    }

    /// What to show of a log.
    pub fn log_options(&self, now: Timestamp) -> Result<Options, String> {
        let since = match (self.number("sinceSeconds")?, self.get("sinceTime").filter(|t| !t.is_empty())) {
            (Some(_), Some(_)) => {
                return Err("at most one of `sinceTime` or `sinceSeconds` may be specified".into());
            }
            (Some(s), None) => {
                let ago = SignedDuration::from_secs(i64::try_from(s).unwrap_or(i64::MAX));
                Some(now.checked_sub(ago).unwrap_or(Timestamp::MIN))
            }
            (None, Some(t)) => Some(t.parse().map_err(|_| format!("sinceTime: invalid value {t:?}"))?),
            (None, None) => None,
        };
        let stream = match self.get("stream") {
            None | Some("" | "All") => None,
            Some("Stdout") => Some("stdout".to_owned()),
            Some("Stderr") => Some("stderr".to_owned()),
            Some(other) => return Err(format!("stream: unsupported value {other:?}")),
        };
        let limit_bytes = self.number("limitBytes")?;
        if limit_bytes == Some(0) {
            return Err("limitBytes: must be greater than 0".into());
        }
        Ok(Options {
            follow: self.flag("follow"),
            tail_lines: self.number("tailLines")?,
            since,
            timestamps: self.flag("timestamps"),
            limit_bytes,
            stream,
        })
    }
}

pub(super) async fn serve(
    state: &State,
    ns: &str,
    pod: &str,
    container: &str,
    query: &Query,
) -> Response<Body> {
    let bad = |m: String| text(StatusCode::BAD_REQUEST, format!("{m}\n"));
    let options = match query.log_options(Timestamp::now()) {
        Ok(o) => o,
        Err(e) => return bad(e),
    };
    let Some(view) = state.pods.find(ns, pod, query.get("uid")) else {
        return text(StatusCode::NOT_FOUND, format!("pod \"{pod}\" not found in namespace \"{ns}\"\n"));
    };
    let now = view.borrow().clone();
    let id = match choose(&now, pod, container, query.flag("previous")) {
        Ok(id) => id,
        Err(e) => return bad(e),
    };
    let path = match state.shared.runtime.container_status(&id).await {
        Ok(Some(s)) if !s.log_path.is_empty() => PathBuf::from(s.log_path),
        Ok(_) => return bad(format!("the log of container \"{container}\" in pod \"{pod}\" is gone")),
        Err(e) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
    };
    let (tx, rx) = mpsc::channel::<Bytes>(QUEUE);
    let (running_tx, running) = watch::channel(runs(&now, &id));
    let stop = state.stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = watch_running(view, id, running_tx) => {}
            done = logs::stream(path, options, running, tx) => if let Err(e) = done {
                tracing::debug!("streaming a log: {e}");
            },
        }
    });
    let frames = ReceiverStream::new(rx).map(|b| Ok::<_, io::Error>(Frame::data(b)));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

fn runs(view: &PodView, id: &str) -> bool {
    view.observed.containers.iter().any(|c| c.id == id && matches!(c.state, ContainerState::Running(_)))
}

/// Tells the log's reader when its container ends. Never returns: the reader ends by itself.
async fn watch_running(mut view: watch::Receiver<PodView>, id: String, running: watch::Sender<bool>) {
    while view.changed().await.is_ok() {
        let now = runs(&view.borrow_and_update(), &id);
        running.send_if_modified(|r| std::mem::replace(r, now) != now);
    }
    running.send_replace(false);
    std::future::pending().await
}

/// The id of the instance whose log is asked for. The error is text for the client.
fn choose(view: &PodView, pod: &str, container: &str, previous: bool) -> Result<String, String> {
    let known = crate::pod::containers(&view.pod).iter().any(|s| s.name() == container);
    if !known {
        return Err(format!("container {container} is not valid for pod {pod}"));
    }
    let s = &view.status;
    let statuses = s
        .init_container_statuses
        .iter()
        .chain(&s.container_statuses)
        .chain(&s.ephemeral_container_statuses)
        .flatten();
    let status = statuses.into_iter().find(|s| s.name == container);
    if previous {
        let ended = status.and_then(|s| s.last_state.as_ref()?.terminated.as_ref()?.container_id.clone());
        let id = ended.and_then(|id| id.split_once("://").map(|(_, id)| id.to_owned()));
        return id.ok_or_else(|| {
            format!("previous terminated container \"{container}\" in pod \"{pod}\" not found")
        });
    }
    let begun = |i: &&Instance| !matches!(i.state, ContainerState::Created);
    let mut instances = view.observed.containers.iter().filter(|c| c.name == container);
    match instances.find(begun) {
        Some(i) => Ok(i.id.clone()),
        None => {
            let reason = status
                .and_then(|s| s.state.as_ref()?.waiting.as_ref()?.reason.clone())
                .unwrap_or_else(|| "ContainerCreating".into());
            Err(format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {reason}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        let q = |raw: &str| Query(url::form_urlencoded::parse(raw.as_bytes()).into_owned().collect());
        assert_eq!(q("command=a&command=b%20c").all("command"), ["a", "b c"]);
        assert_eq!(q("input=1&output=1&tty=1").streams(), [true, true, false, true]);
        assert_eq!(q("stdin=true&stderr=true").streams(), [true, false, true, false]);
        let now = Timestamp::from_second(100).unwrap();
        let o = q("follow=true&tailLines=5&sinceSeconds=10&timestamps=true&stream=Stdout")
            .log_options(now)
            .unwrap();
        assert_eq!((o.follow, o.tail_lines, o.timestamps), (true, Some(5), true));
        assert_eq!(o.since, Timestamp::from_second(90).ok());
        assert_eq!(o.stream.as_deref(), Some("stdout"));
        for bad in [
            "tailLines=x",
            "limitBytes=0",
            "sinceTime=x",
            "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z",
            "stream=x",
        ] {
            assert!(q(bad).log_options(now).is_err(), "{bad}");
        }
        assert!(q("sinceSeconds=99999999999999").log_options(now).is_ok());
    }
}
