//! A Lambda sandbox on this machine: a function's process, and the Runtime API that it polls.
//!
//! It keeps Lambda's order: the next event is handed out when the runtime has asked for it, which is when Lambda
//! would have frozen the sandbox.

pub mod deployed;
pub mod history;
pub mod plans;
pub mod relay;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc as happened;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

/// Longer than any function is allowed to run behind API Gateway.
const DEADLINE: Duration = Duration::from_secs(30);
/// Lines of a function's log that are kept.
const KEPT_LINES: usize = 20;

/// A variable that describes the running stack.
///
/// # Panics
/// When it is not set.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the tests' one home of environment access")]
pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: these tests need a running stack; `make test` starts one and runs them")
    })
}

/// What a function did.
enum Happening {
    AskedForEvent(Instant),
    Replied(Instant, Bytes),
    Failed(Bytes),
    Exited,
}

/// A running function.
pub struct Sandbox {
    name: String,
    child: Arc<Mutex<Child>>,
    init: Duration,
    init_cpu: Duration,
    happenings: happened::Receiver<Happening>,
    events: mpsc::UnboundedSender<(Bytes, Duration)>,
    is_idle: bool,
    lines: Arc<Mutex<Vec<String>>>,
    _api: Api,
}

/// The reply to one event.
pub struct Reply {
    /// What the function sent.
    pub payload: Value,
    /// From handing out the event to the last byte of the reply.
    pub took: Duration,
}

impl Sandbox {
    /// Starts the function and waits until it asks for its first event.
    ///
    /// # Errors
    /// When it does not start; with the last lines of its log.
    pub fn start(binary: &Path, environment: &BTreeMap<String, String>) -> Result<Self, String> {
        let name = binary.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (happens, happenings) = happened::channel();
        let (events, events_out) = mpsc::unbounded_channel();
        let shared = Shared { happens: happens.clone(), events: Arc::new(tokio::sync::Mutex::new(events_out)) };
        let api = Api::start(shared)?;

        let mut command = Command::new(binary);
        command
            .env_clear()
            .env("AWS_LAMBDA_FUNCTION_NAME", &name)
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
            .env("AWS_LAMBDA_LOG_STREAM_NAME", "local")
            .env("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand")
            .envs(environment)
            .env("AWS_LAMBDA_RUNTIME_API", &api.address)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let started = Instant::now();
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", binary.display()))?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        if let Some(output) = child.stdout.take() {
            let lines = lines.clone();
            // The pipe closes when the process ends, however it ends.
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let mut lines = lines.lock().unwrap();
                    lines.push(line);
                    let surplus = lines.len().saturating_sub(KEPT_LINES);
                    lines.drain(..surplus);
                }
                let _ = happens.send(Happening::Exited);
            });
        }
        let mut sandbox = Self {
            name,
            child: Arc::new(Mutex::new(child)),
            init: Duration::ZERO,
            init_cpu: Duration::ZERO,
            happenings,
            events,
            is_idle: false,
            lines,
            _api: api,
        };
        let Happening::AskedForEvent(at) = sandbox.next_happening()? else {
            return Err(sandbox.failure("replied before there was an event"));
        };
        sandbox.init = at - started;
        sandbox.init_cpu = sandbox.cpu()?;
        Ok(sandbox)
    }

    /// The process.
    #[must_use]
    pub fn id(&self) -> i32 {
        self.child.lock().unwrap().id().cast_signed()
    }

    /// From the start of the process to its first request for an event.
    #[must_use]
    pub fn init(&self) -> Duration {
        self.init
    }

    /// What of that the processor worked; the rest waited for other processes.
    #[must_use]
    pub fn init_cpu(&self) -> Duration {
        self.init_cpu
    }

    /// What the process's first thread, on which an init runs, has worked.
    fn cpu(&self) -> Result<Duration, String> {
        let path = PathBuf::from(format!("/proc/{}/schedstat", self.child.lock().unwrap().id()));
        let times = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let nanos = times.split(' ').next().and_then(|nanos| nanos.parse().ok());
        nanos.map(Duration::from_nanos).ok_or_else(|| self.failure("has no time in schedstat"))
    }

    /// Hands out an event, waits for the reply, and then for the work that goes on behind it.
    ///
    /// # Errors
    /// When the function fails, ends, or does not reply.
    pub fn invoke(&mut self, event: &Value) -> Result<Reply, String> {
        self.invoke_within(event, DEADLINE)
    }

    /// The same with so much time for the function.
    ///
    /// # Errors
    /// When the function fails, ends, or does not reply.
    pub fn invoke_within(&mut self, event: &Value, time: Duration) -> Result<Reply, String> {
        let reply = self.invoke_unfinished(event, time)?;
        while !self.is_idle {
            if let Happening::Replied(..) = self.next_happening()? {
                return Err(self.failure("replied twice"));
            }
        }
        Ok(reply)
    }

    /// The same, but waits for the reply alone: the sandbox may still be at work, or end.
    ///
    /// # Errors
    /// When the function fails, ends, or does not reply.
    pub fn invoke_unfinished(&mut self, event: &Value, time: Duration) -> Result<Reply, String> {
        let event = Bytes::from(event.to_string());
        self.is_idle = false;
        let started = Instant::now();
        let _ = self.events.send((event, time));
        loop {
            if let Happening::Replied(at, payload) = self.next_happening()? {
                // A streamed reply is its head in JSON, zero bytes, and the body.
                let head = payload.split(|byte| *byte == 0).next().unwrap_or_default();
                let payload = serde_json::from_slice(head)
                    .map_err(|error| self.failure(&format!("the reply is not JSON: {error}")))?;
                return Ok(Reply { payload, took: at - started });
            }
        }
    }

    /// The most memory that the process has held, in bytes.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn peak_memory(&self) -> Result<u64, String> {
        let path = PathBuf::from(format!("/proc/{}/status", self.child.lock().unwrap().id()));
        let status = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let kilobytes =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        kilobytes.map(|kilobytes: u64| kilobytes * 1024).ok_or_else(|| self.failure("has no VmHWM"))
    }

    /// The last lines of the function's log so far.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// `kill -9`, as when a sandbox is lost.
    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }

    fn next_happening(&mut self) -> Result<Happening, String> {
        let happening =
            self.happenings.recv_timeout(DEADLINE).map_err(|_| self.failure("did nothing for 30 seconds"))?;
        match &happening {
            // Lambda would freeze the sandbox now.
            Happening::AskedForEvent(_) => self.is_idle = true,
            Happening::Replied(..) => {}
            Happening::Failed(error) => return Err(self.failure(&String::from_utf8_lossy(error))),
            Happening::Exited => return Err(self.failure("ended")),
        }
        Ok(happening)
    }

    fn failure(&self, what: &str) -> String {
        format!("{}: {what}\n{}", self.name, self.lines.lock().unwrap().join("\n"))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.kill();
    }
}

