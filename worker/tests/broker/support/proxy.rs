//! A server that can be taken away: a TCP proxy in front of the real one.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// Forwards connections while it is up.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

struct State {
    up: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// A proxy for `target`, that is up or not.
    pub(crate) fn start(target: String, up: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { up: AtomicBool::new(up), open: Mutex::new(Vec::new()) });
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
                    pump(inbound.try_clone().unwrap(), outbound.try_clone().unwrap());
                    pump(outbound, inbound);
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
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
}
