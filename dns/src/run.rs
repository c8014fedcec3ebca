//! One server, from its sockets to its end.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hickory_resolver::net::NetError;
use kube::Client;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch as signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, ConfigError, Settings, upstreams};
use crate::control::{self, Command, Guest, Hello, Incumbent, Pair};
use crate::forward::Forward;
use crate::respond::Responder;
use crate::scrape;
use crate::sockets::Sockets;
use crate::watch;

/// How long answers under way are waited for at the end.
const DRAIN: Duration = Duration::from_secs(10);
/// How often the host's resolver configuration is looked at.
const RELOAD: Duration = Duration::from_secs(30);

/// Why a server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// An address cannot be had.
    #[error("{0}: {1}")]
    Bind(SocketAddr, io::Error),
    /// The control socket cannot be had.
    #[error("{0}: {1}")]
    Control(PathBuf, io::Error),
    /// The address of the metrics cannot be had.
    #[error("metrics: {0}")]
    Metrics(io::Error),
    /// The upstream servers cannot be used.
    #[error("upstream servers: {0}")]
    Upstream(#[from] NetError),
}

/// A DNS server.
pub struct Server {
    settings: Settings,
    client: Client,
}

impl Server {
    /// Checks the configuration. Nothing is opened yet.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn new(config: Config, client: Client) -> Result<Self, ConfigError> {
        Ok(Server { settings: config.check()?, client })
    }

    /// Serves until cancelled, told to end, or succeeded by another process. `serving` is called once it answers. If
    /// another process serves, its sockets are taken over once this one knows as much; if that one is of the same
    /// fingerprint, there is nothing to do.
    ///
    /// # Errors
    /// See [`Error`]. Faults of the API and of upstream servers are none.
    pub async fn run(self, stop: CancellationToken, serving: impl FnOnce()) -> Result<(), Error> {
        let Server { settings, client } = self;
        let config = &settings.config;
        let control_error = |error| Error::Control(config.control.clone(), error);
        let forward = forward(&settings)?;
        let responder = Arc::new(Responder::new(settings.zone.clone(), forward, config.clients.clone()));
        let (sender, synced) = signal::channel(false);
        let watching = watch::run(client, &responder, sender);
        let reloading = reload(&settings, &responder);
        let work = async {
            let taken = tokio::select! {
                taken = succeed(&settings, synced) => taken?,
                () = stop.cancelled() => return Ok(()),
            };
            let Some(taken) = taken else { return Ok(()) };
            let sockets = open(&config.listen, taken).await?;
            let listener = control::listen(&config.control).map_err(control_error)?;
            let (tasks, reading) = (TaskTracker::new(), CancellationToken::new());
            let _reading_ends = reading.clone().drop_guard();
            for sockets in &sockets {
                sockets.serve(&responder, &tasks, &reading);
            }
            tracing::info!(addresses = ?config.listen, "answering");
            serving();
            // Whoever told this server to end waits for its connection to close.
            let _told_by = tokio::select! {
                () = stop.cancelled() => None,
                ended = scrape::run(&config.metrics, &responder) => return ended.map_err(Error::Metrics),
                told = attend(&listener, &responder, &sockets, &config.fingerprint) => Some(told.map_err(control_error)?),
            };
            reading.cancel();
            tasks.close();
            if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
                tracing::warn!("some connections are still open after {DRAIN:?}");
            }
            Ok(())
        };
        tokio::select! {
            result = work => result,
            () = watching => Ok(()),
            () = reloading => Ok(()),
        }
    }
}

fn forward(settings: &Settings) -> Result<Forward, NetError> {
    let own = &settings.config.service_addresses;
    let others = settings.config.resolv_conf.as_ref().map(|path| upstreams(path, own)).unwrap_or_default();
    tracing::info!(servers = ?others, "upstream");
    Forward::new(&settings.stubs, &others)
}

/// Reads the host's resolver configuration again when it has changed.
async fn reload(settings: &Settings, responder: &Responder) {
    let Some(path) = &settings.config.resolv_conf else { return std::future::pending().await };
    let servers = || upstreams(path, &settings.config.service_addresses);
    let mut held = servers();
    loop {
        tokio::time::sleep(RELOAD).await;
        let found = servers();
        if found == held {
            continue;
        }
        match forward(settings) {
            Ok(forward) => responder.set_forward(forward),
            Err(error) => tracing::warn!(%error, "reading {} again", path.display()),
        }
        held = found;
    }
}

