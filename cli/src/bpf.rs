//! The verbs, and how they reach the agent.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::proto::inspect_client::InspectClient;
use crate::proto::{
    GetLbRequest, L4Addr, ListCtRequest, ListEndpointsRequest, ListIpcacheRequest, ListLbRequest,
    ListMetricsRequest,
};
use crate::render;

/// Where an agent's socket is unless told otherwise.
const DEFAULT_SOCKET: &str = "/run/hawser/proxy.sock";

/// Shows what the kernel's eBPF maps hold on this node.
#[derive(Debug, Subcommand)]
pub enum BpfCommand {
    /// Services: frontends and their backends.
    #[command(subcommand)]
    Lb(Lb),
    /// Pods of this node.
    #[command(subcommand)]
    Endpoint(List),
    /// Prefixes of the cluster: which node they are on, and what they are.
    #[command(subcommand)]
    Ipcache(List),
    /// Tracked connections: what tc translates. The socket hooks need no tracking.
    #[command(subcommand)]
    Ct(List),
    /// Packets and bytes by direction and reason, with drops.
    #[command(subcommand)]
    Metrics(List),
}

/// What to do with a table.
#[derive(Debug, Subcommand)]
pub enum List {
    /// Lists all entries.
    List(ListArgs),
}

/// What to do with Services.
#[derive(Debug, Subcommand)]
pub enum Lb {
    /// Lists all frontends.
    List(ListArgs),
    /// Looks one frontend up, at the cost of its backends alone.
    Get {
        /// ADDRESS:PORT or ADDRESS:PORT/PROTOCOL
        #[arg(value_parser = frontend)]
        frontend: L4Addr,
        #[command(flatten)]
        args: ListArgs,
    },
}

/// Reads `10.96.0.1:443`, `[fd00::1]:53/UDP`; without a protocol it is TCP.
fn frontend(text: &str) -> Result<L4Addr, String> {
    let (address, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
    let address: SocketAddr =
        address.parse().map_err(|_| "write ADDRESS:PORT/PROTOCOL, as 10.96.0.1:443/TCP".to_string())?;
    let protocol = protocol.to_ascii_uppercase();
    Ok(L4Addr { address: address.ip().to_string(), port: u32::from(address.port()), protocol })
}

/// Flags of every list.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// The agent's inspection socket.
    #[arg(long, env = "HAWSER_PROXY_SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned columns.
    Table,
    /// One JSON array.
    Json,
}

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens on the socket.
    #[error("no dataplane agent answers on {path}: {reason}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The agent could not read a map.
    #[error("the agent answered: {0}")]
    Agent(String),
    /// The output could not be written.
    #[error("writing the output: {0}")]
    Output(#[from] std::io::Error),
    /// The output could not be encoded.
    #[error("encoding the output: {0}")]
    Encode(#[from] serde_json::Error),
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Agent(status.message().to_string())
    }
}

impl BpfCommand {
    /// Runs the verb and prints to `out`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run(self, out: &mut impl Write) -> Result<(), Error> {
        let (Self::Lb(Lb::List(args) | Lb::Get { args, .. })
        | Self::Endpoint(List::List(args))
        | Self::Ipcache(List::List(args))
        | Self::Ct(List::List(args))
        | Self::Metrics(List::List(args))) = &self;
        let output = args.output;
        let mut client = connect(&args.socket).await?;
        match self {
            Self::Lb(Lb::Get { frontend, .. }) => {
                let request = GetLbRequest { address: Some(frontend) };
                let frontend = client.get_lb(request).await?.into_inner();
                print(out, output, &[frontend], render::lb)
            }
            Self::Lb(Lb::List(_)) => {
                let frontends = client.list_lb(ListLbRequest {}).await?.into_inner().frontends;
                print(out, output, &frontends, render::lb)
            }
            Self::Endpoint(_) => {
                let endpoints = client.list_endpoints(ListEndpointsRequest {}).await?.into_inner().endpoints;
                print(out, output, &endpoints, render::endpoints)
            }
            Self::Ipcache(_) => {
                let entries = client.list_ipcache(ListIpcacheRequest {}).await?.into_inner().entries;
                print(out, output, &entries, render::ipcache)
            }
            Self::Ct(_) => {
                let mut stream = client.list_ct(ListCtRequest {}).await?.into_inner();
                let mut entries = Vec::new();
                while let Some(part) = stream.message().await? {
                    entries.extend(part.entries);
                }
                print(out, output, &entries, render::ct)
            }
            Self::Metrics(_) => {
                let metrics = client.list_metrics(ListMetricsRequest {}).await?.into_inner().metrics;
                print(out, output, &metrics, render::metrics)
            }
        }
    }
}

fn print<T: Serialize>(
    out: &mut impl Write,
    output: Output,
    items: &[T],
    table: fn(&[T]) -> String,
) -> Result<(), Error> {
    match output {
        Output::Table => writeln!(out, "{}", table(items))?,
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, items)?;
            writeln!(out)?;
        }
    }
    Ok(())
}

