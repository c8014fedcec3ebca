//! The parameters of operations: which an action has, and what each one means.

use hawser_api::kinds::Kind;
use serde_json::{Value, json};

/// Name, type and meaning of a query parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Parameter {
    name: &'static str,
    ty: &'static str,
    text: &'static str,
}

/// Where a parameter stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// In the path, with its meaning.
    Path(&'static str, String),
    /// In the query.
    Query(Parameter),
}

const fn p(name: &'static str, ty: &'static str, text: &'static str) -> Parameter {
    Parameter { name, ty, text }
}

const CONTINUE: Parameter = p(
    "continue",
    "string",
    "Token of the next page, as the page before gave it. The other parameters must be those of that page. An expired \
     token is answered with 410 and, where that is possible, with a token to go on with.",
);
const DRY_RUN: Parameter = p(
    "dryRun",
    "string",
    "`All`: everything is done but the write; nothing is stored. Other values are refused.",
);
const FIELD_MANAGER: Parameter = p(
    "fieldManager",
    "string",
    "Name of who makes the change, under which the fields are noted in managedFields; at most 128 printable \
     characters. Server-side apply requires it; else the user agent's first word stands in.",
);
const FIELD_SELECTOR: Parameter =
    p("fieldSelector", "string", "Restricts the list to objects with these values of selectable fields.");
const FIELD_VALIDATION: Parameter = p(
    "fieldValidation",
    "string",
    "What becomes of unknown and duplicate fields: `Ignore` drops them, `Warn` (the default) drops them with a \
     Warning header, `Strict` refuses the request.",
);
const FORCE: Parameter =
    p("force", "boolean", "Takes over fields that others manage. Only for server-side apply.");
const GRACE: Parameter = p(
    "gracePeriodSeconds",
    "integer",
    "Seconds until the object is removed; not negative. Zero removes at once. Without it the kind's default counts.",
);
const BREAKING: Parameter = p(
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "boolean",
    "Removes an object that cannot be read from the store, without finalizers and preconditions.",
);
const LABEL_SELECTOR: Parameter =
    p("labelSelector", "string", "Restricts the list to objects with matching labels.");
const LIMIT: Parameter = p(
    "limit",
    "integer",
    "Most objects on a page. When there are more, the list's metadata carries a token for `continue`; all pages show \
     the state of the first. Not for watches.",
);
const ORPHAN: Parameter = p(
    "orphanDependents",
    "boolean",
    "Deprecated: use propagationPolicy. Whether dependents stay; not with both.",
);
const PROPAGATION: Parameter = p(
    "propagationPolicy",
    "string",
    "What becomes of dependents: `Orphan` keeps them, `Background` deletes them afterwards, `Foreground` before the \
     object itself. Without it the finalizers and the kind's default decide.",
);
const PRETTY: Parameter = p(
    "pretty",
    "string",
    "`true` breaks JSON into lines. Without it that is done for browsers, curl and wget.",
);
const RESOURCE_VERSION: Parameter = p(
    "resourceVersion",
    "string",
    "The state to answer from, together with resourceVersionMatch; for a watch, where it begins. \
     See https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions.",
);
const VERSION_MATCH: Parameter = p(
    "resourceVersionMatch",
    "string",
    "How resourceVersion is meant: `NotOlderThan` or `Exact`. \
     See https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions.",
);
const INITIAL_EVENTS: Parameter = p(
    "sendInitialEvents",
    "boolean",
    "Begins a watch with the present objects as ADDED events and, with allowWatchBookmarks, ends them with a bookmark \
     that carries the annotation `k8s.io/initial-events-end`. Needs `resourceVersionMatch=NotOlderThan`.",
);
const SHARDS: Parameter = p(
    "shardSelector",
    "string",
    "Restricts the list to ranges of a hash of the objects' UIDs or namespaces (alpha, feature gate \
     ShardedListAndWatch).",
);
const TIMEOUT: Parameter = p("timeoutSeconds", "integer", "Seconds after which a list or watch ends.");
const WATCH: Parameter = p(
    "watch",
    "boolean",
    "Answers with a stream of changes from resourceVersion on in the place of the list.",
);
const BOOKMARKS: Parameter = p(
    "allowWatchBookmarks",
    "boolean",
    "Asks a watch for BOOKMARK events, which say how far it has come. When they are sent is up to the server.",
);

const CONTAINER: Parameter =
    p("container", "string", "Name of the container; not needed in a pod of one container.");
