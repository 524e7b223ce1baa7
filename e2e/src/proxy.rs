//! A door between a program and a server, which a test can shut: the server is away for that program and for nobody else.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What becomes of connections, those that are open included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// They lead to the server.
    Open,
    /// They are closed at once, as by a machine on which the server doesn't run.
    Shut,
    /// They stay, and nothing comes of them, as where the network is cut. They are closed when the door moves again.
    Silent,
}

/// A TCP proxy on the loopback interface. It ends when this is dropped.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    door: watch::Sender<Door>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts one, with its door open, in the network that the calling thread is in. `server` is `host:port`.
    ///
    /// # Errors
    /// If no port can be had.
    pub async fn to(server: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listen on the loopback interface")?;
        let address = listener.local_addr().context("find the proxy's port")?;
        let (door, watching) = watch::channel(Door::Open);
        let server = server.to_owned();
        let task = tokio::spawn(async move {
            // An error is that of a connection which was given up before it was accepted.
            loop {
                if let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(pass(client, server.clone(), watching.clone()));
                }
            }
        });
        Ok(Self { address, door, task })
    }

    /// Moves the door.
    pub fn set(&self, door: Door) {
        self.door.send_replace(door);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes on what one connection brings, for as long as the door is open. An error at either end closes both.
async fn pass(mut client: TcpStream, server: String, mut door: watch::Receiver<Door>) {
    if *door.borrow_and_update() == Door::Open {
        let passing = async {
            let mut server = TcpStream::connect(server).await?;
            copy_bidirectional(&mut client, &mut server).await
        };
        let mut passing = std::pin::pin!(passing);
        tokio::select! {
            _ = &mut passing => return,
            _ = door.changed() => {}
        }
        if *door.borrow_and_update() == Door::Silent {
            // Both connections are still there, in `passing`.
            let _ = door.changed().await;
        }
    } else if *door.borrow() == Door::Silent {
        let _ = door.changed().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    /// Says something to an echo behind the door; what comes back, or nothing if the connection is closed or silent.
    async fn echo(stream: &mut TcpStream) -> Option<u8> {
        stream.write_all(b"a").await.ok()?;
        timeout(Duration::from_millis(200), stream.read_u8()).await.ok()?.ok()
    }

    async fn behind_a_door() -> (Proxy, TcpStream) {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = server.accept().await {
                tokio::spawn(async move {
                    let (mut reading, mut writing) = stream.split();
                    tokio::io::copy(&mut reading, &mut writing).await
                });
            }
        });
        let proxy = Proxy::to(&address).await.unwrap();
        let stream = TcpStream::connect(proxy.address).await.unwrap();
        (proxy, stream)
    }

    #[tokio::test]
    async fn an_open_door_lets_everything_through_again() {
        let (proxy, mut stream) = behind_a_door().await;
        assert_eq!(echo(&mut stream).await, Some(b'a'));
        proxy.set(Door::Shut);
        assert_eq!(echo(&mut stream).await, None);
        proxy.set(Door::Open);
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(echo(&mut stream).await, Some(b'a'));
    }

    #[tokio::test]
    async fn a_shut_door_closes_and_a_silent_one_does_not() {
        for (door, is_closed) in [(Door::Shut, true), (Door::Silent, false)] {
            let (proxy, mut open) = behind_a_door().await;
            assert_eq!(echo(&mut open).await, Some(b'a'));
            proxy.set(door);
            let mut new = TcpStream::connect(proxy.address).await.unwrap();
            for stream in [&mut open, &mut new] {
                let end = timeout(Duration::from_millis(200), stream.read_u8()).await;
                assert_eq!(end.is_ok(), is_closed, "{door:?}");
            }
        }
    }
}