/// A client of the agent that listens on `path`.
///
/// # Errors
/// When nobody listens there.
pub async fn connect(path: &Path) -> Result<InspectClient<Channel>, Error> {
    let socket = path.to_path_buf();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The authority is not used: the connector knows where to go.
    let channel = Endpoint::from_static("http://hawser").connect_with_connector(connector).await;
    let failed = |error: tonic::transport::Error| {
        let mut reason: &dyn std::error::Error = &error;
        while let Some(source) = reason.source() {
            reason = source;
        }
        Error::Connect { path: path.to_path_buf(), reason: reason.to_string() }
    };
    Ok(InspectClient::new(channel.map_err(failed)?))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use futures::stream;
    use tokio::net::UnixListener;
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::{Request, Response, Status};

    use super::*;
    use crate::proto::inspect_server::{Inspect, InspectServer};
    use crate::proto::*;

    /// An agent with one entry in each table, the connections in two parts.
    struct FakeAgent;

    #[tonic::async_trait]
    impl Inspect for FakeAgent {
        async fn list_lb(&self, _: Request<ListLbRequest>) -> Result<Response<ListLbResponse>, Status> {
            let address = Some(L4Addr { address: "10.96.0.1".into(), port: 443, protocol: "TCP".into() });
            let frontend = Frontend { address, rev_nat_id: 7, ..Default::default() };
            Ok(Response::new(ListLbResponse { frontends: vec![frontend] }))
        }

        async fn get_lb(&self, request: Request<GetLbRequest>) -> Result<Response<Frontend>, Status> {
            let address = request.into_inner().address.expect("an address");
            if address.port == 1 {
                return Err(Status::not_found("no Service has it"));
            }
            Ok(Response::new(Frontend { address: Some(address), rev_nat_id: 8, ..Default::default() }))
        }

        async fn list_endpoints(
            &self,
            _: Request<ListEndpointsRequest>,
        ) -> Result<Response<ListEndpointsResponse>, Status> {
            Err(Status::internal("map hawser_endpoints: no such file"))
        }

        async fn list_ipcache(
            &self,
            _: Request<ListIpcacheRequest>,
        ) -> Result<Response<ListIpcacheResponse>, Status> {
            Ok(Response::new(ListIpcacheResponse { entries: vec![IpcacheEntry::default()] }))
        }

        type ListCtStream = stream::Iter<std::vec::IntoIter<Result<ListCtResponse, Status>>>;

        async fn list_ct(&self, _: Request<ListCtRequest>) -> Result<Response<Self::ListCtStream>, Status> {
            let part =
                |packets| Ok(ListCtResponse { entries: vec![CtEntry { packets, ..Default::default() }] });
            Ok(Response::new(stream::iter(vec![part(1), part(2)])))
        }

        async fn list_metrics(
            &self,
            _: Request<ListMetricsRequest>,
        ) -> Result<Response<ListMetricsResponse>, Status> {
            Ok(Response::new(ListMetricsResponse { metrics: Vec::new() }))
        }
    }

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: BpfCommand,
    }

    async fn run(words: &str, socket: &Path) -> Result<String, Error> {
        let words = ["bpf"].into_iter().chain(words.split(' ')).map(str::to_string);
        let socket = ["--socket".to_string(), socket.display().to_string()];
        let cli = Cli::try_parse_from(words.chain(socket)).expect("a command line");
        let mut out = Vec::new();
        cli.command.run(&mut out).await?;
        Ok(String::from_utf8(out).expect("text"))
    }

    #[tokio::test]
    async fn verbs_reach_the_agent() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("proxy.sock");
        let missing = run("lb list", &socket).await.expect_err("nobody listens").to_string();
        assert!(missing.contains("proxy.sock") && missing.contains("No such file"), "{missing}");

        let listener = UnixListener::bind(&socket).expect("binds");
        let server = tonic::transport::Server::builder().add_service(InspectServer::new(FakeAgent));
        let server = tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        let table = run("lb list", &socket).await.expect("a table");
        assert!(table.contains("10.96.0.1:443/TCP") && table.contains("(refused)"), "{table}");
        let json = run("lb list -o json", &socket).await.expect("JSON");
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json[0]["rev_nat_id"], 7);
        assert_eq!(json[0]["address"]["address"], "10.96.0.1");
        let table = run("lb get [fd00::1]:53/udp", &socket).await.expect("a table");
        assert!(table.contains("[fd00::1]:53/UDP"), "{table}");
        let none = run("lb get 10.96.0.1:1", &socket).await.expect_err("is not there").to_string();
        assert!(none.contains("no Service has it"), "{none}");
        assert!(Cli::try_parse_from(["bpf", "lb", "get", "web"]).is_err());
        let json = run("ct list -o json", &socket).await.expect("JSON");
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!((json[0]["packets"].as_u64(), json[1]["packets"].as_u64()), (Some(1), Some(2)));
        assert_eq!(run("metrics list -o json", &socket).await.expect("JSON").trim(), "[]");
        assert!(run("ipcache list", &socket).await.is_ok());
        let failed = run("endpoint list", &socket).await.expect_err("the agent cannot").to_string();
        assert!(failed.contains("hawser_endpoints"), "{failed}");
        server.abort();
    }
}