const LOG: &[Parameter] = &[
    CONTAINER,
    p("follow", "boolean", "Goes on with new lines as they are written."),
    p("insecureSkipTLSVerifyBackend", "boolean", "Does not check the certificate of the node's kubelet."),
    p("limitBytes", "integer", "Most bytes to answer with; the last line may be cut."),
    PRETTY,
    p("previous", "boolean", "The log of the container before its last restart."),
    p("sinceSeconds", "integer", "Only lines of this many last seconds."),
    p("stream", "string", "`All`, `Stdout` or `Stderr`."),
    p("tailLines", "integer", "Only this many last lines."),
    p("timestamps", "boolean", "Begins each line with its time in RFC 3339."),
];
const STREAMS: [Parameter; 4] = [
    p("stderr", "boolean", "Sends the standard error stream."),
    p("stdin", "boolean", "Takes the standard input stream."),
    p("stdout", "boolean", "Sends the standard output stream."),
    p("tty", "boolean", "Whether the streams are those of a terminal."),
];
const ATTACH: &[Parameter] = &[CONTAINER, STREAMS[0], STREAMS[1], STREAMS[2], STREAMS[3]];
const EXEC: &[Parameter] = &[
    p("command", "string", "The command's words, one parameter each; no shell reads them."),
    CONTAINER,
    STREAMS[0],
    STREAMS[1],
    STREAMS[2],
    STREAMS[3],
];
const PORT_FORWARD: &[Parameter] = &[p("ports", "integer", "Ports to forward; needed with WebSockets.")];
const PROXY: &[Parameter] =
    &[p("path", "string", "The path, with its parameters, to ask for behind the proxy.")];

const LIST: &[Parameter] = &[
    BOOKMARKS,
    CONTINUE,
    FIELD_SELECTOR,
    LABEL_SELECTOR,
    LIMIT,
    PRETTY,
    RESOURCE_VERSION,
    VERSION_MATCH,
    INITIAL_EVENTS,
    SHARDS,
    TIMEOUT,
    WATCH,
];
const WRITE: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, PRETTY];
const PATCH: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE, PRETTY];
const DELETE: &[Parameter] = &[DRY_RUN, GRACE, BREAKING, ORPHAN, PRETTY, PROPAGATION];
const DELETE_COLLECTION: &[Parameter] = &[
    CONTINUE,
    DRY_RUN,
    FIELD_SELECTOR,
    GRACE,
    BREAKING,
    LABEL_SELECTOR,
    LIMIT,
    ORPHAN,
    PRETTY,
    PROPAGATION,
    RESOURCE_VERSION,
    VERSION_MATCH,
    INITIAL_EVENTS,
    SHARDS,
    TIMEOUT,
];
/// What a custom resource's GET says of itself.
const GET_DEFINED: &[Parameter] = &[PRETTY, RESOURCE_VERSION];

/// The query parameters of an action.
pub(super) fn of_action(action: &str, kind: &Kind, subresource: &str) -> &'static [Parameter] {
    match (action, subresource) {
        ("connect", "attach") => ATTACH,
        ("connect", "exec") => EXEC,
        ("connect", "portforward") => PORT_FORWARD,
        ("connect", _) => PROXY,
        ("get", "log") => LOG,
        ("get", _) if !kind.builtin => GET_DEFINED,
        ("list" | "watch" | "watchlist", _) => LIST,
        ("post" | "put", _) => WRITE,
        ("patch", _) => PATCH,
        ("delete", _) => DELETE,
        ("deletecollection", _) => DELETE_COLLECTION,
        _ => &[PRETTY],
    }
}

impl Place {
    fn name(&self) -> &'static str {
        match self {
            Self::Path(name, _) => name,
            Self::Query(parameter) => parameter.name,
        }
    }

    /// The parameter as OpenAPI writes it.
    pub(super) fn to_value(&self) -> Value {
        let name = self.name();
        match self {
            Self::Path(_, text) => json!({"name": name, "in": "path", "description": text, "required": true,
                "schema": {"type": "string", "uniqueItems": true}}),
            Self::Query(parameter) => {
                json!({"name": name, "in": "query", "description": parameter.text,
                    "schema": {"type": parameter.ty, "uniqueItems": true}})
            }
        }
    }

    /// By name; of two with one name the path's is first.
    pub(super) fn order(&self) -> (&'static str, bool) {
        (self.name(), matches!(self, Self::Query(_)))
    }
}