const FUNCTION_ARN: &str = "arn:aws:lambda:us-east-1:000000000000:function:sandbox";

fn deadline_millis(time: Duration) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from((now + time).as_millis()).unwrap_or(u64::MAX)
}

/// What the API's connections share.
#[derive(Clone)]
struct Shared {
    happens: happened::Sender<Happening>,
    events: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<(Bytes, Duration)>>>,
}

/// The server that one function polls, on a thread of its own.
struct Api {
    address: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Api {
    fn start(shared: Shared) -> Result<Self, String> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        listener.set_nonblocking(true).map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?.to_string();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(listener, shared) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.stop.take().map(|stop| stop.send(()));
        self.thread.take().map(JoinHandle::join);
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the platform, not a function on it")]
async fn accept(listener: std::net::TcpListener, shared: Shared) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve(stream, shared.clone()));
    }
}

async fn serve(stream: TcpStream, shared: Shared) {
    let _ = stream.set_nodelay(true);
    let service = hyper::service::service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(shared.answer(request).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        match (request.method(), path.as_str()) {
            (&Method::GET, "/2018-06-01/runtime/invocation/next") => {
                self.tell(Happening::AskedForEvent(Instant::now()));
                next(&self.events).await
            }
            (&Method::POST, path) => {
                let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                self.tell(if path.ends_with("/response") {
                    Happening::Replied(Instant::now(), body)
                } else {
                    Happening::Failed(body)
                });
                status(StatusCode::ACCEPTED)
            }
            _ => status(StatusCode::NOT_FOUND),
        }
    }

    fn tell(&self, happening: Happening) {
        let _ = self.happens.send(happening);
    }
}

async fn next(events: &tokio::sync::Mutex<mpsc::UnboundedReceiver<(Bytes, Duration)>>) -> Response<Full<Bytes>> {
    let Some((event, time)) = events.lock().await.recv().await else { return status(StatusCode::GONE) };
    let mut response = Response::new(Full::from(event));
    for (name, value) in [
        ("lambda-runtime-aws-request-id", "00000000-0000-4000-8000-000000000000".to_owned()),
        ("lambda-runtime-deadline-ms", deadline_millis(time).to_string()),
        ("lambda-runtime-invoked-function-arn", FUNCTION_ARN.to_owned()),
    ] {
        response.headers_mut().insert(name, value.parse().expect("a header value"));
    }
    response
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}