/// The sockets of the process that serves, once this one has read the cluster's Services; none when nobody serves.
/// `None` when one of this fingerprint serves.
async fn succeed(
    settings: &Settings,
    mut synced: signal::Receiver<bool>,
) -> Result<Option<Vec<Pair>>, Error> {
    let config = &settings.config;
    let control_error = |error| Error::Control(config.control.clone(), error);
    loop {
        let found = Incumbent::find(&config.control).await.map_err(control_error)?;
        let Some(mut incumbent) = found else { return Ok(Some(Vec::new())) };
        if incumbent.hello.fingerprint == config.fingerprint {
            tracing::info!(pid = incumbent.hello.pid, "one of this build and these settings serves already");
            return Ok(None);
        }
        tracing::info!(pid = incumbent.hello.pid, "taking over");
        // One that knows nothing can be succeeded by one that does not either.
        if incumbent.hello.synced {
            tokio::select! {
                _ = synced.wait_for(|synced| *synced) => {}
                () = incumbent.ended() => continue,
            }
        }
        match incumbent.take().await.map_err(control_error)? {
            Some(sockets) => return Ok(Some(sockets)),
            // It ended meanwhile: by itself, or because another one has taken its sockets.
            None => continue,
        }
    }
}

/// A socket pair for each address: one that was taken, else a new one.
async fn open(addresses: &[SocketAddr], taken: Vec<Pair>) -> Result<Vec<Sockets>, Error> {
    let mut taken: Vec<Option<Pair>> = taken.into_iter().map(Some).collect();
    let mut opened = Vec::with_capacity(addresses.len());
    for address in addresses {
        let held = taken.iter_mut().find(|pair| pair.as_ref().is_some_and(|(held, ..)| held == address));
        opened.push(match held.and_then(Option::take) {
            Some((_, udp, tcp)) => adopt(udp, tcp),
            None => Sockets::bind(*address).await,
        });
    }
    opened.into_iter().zip(addresses).map(|(s, address)| s.map_err(|e| Error::Bind(*address, e))).collect()
}

fn adopt(udp: std::os::fd::OwnedFd, tcp: std::os::fd::OwnedFd) -> io::Result<Sockets> {
    // They came with O_NONBLOCK set, which belongs to the socket and not to the descriptor.
    Ok(Sockets {
        udp: Arc::new(tokio::net::UdpSocket::from_std(udp.into())?),
        tcp: Arc::new(tokio::net::TcpListener::from_std(tcp.into())?),
    })
}

/// Answers on the control socket until told to end, and by whom.
async fn attend(
    listener: &UnixListener,
    responder: &Arc<Responder>,
    sockets: &[Sockets],
    fingerprint: &str,
) -> io::Result<Guest> {
    let (ask, mut asked) = mpsc::channel::<(Command, Guest)>(8);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                let hello = Hello {
                    pid: std::process::id(),
                    fingerprint: fingerprint.to_owned(),
                    synced: responder.synced.load(Relaxed),
                };
                let ask = ask.clone();
                tokio::spawn(async move {
                    let Ok(mut guest) = Guest::greet(stream, &hello).await else { return };
                    match guest.command().await {
                        Ok(Some(command)) => drop(ask.send((command, guest)).await),
                        Ok(None) => {}
                        Err(error) => tracing::warn!(%error, "control socket"),
                    }
                });
            }
            Some((command, mut guest)) = asked.recv() => match command {
                Command::Metrics => {
                    let counts = responder.index.read().counts();
                    let text = responder.metrics.render(counts, responder.synced.load(Relaxed));
                    // Whoever asked may have gone.
                    let _ = guest.tell(&text).await;
                }
                Command::Stop => return Ok(guest),
                Command::Take => {
                    use std::os::fd::AsFd;
                    let pairs: io::Result<Vec<_>> = sockets
                        .iter()
                        .map(|s| Ok((s.address()?, s.udp.as_fd(), s.tcp.as_fd())))
                        .collect();
                    match guest.give(&pairs?).await {
                        Ok(()) => {
                            tracing::info!("another process goes on");
                            return Ok(guest);
                        }
                        Err(error) => tracing::warn!(%error, "handing the sockets over"),
                    }
                }
            }
        }
    }
}
