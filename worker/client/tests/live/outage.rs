//! Connections that are lost, and what is made of it.

use crate::support::{Proxy, delete, setting, unique};
use celery_client::results::{RedisResults, ResultStoreAddress};
use celery_client::{BrokerAddress, Celery, TaskMeta, connect, queue};
use std::net::ToSocketAddrs;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

async fn proxy(host: &str, port: u16) -> Proxy {
    Proxy::to((host, port).to_socket_addrs().unwrap().next().unwrap()).await
}

async fn broker() -> (Proxy, BrokerAddress) {
    let mut address: BrokerAddress = setting("AMQP_URL").parse().unwrap();
    let proxy = proxy(&address.host, address.port).await;
    (address.host, address.port) = ("127.0.0.1".into(), proxy.port);
    (proxy, address)
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
async fn sending_outlasts_a_short_loss_of_the_broker() {
    let name = unique("client-test");
    let (proxy, address) = broker().await;
    let celery = Celery::builder(address).default_queue(&*name).connect().await.unwrap();
    celery.send_task("tk.add", &(1, 2), &()).await.unwrap();
    // The client learns of it by sending, or just before.
    for _ in 0..3 {
        let (sent, ()) =
            tokio::join!(celery.send_task("tk.add", &(1, 2), &()), proxy.cut_for(Duration::from_millis(100)));
        sent.unwrap();
        celery.send_task("tk.add", &(1, 2), &()).await.unwrap();
    }
    let direct = connect(&setting("AMQP_URL").parse().unwrap(), "test").await.unwrap();
    let ready = queue::inspect(&direct, &name).await.unwrap().ready;
    assert!((7..=10).contains(&ready), "{ready} messages: none lost, some perhaps twice");
    delete(&name).await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ and Redis: AMQP_URL, REDIS_URL"]
async fn waiting_outlasts_a_loss_of_redis() {
    let ResultStoreAddress::Redis(direct) = setting("REDIS_URL").parse().unwrap() else {
        panic!("not Redis")
    };
    let proxy = proxy(&direct.host, direct.port).await;
    let mut address = direct.clone();
    (address.host, address.port) = ("127.0.0.1".into(), proxy.port);
    let celery = Celery::builder(setting("AMQP_URL").parse().unwrap())
        .results(ResultStoreAddress::Redis(address))
        .connect()
        .await
        .unwrap();
    let workers = RedisResults::connect(&direct).await.unwrap();
    let store = async |id: &str| {
        let value = serde_json::value::to_raw_value("done").unwrap();
        workers.store(&TaskMeta::success(id, value, jiff::Timestamp::now())).await.unwrap();
    };
    let ids: [String; 3] = std::array::from_fn(|_| unique("client-test"));
    let wait = async |id: &String| celery.result(id).get::<String>(PATIENCE).await.unwrap();
    let outage = async {
        // Long enough for all three to be subscribed.
        tokio::time::sleep(Duration::from_millis(200)).await;
        store(&ids[0]).await;
        tokio::join!(proxy.cut_for(Duration::from_millis(500)), store(&ids[1]));
        tokio::time::sleep(Duration::from_millis(200)).await;
        store(&ids[2]).await;
    };
    let (first, second, third, ()) = tokio::join!(wait(&ids[0]), wait(&ids[1]), wait(&ids[2]), outage);
    assert_eq!([first, second, third], ["done", "done", "done"]);
    for id in &ids {
        workers.forget(id).await.unwrap();
    }
}
