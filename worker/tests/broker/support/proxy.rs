//! A server that can be taken away, or made to fall silent: a TCP proxy in front of the real one.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use celery_client::BrokerAddress;

/// Forwards connections while it is up.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

struct State {
    up: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
    silent: Mutex<bool>,
    speaks: Condvar,
    hold_at: Mutex<Option<&'static str>>,
}

impl Proxy {
    /// A proxy for the broker of this URL, that is up or not, and the URL of the broker behind it.
    pub(crate) fn of_broker(url: &str, up: bool) -> (Self, String) {
        let mut broker: BrokerAddress = url.parse().unwrap();
        let proxy = Self::start(format!("{}:{}", broker.host, broker.port), up);
        broker.host = "127.0.0.1".to_owned();
        broker.port = proxy.address.port();
        (proxy, broker.to_uri())
    }

    /// A proxy for `target`, that is up or not.
    pub(crate) fn start(target: String, up: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            up: AtomicBool::new(up),
            open: Mutex::default(),
            silent: Mutex::default(),
            speaks: Condvar::new(),
            hold_at: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for inbound in listener.incoming().map_while(Result::ok) {
                let up = shared.up.load(Ordering::SeqCst);
                if let (true, Ok(outbound)) = (up, TcpStream::connect(&target)) {
                    shared
                        .open
                        .lock()
                        .unwrap()
                        .extend([inbound.try_clone().unwrap(), outbound.try_clone().unwrap()]);
                    pump(&shared, inbound.try_clone().unwrap(), outbound.try_clone().unwrap());
                    pump(&shared, outbound, inbound);
                }
            }
        });
        Self { address, state }
    }

    /// Breaks all connections and takes no more.
    pub(crate) fn down(&self) {
        self.state.up.store(false, Ordering::SeqCst);
        for stream in self.state.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Takes connections again.
    pub(crate) fn up(&self) {
        self.state.up.store(true, Ordering::SeqCst);
    }

    /// Keeps all connections open, and holds back whatever is sent on them from now on, or no longer does.
    pub(crate) fn silence(&self, silent: bool) {
        *self.state.silent.lock().unwrap() = silent;
        self.state.speaks.notify_all();
    }

    /// Falls silent just before the next request in which this stands.
    pub(crate) fn silence_at(&self, words: &'static str) {
        *self.state.hold_at.lock().unwrap() = Some(words);
    }

    /// Whether it holds back what is sent.
    pub(crate) fn is_silent(&self) -> bool {
        *self.state.silent.lock().unwrap()
    }
}

fn pump(state: &Arc<State>, mut from: TcpStream, mut to: TcpStream) {
    let state = Arc::clone(state);
    thread::spawn(move || {
        let mut buffer = [0; 16 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let stands =
                |words: &mut &str| buffer[..length].windows(words.len()).any(|sent| sent == words.as_bytes());
            if state.hold_at.lock().unwrap().take_if(stands).is_some() {
                *state.silent.lock().unwrap() = true;
            }
            drop(state.speaks.wait_while(state.silent.lock().unwrap(), |silent| *silent).unwrap());
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
