//! Stands between ClickHouse and who uses it: cuts the connection of an insert, before or after it is done, or counts the
//! rows that are read for answers that it passes on later.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// What becomes of an insert into `events`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// It never reaches ClickHouse.
    Before,
    /// ClickHouse has done it, but its answer is lost.
    After,
    /// ClickHouse has done it, and the writer waits for the answer for ever.
    Silent,
}

pub struct Proxy {
    pub url: String,
    /// Told when an insert was cut.
    pub cut: Arc<Notify>,
}

impl Proxy {
    #[expect(clippy::disallowed_methods, reason = "a server of its own beside the test")]
    pub async fn start(upstream: &str, how: Cut) -> Self {
        let (upstream, listener, url) = between(upstream).await;
        let cut = Arc::new(Notify::new());
        let told = cut.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, upstream, how, told.clone()));
            }
        });
        Self { url, cut }
    }
}

async fn between(upstream: &str) -> (SocketAddr, TcpListener, String) {
    let upstream: SocketAddr = upstream.trim_start_matches("http://").parse().expect("address of ClickHouse");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    (upstream, listener, url)
}

async fn serve(mut client: TcpStream, upstream: SocketAddr, how: Cut, told: Arc<Notify>) {
    let mut server = TcpStream::connect(upstream).await.expect("ClickHouse");
    let (mut from_client, mut from_server) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut is_insert = false;
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => match read {
                Ok(length @ 1..) => {
                    is_insert |= String::from_utf8_lossy(&from_client[..length]).contains("INTO+events");
                    if is_insert && how == Cut::Before {
                        told.notify_one();
                        return;
                    }
                    server.write_all(&from_client[..length]).await.expect("forwarding");
                }
                _ => return,
            },
            read = server.read(&mut from_server) => match read {
                Ok(_) if is_insert => {
                    told.notify_one();
                    if how == Cut::Silent {
                        // Until the writer goes away.
                        while matches!(client.read(&mut from_client).await, Ok(1..)) {}
                    }
                    return;
                }
                Ok(length @ 1..) => client.write_all(&from_server[..length]).await.expect("answering"),
                _ => return,
            },
        }
    }
}

/// What was asked, and how many rows ClickHouse read for it.
type Answered = (String, u64);

pub struct Meter {
    pub url: String,
    answered: Arc<Mutex<Vec<Answered>>>,
}

impl Meter {
    /// Passes an answer on after this delay.
    #[expect(clippy::disallowed_methods, reason = "a server of its own beside the test")]
    pub async fn start(upstream: &str, delay: Duration) -> Self {
        let (upstream, listener, url) = between(upstream).await;
        let answered = Arc::<Mutex<Vec<Answered>>>::default();
        let told = Arc::clone(&answered);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(measure(client, upstream, delay, told.clone()));
            }
        });
        Self { url, answered }
    }

    /// The rows that were read for each statement with these words.
    pub fn rows_read(&self, words: &str) -> Vec<u64> {
        let answered = self.answered.lock().expect("nobody panics");
        answered.iter().filter(|(asked, _)| asked.contains(words)).map(|(_, rows)| *rows).collect()
    }
}

async fn measure(mut client: TcpStream, upstream: SocketAddr, delay: Duration, answered: Arc<Mutex<Vec<Answered>>>) {
    let mut server = TcpStream::connect(upstream).await.expect("ClickHouse");
    let (mut from_client, mut from_server) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut asked = String::new();
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => match read {
                Ok(length @ 1..) => {
                    asked += &String::from_utf8_lossy(&from_client[..length]);
                    server.write_all(&from_client[..length]).await.expect("forwarding");
                }
                _ => return,
            },
            read = server.read(&mut from_server) => match read {
                Ok(length @ 1..) => {
                    let answer = String::from_utf8_lossy(&from_server[..length]);
                    if let Some((_, rows)) = answer.split_once("\"read_rows\"") {
                        let digits = rows.trim_start_matches([':', ' ', '"']).split('"').next();
                        let rows = digits.and_then(|digits| digits.parse().ok()).expect("a number of rows");
                        answered.lock().expect("nobody panics").push((std::mem::take(&mut asked), rows));
                    }
                    tokio::time::sleep(delay).await;
                    client.write_all(&from_server[..length]).await.expect("answering");
                }
                _ => return,
            },
        }
    }
}
